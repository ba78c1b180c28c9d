"""What ablating a module does to the loss: by slice, by behaviour, by output, beside random modules of its make-up.

A behaviour is a slice of the data, a target class, or a kind of next token (punctuation, digit, start of a word ...).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from modcut import _batches
from modcut.graph import interventions
from modcut.partition import Partition
from modcut.reading import shards

Step = Callable[[str], None]
CLASSES = 32
KINDS = ("line break", "space", "digits", "punctuation", "start of a word", "inside a word", "other characters")


def kind_of(text: str) -> int:
    """Return which of :data:`KINDS` a token's text is."""
    bare = text.strip(" \t")
    if "\n" in bare or "\r" in bare:
        return 0
    if not bare:
        return 1
    if bare.isdigit():
        return 2
    if not any(c.isalnum() for c in bare):
        return 3 if bare.isascii() else 6
    if not bare[0].isascii():
        return 6
    return 4 if text[0] in " \t" or bare[0].isupper() else 5


@dataclass
class Effect:
    """What ablating one module does, beside matched random modules."""

    mode: str
    slices: list[dict[str, Any]] = field(default_factory=list)
    changes: NDArray[np.float64] | None = None
    """Mean change of probability of every output, [outputs], or None where the outputs are not probabilities."""
    control_changes: NDArray[np.float64] | None = None
    """The same for each control, [controls, outputs]."""
    behaviours: list[dict[str, Any]] = field(default_factory=list)
    total: dict[str, Any] = field(default_factory=dict)
    """Rise of the mean loss over all held-out samples, its controls and its bootstrap interval."""


@dataclass
class Measured:
    """Losses of one run over the held-out samples."""

    slices: dict[str, tuple[float, int]]
    groups: dict[tuple[str, str], tuple[float, int]]
    """Sum of the loss and positions by (kind of behaviour, behaviour)."""
    rows: list[float]
    """Mean loss of every sample; empty where the loss cannot be told sample by sample."""
    p: NDArray[np.float64] | None


def measure_effects(
    model: nn.Module,
    P: Partition,
    random: Tensor,
    chosen: Sequence[tuple[str, Any]],
    held: Sequence[tuple[str, Any]],
    objective: _batches.LossFn,
    mode: interventions.Mode,
    *,
    own_loss: bool = True,
    decode: Callable[[Sequence[int]], str] | None = None,
    seed: int = 0,
    shard: bool = False,
    say: Step = lambda _: None,
) -> list[Effect]:
    """Return the effect of every module, with the rows of ``random`` [controls, n] as its controls.

    Cost: (1 + controls) * k + 1 forward passes over the held-out batches, dealt to the ranks where ``shard``.
    """
    reference = None
    if mode in ("mean", "resample", "noise"):
        rows = sum(_batches.batch_size(b) for _, b in chosen)
        reference = interventions.collect_reference(
            model, P.graph, [b for _, b in chosen], max_rows=rows, keep_samples=mode == "resample"
        )
    kinds: dict[int, int] = {}

    def kind(tokens: Tensor) -> Tensor:
        assert decode is not None
        ids = torch.unique(tokens).tolist()
        for t in ids:
            if t not in kinds:
                kinds[t] = kind_of(decode([t]))
        table = torch.zeros(max(ids, default=0) + 1, dtype=torch.int64)
        table[ids] = torch.tensor([kinds[t] for t in ids])
        return table[tokens]

    told = kind if decode is not None else None
    base = measure(model, held, objective, own_loss=own_loss, kind=told)
    labels = [P.labels.cpu(), *random]
    rank, world = shards.place() if shard else (0, 1)
    runs: dict[tuple[int, int], Measured] = {}
    for number, (i, r) in enumerate((i, r) for i in range(P.k) for r in range(len(labels))):
        if number % world != rank:
            continue
        say(f"effect of module {i} of {P.k}" + (f", random control {r}" if r else ""))
        units = interventions.reachable(P.graph, torch.nonzero(labels[r] == i).flatten())
        with interventions.replace(model, P.graph, units, mode, reference=reference, seed=r):
            runs[i, r] = measure(model, held, objective, own_loss=own_loss, kind=told)
    if world > 1:
        runs = _exchange(runs)
    return [_effect(base, [runs[i, r] for r in range(len(labels))], mode, seed) for i in range(P.k)]


def _effect(base: Measured, runs: Sequence[Measured], mode: str, seed: int) -> Effect:
    effect = Effect(mode)
    for name, (loss, n) in base.slices.items():
        rises = [run.slices[name][0] - loss for run in runs]
        effect.slices.append({"slice": name, "loss": loss, "rise": rises[0], "controls": rises[1:], "windows": n})
    if base.p is not None:
        changes = [run.p - base.p for run in runs if run.p is not None]
        effect.changes, effect.control_changes = changes[0], np.stack(changes[1:])
    found = [("slice", s["slice"], s["loss"], s["rise"], s["controls"], s["windows"]) for s in effect.slices]
    found = found if len(found) > 1 else []
    for (family, name), (total, n) in base.groups.items():
        rises = [(run.groups[family, name][0] - total) / n for run in runs]
        found.append((family, name, total / n, rises[0], rises[1:], n))
    families = {f[0]: sum(g[0] == f[0] for g in found) for f in found}
    for family, name, loss, rise, controls, n in found:
        if families[family] < 2:
            continue
        others = [f for f in found if f[0] == family and f[1] != name]
        apart = np.mean([[f[3], *f[4]] for f in others], axis=0)
        effect.behaviours.append(
            {
                "behaviour": name,
                "kind": family,
                "loss": loss,
                "rise": rise,
                "controls": controls,
                "p": rank_p(rise, controls),
                "selectivity": float(rise - apart[0]),
                "selectivity_controls": [float(c - apart[r]) for r, c in enumerate(controls, start=1)],
                "n": n,
            }
        )
    weights = [n for _, n in base.slices.values()]
    totals = [
        float(np.average([run.slices[s][0] - base.slices[s][0] for s in base.slices], weights=weights)) for run in runs
    ]
    effect.total = {"value": totals[0], "random": totals[1:], "low": None, "high": None, "windows": sum(weights)}
    if len(base.rows) > 1:
        change = np.array(runs[0].rows) - np.array(base.rows)
        rng = np.random.default_rng(seed)
        means = change[rng.integers(0, len(change), (1000, len(change)))].mean(1)
        low, high = np.quantile(means, [0.025, 0.975])
        effect.total |= {"low": float(low), "high": float(high)}
    return effect


def rank_p(value: float, controls: Sequence[float]) -> float | None:
    """Return the one-sided rank p-value: how often a draw from the controls' distribution is at least ``value``."""
    finite = [c for c in controls if c is not None and np.isfinite(c)]
    if not finite or value is None or not np.isfinite(value):
        return None
    return (1 + sum(c >= value for c in finite)) / (1 + len(finite))


def measure(
    model: nn.Module,
    batches: Sequence[tuple[str, Any]],
    objective: _batches.LossFn,
    *,
    own_loss: bool = False,
    kind: Callable[[Tensor], Tensor] | None = None,
) -> Measured:
    """Mean loss and number of samples of every slice; mean probability of every output; losses by behaviour."""
    losses: dict[str, tuple[float, int]] = {}
    groups: dict[tuple[str, str], tuple[float, int]] = {}
    rows: list[float] = []
    p_sum: Tensor | None = None
    count = samples = 0
    kept: list[Tensor] = []

    def keep(_: nn.Module, __: Any, output: Any) -> None:
        kept.append(_batches.logits_of(output))

    # The loss calls the model once: its logits are caught there instead of paying for a second forward pass.
    handle = model.register_forward_hook(keep)
    try:
        with torch.no_grad():
            for name, batch in batches:
                kept.clear()
                loss = float(objective(model, batch))
                size = _batches.batch_size(batch)
                samples += size
                before, n = losses.get(name, (0.0, 0))
                losses[name] = ((before * n + loss * size) / (n + size), n + size)
                logits = kept[-1] if kept else _batches.logits_of(_batches.forward(model, batch))
                targets = _batches.targets_of(batch)
                regression = targets is not None and targets.is_floating_point()
                if logits.ndim not in (2, 3) or logits.shape[-1] < 2 or regression:
                    continue
                log_p = logits.float().log_softmax(-1)
                if own_loss:
                    _grouped(log_p, batch, targets, kind, groups, rows)
                p = log_p.exp().flatten(0, -2)
                p_sum = p.sum(0).double().cpu() + (0.0 if p_sum is None else p_sum)
                count += p.shape[0]
    finally:
        handle.remove()
    p_mean = None if p_sum is None else (p_sum / count).numpy()
    return Measured(losses, groups, rows if len(rows) == samples else [], p_mean)


def _grouped(
    log_p: Tensor,
    batch: Any,
    targets: Tensor | None,
    kind: Callable[[Tensor], Tensor] | None,
    groups: dict[tuple[str, str], tuple[float, int]],
    rows: list[float],
) -> None:
    """Add the batch's losses to the behaviours they belong to; nothing where targets and outputs do not fit."""
    tokens, names = _batches.inputs_of(batch), None
    if (
        log_p.ndim == 3
        and not tokens.is_floating_point()
        and log_p.shape[:2] == tokens.shape
        and _next(tokens, targets)
    ):
        if int(tokens.max()) >= log_p.shape[-1]:
            return
        log_p, goal = log_p[:, :-1], tokens[:, 1:]
        mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
        valid = mask[:, 1:].bool() if isinstance(mask, Tensor) and mask.shape == tokens.shape else goal >= 0
        if kind is not None:
            names, family = kind(goal.cpu()), "next token"
    elif targets is not None and targets.shape == log_p.shape[:-1]:
        goal, valid = targets.clamp_min(0), targets >= 0
    else:
        return
    nll = -log_p.gather(-1, goal[..., None])[..., 0]
    label: Callable[[int], str] = lambda c: KINDS[c]  # noqa: E731
    if names is None and log_p.shape[-1] <= CLASSES:
        names, family, label = goal.cpu(), "class", lambda c: f"class {c}"
    nll, valid = nll.double().cpu(), valid.cpu()
    for row, ok in zip(nll, valid, strict=True):
        rows.append(float(row[ok].mean()) if bool(ok.any()) else 0.0)
    if names is None:
        return
    for c in torch.unique(names[valid]).tolist():
        where = valid & (names == c)
        total, n = groups.get((family, label(c)), (0.0, 0))
        groups[family, label(c)] = (total + float(nll[where].sum()), n + int(where.sum()))


def _next(tokens: Tensor, targets: Tensor | None) -> bool:
    """Whether the goal is the next token: no targets, or the labels of transformers (the tokens themselves)."""
    return targets is None or (targets.shape == tokens.shape and bool(((targets == tokens) | (targets < 0)).all()))


def _exchange(runs: dict[tuple[int, int], Measured]) -> dict[tuple[int, int], Measured]:
    """All ranks' runs on every rank."""
    arrays, plain = {}, []
    for (i, r), m in runs.items():
        if m.p is not None:
            arrays[f"p.{i}.{r}"] = m.p
        told = [[*at, *value] for at, value in m.groups.items()]
        plain.append({"at": [i, r], "slices": m.slices, "groups": told, "rows": m.rows})
    out = {}
    for got, words in shards.gather((arrays, {"runs": plain})):
        for m in words["runs"]:
            i, r = m["at"]
            p = got[f"p.{i}.{r}"].numpy() if f"p.{i}.{r}" in got else None
            slices = {name: (float(x), int(n)) for name, (x, n) in m["slices"].items()}
            groups = {(a, b): (float(x), int(n)) for a, b, x, n in m["groups"]}
            out[i, r] = Measured(slices, groups, m["rows"], p)
    return out
