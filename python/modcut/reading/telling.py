"""From measurements to words to the scores of the words: what :func:`modcut.describe` does after it has measured."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modcut.reading.asking import Prompts
from modcut.reading.cards import GroupCard, InterfaceCard, ModuleCard
from modcut.reading.clients import Client, RecordingClient
from modcut.reading.judges import Judge, LanguageJudge, LexicalJudge
from modcut.reading.material import material, template
from modcut.reading.text_scores import Subject, Task, pieces, random_tasks, score_texts, summary, tasks_of
from modcut.reading.writing import Writer, judged

if TYPE_CHECKING:
    from modcut.reading.sketch import Window

Decode = Callable[[Sequence[int]], str]


@dataclass
class Telling:
    """Who writes, who judges, and how."""

    client: Client | None = None
    judge: Judge | Client | str = "lexical"
    prompts: str | os.PathLike[str] | None = None
    resume: str | os.PathLike[str] | None = None
    seed: int = 0
    text_items: int = 24
    random_texts: int = 0
    say: Callable[[str], None] = lambda _: None

    def check(self) -> None:
        """Refuse what :func:`tell` could not do, before anything is measured.

        Raises:
            ValueError: a number out of range, an unknown judge, ``resume`` is a folder.
            TypeError: ``judge`` is none.
            FileNotFoundError: no folder of prompts.
        """
        if self.text_items < 1 or self.random_texts < 0:
            raise ValueError(
                f"text_items must be >= 1 and random_texts >= 0, got {self.text_items} and {self.random_texts}"
            )
        if self.resume is not None and Path(self.resume).is_dir():
            raise ValueError(f"resume must be a file of replies, got the folder {os.fspath(self.resume)!r}")
        _judge(self, self.client, Prompts(self.prompts))


@dataclass
class Told:
    """What there is besides the module cards, which are written in place."""

    interfaces: list[InterfaceCard] = field(default_factory=list)
    groups: list[GroupCard] = field(default_factory=list)
    meta: dict[str, Any] = field(default_factory=dict)


def tell(
    how: Telling,
    cards: Sequence[ModuleCard],
    windows: Sequence[Window],
    carried: Sequence[Window],
    groups: Sequence[Mapping[str, Any]],
    controls: int,
    decode: Decode,
) -> Told:
    """Write the texts of cards, interfaces and groups, and score them.

    Args:
        how: client, judge and settings.
        cards: with evidence and evidence-only texts; changed in place.
        windows: use of every module, [positions, 1 + controls, k].
        carried: signal of every interface, [positions, 1 + controls, k * k], column reader * k + source; may be empty.
        groups: nodes of the tree over the modules: ``{"group": id, "children": [...], "modules": [...], ...}``.
        controls: random modules that texts are judged on.
        decode: from token ids to text.
    """
    prompts = Prompts(how.prompts)
    client = None if how.client is None else _recorded(how.client, how.resume)
    judge = _judge(how, client, prompts)
    k = len(cards)
    own = [material(windows, 0, i, decode) for i in range(k)]
    plain = [template(m) for m in own]
    told = Told(_interface_cards(cards), _group_cards(groups, cards, own))
    signals = {
        c.modules: material(carried, 0, c.modules[0] * k + c.modules[1], decode) for c in told.interfaces if carried
    }
    blind: dict[int, str] = dict(enumerate(plain))
    writer = None if client is None else Writer(client, prompts, how.seed, how.say)
    if writer is not None:
        writer.modules(cards, own)
        writer.interfaces(told.interfaces, cards, signals)
        writer.groups(told.groups, cards)
        _share_interface_texts(cards, told.interfaces)
    if judge is not None:
        how.say(f"scores of the texts by {judge.name}")
        subjects = _module_subjects(how, writer, cards, windows, blind, controls, decode)
        _keep(cards, score_texts(subjects, judge, how.seed))
        if carried:
            _keep(
                told.interfaces,
                score_texts(_interface_subjects(how, told, carried, signals, k, decode), judge, how.seed),
            )
    every = [*cards, *told.interfaces, *told.groups]
    told.meta = {
        "failed": sum(c.error is not None for c in cards),
        "failed_texts": sum(c.error is not None for c in every),
        "parse_failures": getattr(client, "parse_failures", 0),
        "usage": getattr(client, "usage", None),
        "judge": None if judge is None else judge.name,
        "judge_usage": getattr(getattr(judge, "client", None), "usage", None),
        "text_scores": summary([c.scores for c in cards], how.seed) if judge is not None else {},
    }
    return told


def _recorded(client: Client, path: str | os.PathLike[str] | None) -> Client:
    return client if path is None else RecordingClient(client, path)


def _judge(how: Telling, client: Client | None, prompts: Prompts) -> Judge | None:
    judge = how.judge
    if isinstance(judge, str):
        if judge not in ("lexical", "none"):
            raise ValueError(f"judge must be 'lexical', 'none', a client or a judge, got {judge!r}")
        return LexicalJudge() if judge == "lexical" else None
    if isinstance(judge, Judge):
        return judge
    if isinstance(judge, Client):
        same = judge is how.client and client is not None
        return LanguageJudge(client if same and client else _recorded(judge, how.resume), prompts, how.seed)
    raise TypeError(f"judge must have `name` and `rate`, or be a client, got {type(judge).__name__}")


def _interface_cards(cards: Sequence[ModuleCard]) -> list[InterfaceCard]:
    """One card for each pair (reader, source) that is sizeable for either side, strongest first."""
    found: dict[tuple[int, int], InterfaceCard] = {}
    for card in cards:
        for entry in card.interfaces:
            reads = entry["direction"] == "reads"
            pair = (card.index, int(entry["module"])) if reads else (int(entry["module"]), card.index)
            if reads or pair not in found:
                evidence = {n: v for n, v in entry.items() if n not in ("module", "text", "origin", "scores")}
                scores = dict(entry.get("scores", {}))
                found[pair] = InterfaceCard(pair, entry["text"], evidence=evidence, scores=scores)
    return sorted(found.values(), key=lambda c: -float(c.evidence["strength"]))


def _share_interface_texts(cards: Sequence[ModuleCard], interfaces: Sequence[InterfaceCard]) -> None:
    """Put the texts by the language model where the module cards list their interfaces, too."""
    texts = {c.modules: c for c in interfaces if c.error is None}
    for card in cards:
        for entry in card.interfaces:
            other = int(entry["module"])
            pair = (card.index, other) if entry["direction"] == "reads" else (other, card.index)
            if pair in texts:
                entry["text"], entry["origin"] = texts[pair].text, texts[pair].origin


def _group_cards(
    groups: Sequence[Mapping[str, Any]], cards: Sequence[ModuleCard], own: Sequence[Mapping[str, Any]]
) -> list[GroupCard]:
    out = []
    for g in groups:
        modules = [int(m) for m in g["modules"]]
        tokens = [[str(t["text"]) for t in own[m].get("more_on", [])[:3]] for m in modules]
        text = f"Modules {', '.join(map(str, modules))}."
        if any(tokens):
            text += " Active most at " + "; ".join(", ".join(f"“{t}”" for t in part) for part in tokens if part) + "."
        out.append(
            GroupCard(
                int(g["group"]),
                [int(c) for c in g["children"]],
                text,
                evidence=dict(g.get("evidence", {})),
                scores=dict(g.get("scores", {})),
                modules=modules,
            )
        )
    return out


def _module_subjects(
    how: Telling,
    writer: Writer | None,
    cards: Sequence[ModuleCard],
    windows: Sequence[Window],
    plain: Mapping[int, str],
    controls: int,
    decode: Decode,
) -> list[Subject]:
    count, seed = how.text_items, how.seed
    draws = range(1, 1 + min(controls, windows[0].use.shape[1] - 1))
    others = {(c.index, r): material(windows, r, c.index, decode) for c in cards for r in draws}
    texts: dict[tuple[int, int], str | None] = {at: template(m) for at, m in others.items()}
    if writer is not None and how.random_texts:
        asked = [at for at in others if at[1] <= how.random_texts]
        texts = dict(zip(asked, writer.texts([others[at] for at in asked]), strict=True))
    out = []
    for c in cards:
        random = []
        for r in draws:
            text = texts.get((c.index, r))
            if text is not None:
                random.append((text, random_tasks(windows, c.evidence, c.index, r, decode, count, seed)))
        text = None if c.error is not None else judged(c, plain[c.index])
        tasks = tasks_of(windows, c.evidence, c.index, decode, count, seed)
        out.append(Subject(text, plain[c.index], tasks, random))
    return out


def _interface_subjects(
    how: Telling,
    told: Told,
    carried: Sequence[Window],
    signals: Mapping[tuple[int, int], Mapping[str, Any]],
    k: int,
    decode: Decode,
) -> list[Subject]:
    out = []
    for c in told.interfaces:
        column = c.modules[0] * k + c.modules[1]

        def task(draw: int, column: int = column) -> dict[str, Task]:
            made = pieces(carried, draw, column, decode, how.text_items, how.seed, "signal")
            return {} if made is None else {"signal": made}

        plain = template(signals[c.modules])
        random = []
        if carried[0].use.shape[1] > 1:
            random.append((template(material(carried, 1, column, decode)), task(1)))
        out.append(Subject(None if c.error is not None else judged(c, plain), plain, task(0), random))
    return out


def _keep(cards: Sequence[Any], scores: Sequence[Mapping[str, Any]]) -> None:
    for card, found in zip(cards, scores, strict=True):
        card.scores = {**card.scores, **found}
