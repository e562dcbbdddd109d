"""The sections of Back-Modality: the models and augmentations that a text, or a caption, is sent through."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from mvc.config_types import Count, Positive, Rate, Section, Share

Span = tuple[float, float]
Operation = Literal["synonym", "insertion", "swap", "deletion"]
OPERATIONS: tuple[Operation, ...] = ("synonym", "insertion", "swap", "deletion")
KEEP_NOUNS = "Maintain the nouns in the following sentence intact and generate semantically diverse sentences."
"""Sec. 3.2 of Back-Modality."""
Method = Literal["back_speech", "back_imagination", "back_translation", "eda", "rewriting"]
METHODS: tuple[Method, ...] = ("back_speech", "back_imagination", "back_translation", "eda", "rewriting")


class EdaSection(Section):
    """Easy data augmentation (Wei and Zou 2019): one operation on some words of a text."""

    operations: list[Operation] = list(OPERATIONS)
    """One of these is drawn for each augmentation."""
    share: Annotated[float, Field(gt=0.0, le=1.0)] = 0.1
    """Share of the words that are changed, one at least; alpha in the paper."""
    synonyms: str | None = None
    """JSON file {word: [synonym, ...]} in place of the embedded table, which is from WordNet."""

    @field_validator("operations")
    @classmethod
    def _some(cls, value: list[Operation]) -> list[Operation]:
        if not value or len(set(value)) != len(value):
            raise ValueError("operations must hold each operation at most once, and one at least")
        return value


class SpeechSection(Section):
    """Back-speech: text to speech, other pitch and tempo, speech to text."""

    speaker: str = "flite"
    """`flite`, or a text-to-speech model of transformers (VITS, SpeechT5, FastSpeech2Conformer) by folder or id."""
    voice: str = "rms"
    """flite: name of the voice; VITS: number of the speaker; SpeechT5: safetensors file with its 512 numbers."""
    vocoder: str | None = None
    """SpeechT5: its HiFi-GAN by folder or id."""
    spoken: Positive = 1
    """l: how often a text is spoken, by a speaker that varies (VITS); flite says the same every time."""
    pitch: Span | None = (-2.0, 2.0)
    """Semitones that the pitch is shifted by, drawn from this span within -24 to 24; null shifts none."""
    stretch: Span | None = (0.85, 1.15)
    """Factor of the tempo, drawn from this span within 0.5 to 2; above 1 is faster; null stretches none."""
    variants: Positive = 16
    """m: versions of pitch and tempo of each spoken text."""
    listener: str = "pocketsphinx"
    """`pocketsphinx`, or a speech-to-text model of transformers (Wav2Vec2, Whisper) by folder or id."""
    edit_distance: Share | None = 0.2
    """Texts that differ in more than this share of their letters are dropped; null drops none."""
    processes: Positive = 1
    """pocketsphinx: how many listen at once."""

    @model_validator(mode="after")
    def _rises(self) -> Self:
        for name, span in (("pitch", self.pitch), ("stretch", self.stretch)):
            if span is not None and span[0] > span[1]:
                raise ValueError(f"{name}=[{span[0]:g}, {span[1]:g}] does not rise")
        if self.pitch is not None and not -24 <= self.pitch[0] <= self.pitch[1] <= 24:
            raise ValueError("a pitch is shifted by 24 semitones at the most")
        if self.stretch is not None and not 0.5 <= self.stretch[0] <= self.stretch[1] <= 2:
            raise ValueError("a tempo is changed by a factor from 0.5 to 2")
        return self


class ImaginationSection(Section):
    """Back-imagination: text to image, image to text."""

    model: str = "tiny"
    """Text-to-image model: `tiny` (embedded), a diffusers folder or a hub id."""
    images: Positive = 3
    """l: images of each text."""
    num_inference_steps: Positive = 20
    """Denoising steps."""
    guidance_scale: Annotated[float, Field(ge=0.0)] = 7.5
    """Guidance of the text."""
    image_size: Positive | None = None
    """Side in pixels; the model's own when absent."""
    colour: bool = True
    """Throw black and white images away and draw them again."""
    attempts: Positive = 5
    """How often an image is drawn at the most."""
    captioner: str | None = None
    """Image-to-text model by folder or id; the embedded one with `tiny` when absent."""
    prompt: str = ""
    """Words that a caption begins with; they are cut off."""
    captions: Positive = 3
    """n: captions of each image."""
    temperature: Rate = 1.0
    """Of the captions' sampling; less is surer."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 0.9
    """Captions are sampled from the likeliest words of so much probability."""
    max_new_tokens: Positive = 40
    """Longest caption in tokens."""


class TranslationSection(Section):
    """Back-translation: into another language and back."""

    forth: str = "Helsinki-NLP/opus-mt-en-de"
    """Translation model by folder or id."""
    back: str = "Helsinki-NLP/opus-mt-de-en"
    """Translation model by folder or id."""
    translations: Positive = 3
    """l: translations of each text."""
    returns: Positive = 3
    """n: translations back of each of those."""
    temperature: Rate = 1.0
    """Of the sampling."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 0.9
    """Words are sampled from the likeliest of so much probability."""
    max_new_tokens: Positive = 200
    """Longest translation in tokens."""


class ChatSection(Section):
    """An endpoint that speaks the OpenAI protocol."""

    base_url: str | None = None
    """Address of the endpoint, such as http://localhost:8000/v1; texts are sent nowhere else."""
    model: str | None = None
    """Name of the model there."""
    api_key_env: str = "OPENAI_API_KEY"
    """Environment variable that holds the key; endpoints without one need none."""
    prompt: str = KEEP_NOUNS
    """What the model is told before the sentence."""
    temperature: Annotated[float, Field(ge=0.0)] = 1.0
    """Of the sampling."""
    timeout: Rate = 60.0
    """Seconds to wait for an answer."""
    max_retries: Count = 5
    """How often a request is sent again after an error that may pass, with growing pauses."""
    max_tokens: Positive = 500
    """Longest answer in tokens."""
    requests: Positive = 4
    """Requests under way at once."""
    input_price: Annotated[float, Field(ge=0.0)] = 0.0
    """Price of a million tokens sent, for the estimate that is shown beforehand."""
    output_price: Annotated[float, Field(ge=0.0)] = 0.0
    """Price of a million tokens received."""


class LanguageModelSection(Section):
    """A causal language model of transformers on this machine."""

    model: str | None = None
    """Folder or hub id; one with a chat template is spoken to as a chat."""
    prompt: str = KEEP_NOUNS
    """What the model is told before the sentence."""
    temperature: Rate = 1.0
    """Of the sampling."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 0.9
    """Words are sampled from the likeliest of so much probability."""
    max_new_tokens: Positive = 80
    """Longest answer in tokens."""


class RewritingSection(Section):
    """H of back-captioning, and an augmentation of texts by itself: other words, the same nouns."""

    rewriter: Literal["eda", "chat", "language_model"] = "eda"
    """eda: one operation on some words but the nouns, offline; chat: an endpoint; language_model: a model here."""
    rewrites: Positive = 8
    """m: rewrites of each text."""


class BackCaptioningSection(Section):
    """The source back_captioning: real image -> captions with the class in the prompt -> rewritten -> other images."""

    captions: Positive = 2
    """l: captions of each training image (multi-captioning)."""
    prompt: str = "this is an image of {class_name}."
    """Words that the captioner goes on from; empty leaves the class to captions.prefix alone."""
    captioner: str | None = None
    """Image-to-text model by folder or id; captions.model, or the embedded one with the embedded base, when absent."""
    temperature: Rate = 1.0
    """Of the captions' sampling; less is surer."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 0.9
    """Captions are sampled from the likeliest words of so much probability."""
    max_new_tokens: Positive = 40
    """Longest caption in tokens."""
    rewriter: Literal["none", "eda", "chat", "language_model"] = "eda"
    """H: how captions are rewritten, nouns being kept; none draws from the captions as they are."""
    rewrites: Positive = 2
    """m: rewrites of each caption."""
    imaginations: Positive = 2
    """n: images of each rewrite (multi-imagination)."""
    model: str | None = None
    """G: any text-to-image model of diffusers by folder or id; model.base when absent."""
    eda: EdaSection = EdaSection()
    """Of the rewriter eda."""
    chat: ChatSection = ChatSection()
    """Of the rewriter chat."""
    language_model: LanguageModelSection = LanguageModelSection()
    """Of the rewriter language_model."""

    @property
    def texts(self) -> int:
        """Texts of each image, l x m."""
        return self.captions * (1 if self.rewriter == "none" else self.rewrites)


class AugmentSection(Section):
    """How texts are augmented: a method, and the settings of all methods."""

    method: Method = "eda"
    """What is done to a text."""
    augmentations_per_sample: Positive = 5
    """Augmentations of each text, chosen uniformly among all that the method makes of it."""
    max_characters: Positive = 1000
    """Longer texts are refused."""
    batch_size: Positive = 16
    """Texts, images or sounds that a model does at once."""
    eda: EdaSection = EdaSection()
    """Of the method eda, and of rewriting by eda."""
    speech: SpeechSection = SpeechSection()
    """Of the method back_speech."""
    imagination: ImaginationSection = ImaginationSection()
    """Of the method back_imagination."""
    translation: TranslationSection = TranslationSection()
    """Of the method back_translation."""
    rewriting: RewritingSection = RewritingSection()
    """Of the method rewriting."""
    chat: ChatSection = ChatSection()
    """Of rewriting by chat."""
    language_model: LanguageModelSection = LanguageModelSection()
    """Of rewriting by language_model."""
