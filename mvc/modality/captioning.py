"""Image -> text by an image-to-text model that samples, with words for it to begin with, such as the class.

A captioner says "a cat" of a Persian cat; given "a photo of a Persian cat" it goes on from there (Sec. 3.2 of
Back-Modality). Other seeds give other captions of the same image: multi-captioning.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import torch
from PIL import Image
from transformers import LogitsProcessorList

from mvc.captions import clean, load_image_to_text
from mvc.pretrained import find_model, identity_of
from mvc.sampling import SeededSampling
from mvc.storage import sha256_json

from .steps import Item, Output, Refused, Result, Run, Step, one_each

Describe = Callable[[Sequence[Image.Image], str, Sequence[int]], list[str]]
"""RGB images, the words to begin with, a seed for each: what is said of each behind those words."""
_WHAT = "captioning model"


def after_prompt(text: str, prompt: str) -> str:
    """What a text says behind a prompt; the whole text if it does not begin with it.

    Tokenizers change capitals and blanks, so only letters and digits are compared.
    """
    left = [sign for sign in prompt.casefold() if sign.isalnum()]
    for place, sign in enumerate(text):
        if not left:
            return text[place:].lstrip(" .,:;!?")
        if sign.isalnum():
            if sign.casefold() != left[0]:
                return text
            left.pop(0)
    return "" if not left else text


def load_describer(
    model: str | Path,
    revision: str | None,
    device: torch.device,
    key: str,
    temperature: float,
    top_p: float,
    max_new_tokens: int,
) -> Describe:
    """Load an image-to-text model of transformers (BLIP, BLIP-2, GIT) that samples its captions.

    Args:
        model: folder or hub id.
        revision: branch, tag or commit on the hub.
        device: where to compute, in float32.
        key: key that names the model, for the errors.
        temperature: of the sampling, above 0.
        top_p: words are sampled from the likeliest of so much probability, in (0, 1].
        max_new_tokens: longest caption.

    Raises:
        EnvironmentFault: as `load_image_to_text`.
    """
    processor, network = load_image_to_text(model, revision, device, key)

    def describe(images: Sequence[Image.Image], prompt: str, seeds: Sequence[int]) -> list[str]:
        words = {"text": [prompt] * len(images)} if prompt else {}
        inputs = processor(images=list(images), return_tensors="pt", **words).to(device)
        sampling = LogitsProcessorList([SeededSampling(seeds, temperature, top_p)])
        with torch.no_grad():
            tokens = network.generate(
                **inputs, max_new_tokens=max_new_tokens, do_sample=False, num_beams=1, logits_processor=sampling
            )
        said = processor.batch_decode(tokens, skip_special_tokens=True)
        return [after_prompt(clean(text), prompt) for text in said]

    return describe


def captioning_step(
    model: str | Path,
    revision: str | None,
    prompt: str,
    device: torch.device,
    key: str,
    batch_size: int,
    temperature: float = 1.0,
    top_p: float = 0.9,
    max_new_tokens: int = 40,
) -> Step:
    """The step image -> text; randomness from (seed of the output, "next token").

    Args:
        prompt: words that every caption begins with; they are cut off. Empty for none.
        batch_size: images at once.
        model, revision, device, key, temperature, top_p, max_new_tokens: as `load_describer`.

    Raises:
        EnvironmentFault: there is no such model.
    """
    return captioning_steps(model, revision, [prompt], device, key, batch_size, temperature, top_p, max_new_tokens)[0]


def captioning_steps(
    model: str | Path,
    revision: str | None,
    prompts: Sequence[str],
    device: torch.device,
    key: str,
    batch_size: int,
    temperature: float = 1.0,
    top_p: float = 0.9,
    max_new_tokens: int = 40,
) -> list[Step]:
    """A `captioning_step` for each of some prompts, all of the same network, which is loaded once."""
    folder = find_model(model, revision, _WHAT, key)
    describer = cache(lambda: load_describer(folder, None, device, key, temperature, top_p, max_new_tokens))
    return [
        Step(
            f"captioner {Path(model).name}",
            "image",
            "text",
            _loader(describer, prompt),
            sha256_json(["captioning", 1, identity_of(folder), prompt, temperature, top_p, max_new_tokens]),
            batch_size=batch_size,
        )
        for prompt in prompts
    ]


def _loader(describer: Callable[[], Describe], prompt: str) -> Callable[[], Run]:
    def load() -> Run:
        describe = describer()

        def caption(items: Sequence[Item], seeds: Sequence[int]) -> list[Result]:
            said = describe(items, prompt, seeds)
            return [Output(text) if text.strip(" .") else Refused("the captioner said nothing") for text in said]

        return one_each(caption)

    return load
