"""What would stop a run only after hours is looked at before it starts."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from mvc.amounts import needs_back_captions
from mvc.arms import parse_arm
from mvc.config import Experiment
from mvc.errors import ConfigError, DataError
from mvc.storage import read_json

COMPARING = ("classify", "report")
"""Stages that need classifiers to be compared."""
_USUAL_SIDE = 224
"""Side in pixels that a backbone is looked at with where nothing says another."""
BEFORE_GENERATION = ("data", "caption", "back_caption", "train")


def _check_generation(experiment: Experiment) -> None:
    """What generation and its filters would miss only after fine-tuning."""
    generate, looks = experiment.generate, experiment.filter
    if generate.sources.get("import", 0.0) > 0 and not Path(generate.import_path or "").is_dir():
        raise ConfigError(
            f"generate.import_path: {generate.import_path} is not a folder", do="give a folder of class folders"
        )
    if generate.sources.get("instruct_pix2pix", 0.0) > 0 and generate.edit_model is not None:
        from mvc.models import resolve_base

        resolve_base(generate.edit_model, key="generate.edit_model")
    back = experiment.back_captioning
    if needs_back_captions(experiment) and back.model is not None:
        from mvc.text_to_image import find_text_to_image

        find_text_to_image(back.model, None, "back_captioning.model")
    if generate.compile:
        from mvc.compiling import require_compiler

        require_compiler("generate.compile")
    for key, spec in (("filter.extractor", looks.extractor), ("filter.clip", looks.clip)):
        if spec not in (None, "auto", "tiny"):
            from mvc.extractors import find_extractor

            find_extractor(spec or "", key)


def check_experiment(experiment: Experiment, until: str) -> None:
    """Check what classifiers will need against what generation will make.

    Args:
        experiment: the resolved experiment.
        until: name of the last stage that is asked for.

    Raises:
        ConfigError: an arm needs a source that is not in generate.sources, or a place that is named is missing.
        EnvironmentFault: a model that generation or a filter needs is missing or damaged, or there is no compiler.
    """
    if until not in BEFORE_GENERATION:
        _check_generation(experiment)
    if until not in COMPARING:
        return
    sources = [name for name, share in experiment.generate.sources.items() if share > 0]
    for arm in experiment.classify.arms:
        source = parse_arm(arm).source
        if source and source not in sources:
            raise ConfigError(
                f"classify.arms: '{arm}' needs images of the source {source}",
                why=f"generate.sources makes only {', '.join(sources)}",
                do=f"leave the arm out, or set generate.sources={{finetuned: 0.5, {source}: 0.5}}"
                if source != "finetuned"
                else "leave the arm out, or give finetuned a share in generate.sources",
            )
    for backbone in experiment.classify.backbones:
        if backbone != "auto":
            size = experiment.classify.image_size or experiment.data.image_size or _USUAL_SIDE
            import_module("mvc.classify.backbones").check_backbone(backbone, size, experiment.classify.pretrained)
    weights = experiment.classify.weights
    if weights is not None and not Path(weights).is_file():
        raise ConfigError(f"classify.weights: {weights} is missing", do="give a safetensors file, or leave it out")
    if experiment.classify.clip is not None:
        import_module("mvc.classify.clip_classifier").clip_digest(experiment.classify.clip)


def check_splits(run: Path, until: str) -> None:
    """Check that the frozen splits allow a comparison.

    Args:
        run: the run folder, its data stage finished.
        until: name of the last stage that is asked for.

    Raises:
        DataError: there is no test image.
    """
    if until not in COMPARING:
        return
    summary = read_json(run / "data" / "summary.json")
    if not summary["used"]["test"]:
        raise DataError(
            f"{summary['root']} gives no test image, so classifiers cannot be compared",
            why="the classes are too small for a share of data.test_share, and one image must stay for training",
            do="add images or a test folder, or stop at the synthetic set with `mvc generate`",
        )
