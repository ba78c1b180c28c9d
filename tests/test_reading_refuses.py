"""What cannot be described is refused in a sentence, before anything is measured or asked."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import modcut
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
