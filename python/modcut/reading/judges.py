"""Who predicts from a text alone: a rule that compares words, or a language model.

A judge sees a text and a list of items (pieces of held-out data, or names of behaviours) and rates each from 0 to 10.
It never sees a measurement. One failed call makes the whole rating an error: missing ratings are not zeros.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

from modcut.reading.asking import Prompts
from modcut.reading.clients import Client, ClientError, Request, ask_all, parse_json, style_of

Question = Literal["active", "breaks", "signal"]
BATCH = 12
SCHEMA: dict[str, Any] = {
    "title": "ratings",
    "type": "object",
    "properties": {"ratings": {"type": "array", "items": {"type": "number", "minimum": 0, "maximum": 10}}},
    "required": ["ratings"],
    "additionalProperties": False,
}


@dataclass(frozen=True)
class Item:
    """One thing to rate."""

    text: str
    """As a reader sees it."""
    pieces: tuple[str, ...]
    """Its tokens (or features, or the words of a behaviour's name) one by one."""


@dataclass(frozen=True)
class Rating:
    """One question to a judge: rate every item, from the text alone."""

    text: str
    question: Question
    items: tuple[Item, ...]


@runtime_checkable
class Judge(Protocol):
    """Who rates."""

    @property
    def name(self) -> str:
        """As scores carry it."""
        ...

    def rate(self, ratings: Sequence[Rating]) -> list[list[float] | ClientError]:
        """Return one list of ratings from 0 to 10 (one for each item) or one error per question, in order."""
        ...


_WORD = re.compile(r"[^\W_]+", re.UNICODE)
_QUOTED = re.compile(r"[“\"](.+?)[”\"]")
_SENTENCE = re.compile(r"(?<=[.;!?])\s+(?=[A-Z])")
# A sentence with one of these words speaks of where the module is not active.
_NEGATIVE = frozenset(["least", "less", "not", "never", "rarely", "little", "without", "except", "unlike", "no"])
_EMPTY_WORDS = """
a an and are as at be by for from has have in into is it its of on or such that the their them they this to
was were which while with where when mean module share times used use active more most high text tokens token
words word appears especially related associated next class slice
"""
_STOP = frozenset(_EMPTY_WORDS.split())


def _terms(text: str) -> dict[str, float]:
    """Quoted pieces as they stand, other words in lower case: +1 where a sentence affirms them, -1 where it denies."""
    terms: dict[str, float] = {}
    for sentence in _SENTENCE.split(text):
        bare = _QUOTED.sub(" ", sentence)
        words = [w.lower() for w in _WORD.findall(bare)]
        sign = -1.0 if _NEGATIVE & set(words) else 1.0
        found = [q for q in _QUOTED.findall(sentence)]
        found += [w for w in words if w not in _STOP and w not in _NEGATIVE and not w.isdigit()]
        for term in found:
            terms.setdefault(term, sign)
    return terms


class LexicalJudge:
    """Rates by overlap: the mean, over an item's pieces, of +1 where the text names it and -1 where it denies it.

    Deterministic, no language model, no understanding: what it can tell from a text is literally in it. A piece is
    named where the text quotes it, or, without regard to case, holds it as a word.
    """

    name = "lexical"

    def rate(self, ratings: Sequence[Rating]) -> list[list[float] | ClientError]:
        """Return the ratings; 5 = the text says nothing of any piece."""
        out: list[list[float] | ClientError] = []
        for rating in ratings:
            terms = _terms(rating.text)
            out.append([self._one(terms, item) for item in rating.items])
        return out

    @staticmethod
    def _one(terms: dict[str, float], item: Item) -> float:
        if not item.pieces:
            return 5.0
        values = []
        for piece in item.pieces:
            shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in piece)
            values.append(terms.get(shown, terms.get(shown.strip().lower(), 0.0)))
        return 5.0 + 5.0 * sum(values) / len(values)


class LanguageJudge:
    """A language model as judge: asked for a number per item, or (style ``completion``) for yes or no, item by item.

    Args:
        client: who is asked.
        prompts: where the questions come from.
        seed: sent with every call.
    """

    def __init__(self, client: Client, prompts: Prompts | None = None, seed: int = 0) -> None:
        self.client = client
        self.prompts = prompts or Prompts()
        self.seed = seed

    @property
    def name(self) -> str:
        """The model's name."""
        return self.client.model

    def rate(self, ratings: Sequence[Rating]) -> list[list[float] | ClientError]:
        """Return the ratings; an error where any of the calls that they need failed."""
        completion = style_of(self.client) == "completion"
        size = 1 if completion else BATCH
        requests: list[Request] = []
        where: list[tuple[int, int]] = []
        for number, rating in enumerate(ratings):
            for start in range(0, len(rating.items), size):
                part = rating.items[start : start + size]
                messages = self.prompts.judge(rating.text, rating.question, part, completion=completion)
                requests.append(Request(messages, None if completion else SCHEMA, 4 if completion else 256, self.seed))
                where.append((number, len(part)))
        parts: list[list[float] | ClientError] = [[] for _ in requests]
        for index, outcome in ask_all(self.client, requests):
            if isinstance(outcome, ClientError):
                parts[index] = outcome
                continue
            try:
                parts[index] = [_answer(outcome.text)] if completion else _ratings(outcome.text, where[index][1])
            except ClientError as error:
                parts[index] = error
        out: list[list[float] | ClientError] = [[] for _ in ratings]
        for (number, _), answer in zip(where, parts, strict=True):
            done = out[number]
            if not isinstance(done, ClientError):
                out[number] = answer if isinstance(answer, ClientError) else [*done, *answer]
        return out


def _ratings(text: str, count: int) -> list[float]:
    value = parse_json(text).get("ratings")
    if (
        not isinstance(value, list)
        or len(value) != count
        or not all(isinstance(v, (int, float)) and not isinstance(v, bool) and 0 <= v <= 10 for v in value)
    ):
        raise ClientError("malformed", f"the reply must have {count} ratings from 0 to 10")
    return [float(v) for v in value]


def _answer(text: str) -> float:
    """Yes or no, or a number from 0 to 10."""
    word = _WORD.search(text)
    said = word.group().lower() if word else ""
    if said in ("yes", "no"):
        return 10.0 if said == "yes" else 0.0
    if said.isdecimal() and int(said) <= 10:
        return float(said)
    raise ClientError("malformed", f"the reply must begin with yes, no, or a number from 0 to 10, got {text[:40]!r}")
