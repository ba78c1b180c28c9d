"""What a text is worth: a judge reads it, and nothing else, and predicts held-out measurements.

- ``text_detection``: on which pieces of held-out data is the module most active (AUROC, highest against lowest third)
- ``text_simulation``: how active is it on each piece (Pearson correlation with its share of use)
- ``causal``: which behaviours suffer when it is switched off (Spearman correlation with the measured rise)
- ``text_interface``: where is the signal of an interface strong (AUROC, highest against lowest third)

Beside each: other modules' texts on this module (``shuffled``), this text on random modules of the same make-up
(``random``: both at chance where a text is about its own module only), random modules with texts of their own
(``random_described``: any set of units can be described a little), and the evidence-only text on this module
(``template``: what a language model has to beat). An untrained net is a control by :func:`modcut.describe` on one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.stats import rankdata

from modcut.reading.clients import ClientError
from modcut.reading.judges import Item, Judge, Question, Rating
from modcut.reading.material import feature_name
from modcut.reading.resampling import (
    Floats,
    bootstrap,
    correlation,
    permutation_p,
    rank_correlation,
    sign_flip_p,
)
from modcut.reading.scores import auroc, share

if TYPE_CHECKING:
    from modcut.reading.sketch import Window

Decode = Callable[[Sequence[int]], str]
PIECE = 12
"""Tokens of one piece of data that a judge is shown."""
HIGHEST = 8
"""Features named of an input that is not tokens."""
SHUFFLED = 3
"""Other modules' texts that are tried on a module."""


_CONTROLS = ("shuffled_mean", "random_mean", "random_described_mean", "template")
_VALUES = ("value", "low", "high", "p", *_CONTROLS)


@dataclass
class Task:
    """One thing to predict from a text: items, the measured values, and what counts as good."""

    items: tuple[Item, ...]
    truth: Floats
    question: Question


@dataclass
class Subject:
    """One module or interface: its text, its tasks, and the tasks and texts of its controls."""

    text: str | None
    """None where the describer failed: then nothing is scored."""
    template: str
    tasks: dict[str, Task]
    random: list[tuple[str, dict[str, Task]]] = field(default_factory=list)
    """(text, tasks) of random modules."""


def pieces(
    windows: Sequence[Window], draw: int, column: int, decode: Decode, count: int, seed: int, question: Question
) -> Task | None:
    """Draw pieces of the held-out data, a third of them from each third of the activity; None without activity.

    Activity is the mean share of use over the piece's positions.
    """
    found: list[tuple[Item, float]] = []
    for w in windows:
        if w.selection:
            continue
        at = share(w.use[:, draw])[:, column]
        if w.tokens is None:
            if np.isfinite(at[0]):
                found.append((_vector(np.asarray(w.vector, dtype=np.float64)), float(at[0])))
            continue
        for start in range(0, max(1, len(w.tokens) - PIECE // 2), PIECE):
            part, ids = at[start : start + PIECE], w.tokens[start : start + PIECE].tolist()
            if np.isfinite(part).any():
                found.append((Item(decode(ids), tuple(decode([t]) for t in ids)), float(np.nanmean(part))))
    values = np.array([v for _, v in found])
    if len(found) < 6 or np.ptp(values) == 0:
        return None
    rng = np.random.default_rng([seed, draw, column])
    order = np.argsort(values + 1e-12 * rng.random(len(values)))
    thirds = [rng.permutation(t)[: max(2, count // 3)] for t in np.array_split(order, 3)]
    chosen = rng.permutation(np.concatenate(thirds))
    return Task(tuple(found[i][0] for i in chosen), values[chosen], question)


def behaviours(evidence: Mapping[str, Any]) -> list[tuple[Item, float, list[float]]]:
    """Return ``(item, rise, rises of the controls)`` of every behaviour that the evidence has an effect for."""
    effect = evidence.get("effect", {})
    listed = effect.get("behaviours")
    if not listed:
        listed = [{**s, "behaviour": s["slice"], "kind": "slice"} for s in effect.get("slices", []) if s["slice"]]
    out = []
    for b in listed:
        name = str(b["behaviour"])
        words = {"slice": f"data of the kind {name}", "class": f"answers of class {name}"}.get(str(b["kind"]))
        item = Item(words or f"predicting {name} next", tuple(dict.fromkeys([name, *name.split()])))
        if b["rise"] is not None:
            out.append((item, float(b["rise"]), [float(c) for c in b.get("controls", [])]))
    return out


def tasks_of(
    windows: Sequence[Window], evidence: Mapping[str, Any], module: int, decode: Decode, count: int, seed: int
) -> dict[str, Task]:
    """Return the tasks of one module of the partition."""
    out = {}
    task = pieces(windows, 0, module, decode, count, seed, "active")
    if task is not None:
        out["active"] = task
    listed = behaviours(evidence)
    if len(listed) > 1:
        out["breaks"] = Task(tuple(b[0] for b in listed), np.array([b[1] for b in listed]), "breaks")
    return out


def random_tasks(
    windows: Sequence[Window],
    evidence: Mapping[str, Any],
    module: int,
    draw: int,
    decode: Decode,
    count: int,
    seed: int,
) -> dict[str, Task]:
    """Return the same tasks for random control ``draw`` (from 1) in place of the module."""
    out = {}
    task = pieces(windows, draw, module, decode, count, seed, "active")
    if task is not None:
        out["active"] = task
    listed = [b for b in behaviours(evidence) if len(b[2]) >= draw]
    if len(listed) > 1:
        out["breaks"] = Task(tuple(b[0] for b in listed), np.array([b[2][draw - 1] for b in listed]), "breaks")
    return out


def score_texts(subjects: Sequence[Subject], judge: Judge, seed: int) -> list[dict[str, Any]]:
    """Return the scores of every subject's text by ``judge``, each beside its controls.

    A text that does not exist, or any rating that failed, gives ``value`` None and says why: a failure is no score.
    """
    ratings: list[Rating] = []
    place: dict[tuple[str, str, tuple[Item, ...]], int] = {}

    def ask(text: str, task: Task) -> int:
        key = (text, task.question, task.items)
        if key not in place:
            place[key] = len(ratings)
            ratings.append(Rating(text, task.question, task.items))
        return place[key]

    plan: list[dict[str, dict[str, Any]]] = []
    for i, subject in enumerate(subjects):
        others = [s for s in _others(subjects, i) if s.text is not None]
        steps: dict[str, dict[str, Any]] = {}
        for name, task in subject.tasks.items():
            if subject.text is None:
                continue
            steps[name] = {
                "own": ask(subject.text, task),
                "template": ask(subject.template, task),
                "shuffled": [ask(str(s.text), task) for s in others],
                "random": [(ask(subject.text, ts[name]), ts[name]) for _, ts in subject.random if name in ts],
                "random_described": [(ask(text, ts[name]), ts[name]) for text, ts in subject.random if name in ts],
            }
        plan.append(steps)
    answers = judge.rate(ratings)
    out: list[dict[str, Any]] = []
    for subject, steps in zip(subjects, plan, strict=True):
        scores: dict[str, Any] = {}
        for name, step in steps.items():
            for score, (measure, statistic, ranked) in _MEASURES[name].items():
                scores[score] = {
                    "measure": measure,
                    "judge": judge.name,
                    **_score(answers, step, subject.tasks[name], statistic, ranked, seed),
                }
        out.append(scores)
    return out


def summary(scores: Sequence[Mapping[str, Any]], seed: int) -> dict[str, Any]:
    """Return, for every kind of score, the means over the modules and the p of own above shuffled text."""
    out: dict[str, Any] = {}
    for name in dict.fromkeys(n for s in scores for n, v in s.items() if "judge" in v):
        known = [s[name] for s in scores if name in s and s[name]["value"] is not None]
        pairs = [(s["value"], s["shuffled_mean"]) for s in known if s["shuffled_mean"] is not None]
        out[name] = {
            "modules": len(known),
            "failed": sum(name in s and s[name]["value"] is None for s in scores),
            "value": _mean([s["value"] for s in known]),
            **{c: _mean([s[c] for s in known]) for c in _CONTROLS},
            "p_above_shuffled": sign_flip_p([a - b for a, b in pairs], seed) if pairs else None,
            "smallest_p": 2.0 ** -len(pairs) if pairs else None,
        }
    return out


def _others(subjects: Sequence[Subject], i: int) -> list[Subject]:
    """Other subjects for the control, at fixed distances around the circle: each text is tried equally often."""
    n = len(subjects)
    steps = range(1, n) if n - 1 <= SHUFFLED else [1 + s * (n - 1) // SHUFFLED for s in range(SHUFFLED)]
    return [subjects[(i + s) % n] for s in steps]


def _vector(x: Floats) -> Item:
    names = tuple(feature_name(int(j)) for j in np.argsort(-x, kind="stable")[:HIGHEST] if x[j] > x.mean())
    return Item("an input with high " + ", ".join(names), names)


def _detection(rated: Floats, truth: Floats) -> float:
    kept, positive = _thirds(truth)
    return auroc(rated[kept], positive[kept])


def _thirds(truth: Floats) -> tuple[Any, Any]:
    """Which items are in the highest or the lowest third, and which in the highest; none where the thirds tie."""
    low, high = np.quantile(truth, [1 / 3, 2 / 3])
    if low == high:
        # More than a third of the items tie: above against not above, or below against not below.
        positive = truth > high if (truth > high).any() else truth >= low
        return np.full(truth.shape, bool(positive.any() and not positive.all())), positive
    return (truth <= low) | (truth >= high), truth >= high


def _ranked_thirds(rated: Floats, truth: Floats) -> tuple[Floats, Floats]:
    kept, positive = _thirds(truth)
    return rankdata(rated[kept]), positive[kept].astype(np.float64)


def _ranks(rated: Floats, truth: Floats) -> tuple[Floats, Floats]:
    return rankdata(rated), rankdata(truth)


def _as_they_are(rated: Floats, truth: Floats) -> tuple[Floats, Floats]:
    return rated, truth


# Statistic, and the pair whose correlation orders permutations as the statistic does.
_MEASURES: dict[str, dict[str, tuple[str, Any, Any]]] = {
    "active": {
        "text_detection": (
            "AUROC: pieces of held-out data in the highest against the lowest third of the module's share of use",
            _detection,
            _ranked_thirds,
        ),
        "text_simulation": (
            "Pearson correlation of predicted and measured share of use over pieces of held-out data",
            correlation,
            _as_they_are,
        ),
    },
    "breaks": {
        "causal": (
            "Spearman correlation of predicted and measured damage over behaviours, the module switched off",
            rank_correlation,
            _ranks,
        ),
    },
    "signal": {
        "text_interface": (
            "AUROC: pieces of held-out data in the highest against the lowest third of the carried signal's share",
            _detection,
            _ranked_thirds,
        ),
    },
}


def _score(answers: Sequence[Any], step: Mapping[str, Any], task: Task, statistic: Any, ranked: Any, seed: int) -> Any:
    def value(number: int, of: Task) -> float | None:
        rated = answers[number]
        if isinstance(rated, ClientError):
            return None
        return _number(_defined(statistic, np.asarray(rated), of.truth))

    own = answers[step["own"]]
    n = {"n": len(task.items)}
    if isinstance(own, ClientError):
        empty = {k: None for k in _VALUES}
        return {**empty, "shuffled": [], "random": [], "random_described": [], **n, "error": f"{own.reason}: {own}"}
    rated = np.asarray(own, dtype=np.float64)
    low, high = bootstrap(len(rated), lambda at: _defined(statistic, rated[at], task.truth[at]), seed)
    shuffled = [value(s, task) for s in step["shuffled"]]
    random = [value(r, of) for r, of in step["random"]]
    described = [value(r, of) for r, of in step["random_described"]]
    return {
        "value": value(step["own"], task),
        "low": _number(low),
        "high": _number(high),
        "p": _chance(ranked(rated, task.truth), seed),
        "shuffled": shuffled,
        "shuffled_mean": _mean(shuffled),
        "random": random,
        "random_mean": _mean(random),
        "random_described": described,
        "random_described_mean": _mean(described),
        "template": value(step["template"], task),
        **n,
    }


def _chance(pair: tuple[Floats, Floats], seed: int) -> float:
    return permutation_p(pair[0], pair[1], seed)


def _defined(statistic: Any, rated: Floats, truth: Floats) -> float:
    """The statistic; a text that says the same of every item predicts nothing, which is chance and not unknown."""
    if np.ptp(truth) == 0:
        return float("nan")
    if np.ptp(rated) == 0:
        return 0.5 if statistic is _detection else 0.0
    return float(statistic(rated, truth))


def _number(x: float) -> float | None:
    return float(x) if np.isfinite(x) else None


def _mean(values: Sequence[float | None]) -> float | None:
    known = [x for x in values if x is not None]
    return float(np.mean(known)) if known else None
