"""The sections of the experiment that are about synthetic images: making, filtering, measuring and choosing them."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self, get_args

from pydantic import Field, field_validator, model_validator

from mvc.config_types import Count, Positive, Scale, Section, Share

SourceName = Literal["finetuned", "pretrained", "sdedit", "instruct_pix2pix", "back_captioning", "import"]
SOURCES: tuple[SourceName, ...] = get_args(SourceName)
PREVIEWED = ("finetuned", "pretrained")
"""Sources that the report shows a few images of where the set has none."""


class GenerateSection(Section):
    """The synthetic set: how much, from which sources, how it is denoised."""

    per_real: Annotated[float, Field(ge=0.0)] = 4.0
    """Synthetic images per real training image, over all sources."""
    per_class: Positive | None = None
    """Synthetic images of each class, in place of per_real."""
    balance: bool = False
    """Give small classes more, until real and synthetic images together are as many in each class as in the largest."""
    sources: dict[SourceName, Share] = {"finetuned": 1.0}
    """Share of each source; shares add up to 1."""
    scheduler: Literal["dpmsolver++", "unipc", "ddim", "euler"] = "dpmsolver++"
    """Sampler; all are deterministic given the noise, and so is ddim with eta given the noise of its steps."""
    num_inference_steps: Positive = 20
    """Denoising steps."""
    guidance: Literal["paper", "dual"] = "paper"
    """paper: Eq. (6) with guidance_scale alone; dual: text and image guidance apart."""
    guidance_scale: Scale = 1.5
    """w of Eq. (6), 7.5 in the paper, or the text guidance of `dual`; 1 is none; [low, high] draws one an image."""
    image_guidance_scale: Scale = 1.5
    """Image guidance of `dual` and of the source `instruct_pix2pix`; [low, high] draws one for each image."""
    pretrained_guidance_scale: Scale = 7.5
    """Text guidance of the sources `pretrained`, `sdedit`, `instruct_pix2pix` and `back_captioning`."""
    guidance_interval: tuple[Share, Share] = (0.0, 1.0)
    """Guidance acts between these shares of the noise schedule, 0 being clean; outside one pass is made."""
    eta: Share = 0.0
    """Noise added in each step of the scheduler ddim: 0 none, 1 as much as DDPM."""
    sdedit_strength: Annotated[float, Field(gt=0.0, le=1.0)] = 0.6
    """sdedit: share of the noise schedule that a real image is sent back through."""
    edit_model: str | None = None
    """instruct_pix2pix: its model, a folder or hub id; model.base where that one has 8 channels."""
    edit_instruction: str = "make it another {class_name}"
    """instruct_pix2pix: what to do to a real image."""
    import_path: str | None = None
    """import: folder of class folders with images that another tool made."""
    batch_size: Positive = 16
    """Images denoised at once; halved by itself where memory is too small."""
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    """Precision of the UNet and, but for fp16, of decoding; images that are not finite are made again in float32."""
    channels_last: bool = False
    """Keep images channels last in memory; faster on NVIDIA GPUs at half precision."""
    compile: bool = False
    """torch.compile the UNet: minutes at the start, faster steps."""
    num_processes: Positive = 1
    """Processes on this machine that share the images, each with a device of its own where there are several."""
    preview: Count = 8
    """Images a class of the sources finetuned and pretrained where they are not in the set, for the report alone."""

    @field_validator("sources")
    @classmethod
    def _shares_add_up(cls, value: dict[str, float]) -> dict[str, float]:
        total = sum(value.values())
        if abs(total - 1.0) > 1e-6:
            raise ValueError(f"the shares add up to {total:g}, not 1")
        return value

    @field_validator("guidance_scale", "image_guidance_scale", "pretrained_guidance_scale", "guidance_interval")
    @classmethod
    def _rises(cls, value: float | tuple[float, float]) -> float | tuple[float, float]:
        if isinstance(value, tuple) and value[0] > value[1]:
            raise ValueError(f"[{value[0]:g}, {value[1]:g}] does not rise")
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.per_class is not None and self.balance:
            raise ValueError("per_class and balance exclude each other: give one")
        if self.per_real == 0 and self.per_class is None and not self.balance:
            raise ValueError("per_real=0 asks for no image; set it above 0, or balance=true or per_class")
        if self.eta > 0 and self.scheduler != "ddim":
            raise ValueError(f"eta={self.eta:g} needs scheduler=ddim; {self.scheduler} adds no noise in its steps")
        if self.sources.get("import") and self.import_path is None:
            raise ValueError("the source import needs import_path, a folder of class folders")
        return self


class FilterSection(Section):
    """Which synthetic images are refused, and how often a refused one is drawn again.

    Not finite and blank images, and near copies of validation and test images, are always refused.
    """

    attempts: Positive = 3
    """How often an image is drawn before it counts as a shortfall."""
    extractor: str = "auto"
    """What likeness is judged by: `tiny`, a CLIP folder, open_clip:NAME:FILE or timm:NAME:FILE; auto is tiny."""
    false_reject_rate: Annotated[float, Field(ge=0.0, lt=0.5)] = 0.05
    """Absent thresholds of class and colour are set so that a filter would refuse this share of the real images."""
    copies: bool = True
    """Refuse near copies of training images."""
    copy_bits: Count = 4
    """Differing bits of 64, of perceptual hashes, up to which two images can be near copies."""
    copy_similarity: Annotated[float, Field(ge=-1.0, le=1.0)] | None = None
    """Cosine similarity of features from which they are; found by copies made on trial when absent."""
    repeats: bool = True
    """Refuse near copies of an accepted synthetic image of the same class."""
    colour: bool = False
    """Refuse grey images of classes that are coloured."""
    clip: str | None = None
    """CLIP by which an image is nearer to its class than to others and negative_prompts; as extractor, but no timm."""
    clip_threshold: float | None = None
    """Least margin of similarity."""
    negative_prompts: list[str] = ["a blank image", "a blurry image", "random noise", "text"]
    """clip: what an image must not look like."""
    classifier: bool = True
    """Refuse images that a classifier of features, trained on other real images than theirs, sees in another class."""
    classifier_threshold: Share | None = None
    """Least probability of the class."""


class QualitySection(Section):
    """Figures of the synthetic set against real images that no training saw."""

    extractor: str = "auto"
    """As filter.extractor; auto is the filter's."""
    neighbours: Positive = 5
    """k of precision, recall, density and coverage."""


class TuneSection(Section):
    """`mvc tune`: a small grid over sampling and fine-tuning checkpoints, judged on validation images."""

    grid: dict[str, list[Any]] = {"generate.guidance_scale": [1.0, 1.5, 3.0], "mixing.coarse": [0, 2]}
    """Values of keys of mixing and generate, and of `checkpoint` (fine-tuning steps); all combinations are tried."""
    points: list[dict[str, Any]] = []
    """Named settings in place of the grid, such as {generate.guidance_scale: 2, checkpoint: 200}."""
    per_class: Positive = 8
    """Images of each class drawn at each point."""
    classifier_steps: Count = 0
    """Train a classifier of so many steps at each point; 0 trains none."""
    classifier_seeds: Positive = 3
    """How many, by model seed."""
