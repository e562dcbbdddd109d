"""Text -> text by a chat model behind an endpoint that speaks the OpenAI protocol: all rewrites of a text in a request.

Texts go to the address that was named and nowhere else: no address is guessed and no redirect followed. The key comes
from an environment variable and goes into the request's header alone; servers echo it and libraries put it into their
errors, so whatever comes from either is cleaned of it, and no error of theirs is chained to ours.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from dataclasses import dataclass
from math import ceil
from threading import Event, Thread
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from mvc.errors import ConfigError, EnvironmentFault
from mvc.randomness import derived_seed
from mvc.stopping import flag
from mvc.storage import sha256_json

from .language_model import request_for, sentences
from .steps import Item, Output, Refused, Result, Run, Step

if TYPE_CHECKING:
    from openai import OpenAI

ATTEMPTS = 3
"""How often a text is sent at the most, where answers hold too few sentences."""
CHARACTERS_PER_TOKEN = 4
_LIMITS = ("max_tokens", "max_completion_tokens")
"""Names of the longest answer: the usual one, and that of OpenAI's newer models, which refuse the usual one."""
_LOGGERS = ("openai", "httpx2", "httpcore2", "httpx", "httpcore")
_KEPT = "what was made is kept, so run the same command again to go on"
_BAD_KEY = re.compile(
    r"(?:invalid|incorrect|missing|expired)\W+api.?key|api.?key\W+(?:not|is|was|expired|invalid)", re.I
)
_LOOK_SECONDS = 0.1


@dataclass(frozen=True)
class Estimate:
    """What rewriting will send and get, before anything is sent.

    Attributes:
        requests: without those that are sent again.
        input_tokens, output_tokens: a token taken as four characters, and a rewrite as long as its text.
        cost: at the prices given; None if none were.
    """

    requests: int
    input_tokens: int
    output_tokens: int
    cost: float | None

    def describe(self, base_url: str, model: str) -> str:
        """One line for people."""
        price = "no prices were given"
        if self.cost is not None:
            price = ("less than 0.01" if self.cost < 0.005 else f"about {self.cost:,.2f}") + " at the prices given"
        return (
            f"rewriting: {self.requests:,} request{'' if self.requests == 1 else 's'} to {base_url} (model {model}), "
            f"about {_rounded(self.input_tokens)} tokens sent and {_rounded(self.output_tokens)} received "
            f"(a token taken as {CHARACTERS_PER_TOKEN} characters), {price}"
        )


def chat_estimate(
    texts: Sequence[str], rewrites: int, prompt: str, max_tokens: int, input_price: float, output_price: float
) -> Estimate:
    """What rewriting some texts will take, with tokens counted as characters / 4.

    Args:
        texts: to be rewritten, a request each.
        rewrites: of each text.
        prompt, max_tokens: as `chat_step`.
        input_price, output_price: of a million tokens; both 0 says that no prices are known.
    """
    sent = sum(ceil(len(request_for(prompt, text, rewrites)) / CHARACTERS_PER_TOKEN) for text in texts)
    got = sum(min(max_tokens, ceil(rewrites * (len(text) + 1) / CHARACTERS_PER_TOKEN)) for text in texts)
    cost = (sent * input_price + got * output_price) / 1e6 if input_price or output_price else None
    return Estimate(len(texts), sent, got, cost)


def _rounded(count: int) -> str:
    """A number with its first two digits."""
    return f"{int(float(f'{count:.1e}')):,}"


def chat_step(
    base_url: str | None,
    model: str | None,
    api_key_env: str,
    prompt: str,
    temperature: float,
    timeout: float,
    max_retries: int,
    max_tokens: int,
    requests: int,
    batch_size: int,
) -> Step:
    """The step text -> text; the seed of a text's first output is sent along, which servers may or may not use.

    Args:
        base_url: address of the endpoint, such as http://localhost:8000/v1.
        model: its name there.
        api_key_env: environment variable that holds the key; a placeholder is sent where it is not set.
        prompt: what the model is told before the sentence.
        temperature: of the sampling.
        timeout: seconds to wait for an answer.
        max_retries: how often a request is sent again after an error that may pass, with growing pauses.
        max_tokens: longest answer.
        requests: under way at once; a batch has one for each of its texts, so it needs that many texts.
        batch_size: outputs at once.

    Raises:
        ConfigError: the address or the model is not given, or the address or the variable cannot be one.
    """
    if base_url is None or model is None:
        raise ConfigError(
            f"chat.{'base_url' if base_url is None else 'model'} is not given",
            why="texts are sent to no endpoint and no model that was not named",
            do="set chat.base_url (such as http://localhost:8000/v1) and chat.model",
        )
    _require_address(base_url)
    if not re.fullmatch(r"[A-Za-z_]\w*", api_key_env):
        raise ConfigError(
            "chat.api_key_env is no name of an environment variable",
            why="it names the variable that holds the key, and is not the key itself",
            do="put the key into a variable such as OPENAI_API_KEY, and give that name",
        )

    def load() -> Run:
        key = _Key(api_key_env)
        endpoint = _Endpoint(base_url, model, key, prompt, temperature, timeout, max_retries, max_tokens)
        endpoint.client().close()  # what keeps it from being made is said at once

        def run(items: Sequence[Item], seeds: Sequence[Sequence[int]]) -> list[list[Result]]:
            _silence_loggers()
            asked = list(zip(items, seeds, strict=True))
            return _at_once(endpoint.rewrites, [endpoint.client() for _ in asked[:requests]], asked)

        return run

    identity = sha256_json(["chat", 1, base_url.rstrip("/"), model, prompt, temperature, max_tokens])
    return Step(f"chat model {model}", "text", "text", load, identity, together=True, batch_size=batch_size)


def _require_address(base_url: str) -> None:
    """Refuse what is no address, and one that holds a key: addresses are shown."""
    try:
        parts = urlsplit(base_url)
        wrong = parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0
    except ValueError:
        wrong = True
    if "@" in base_url or "?" in base_url or "#" in base_url:
        raise ConfigError(
            "chat.base_url holds more than an address",
            why="names, passwords and queries in it would be shown and kept",
            do="give the address alone, and the key by the variable that chat.api_key_env names",
        )
    if wrong:
        raise ConfigError("chat.base_url is no address", do="give one such as http://localhost:8000/v1")


class _Key:
    """The key of an endpoint, which shows itself nowhere.

    Args:
        variable: environment variable that may hold it.

    Raises:
        EnvironmentFault: what it holds cannot be sent in a header; libraries would quote it in their error.
    """

    def __init__(self, variable: str) -> None:
        self.variable, self._found = variable, os.environ.get(variable, "").strip()
        if re.search(r"[^!-~]", self._found):
            raise EnvironmentFault(
                f"the variable {variable} holds no key",
                why="keys are of letters, digits and signs of ASCII, without blanks and line ends",
                do=f"set {variable} to the key alone",
            )

    def __repr__(self) -> str:
        return f"the key in {self.variable}" if self._found else f"no key, as {self.variable} is not set"

    def reveal(self) -> str:
        """The key for the header; a placeholder where there is none, because the client insists on one."""
        return self._found or "none"

    def scrub(self, text: str) -> str:
        """A text without the key, as it is or as JSON and addresses write it."""
        forms = {self._found, json.dumps(self._found)[1:-1], quote(self._found, safe="")} - {""}
        for form in sorted(forms, key=len, reverse=True):
            text = text.replace(form, "***")
        return text


@dataclass
class _Endpoint:
    """What is asked of an endpoint, and what its answers and errors mean; arguments as `chat_step`."""

    base_url: str
    model: str
    key: _Key
    prompt: str
    temperature: float
    timeout: float
    max_retries: int
    max_tokens: int
    limit: str = _LIMITS[0]

    def client(self) -> OpenAI:
        """A client for one thread; it retries by itself, as the server's Retry-After says or with growing pauses."""
        try:
            import openai

            transport = openai.DefaultHttpxClient(follow_redirects=False, timeout=self.timeout)
            return openai.OpenAI(
                api_key=self.key.reveal(),
                base_url=self.base_url,
                timeout=self.timeout,
                max_retries=self.max_retries,
                http_client=transport,
            )
        except ModuleNotFoundError as error:
            missing, why = True, f"the package {error.name} is missing"
        except Exception as error:  # proxies and certificates of the environment raise all kinds
            missing, why = False, self._shown(str(error))
        packages, settings = (
            "pip install 'mvc[chat]'",
            "check chat.base_url, and proxies and certificates of the system",
        )
        do = packages if missing else settings
        raise EnvironmentFault(f"cannot speak to {self.base_url}", why, do)

    def rewrites(self, client: OpenAI, text: str, seeds: Sequence[int]) -> list[Result]:
        """As many rewrites of a text as there are seeds; it is sent again where an answer holds too few."""
        if not text.strip():
            return [Refused("the text is empty") for _ in seeds]
        found: dict[str, Output] = {}
        for attempt in range(ATTEMPTS):
            seed = derived_seed(seeds[0], "chat again", attempt) if attempt else seeds[0]
            body = self._ask(client, request_for(self.prompt, text, len(seeds)), seed & 0x7FFFFFFF)
            if isinstance(body, Refused):
                return [body for _ in seeds]
            facts = {"model": self.key.scrub(str(body.get("model") or self.model))}
            for one in sentences(self.key.scrub(_content(body)), text):
                found.setdefault(one, Output(one, facts))
            if len(found) >= len(seeds):
                break
        lacking = Refused(f"the endpoint gave {len(found)} of {len(seeds)} sentences")
        results: list[Result] = [*found.values()]
        return (results + [lacking] * len(seeds))[: len(seeds)]

    def _ask(self, client: OpenAI, message: str, seed: int) -> Mapping[str, Any] | Refused:
        """The body of an answer, or why this message gets none."""
        sent = self.limit
        try:
            content = client.chat.completions.with_raw_response.create(
                model=self.model,
                messages=[{"role": "user", "content": message}],
                temperature=self.temperature,
                seed=seed,
                extra_body={sent: self.max_tokens},
            ).content
        except Exception as error:  # of the library and all below it, and any of them may hold the key
            meaning, newer = self._meaning(error), sent != _LIMITS[1] and _LIMITS[1] in _said(error)
        else:
            return self._body(content)
        # Out here, because the library's error would be the context of ours within the handler.
        if newer:
            self.limit = _LIMITS[1]
            return self._ask(client, message, seed)
        if isinstance(meaning, Refused):
            return meaning
        raise meaning

    def _body(self, content: bytes) -> Mapping[str, Any]:
        """The JSON object of an answer."""
        try:
            body = json.loads(content)
        except (ValueError, RecursionError):
            body = None
        if isinstance(body, dict) and (body.get("choices") or not body.get("error")):
            return body
        said = self._shown(content.decode(errors="replace"))
        why = f"it is an error: {said}" if isinstance(body, dict) else f"it is no JSON object: {said}"
        raise EnvironmentFault(f"what {self.base_url} answered is of no use", why, f"check chat.base_url; {_KEPT}")

    def _meaning(self, error: Exception) -> EnvironmentFault | Refused:
        """What an error that passed all retries means: for this message alone, or for all."""
        status, said = getattr(error, "status_code", 0), self._shown(_said(error))
        if status in (401, 403) or (status == 400 and _BAD_KEY.search(said)):
            return EnvironmentFault(
                f"{self.base_url} does not let us in with {self.key}", said, f"check the variable {self.key.variable}"
            )
        if status == 404 or getattr(error, "code", None) == "model_not_found":
            what = f"{self.base_url} knows no model {self.model}, or is no address of chat completions"
            return EnvironmentFault(what, said, "check chat.model, and that chat.base_url ends as its maker says (/v1)")
        if status == 422 or str(getattr(error, "code", "")).startswith("unsupported"):
            what = f"{self.base_url} does not take requests like ours"
            return EnvironmentFault(what, said, "check chat.temperature, chat.max_tokens and chat.model")
        if status in (400, 413):
            return Refused(f"the endpoint refused it: {said}")
        if 300 <= status < 400:
            why = f"{said}; texts are sent to no other address than the one that was named"
            return EnvironmentFault(f"{self.base_url} points elsewhere", why, "give chat.base_url that address")
        what = f"{self.base_url} gave no answer, with chat.timeout={self.timeout:g} and {self.max_retries} retries"
        return EnvironmentFault(what, said, f"see that it runs and has room; {_KEPT}")

    def _shown(self, text: str) -> str:
        """What a server or a library says, on one line, cut after the key was taken out."""
        clean = "".join(sign if sign.isprintable() else " " for sign in self.key.scrub(text))
        return " ".join(clean.split())[:300]


def _said(error: Exception) -> str:
    """What an error says: the status and the server's words, or the cause of a lost connection."""
    status, body = getattr(error, "status_code", None), getattr(error, "body", None)
    if status is None:
        return f"{error} {error.__cause__ or ''}"
    words = body.get("message") or json.dumps(body) if isinstance(body, Mapping) else body
    headers: Mapping[str, str] = getattr(getattr(error, "response", None), "headers", {})
    notes = "".join(f", {name}: {headers[name]}" for name in ("retry-after", "location") if name in headers)
    return f"status {status}{notes}: {words or 'no words'}"


def _content(body: Mapping[str, Any]) -> str:
    """The text of an answer, less a last line that was cut short; empty where there is none."""
    choices = body.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
    message = choice.get("message")
    content = message.get("content") if isinstance(message, dict) else None
    if not isinstance(content, str):
        return ""
    return content.rpartition("\n")[0] if choice.get("finish_reason") in ("length", "content_filter") else content


def _silence_loggers() -> None:
    """Keep the libraries from logging requests and headers, whatever the environment or the program asked for."""
    for name in [*_LOGGERS, *logging.root.manager.loggerDict]:
        if name.split(".")[0] in _LOGGERS:
            logger = logging.getLogger(name)
            logger.setLevel(max(logger.level, logging.WARNING))


def _at_once(
    rewrite: Callable[[OpenAI, str, Sequence[int]], list[Result]],
    clients: Sequence[OpenAI],
    asked: Sequence[tuple[str, Sequence[int]]],
) -> list[list[Result]]:
    """The rewrites of some texts in their order, each client busy with one at a time.

    The threads are daemons and not those of a ThreadPoolExecutor, for which the interpreter waits at its end: a stop
    would last until the slowest server has answered, or through the pauses between retries.

    Raises:
        Stopped: a signal asked for a stop; requests under way are left alone.
    """
    futures: list[Future[list[Result]]] = [Future() for _ in asked]
    # A step of this iterator is atomic, so each of them goes to one thread.
    due, over = iter(list(zip(futures, asked, strict=True))), Event()

    def work(client: OpenAI) -> None:
        with client:  # closed by the thread that uses it: another one might close it while it connects
            while not over.is_set() and not flag and (one := next(due, None)):
                try:
                    one[0].set_result(rewrite(client, *one[1]))
                except BaseException as error:
                    over.set()
                    one[0].set_exception(error)

    for client in clients:
        Thread(target=work, args=(client,), daemon=True).start()
    try:
        while True:
            done, left = wait(futures, _LOOK_SECONDS, FIRST_EXCEPTION)
            flag.check("what was made before is kept")
            for error in (future.exception() for future in futures if future in done):
                if error is not None:
                    raise error
            if not left:
                return [future.result() for future in futures]
    finally:
        over.set()
