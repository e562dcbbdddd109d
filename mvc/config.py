"""The experiment: one typed, frozen schema whose every key has a default that works.

Reading YAML files and command-line overrides into it is config_file.py's business.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from mvc.config_augment import BackCaptioningSection
from mvc.config_classify import ClassifySection
from mvc.config_generation import FilterSection, GenerateSection, QualitySection, TuneSection
from mvc.config_types import Count, Positive, Rate, Section, Share


class RunSection(Section):
    """Where the run lives and what it depends on."""

    dir: str = ""
    """Run folder; empty means runs/<name of the experiment file or data folder>."""
    seed: Count = 0
    """Seed of captioning, fine-tuning and generation; classifiers have their own seeds."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """auto takes an accelerator where there is one."""


class DataSection(Section):
    """The user's images: a folder of class folders, or the embedded `digits`."""

    path: str = ""
    """Folder of class folders, or `digits`; `--data` sets it."""
    shots: Positive | None = None
    """Training images a class (few-shot); the whole training split when absent."""
    seed: Count = 0
    """Seed of splits and few-shot subsets."""
    image_size: Positive | None = None
    """Side in pixels that the diffusion model works at; the base model's own when absent."""
    validation_share: Annotated[float, Field(gt=0.0, lt=0.9)] = 0.2
    """Share of the training images that becomes the validation split where the folder has none."""
    test_share: Annotated[float, Field(gt=0.0, lt=0.9)] = 0.2
    """Share of all images that becomes the test split where the folder has none."""
    class_names: dict[str, str] = {}
    """Folder name -> words for captions, where the folder name is a code."""
    background: Annotated[str, Field(pattern=r"^(white|black|gr[ae]y|#[0-9a-fA-F]{6})$")] = "white"
    """Colour put behind transparent pixels."""
    group_pattern: str | None = None
    """Regular expression with one group, searched in each image's path: images of a group (a patient) stay together."""
    group_column: str | None = None
    """Column of metadata.jsonl that names each image's group, in place of group_pattern."""
    folds: Annotated[int, Field(ge=2)] | None = None
    """Test on one of so many stratified folds in place of a share; only where the folder has no test split."""
    fold: Count = 0
    """Which fold, from 0."""
    on_bad: Literal["error", "skip"] = "error"
    """What to do with images that cannot be decoded: stop and list all, or skip and count them."""
    licence: str = ""
    """Terms of the images, for the data card of the synthetic set."""


class CaptionsSection(Section):
    """One caption an image, after the prefix that names the class."""

    captioner: Literal["auto", "file", "template", "blip"] = "auto"
    """auto: `file` where the data has metadata.jsonl, else `blip` where a model is known, else `template`."""
    model: str | None = None
    """Image-to-text model by id or path; the embedded one with the embedded base when absent."""
    revision: str | None = None
    """Revision of a hub id."""
    prefix: str = "This is an image of {class_name}."
    """First words of every caption; must contain {class_name}."""
    max_new_tokens: Positive = 40
    """Longest description in tokens."""
    num_beams: Positive = 1
    """1 is greedy decoding."""
    batch_size: Positive = 16
    """Images captioned at once."""

    @field_validator("prefix")
    @classmethod
    def _names_the_class(cls, value: str) -> str:
        if "{class_name}" not in value:
            raise ValueError("the prefix must contain {class_name}")
        return value


class MixingSection(Section):
    """Mixing Visual Concepts, Algorithm 1: P coarse and Q fine replacements."""

    coarse: Count = 2
    """P: how many times a range of token rows is replaced."""
    fine: Count = 8
    """Q: how many times a range of columns of one row is replaced."""
    rows: Literal["all", "content"] = "all"
    """all: any of the 77 rows; content: only rows up to the captions' end-of-text token."""


class ModelSection(Section):
    """The pre-trained Stable Diffusion."""

    base: str = "tiny"
    """`tiny` (embedded), a diffusers folder, a .safetensors file in the original layout, or a hub id."""
    revision: str | None = None
    """Revision of a hub id."""
    config: str | None = None
    """For a file: folder or hub id of its configurations and tokenizer; the usual one of its kind when absent."""
    image_latents_scaled: bool = False
    """Multiply the condition latents by the VAE's scaling factor; InstructPix2Pix weights expect no."""
    licence: str = ""
    """Terms of the base model, for the data card of the synthetic set."""


class TrainSection(Section):
    """Fine-tuning of the UNet on same-class pairs."""

    max_train_steps: Positive | None = None
    """Optimisation steps; when absent, so many as show each training image `passes` times."""
    passes: Rate = 128.0
    """How often each training image is shown where max_train_steps is absent; more learn few images by heart."""
    train_batch_size: Positive = 16
    """Global batch of one forward pass, over all processes."""
    gradient_accumulation_steps: Positive = 1
    """Batches whose gradients are averaged into one step."""
    learning_rate: Rate = 1e-4
    """Peak learning rate of AdamW."""
    lr_scheduler: Literal["constant", "linear", "cosine", "constant_with_warmup"] = "constant_with_warmup"
    """Shape of the learning rate over the steps."""
    lr_warmup_steps: Count = 20
    """Steps over which the learning rate rises."""
    adam_beta1: Share = 0.9
    """AdamW's first beta."""
    adam_beta2: Share = 0.999
    """AdamW's second beta."""
    adam_weight_decay: Annotated[float, Field(ge=0.0)] = 1e-2
    """AdamW's weight decay."""
    adam_epsilon: Rate = 1e-8
    """AdamW's epsilon."""
    max_grad_norm: Rate = 1.0
    """Gradients are clipped to this norm."""
    conditioning_dropout_prob: Annotated[float, Field(ge=0.0, le=1 / 3)] = 0.05
    """u: text alone, both, and image alone are dropped with this probability each."""
    pairing: Literal["same_class", "self"] = "same_class"
    """same_class: x' is another image of the class; self: x' = x, the paper's first attempt."""
    max_skipped_steps: Count = 10
    """Steps whose loss or gradient is not finite are skipped and counted; one more than these ends the training."""
    method: Literal["full", "lora"] = "full"
    """full: all weights of the UNet; lora: low-rank additions (peft) and the whole first convolution."""
    lora_rank: Positive = 16
    """lora: rank of the additions."""
    lora_alpha: Rate | None = None
    """lora: their scale is lora_alpha / lora_rank; lora_rank when absent."""
    lora_targets: list[str] = ["to_q", "to_k", "to_v", "to_out.0"]
    """lora: names, or ends of names, of the layers that get one."""
    lora_dora: bool = False
    """lora: also learn the length of each weight column (DoRA)."""
    snr_gamma: Rate | None = None
    """Gamma of the min-SNR weights of the loss, usually 5; all timesteps count alike when absent."""
    noise_offset: Annotated[float, Field(ge=0.0)] = 0.0
    """Standard deviation of what is added to the noise of a whole channel, for very dark or bright images."""
    rescale_betas_zero_snr: bool = False
    """End the noise schedule at pure noise; for v-prediction only."""
    use_ema: bool = True
    """Publish the moving average of the weights."""
    ema_decay: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.999
    """Largest decay of the moving average; it warms up from 0.1."""
    ema_device: Literal["model", "cpu"] = "model"
    """Where the moving average lies; cpu saves the accelerator's memory and costs time."""
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    """Precision of the forward and backward pass."""
    optimizer: Literal["adamw", "adamw8bit"] = "adamw"
    """adamw8bit keeps the moments in a quarter of the memory; it needs bitsandbytes."""
    attention: Literal["sdpa", "xformers"] = "sdpa"
    """Implementation of attention; xformers needs its package and a CUDA device."""
    gradient_checkpointing: bool = False
    """Compute activations twice in place of keeping them: less memory, a third more work."""
    channels_last: bool = False
    """Keep images channels last in memory; faster on NVIDIA GPUs at half precision."""
    compile: bool = False
    """torch.compile the UNet: minutes at the start, faster steps."""
    random_flip: bool = False
    """Mirror x and x' independently; wrong for digits, text and laterality."""
    random_crop: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.15
    """Crop x and x' independently to a random scale of at least 1 - random_crop of the side."""
    transforms: Positive = 4
    """How many differently cropped copies of each image the latents cache holds when random_crop > 0."""
    checkpointing_steps: Positive = 250
    """A checkpoint every so many steps."""
    checkpoints_total_limit: Annotated[int, Field(ge=2)] = 2
    """Newest checkpoints kept, never fewer than two; the best one is kept besides."""
    validation_share: Annotated[float, Field(ge=0.0, le=0.5)] = 0.1
    """Share of each class's training images that is kept from fine-tuning for the validation loss, rounded down."""
    validation_samples: Count = 64
    """Fixed samples of the validation loss; 0 computes none, and validation_share should be 0 then."""
    validation_steps: Positive = 100
    """The validation loss every so many steps, and at each checkpoint."""
    publish: Literal["last", "best"] = "last"
    """Publish the last weights, or those of the checkpoint with the least validation loss."""
    sample_steps: Count = 0
    """Draw the same few images every so many steps, to look at; 0 draws none."""
    sample_images: Positive = 8
    """How many images that is."""
    report_to: list[Literal["tensorboard", "wandb", "mlflow", "comet_ml", "clearml", "aim", "swanlab", "trackio"]] = []
    """Also send the log to these trackers, through accelerate; run/logs/train.jsonl is always written."""

    @property
    def steps(self) -> int:
        """Optimisation steps, once `mvc.amounts.with_steps` has settled them.

        Raises:
            ValueError: it has not.
        """
        if self.max_train_steps is None:
            raise ValueError("the number of training images, and so of steps, is not known yet")
        return self.max_train_steps


class ReportSection(Section):
    """The HTML page."""

    samples: Positive = 8
    """Images shown per class and row."""
    classes: Positive = 12
    """Classes shown; the first ones when there are more."""


class Experiment(Section):
    """One experiment: everything that a run depends on."""

    run: RunSection = RunSection()
    data: DataSection = DataSection()
    captions: CaptionsSection = CaptionsSection()
    mixing: MixingSection = MixingSection()
    model: ModelSection = ModelSection()
    train: TrainSection = TrainSection()
    back_captioning: BackCaptioningSection = BackCaptioningSection()
    generate: GenerateSection = GenerateSection()
    filter: FilterSection = FilterSection()
    quality: QualitySection = QualitySection()
    tune: TuneSection = TuneSection()
    classify: ClassifySection = ClassifySection()
    report: ReportSection = ReportSection()
