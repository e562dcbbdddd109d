"""The stages of a run in their order, and what each depends on."""

from __future__ import annotations

from dataclasses import dataclass

from mvc.config_generation import FilterSection

INDEX, CAPTIONS, MODEL = "data/index.jsonl", "captions.jsonl", "model/manifest.json"
BACK_CAPTIONS = "back_captions.jsonl"
POOL, SYNTHETIC = "synthetic/candidates.jsonl", "synthetic/train/metadata.jsonl"
QUALITY, VERDICT = "quality/quality.json", "results/verdict.json"
TRAIN_FREE = ("model.licence",) + tuple(
    f"train.{key}"
    for key in (
        "checkpointing_steps",
        "checkpoints_total_limit",
        "max_skipped_steps",
        "ema_device",
        "attention",
        "gradient_checkpointing",
        "channels_last",
        "compile",
        "validation_samples",
        "validation_steps",
        "sample_steps",
        "sample_images",
        "report_to",
        "publish",
    )
)
"""Keys that say how to train and what to look at, not what comes out; checkpoints go on when they change."""


@dataclass(frozen=True)
class Stage:
    """One stage of a run.

    Attributes:
        name: name of its command.
        function: dotted path of the function that does it, imported only when it runs.
        settings: keys, or whole sections, of the experiment that its result depends on.
        inputs: files of the run whose content it depends on.
        result: the file that exists once it is finished.
        outputs: what `--redo` removes.
        free: keys that may change on a finished run: the stage then adds to what is there.
        anew: an unfinished one holds nothing that other settings could spoil.
        shared: several processes do it together; process 0 does all others alone.
        whole: dotted path of a function of the run that looks whether all of the result is still there.
    """

    name: str
    function: str
    settings: tuple[str, ...]
    inputs: tuple[str, ...]
    result: str
    outputs: tuple[str, ...]
    free: tuple[str, ...] = ()
    anew: bool = False
    shared: bool = False
    whole: str = ""


SHOWN_RESULTS = ("results/table.csv", "results/ratios.json", "results/leaks.json", "test_openings.jsonl")
"""What the page shows of the comparison besides its verdict."""

STAGES = (
    Stage(
        "data",
        "mvc.data_stage:run_data",
        ("data",),
        (),
        INDEX,
        ("data",),
        ("data.image_size", "data.licence"),
        anew=True,
    ),
    Stage(
        "caption",
        "mvc.caption_stage:run_caption",
        ("captions", "data.class_names"),
        (INDEX,),
        CAPTIONS,
        (CAPTIONS,),
        ("captions.batch_size",),
        anew=True,
    ),
    Stage(
        "back_caption",
        "mvc.generate.back_caption_stage:run_back_caption",
        (
            "run.seed",
            "back_captioning",
            "captions.prefix",
            "captions.model",
            "captions.revision",
            "data.class_names",
            "data.background",
        ),
        (INDEX,),
        BACK_CAPTIONS,
        (BACK_CAPTIONS,),
        ("back_captioning.imaginations", "back_captioning.model"),
        anew=True,
    ),
    Stage(
        "train",
        "mvc.train.stage:run_train",
        ("run.seed", "data.image_size", "mixing", "model", "train"),
        (INDEX, CAPTIONS),
        MODEL,
        ("checkpoints", "model", "lora", "logs", "samples"),
        TRAIN_FREE,
        shared=True,
    ),
    Stage(
        "generate",
        "mvc.generate.stage:run_generate",
        (
            "run.seed",
            "data.image_size",
            "mixing",
            "model",
            "generate",
            "filter",
            "back_captioning.imaginations",
            "back_captioning.model",
        ),
        (INDEX, CAPTIONS, MODEL, BACK_CAPTIONS),
        POOL,
        ("synthetic", "preview"),
        (
            "model.licence",
            *(
                f"generate.{key}"
                for key in ("per_real", "per_class", "balance", "preview", "batch_size", "num_processes")
            ),
            *(f"filter.{key}" for key in FilterSection.model_fields),
        ),
        shared=True,
        whole="mvc.candidates:all_there",
    ),
    Stage(
        "filter",
        "mvc.generate.filter_stage:run_filter",
        ("filter", "data.licence", "model.licence"),
        (INDEX, POOL),
        SYNTHETIC,
        (SYNTHETIC, *(f"synthetic/{name}" for name in ("README.md", "summary.json", "rejected.jsonl"))),
        ("filter",),
    ),
    Stage(
        "quality",
        "mvc.generate.quality_stage:run_quality",
        ("quality", "filter.extractor"),
        (INDEX, SYNTHETIC),
        QUALITY,
        ("quality",),
        ("quality",),
    ),
    Stage(
        "classify",
        "mvc.classify.stage:run_classify",
        ("data.image_size", "classify"),
        (INDEX, SYNTHETIC),
        VERDICT,
        ("results",),
        ("classify",),
        shared=True,
    ),
    Stage(
        "report",
        "mvc.report.page:write_report",
        ("report",),
        (INDEX, CAPTIONS, MODEL, SYNTHETIC, "synthetic/summary.json", QUALITY, VERDICT, *SHOWN_RESULTS),
        "report/index.html",
        ("report",),
        ("report",),
    ),
)
