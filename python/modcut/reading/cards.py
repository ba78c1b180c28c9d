"""Module cards: text, evidence, scores beside their controls, interfaces, and who wrote the text."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, overload

from modcut._files import write_text

EVIDENCE_ONLY = "evidence only"
_FORMAT = "modcut cards"
_VERSION = 1


@dataclass
class ModuleCard:
    """What is known about one module."""

    index: int
    text: str
    """A description: written from the evidence by rule (``origin`` "evidence only") or by a language model."""
    origin: str = EVIDENCE_ONLY
    """``"evidence only"``, or the name of the model that wrote ``text``."""
    title: str = ""
    """A few words by the language model; empty for evidence-only cards."""
    confidence: float | None = None
    """What the language model said of its own text; not calibrated."""
    evidence: dict[str, Any] = field(default_factory=dict)
    scores: dict[str, Any] = field(default_factory=dict)
    """Held-out scores, each with its controls."""
    interfaces: list[dict[str, Any]] = field(default_factory=list)
    """The sizeable interfaces with other modules, each with a ``text`` of its own."""
    error: str | None = None
    """Why the language model gave no text for this card; the text is then the evidence-only one."""

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values."""
        return asdict(self)

    def __str__(self) -> str:
        head = f"Module {self.index}" + (f": {self.title}" if self.title else "") + f" ({self.origin})"
        failed = f"\n[no model text: {self.error}]" if self.error else ""
        return f"{head}\n{self.text}{failed}"


@dataclass
class ModuleCards(Sequence[ModuleCard]):
    """The cards of a partition, in module order, with what is needed to judge and repeat them."""

    cards: list[ModuleCard]
    meta: dict[str, Any] = field(default_factory=dict)
    """n, seed, control, ablation, model digest, versions, slices, objective, not_covered, failures."""

    def __len__(self) -> int:
        return len(self.cards)

    @overload
    def __getitem__(self, index: int) -> ModuleCard: ...
    @overload
    def __getitem__(self, index: slice) -> list[ModuleCard]: ...
    def __getitem__(self, index: int | slice) -> ModuleCard | list[ModuleCard]:
        return self.cards[index]

    def __iter__(self) -> Iterator[ModuleCard]:
        return iter(self.cards)

    @property
    def failed(self) -> list[ModuleCard]:
        """The cards for which the language model gave no text."""
        return [c for c in self.cards if c.error is not None]

    def __str__(self) -> str:
        return "\n\n".join(str(c) for c in self.cards)

    def __repr__(self) -> str:
        origins = sorted({c.origin for c in self.cards})
        return f"ModuleCards({len(self)} modules, origin={', '.join(origins)!r}, failed={len(self.failed)})"

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values for JSON."""
        cards = [c.to_dict() for c in self.cards]
        return {"format": _FORMAT, "version": _VERSION, "meta": dict(self.meta), "cards": cards}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> ModuleCards:
        """Rebuild cards from :meth:`to_dict`.

        Raises:
            ValueError: the value is not that of module cards, or of a newer version.
        """
        if not isinstance(value, Mapping) or value.get("format") != _FORMAT:
            got = value.get("format") if isinstance(value, Mapping) else type(value).__name__
            raise ValueError(f"cards must be a JSON object with format {_FORMAT!r}, got {got!r}")
        if value.get("version") != _VERSION:
            raise ValueError(f"cards must be of version {_VERSION}, got {value.get('version')!r}")
        try:
            return cls([ModuleCard(**c) for c in value["cards"]], dict(value["meta"]))
        except (KeyError, TypeError) as error:
            raise ValueError(f"cards must hold the fields of version {_VERSION}: {error}") from error

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write JSON; the file is replaced in one step, so that a stopped run leaves the old one whole."""
        # NaN is refused, not dropped: evidence writes None where a figure is not defined.
        write_text(path, json.dumps(self.to_dict(), indent=1, ensure_ascii=False, allow_nan=False))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ModuleCards:
        """Read cards that :meth:`save` wrote.

        Raises:
            ValueError: not module cards, or not JSON.
            FileNotFoundError: no such file.
        """
        try:
            value = json.loads(Path(path).read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{os.fspath(path)} must be JSON: {error}") from error
        return cls.from_dict(value)
