"""In a notebook results are small tables: complete, escaped, without scripts."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Any

import pytest
import torch

import modcut
from modcut import _notebook
from modcut.reading.cards import ModuleCard, ModuleCards
from reading_toys import TwoSkills, letters, partition_of

EVIL = "<script>alert(1)</script><img src=x onerror=alert(1)>\"' \x00\u202e {{ 7*7 }}"


class Shown(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.names: set[str] = set()
        self.open: list[str] = []
        self.words = ""
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.names |= {name for name, _ in attrs}
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data + " "


def shown(value: Any) -> str:
    """What a notebook displays, after checking that it is harmless and small."""
    text = value._repr_html_()
    page = Shown(text)
    assert page.tags <= {"div", "table", "caption", "thead", "tbody", "tr", "th", "td", "p", "small", "strong"}
    assert page.names == set() and "\x00" not in text and "\u202e" not in text and len(text) < 40_000
    return " ".join(page.words.split())


@pytest.fixture(scope="module")
def model() -> TwoSkills:
    return TwoSkills()


def test_a_partition_shows_every_module_and_says_that_no_control_was_measured(model: TwoSkills) -> None:
    P = partition_of(model)
    text = shown(P)
    assert f"0 {P.modules[0].size}" in text and f"1 {P.modules[1].size}" in text
    assert f"leak {P.leak:.3g}" in text and "no control measured" in text


def test_a_partition_without_its_model_shows_no_figures(model: TwoSkills, tmp_path: Any) -> None:
    partition_of(model).save(tmp_path / "p.safetensors")
    text = shown(modcut.Partition.load(tmp_path / "p.safetensors"))
    assert "nothing measured" in text and "leak" not in text


def test_a_cut_tree_shows_its_lightest_edges_first() -> None:
    w = torch.tensor([[0, 3, 0, 0], [3, 0, 1, 0], [0, 1, 0, 5], [0, 0, 5, 0]], dtype=torch.float64)
    text = shown(modcut.gomory_hu_tree(w))
    assert text.index(" 1 1 ") < text.index(" 3 3 ") < text.index(" 5 5")


def test_a_large_tree_is_cut_short_and_says_by_how_much() -> None:
    w = torch.ones(100, 100, dtype=torch.float64).fill_diagonal_(0)
    text = shown(modcut.gomory_hu_tree(w))
    assert "59 more rows" in text


def test_cards_show_their_texts_and_scores_beside_controls(model: TwoSkills) -> None:
    cards = modcut.describe(model, partition_of(model), letters(6))
    text = shown(cards)
    assert "Module 0 holds" in text and "random modules" in text
    score = cards[0].scores["detection"]
    one = shown(cards[0])
    assert cards[0].text.split("\n")[-1].split(";")[0] in one
    assert f"detection {score['value']:.3g} (random {score['random_mean']:.3g})" in one


def test_a_trace_shows_the_answer_and_every_module(model: TwoSkills) -> None:
    P = partition_of(model)
    trace = modcut.trace(model, letters(2)["low"][0][:1], P, seed=0)
    text = shown(trace)
    assert "module 0" in text and "module 1" in text and "random modules" in text


def test_texts_of_models_and_data_stay_texts() -> None:
    card = ModuleCard(0, EVIL, origin=EVIL, title=EVIL, error=EVIL, scores={EVIL: {"value": 0.5}})
    for value in (card, ModuleCards([card])):
        assert "<script>alert(1)</script>" in shown(value)  # as words


def test_a_planted_unescaped_text_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_notebook, "escape", str)
    with pytest.raises(AssertionError):
        shown(ModuleCard(0, "<img src=x onerror=alert(1)>"))
