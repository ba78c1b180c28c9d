"""Module, interface and group cards: text, evidence, scores beside their controls, and who wrote the text."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar, overload

from modcut import _notebook
from modcut._files import write_text

EVIDENCE_ONLY = "evidence only"
_FORMAT = "modcut cards"
_VERSION = 2

C = TypeVar("C", bound="_Card")


def evidence_digest(evidence: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a card's evidence: texts with equal digests were made from equal measurements."""
    return hashlib.sha256(json.dumps(evidence, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


def _figure(value: Any) -> str:
    return "n/a" if value is None else f"{value:.3g}"


@dataclass
class _Card:
    """What every card has."""

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
    error: str | None = None
    """Why the language model gave no text for this card; the text is then the evidence-only one."""
    digest: str = ""
    """SHA-256 of the evidence."""

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values, the digest of the evidence among them."""
        return {**asdict(self), "digest": evidence_digest(self.evidence)}

    @classmethod
    def from_dict(cls: type[C], value: Mapping[str, Any]) -> C:
        """Rebuild a card; fields of later versions are refused (TypeError)."""
        return cls(**value)

    def _words(self, name: str) -> str:
        head = name + (f": {self.title}" if self.title else "") + f" ({self.origin})"
        failed = f"\n[no model text: {self.error}]" if self.error else ""
        return f"{head}\n{self.text}{failed}"

    def _repr_html_(self) -> str:
        head, *lines = str(self).split("\n")
        beside = [
            f"{name.replace('_', ' ')} {_figure(s['value'])} (random {_figure(s.get('random_mean'))})"
            for name, s in self.scores.items()
            if isinstance(s, Mapping) and s.get("value") is not None
        ]
        return _notebook.paragraphs(head, lines, "; ".join(beside))


@dataclass
class _ModuleFields:
    index: int


@dataclass
class ModuleCard(_Card, _ModuleFields):
    """What is known about one module."""

    interfaces: list[dict[str, Any]] = field(default_factory=list)
    """The sizeable interfaces with other modules, each with a ``text`` of its own."""

    def __str__(self) -> str:
        return self._words(f"Module {self.index}")


@dataclass
class _InterfaceFields:
    modules: tuple[int, int]


@dataclass
class InterfaceCard(_Card, _InterfaceFields):
    """What passes from one module to another: ``modules`` is (reader, source)."""

    def __post_init__(self) -> None:
        self.modules = (int(self.modules[0]), int(self.modules[1]))

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values."""
        return {**super().to_dict(), "modules": list(self.modules)}

    def __str__(self) -> str:
        return self._words(f"Module {self.modules[0]} reads module {self.modules[1]}")


@dataclass
class _GroupFields:
    id: int
    children: list[int]


@dataclass
class GroupCard(_Card, _GroupFields):
    """A module of modules: a node of the tree over the modules. Children below k are modules, others are groups."""

    modules: list[int] = field(default_factory=list)
    """All modules under it."""

    def __str__(self) -> str:
        return self._words(f"Group {self.id} (modules {', '.join(map(str, self.modules))})")


@dataclass
class ModuleCards(Sequence[ModuleCard]):
    """The cards of a partition, in module order, with what is needed to judge and repeat them."""

    cards: list[ModuleCard]
    meta: dict[str, Any] = field(default_factory=dict)
    """n, seed, control, ablation, model digest, versions, slices, objective, not_covered, failures."""
    interfaces: list[InterfaceCard] = field(default_factory=list)
    """One card for every sizeable interface, strongest first."""
    groups: list[GroupCard] = field(default_factory=list)
    """The tree over the modules, from the bottom up."""

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

    def _repr_html_(self) -> str:
        """Show the cards in a notebook: title or first words, who wrote them, detection beside its control."""
        rows = []
        for c in self.cards:
            s = c.scores.get("detection") or {}
            told = c.title or c.text.split("\n")[0][:120]
            rows.append([c.index, told, c.error or c.origin, s.get("value"), s.get("random_mean")])
        return _notebook.table(["module", "text", "by", "detection", "random modules"], rows, caption=repr(self))

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values for JSON, as ``schema()`` describes it."""
        parts = {n: [c.to_dict() for c in getattr(self, n)] for n in ("cards", "interfaces", "groups")}
        return {"format": _FORMAT, "version": _VERSION, "meta": dict(self.meta), **parts}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> ModuleCards:
        """Rebuild cards from :meth:`to_dict`, or from what version 1 wrote.

        Raises:
            ValueError: the value is not that of module cards, or of a newer version.
        """
        if not isinstance(value, Mapping) or value.get("format") != _FORMAT:
            got = value.get("format") if isinstance(value, Mapping) else type(value).__name__
            raise ValueError(f"cards must be a JSON object with format {_FORMAT!r}, got {got!r}")
        version = value.get("version")
        if isinstance(version, bool) or version not in (1, _VERSION):
            raise ValueError(f"cards must be of version 1 or {_VERSION}, got {version!r}")
        try:
            return cls(
                [ModuleCard.from_dict(c) for c in value["cards"]],
                dict(value["meta"]),
                [InterfaceCard.from_dict(c) for c in value.get("interfaces", [])],
                [GroupCard.from_dict(c) for c in value.get("groups", [])],
            )
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise ValueError(f"cards must hold the fields of version {version}: {error}") from error

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


def schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of saved cards."""
    text = resources.files("modcut.reading").joinpath("schema", f"cards-{_VERSION}.json").read_text(encoding="utf-8")
    value: dict[str, Any] = json.loads(text)
    return value
