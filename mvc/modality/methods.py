"""From the sections of an experiment to the steps and chains that they describe; nothing is loaded here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from mvc.config_augment import AugmentSection, ChatSection, EdaSection, LanguageModelSection
from mvc.errors import ConfigError
from mvc.progress import say

from .chain import Chain
from .eda import eda_step
from .edit_distance import same_words
from .nodes import Level
from .steps import Step


def rewriting_step(
    rewriter: str,
    eda: EdaSection,
    chat: ChatSection,
    language_model: LanguageModelSection,
    rewrites: int,
    device: torch.device,
    batch_size: int,
) -> Step:
    """H of back-captioning: text -> text that keeps its nouns.

    Args:
        rewriter: "eda", "chat" or "language_model".
        eda, chat, language_model: settings of each.
        rewrites: of each text.
        device: where a language model computes.
        batch_size: texts that it does at once.

    Raises:
        ConfigError: it lacks its endpoint or model.
        EnvironmentFault: there is no such model.
    """
    if rewriter == "chat":
        from .chat import chat_step

        return chat_step(
            base_url=chat.base_url,
            model=chat.model,
            api_key_env=chat.api_key_env,
            prompt=chat.prompt,
            temperature=chat.temperature,
            timeout=chat.timeout,
            max_retries=chat.max_retries,
            max_tokens=chat.max_tokens,
            requests=chat.requests,
            # One answer for each request at once: an error or a stop costs no more than those.
            batch_size=chat.requests * rewrites,
        )
    if rewriter == "language_model":
        from .language_model import language_model_step

        return language_model_step(
            model=language_model.model,
            revision=None,
            prompt=language_model.prompt,
            temperature=language_model.temperature,
            top_p=language_model.top_p,
            max_new_tokens=language_model.max_new_tokens,
            device=device,
            batch_size=batch_size,
        )
    return _eda(eda, keep_nouns=True)


def _eda(eda: EdaSection, keep_nouns: bool) -> Step:
    synonyms = None if eda.synonyms is None else Path(eda.synonyms)
    return eda_step(eda.operations, eda.share, synonyms, keep_nouns)


def say_estimate(rewriter: str, chat: ChatSection, texts: Sequence[str], rewrites: int) -> None:
    """Say what the requests to an endpoint will amount to, before the first one is sent.

    Args:
        rewriter: nothing is said of others than "chat".
        chat: its settings, with the prices.
        texts: what will be rewritten.
        rewrites: of each.
    """
    if rewriter == "chat":
        from .chat import chat_estimate

        estimate = chat_estimate(texts, rewrites, chat.prompt, chat.max_tokens, chat.input_price, chat.output_price)
        say(estimate.describe(str(chat.base_url), str(chat.model)))


def text_chain(settings: AugmentSection, device: torch.device) -> Chain:
    """The chain text -> text of a method.

    Args:
        settings: the method and its settings.
        device: where models compute.

    Raises:
        ConfigError: steps do not fit, or one lacks its endpoint or model.
        EnvironmentFault: there is no such model.
    """
    return Chain(_levels(settings, device), settings.augmentations_per_sample, same_words)


def _levels(settings: AugmentSection, device: torch.device) -> list[Level]:
    if settings.method == "back_speech":
        return _back_speech(settings, device)
    if settings.method == "back_imagination":
        return _back_imagination(settings, device)
    if settings.method == "back_translation":
        return _back_translation(settings, device)
    if settings.method == "eda":
        # Twice as many as are taken: some come out equal.
        return [Level(_eda(settings.eda, keep_nouns=False), 2 * settings.augmentations_per_sample)]
    rewriting = settings.rewriting
    step = rewriting_step(
        rewriting.rewriter,
        settings.eda,
        settings.chat,
        settings.language_model,
        rewriting.rewrites,
        device,
        settings.batch_size,
    )
    return [Level(step, rewriting.rewrites)]


def _back_speech(settings: AugmentSection, device: torch.device) -> list[Level]:
    from .back_speech import back_speech_levels

    return back_speech_levels(
        **settings.speech.model_dump(),
        device=device,
        batch_size=settings.batch_size,
        max_characters=settings.max_characters,
    )


def _back_imagination(settings: AugmentSection, device: torch.device) -> list[Level]:
    from mvc.tiny import WEIGHTS

    from .captioning import captioning_step
    from .imagination import colour_filter, imagination_step

    own = settings.imagination
    draw = imagination_step(
        own.model,
        own.num_inference_steps,
        own.guidance_scale,
        own.image_size,
        device,
        settings.batch_size,
        settings.max_characters,
    )
    captioner = own.captioner or (str(WEIGHTS / "captioner") if own.model == "tiny" else None)
    if captioner is None:
        raise ConfigError(
            "back_imagination needs a captioner",
            why="only the embedded text-to-image model has one beside it",
            do="set imagination.captioner to an image-to-text model, such as Salesforce/blip-image-captioning-large",
        )
    say_again = captioning_step(
        captioner,
        None,
        own.prompt,
        device,
        "imagination.captioner",
        settings.batch_size,
        own.temperature,
        own.top_p,
        own.max_new_tokens,
    )
    filters = (colour_filter,) if own.colour else ()
    return [Level(draw, own.images, filters, own.attempts), Level(say_again, own.captions)]


def _back_translation(settings: AugmentSection, device: torch.device) -> list[Level]:
    from .translation import back_translation_levels

    return back_translation_levels(**settings.translation.model_dump(), device=device, batch_size=settings.batch_size)
