"""Rewriting by an endpoint: the real client against a server on this machine, and where the key does not turn up."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from mvc.config_augment import KEEP_NOUNS
from mvc.errors import ConfigError, EnvironmentFault, Stopped
from mvc.modality.chain import Chain
from mvc.modality.chat import ATTEMPTS, Estimate, chat_estimate, chat_step
from mvc.modality.nodes import Level, Sample
from mvc.modality.steps import Output, Refused, Result, Step
from mvc.modality.store import ROWS, Store
from mvc.stopping import watching
from tests.mvc.modality.chat_server import Asked, Chat, Reply, fault, rewritten, said, serving

VARIABLE, KEY = "MVC_TEST_KEY", "sk-proj-4f9/Qz+tell_no-one"
TEXT = "a red cat sleeps"
LOGGERS = ("openai", "httpx2", "httpcore2", "openai._base_client", "httpcore2.http11", "httpcore2.connection")
NO_PAUSE = {"retry_after_ms": "10"}


@pytest.fixture(autouse=True)
def nothing_tells_the_key(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> Iterator[None]:
    """A key in the environment and loggers that tell all they can; afterwards the key is in nothing that they wrote."""
    monkeypatch.setenv(VARIABLE, KEY)
    caplog.set_level(logging.DEBUG)
    for name in LOGGERS:
        caplog.set_level(logging.DEBUG, name)
    yield
    told = [*capfd.readouterr(), caplog.text, *(f"{record.msg} {record.args}" for record in caplog.records)]
    assert not any(KEY in text for text in told)


def step(server: Chat | str, **changes: Any) -> Step:
    settings = {
        "base_url": server if isinstance(server, str) else server.base_url,
        "model": "toy",
        "api_key_env": VARIABLE,
        "prompt": KEEP_NOUNS,
        "temperature": 0.7,
        "timeout": 5.0,
        "max_retries": 3,
        "max_tokens": 200,
        "requests": 1,
        "batch_size": 16,
    }
    return chat_step(**{**settings, **changes})


def done(server: Chat | str, seeds: list[int], text: str = TEXT, **changes: Any) -> list[Result]:
    return step(server, **changes).run([text], [seeds])[0]


def values(results: list[Result]) -> list[str]:
    return [one.value for one in results if isinstance(one, Output)]


def refusals(results: list[Result]) -> list[str]:
    return [one.why for one in results if isinstance(one, Refused)]


def failure(server: Chat | str, **changes: Any) -> EnvironmentFault:
    """The error of a batch; neither it nor any that hangs on it tells the key."""
    with pytest.raises(EnvironmentFault) as caught:
        done(server, [1], **changes)
    chain: list[BaseException] = [caught.value]
    for error in chain:
        chain += [other for other in (error.__cause__, error.__context__) if other is not None]
    told = [f"{error} {error!r} {error.args} {vars(error)}" for error in chain] + traceback.format_exception(chain[0])
    assert not any(KEY in text for text in told)
    assert len(str(chain[0]).splitlines()) == 3
    return caught.value


def test_an_answer_gives_all_rewrites_and_says_who_made_them() -> None:
    with serving() as server:
        results = done(server, [5, 6, 7])
    assert results == [Output(f"{TEXT}, in words {place}.", {"model": "toy-2026"}) for place in range(3)]
    assert len(server.asked) == 1


def test_the_request_has_the_prompt_the_sentence_the_settings_the_seed_and_the_key() -> None:
    seed = 2**62 + 12345
    with serving() as server:
        done(server, [seed, 1])
    asked = server.asked[0]
    assert asked.path == "/v1/chat/completions" and asked.authorization == f"Bearer {KEY}"
    message = asked.body.pop("messages")[0]
    assert message["role"] == "user" and message["content"].startswith(KEEP_NOUNS)
    assert "Write 2 sentences, one a line, without numbering" in message["content"]
    assert message["content"].endswith(f"Sentence: {TEXT}")
    assert asked.body == {"model": "toy", "temperature": 0.7, "max_tokens": 200, "seed": seed & 0x7FFFFFFF}


def test_too_few_sentences_are_asked_for_again_with_other_seeds() -> None:
    with serving(said("1. one\n2. two"), said("two\nthree"), said("- four")) as server:
        results = done(server, [9, 10, 11, 12])
    assert values(results) == ["one", "two", "three", "four"]
    assert len({asked.body["seed"] for asked in server.asked}) == 3 and server.asked[0].body["seed"] == 9


@pytest.mark.parametrize(
    ("reply", "made"),
    [
        (said("the same\nthe same\n" + TEXT), ["the same"]),
        (said(""), []),
        (said(None), []),
        (said("one\ntwo is cut sho", "length"), ["one"]),
        (Reply({"choices": []}), []),
        (Reply({"id": "no choices"}), []),
        (Reply({"choices": [{"message": "of another shape"}]}), []),
    ],
)
def test_what_stays_lacking_is_refused_after_a_few_requests(reply: Reply, made: list[str]) -> None:
    with serving(answer=lambda asked: reply) as server:
        results = done(server, [9, 10])
    assert len(server.asked) == ATTEMPTS and values(results) == made
    assert refusals(results) == [f"the endpoint gave {len(made)} of 2 sentences"] * (2 - len(made))


def test_an_empty_text_is_not_sent() -> None:
    with serving() as server:
        assert refusals(done(server, [1, 2], text=" \n")) == ["the text is empty"] * 2
    assert server.asked == []


def test_requests_at_once_keep_their_order() -> None:
    def later_for_the_first(asked: Asked) -> Reply:
        place = int(asked.text.split()[-1])
        return Reply(rewritten(asked).body, pause=0.3 if place == 0 else 0.05)

    texts = [f"text {place}" for place in range(8)]
    with serving(answer=later_for_the_first) as server:
        found = step(server, requests=4).run(texts, [[place, 100 + place] for place in range(8)])
    assert [values(own)[0] for own in found] == [f"{text}, in words 0." for text in texts]
    assert server.most == 4
    assert [asked.text for asked in sorted(server.asked, key=lambda asked: asked.body["seed"])] == texts


def test_a_429_is_waited_for_as_long_as_the_server_says() -> None:
    with serving(fault(429, "slow down", Retry_After="0.4"), fault(429, "slow down", Retry_After="0.4")) as server:
        assert len(values(done(server, [1, 2]))) == 2
    pauses = [after.when - before.when for before, after in zip(server.asked, server.asked[1:], strict=False)]
    assert len(pauses) == 2 and all(0.4 <= pause < 1.5 for pause in pauses)


def test_500s_pass_and_the_same_request_comes_again() -> None:
    with serving(fault(500, "oh", **NO_PAUSE), fault(503, "oh", **NO_PAUSE)) as server:
        assert len(values(done(server, [1, 2]))) == 2
    assert len(server.asked) == 3 and server.asked[0].body == server.asked[2].body


@pytest.mark.parametrize(
    ("reply", "tries", "message"),
    [
        (fault(500, f"broken for {KEY}", **NO_PAUSE), 4, r"gave no answer.* 3 retries\nwhy: status 500: broken for \*"),
        (fault(429, "quota of today", Retry_After="3600"), 1, "retry-after: 3600: quota of today\ndo: .*made is kept"),
        (
            fault(401, f"Incorrect API key: {KEY}"),
            1,
            rf"let us in with the key in {VARIABLE}\nwhy: .*: \*\*\*\ndo: che",
        ),
        (fault(403, "not for you"), 1, f"not for you\ndo: check the variable {VARIABLE}"),
        (fault(400, "API key not valid."), 1, f"do: check the variable {VARIABLE}"),
        (fault(404, "no such model"), 1, "knows no model toy.*\nwhy: status 404: no such model\ndo: check chat.model"),
        (fault(400, "no such", "model_not_found"), 1, "knows no model toy"),
        (fault(422, "temperature"), 1, "does not take requests like ours\nwhy: .*\ndo: check chat.temperature"),
        (fault(400, "temperature", "unsupported_value"), 1, "does not take requests like ours"),
        (fault(402, "pay"), 1, "gave no answer.*\nwhy: status 402: pay"),
        (Reply({"detail": f"at {KEY}"}, 418), 1, r"status 418: {\"detail\": \"at \*\*\*\"}"),
        (Reply(b"<html>Bad gateway", 502, {"retry-after-ms": "10"}), 4, "status 502: <html>Bad gateway"),
        (Reply(b"", 405), 1, "status 405: no words"),
        (Reply(b'{"choices": [', 200), 1, 'it is no JSON object: {"choices": .\ndo: .*made is kept'),
        (Reply(f"<html>\n\x1b[1m{KEY}".encode()), 1, r"it is no JSON object: <html> \[1m\*\*\*\n"),
        (Reply(b"[1]"), 1, r"it is no JSON object: \[1\]"),
        (fault(200, f"upstream is down, {KEY}"), 1, r"it is an error: .*upstream is down, \*\*\*"),
        (Reply({}, 301, {"Location": "/v2"}), 1, "points elsewhere\nwhy: status 301, location: /v2"),
    ],
)
def test_what_stays_wrong_is_said_without_the_key(reply: Reply, tries: int, message: str) -> None:
    echo = Reply(reply.body, reply.status, {**reply.headers, "X-Echo": f"Bearer {KEY}"})
    with serving(answer=lambda asked: echo) as server:
        error = failure(server)
    assert len(server.asked) == tries
    assert server.base_url in str(error)
    with pytest.raises(EnvironmentFault, match=message):
        raise error


def test_a_key_at_the_cut_of_a_long_message_leaves_no_part_behind() -> None:
    for length in range(250, 300, 7):
        with serving(answer=lambda asked, length=length: fault(401, "x" * length + KEY)) as server:
            assert KEY[:4] not in str(failure(server))


def test_a_400_costs_its_own_sentence_alone() -> None:
    def strict(asked: Asked) -> Reply:
        return fault(400, f"filtered, says {KEY}", "content_filter") if "bad" in asked.text else rewritten(asked)

    with serving(answer=strict) as server:
        found = step(server, requests=2).run(["good", "bad", "fine"], [[1, 2], [3, 4], [5, 6]])
    assert [len(values(own)) for own in found] == [2, 0, 2]
    assert refusals(found[1]) == ["the endpoint refused it: status 400: filtered, says ***"] * 2
    assert len(server.asked) == 3


def test_newer_models_get_their_name_of_the_longest_answer() -> None:
    def newer(asked: Asked) -> Reply:
        wrong = "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."
        return fault(400, wrong, "unsupported_parameter") if "max_tokens" in asked.body else rewritten(asked)

    with serving(answer=newer) as server:
        found = step(server).run(["one", "two"], [[1], [2]])
    assert [len(values(own)) for own in found] == [1, 1]
    assert [asked.body.get("max_completion_tokens") for asked in server.asked] == [None, 200, 200]


def test_a_server_that_is_too_slow() -> None:
    with serving(answer=lambda asked: Reply(rewritten(asked).body, pause=5.0)) as server:
        error = failure(server, timeout=0.2, max_retries=1)
    assert len(server.asked) == 2
    assert "chat.timeout=0.2 and 1 retries\nwhy: Request timed out. timed out" in str(error)


def test_a_server_that_does_not_run() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        address = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        error = failure(address, max_retries=0)
    assert f"{address} gave no answer" in str(error) and "Connection refused" in str(error)
    assert "what was made is kept, so run the same command again" in str(error)


def test_texts_follow_no_redirect() -> None:
    with serving() as other:
        elsewhere = f"{other.base_url}/chat/completions"
        with serving(answer=lambda asked: Reply({}, 307, {"Location": elsewhere})) as server:
            assert elsewhere in str(failure(server))
    assert other.asked == []


def test_one_error_ends_the_batch_and_what_is_left_is_not_sent() -> None:
    with serving(answer=lambda asked: fault(401, "no")) as server:
        with pytest.raises(EnvironmentFault, match="does not let us in"):
            step(server, requests=2, max_retries=0).run(["text"] * 20, [[place] for place in range(20)])
        time.sleep(0.2)
        assert 1 <= len(server.asked) <= 2  # one of each thread


def test_without_a_variable_a_placeholder_is_sent_and_no_other_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.delenv(VARIABLE)
    with serving() as server:
        assert len(values(done(server, [1]))) == 1
    assert server.asked[0].authorization == "Bearer none"
    with serving(answer=lambda asked: fault(401, "who are you?")) as server:
        assert f"with no key, as {VARIABLE} is not set" in str(failure(server))


def test_blanks_around_a_key_are_taken_off_and_what_is_none_is_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, f"{KEY}\n")
    with serving() as server:
        done(server, [1])
        for wrong in (f"{KEY}\n{KEY}", f"{KEY}\u201d"):
            monkeypatch.setenv(VARIABLE, wrong)
            assert f"the variable {VARIABLE} holds no key" in str(failure(server))
    assert [asked.authorization for asked in server.asked] == [f"Bearer {KEY}"]


def test_neither_step_nor_store_nor_log_knows_the_key(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def echo(asked: Asked) -> Reply:
        body = said(f"one by {asked.authorization}\ntwo\nthree\nfour").body
        return Reply({**body, "model": KEY}, headers={"X-Echo": f"Bearer {KEY}"})

    with serving(answer=echo) as server, serving(answer=lambda asked: fault(400, f"{asked.authorization}")) as other:
        own = step(server)
        found = Chain([Level(own, 4)], 4).augment([Sample(0, TEXT), Sample(1, "a dog")], 0, Store(tmp_path))
        Chain([Level(step(other), 4)], 4).augment([Sample(2, "a cow")], 0, Store(tmp_path))
    assert [sum("by Bearer ***" in leaf.value for leaf in one.leaves) for one in found] == [1, 1]
    assert len((tmp_path / ROWS).read_text().splitlines()) == 3
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files and not any(KEY.encode() in path.read_bytes() for path in files)
    assert KEY not in f"{own!r} {own.identity} {own.run!r} {vars(own)}"
    assert not [record for record in caplog.records if record.name.startswith(("openai", "http"))]


def test_the_library_would_log_what_servers_echo(caplog: pytest.LogCaptureFixture) -> None:
    """Without this the silence that the other tests find would prove nothing."""
    with serving(answer=lambda asked: Reply(rewritten(asked).body, headers={"X-Echo": f"Bearer {KEY}"})) as server:
        with openai.OpenAI(api_key=KEY, base_url=server.base_url) as client:
            message = {"role": "user", "content": "Write 1 sentence. Sentence: x"}
            client.chat.completions.create(model="toy", messages=[message])  # type: ignore[list-item]
    assert KEY in caplog.text
    caplog.clear()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base_url": None}, "chat.base_url is not given\nwhy: texts are sent to no endpoint"),
        ({"model": None}, "chat.model is not given"),
        ({"base_url": "localhost:8000"}, "chat.base_url is no address\ndo: give one such as http"),
        ({"base_url": "http://[::1"}, "chat.base_url is no address"),
        ({"base_url": "http://host:port/v1"}, "chat.base_url is no address"),
        ({"base_url": f"https://me:{KEY}@host.org/v1"}, "chat.base_url holds more than an address\n"),
        ({"base_url": f"https://host.org/v1?key={KEY}"}, "chat.base_url holds more than an address\n"),
        ({"api_key_env": KEY}, "chat.api_key_env is no name of an environment variable"),
    ],
)
def test_settings_that_cannot_be(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        step("http://localhost:8000/v1", **changes)
    assert KEY not in str(caught.value)


def test_the_identity_holds_what_rewrites_depend_on_and_not_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    own = step("http://localhost:1/v1")
    others = [{"model": "b"}, {"prompt": "b"}, {"temperature": 0.1}, {"max_tokens": 3}, {"base_url": "http://b/v1"}]
    assert len({own.identity, *(step("http://localhost:1/v1", **change).identity for change in others)}) == 6
    monkeypatch.setenv(VARIABLE, "another")
    same = step("http://localhost:1/v1/", api_key_env="OTHER", timeout=1.0, max_retries=0, requests=9, batch_size=1)
    assert same.identity == own.identity
    assert own.random and own.together and own.keep and (own.takes, own.gives) == ("text", "text")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    assert str(failure("http://localhost:1/v1")).endswith("the package openai is missing\ndo: pip install 'mvc[chat]'")


def test_a_signal_stops_a_long_batch_soon() -> None:
    before = set(threading.enumerate())
    with serving(answer=lambda asked: Reply(rewritten(asked).body, pause=20.0)) as server, watching():
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM)).start()
        start = time.monotonic()
        with pytest.raises(Stopped, match="stopped by signal 15; what was made before is kept"):
            step(server, requests=2, timeout=30.0, max_retries=0).run(["text"] * 6, [[place] for place in range(6)])
        assert time.monotonic() - start < 2.0
        assert len(server.asked) == 2
        # The interpreter waits for no thread that is left.
        assert all(thread.daemon for thread in set(threading.enumerate()) - before if "serve" not in thread.name)


def test_the_estimate_counts_what_is_sent() -> None:
    texts = ["a red cat sleeps on the blue sofa", "a dog", "a bird in the tree"]
    estimate = chat_estimate(texts, 3, KEEP_NOUNS, 20, 2.0, 8.0)
    with serving() as server:
        step(server).run(texts, [[1, 2, 3]] * 3)
    assert estimate.requests == len(server.asked)
    assert estimate.input_tokens == sum(-(-len(asked.message) // 4) for asked in server.asked)
    assert estimate.output_tokens == 20 + 5 + 15  # 3 x (33 + 1) / 4 is more than the longest answer
    assert estimate.cost == pytest.approx((estimate.input_tokens * 2.0 + 40 * 8.0) / 1e6)
    assert chat_estimate(texts, 3, KEEP_NOUNS, 20, 0.0, 0.0).cost is None


def test_the_estimate_is_one_line_for_people() -> None:
    line = Estimate(120, 9041, 13_960, 0.0314).describe("http://host/v1", "x")
    assert line == (
        "rewriting: 120 requests to http://host/v1 (model x), about 9,000 tokens sent and 14,000 received "
        "(a token taken as 4 characters), about 0.03 at the prices given"
    )
    line = Estimate(1, 99, 1_234_567, None).describe("u", "x")
    assert line.startswith("rewriting: 1 request to u (model x), about 99 tokens sent and 1,200,000 received")
    assert line.endswith(", no prices were given")
    assert Estimate(1, 9, 9, 0.0001).describe("u", "x").endswith("less than 0.01 at the prices given")
    assert Estimate(1, 9, 9, 12345.6).describe("u", "x").endswith("about 12,345.60 at the prices given")
