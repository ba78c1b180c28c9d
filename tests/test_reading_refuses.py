"""What cannot be described is refused in a sentence, before anything is measured or asked."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import modcut
from modcut.partition import Partition
from modcut.reading import writing
from modcut.reading.clients import Reply
from modcut.reading.watch import Measure
from reading_toys import TwoSkills, letters, partition_of


def describe(data: Any, client: Any = None, **keywords: Any) -> modcut.ModuleCards:
    model = TwoSkills()
    return modcut.describe(model, partition_of(model), data, client, controls=1, **keywords)


@pytest.mark.parametrize("data", [[], {}, iter([])], ids=["list", "dict", "iterator"])
def test_no_data(data: Any) -> None:
    with pytest.raises(ValueError, match="at least one batch, got none"):
        describe(data)


def test_an_empty_slice_is_named() -> None:
    with pytest.raises(ValueError, match=r"data\['prose'\] must hold at least one batch, got none"):
        describe({"prose": [], "code": letters(8)})


def test_one_sample_cannot_be_held_out() -> None:
    with pytest.raises(ValueError, match="at least two samples"):
        describe([torch.zeros(1, 3, dtype=torch.int64)])


@pytest.mark.parametrize("measure", ["use", "activity"])
def test_activations_that_are_not_numbers(measure: Measure) -> None:
    model = copy.deepcopy(TwoSkills())
    P = partition_of(model)
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    with pytest.raises(ValueError, match=r"must be finite, but are not for \d+ of \d+ samples"):
        modcut.describe(model, P, letters(8), controls=1, measure=measure)


@pytest.mark.parametrize("client", ["gpt", object()], ids=["name", "object"])
def test_a_client_that_is_none(client: Any) -> None:
    with pytest.raises(TypeError, match="client must have a name model and a method complete"):
        describe(letters(8), client)


class Fixed:
    """Answers everything alike."""

    model = "fixed"

    def __init__(self, reply: str) -> None:
        self.reply = reply

    def complete(self, messages: Any, schema: Any = None, max_tokens: int = 512, seed: int = 0) -> Reply:
        return Reply(self.reply, self.model)


@pytest.mark.parametrize(
    "reply",
    ["", "null", "[]", "{}", "[1, 2]", "<html>", "x" * 100_000, '{"title": null, "description": null}', '{"title": "a'],
    ids=["empty", "null", "list", "object", "numbers", "page", "endless", "nulls", "half"],
)
def test_replies_that_say_nothing_are_errors_and_have_no_score(reply: str) -> None:
    cards = describe(letters(8), Fixed(reply))
    assert len(cards.failed) == len(cards)
    for card in cards:
        assert card.origin == "evidence only" and "text_detection" not in card.scores


CRAFTED = "\u202e\ud800\x00<script>alert(1)</script>{{ 7 * 7 }}"


def test_a_crafted_endless_reply_is_cut_and_can_be_saved_and_shown(tmp_path: Path) -> None:
    said = {"title": CRAFTED * 3000, "description": CRAFTED * 3000, "confidence": float("inf")}
    cards = describe(letters(8), Fixed(json.dumps(said)), resume=tmp_path / "replies.jsonl")
    assert not cards.failed and cards[0].confidence is None
    assert len(cards[0].title) <= writing.TITLE and len(cards[0].text) <= writing.TEXT
    cards.save(tmp_path / "cards.json")
    loaded = modcut.ModuleCards.load(tmp_path / "cards.json")
    for suffix in (".html", ".md", ".json"):
        page = modcut.report(tmp_path / f"page{suffix}", cards=loaded).read_text(encoding="utf-8")
        if suffix != ".json":
            assert "\u202e" not in page and "<script>alert" not in page
    again = describe(letters(8), Fixed("no reply is asked for"), resume=tmp_path / "replies.jsonl")
    assert [c.title for c in again] == [c.title for c in cards]


class Raises:
    model = "raises"

    def complete(self, *_: Any, **__: Any) -> Reply:
        raise KeyError("sk-secret")


class Returns:
    model = "returns"

    def __init__(self, value: Any) -> None:
        self.value = value

    def complete(self, *_: Any, **__: Any) -> Any:
        return self.value


@pytest.mark.parametrize(
    ("client", "words"),
    [
        (Raises(), "client: Raises.complete raised KeyError"),
        (Returns(None), "malformed: Returns.complete must return a Reply with a text, got NoneType"),
        (Returns("words"), "malformed: Returns.complete must return a Reply with a text, got str"),
        (Returns(Reply(None, "returns")), "got one whose text is NoneType"),  # type: ignore[arg-type]
    ],
    ids=["raises", "none", "str", "no text"],
)
@pytest.mark.parametrize("recorded", [False, True])
def test_a_client_that_breaks_its_word_fails_its_cards_only(
    client: Any, words: str, recorded: bool, tmp_path: Path
) -> None:
    cards = describe(letters(8), client, resume=tmp_path / "replies.jsonl" if recorded else None)
    assert len(cards.failed) == len(cards) and all(words in str(c.error) for c in cards)
    assert "sk-secret" not in json.dumps([c.to_dict() for c in cards])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"windows": 0}, "windows and samples >= 1"),
        ({"samples": 0}, "windows and samples >= 1"),
        ({"seed": -1}, "seed must be >= 0"),
        ({"text_items": 0}, "text_items must be >= 1"),
        ({"random_texts": -1}, "random_texts >= 0"),
        ({"judge": "gpt"}, "judge must be 'lexical'"),
        ({"prompts": "no_such_folder"}, "prompts must be an existing folder"),
        ({"resume": "."}, "resume must be a file of replies"),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
def test_settings_are_refused_before_anything_is_measured(settings: dict[str, Any], message: str) -> None:
    class Untouched(TwoSkills):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise AssertionError("measured")

    model = Untouched()
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        modcut.describe(model, partition_of(model), letters(8), **{"controls": 1, **settings})


def test_targets_that_do_not_fit_are_no_missing_targets() -> None:
    net = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 3))
    P = modcut.find_modules(net, 2)
    with pytest.raises(ValueError, match="batch_size"):
        modcut.describe(net, P, [(torch.randn(8, 4), torch.zeros(5, dtype=torch.int64))], controls=1)


def test_a_tokenizer_that_returns_no_text() -> None:
    with pytest.raises(TypeError, match="tokenizer must turn a list of ids into a str, got NoneType"):
        describe(letters(8), tokenizer=lambda ids: None)


@pytest.mark.parametrize(
    "labels",
    [[0] * 36, [0] * 8 + [1] + [0] * 27, [0] * 8 + [1, 2] + [0] * 26, [0] * 18 + [2] * 18],
    ids=["one module", "one unit", "two of one unit", "an empty module"],
)
def test_modules_of_nearly_nothing_have_cards(labels: list[int], tmp_path: Path) -> None:
    model = TwoSkills()
    P = Partition(torch.tensor(labels), partition_of(model).graph, max(labels) + 1)
    cards = modcut.describe(model, P, letters(8), controls=1)
    assert len(cards) == P.k and all(c.text for c in cards)
    assert modcut.report(tmp_path / "page.html", cards=cards).stat().st_size > 0


@pytest.mark.parametrize("data", [[torch.arange(8)[:, None]], [torch.zeros(8, 12, dtype=torch.int64)]])
def test_data_in_which_nothing_follows_or_nothing_differs(data: Any) -> None:
    for measure in ("use", "activity"):
        cards = describe(data, measure=measure)
        assert all(c.text and "nan" not in c.text for c in cards)


def test_a_net_of_zeros_is_described_as_one() -> None:
    net = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 3))
    P = modcut.find_modules(net, 2)
    with torch.no_grad():
        for p in net.parameters():
            p.zero_()
    cards = modcut.describe(net, P, [(torch.randn(8, 4), torch.arange(8) % 3)], controls=1)
    assert all(c.scores["detection"]["value"] is None for c in cards)


@pytest.mark.parametrize("labelled", [False, True])
def test_vision_models(labelled: bool) -> None:
    net = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(4 * 16, 3))
    x, y = torch.randn(16, 1, 6, 6), torch.arange(16) % 3
    P = modcut.find_modules(net, 2, example_inputs=x[:1])
    cards = modcut.describe(net, P, [(x, y) if labelled else x], controls=1)
    assert all(c.evidence["inputs"]["features"] for c in cards)
    assert ("no targets" in cards.meta["objective"]) != labelled


def test_a_report_does_not_replace_a_folder_nor_leave_a_draft(tmp_path: Path) -> None:
    cards = describe(letters(8))
    (tmp_path / "page.html").mkdir()
    with pytest.raises(IsADirectoryError, match="got the folder"):
        modcut.report(tmp_path / "page.html", cards=cards)
    assert [p.name for p in tmp_path.iterdir()] == ["page.html"]
