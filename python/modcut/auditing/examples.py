"""Concepts as examples with and without them: the sets in the package, the user's own, and their batches."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from modcut import _batches

# Below this many examples a side, no rank of a probe or of a swap means anything.
LEAST = 4


@dataclass(frozen=True, eq=False)
class Concept:
    """A name with examples that have it and examples that lack it, alike in everything else as far as can be."""

    name: str
    positives: Any
    """Texts, lists of token ids, or a tensor of samples [n, ...]."""
    negatives: Any
    about: str = ""
    """What the positives have that the negatives lack, in words."""
    harmful: bool = True
    """Whether its use counts towards ``p_harm`` of an audit; False for control concepts."""

    @property
    def digest(self) -> str:
        """SHA-256 of name and examples."""
        h = hashlib.sha256(self.name.encode())
        for side in (self.positives, self.negatives):
            for example in side:
                h.update(b"\0")
                h.update(_bytes(example))
            h.update(b"\1")
        return h.hexdigest()

    def halves(self) -> tuple[Concept, Concept]:
        """Return two concepts with every other example each: one to choose modules on, one to test them on."""
        parts = [
            Concept(self.name, self.positives[i::2], self.negatives[i::2], self.about, self.harmful) for i in (0, 1)
        ]
        return parts[0], parts[1]


def _bytes(example: Any) -> bytes:
    if isinstance(example, str):
        return example.encode()
    t = torch.as_tensor(example).detach().cpu().contiguous()
    return f"{t.dtype}{list(t.shape)}".encode() + t.reshape(-1).view(torch.uint8).numpy().tobytes()


def concept_sets() -> dict[str, Concept]:
    """Return the concepts that come with the package by name (texts in English, written for it; CC0).

    ``deception``, ``power_seeking``, ``harm``; and two control concepts that are no harm: ``arithmetic``,
    ``place_names``. They are small: they show whether a module is used for texts *about* the concept. A model that
    understands a text about deception does not thereby deceive.
    """
    folder = resources.files("modcut") / "data" / "concepts"
    files = sorted((f for f in folder.iterdir() if f.name.endswith(".json")), key=lambda f: f.name)
    return {c.name: c for c in (_read(f.read_text(encoding="utf-8"), f.name) for f in files)}


def load_concept(path: str | Path) -> Concept:
    """Read a concept from JSON: ``{"name", "positives": [text, ...], "negatives": [text, ...], "about", "harmful"}``.

    Raises:
        ValueError: it is not such a file, or one-sided.
    """
    return _read(Path(path).read_text(encoding="utf-8"), str(path))


def _read(text: str, where: str) -> Concept:
    try:
        raw = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{where} is not JSON: {error}") from error
    sides = ("positives", "negatives")
    if not isinstance(raw, Mapping) or not isinstance(raw.get("name"), str) or any(s not in raw for s in sides):
        raise ValueError(f"{where} must be an object with name, positives and negatives")
    if any(not isinstance(raw[s], list) or not all(isinstance(x, str) for x in raw[s]) for s in sides):
        raise ValueError(f"{where}: positives and negatives must be lists of texts")
    made = Concept(
        raw["name"], tuple(raw["positives"]), tuple(raw["negatives"]), str(raw.get("about", "")),
        bool(raw.get("harmful", True)),
    )  # fmt: skip
    check_sides(made)
    return made


def check_sides(concept: Concept, least: int = LEAST) -> None:
    """Check that a concept has enough examples on both sides, and none on both.

    Raises:
        TypeError: the name is no text, or a side is one text instead of several.
        ValueError: it is one-sided, or an example is on both sides.
    """
    if not isinstance(concept.name, str) or not concept.name:
        raise TypeError(f"name must be a text, got {concept.name!r}")
    for side in ("positives", "negatives"):
        examples = getattr(concept, side)
        if isinstance(examples, (str, bytes)) or not hasattr(examples, "__len__"):
            raise TypeError(f"{side} must be a sequence of examples, got {type(examples).__name__}")
        if len(examples) < least:
            raise ValueError(
                f"concept {concept.name!r} is one-sided: {side} must hold at least {least} examples, got "
                f"{len(examples)}; examples of one side alone cannot tell the concept from everything else they share"
            )
    both = {_bytes(x) for x in concept.positives} & {_bytes(x) for x in concept.negatives}
    if both:
        raise ValueError(f"positives and negatives of concept {concept.name!r} share {len(both)} examples")


@dataclass(frozen=True)
class Samples:
    """Examples of both sides as batches of samples of one shape each (no padding)."""

    batches: tuple[Tensor, ...]
    at: tuple[Tensor, ...]
    """int64 per batch: which example every row is."""
    positive: Tensor
    """bool [n]: positives first."""

    def __len__(self) -> int:
        return len(self.positive)


def samples_of(concept: Concept, model: nn.Module, encode: Callable[[str], Sequence[int]] | None) -> Samples:
    """Turn the examples of a concept into batches on the model's device.

    Raises:
        ValueError: texts without a tokenizer, an empty example, samples that are not finite.
        TypeError: an example of another kind.
    """
    rows = [_sample(x, encode, concept.name) for side in (concept.positives, concept.negatives) for x in side]
    positive = torch.arange(len(rows)) < len(concept.positives)
    groups: dict[tuple[Any, ...], list[int]] = {}
    for i, row in enumerate(rows):
        groups.setdefault((row.dtype, *row.shape), []).append(i)
    device = _batches.device_of(model)
    batches = tuple(torch.stack([rows[i] for i in ids]).to(device) for ids in groups.values())
    return Samples(batches, tuple(torch.tensor(ids) for ids in groups.values()), positive)


def _sample(example: Any, encode: Callable[[str], Sequence[int]] | None, name: str) -> Tensor:
    if isinstance(example, Tensor):
        x = example
    elif isinstance(example, str):
        if encode is None:
            raise ValueError(f"the examples of concept {name!r} are texts: pass tokenizer=, with encode(text)")
        x = torch.tensor(list(encode(example)), dtype=torch.int64)
    elif isinstance(example, Sequence) and all(isinstance(i, int) for i in example):
        x = torch.tensor(list(example), dtype=torch.int64)
    else:
        raise TypeError(
            f"examples of concept {name!r} must be texts, token ids or tensors, got {type(example).__name__}"
        )
    if not x.numel():
        raise ValueError(f"concept {name!r} has an empty example")
    if x.is_floating_point() and not bool(torch.isfinite(x).all()):
        raise ValueError(f"examples of concept {name!r} must be finite")
    return x


__all__ = ["LEAST", "Concept", "Samples", "check_sides", "concept_sets", "load_concept", "samples_of"]
