"""Evidence of a whole partition in one call: gathered from a stream, stored, and used again when it fits."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from modcut import _batches
from modcut._files import plain, write_json
from modcut.graph.interventions import Mode
from modcut.partition import Partition
from modcut.provenance import digest
from modcut.reading import evidence as _evidence
from modcut.reading import scores as _scores
from modcut.reading import shards, signals
from modcut.reading.code import CodeError, module_code
from modcut.reading.contexts import Decode
from modcut.reading.effects import rank_p
from modcut.reading.groups import group_evidence
from modcut.reading.observe import observe
from modcut.reading.sketch import Window, of_windows, windows_from_arrays, windows_to_arrays
from modcut.reading.store import labels_digest, read_arrays, settings_digest, write_arrays
from modcut.reading.stream import data_digest
from modcut.reading.watch import Measure

_FORMAT = "modcut evidence"
_VERSION = 1
# Random partitions whose interfaces are the controls of signals: k * (k - 1) random interfaces each.
SIGNAL_CONTROLS = 2
# Other interfaces whose evidence each interface is compared with: all k * (k - 1) of them would cost k^4 comparisons.
SIGNAL_OTHERS = 64


@dataclass
class Evidence:
    """Everything that cards are made from, without the model; see docs/reading.md for the fields."""

    modules: list[dict[str, Any]]
    scores: list[dict[str, Any]]
    interfaces: list[list[dict[str, Any]]]
    groups: list[dict[str, Any]]
    windows: list[Window]
    """A fixed sample of the data with the use of every module, [positions, 1 + controls, k]."""
    carried: list[Window]
    """Signals of interfaces, [positions, 1 + controls, k * k], column ``reader * k + source``; may be empty."""
    meta: dict[str, Any] = field(default_factory=dict)
    """Counts, settings, digests of model, partition and data."""

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write ``evidence.json`` and ``evidence.safetensors`` into a folder, each in one step."""
        folder = Path(folder)
        arrays = windows_to_arrays("windows", self.windows) | windows_to_arrays("carried", self.carried)
        write_arrays(folder / "evidence.safetensors", arrays, {"format": _FORMAT, "digest": str(self.meta["evidence"])})
        words = {
            "format": _FORMAT,
            "version": _VERSION,
            "meta": self.meta,
            "modules": self.modules,
            "scores": self.scores,
            "interfaces": self.interfaces,
            "groups": self.groups,
            "slices": {"windows": [w.slice for w in self.windows], "carried": [w.slice for w in self.carried]},
        }
        return write_json(folder / "evidence.json", words)

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Evidence:
        """Read what :meth:`save` wrote.

        Raises:
            FileNotFoundError: there is no evidence in the folder.
            ValueError: the files are truncated, foreign, of another version, or not of one run.
        """
        folder = Path(folder)
        if not (folder / "evidence.json").is_file() or not (folder / "evidence.safetensors").is_file():
            raise FileNotFoundError(
                f"evidence must be a folder with evidence.json and evidence.safetensors, got {folder}"
            )
        try:
            value = json.loads((folder / "evidence.json").read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{folder / 'evidence.json'} must be JSON: {error}") from error
        if not isinstance(value, dict) or value.get("format") != _FORMAT or value.get("version") != _VERSION:
            raise ValueError(f"{folder / 'evidence.json'} must be {_FORMAT} of version {_VERSION}")
        tensors, header = read_arrays(folder / "evidence.safetensors", _FORMAT)
        if header.get("digest") != value["meta"].get("evidence"):
            raise ValueError(f"{folder} holds arrays and words of different runs; delete it and gather evidence again")
        arrays = {n: t.numpy() for n, t in tensors.items()}
        windows, carried = (windows_from_arrays(n, arrays, value["slices"][n]) for n in ("windows", "carried"))
        parts = {name: value[name] for name in ("modules", "scores", "interfaces", "groups", "meta")}
        return cls(**parts, windows=windows, carried=carried)

    def check(
        self, model: nn.Module | None, P: Partition, data: _batches.Data | None, settings: dict[str, Any]
    ) -> None:
        """Refuse evidence that is not of this model, partition, data and settings (None: not looked at).

        Raises:
            ValueError: something differs; the sentence says what.
        """
        here: dict[str, Any] = {"partition": labels_digest(P.labels), "settings": settings}
        if model is not None:
            here["model"] = digest(model)
        if data is not None and not hasattr(data, "__next__"):
            here["data"] = data_digest(data, settings.get("max_batches"))
        for name, value in here.items():
            if self.meta.get(name) != value:
                what = name
                if name == "settings":
                    stored = self.meta.get(name) or {}
                    differs = [key for key, x in value.items() if stored.get(key) != x]
                    what = "settings (" + ", ".join(f"{key}: stored {stored.get(key)!r}" for key in differs) + ")"
                raise ValueError(
                    f"evidence must be of this model, partition, data and settings: the stored {what} differ; "
                    "pass another folder, or delete this one"
                )


def collect_evidence(
    model: nn.Module,
    P: Partition,
    data: _batches.Data,
    *,
    loss_fn: _batches.LossFn | None = None,
    tokenizer: Any = None,
    seed: int = 0,
    max_batches: int | None = None,
    controls: int = 20,
    ablation: Mode = "mean",
    ablation_controls: int | None = None,
    measure: Measure = "use",
    windows: int = 256,
    samples: int = 256,
    path: str | os.PathLike[str] | None = None,
    shard: bool = True,
    step: Callable[[str], None] | None = None,
) -> Evidence:
    """Gather the evidence of every module, interface and group of ``P``, with its held-out scores and controls.

    The data is read once, in bounded memory (:func:`modcut.reading.observe.observe` states cost and memory). Under
    ``torch.distributed`` batches are dealt to the ranks, and every rank returns the same evidence (sums to the rounding
    of float64).

    Args:
        model: the model that ``P.graph`` was traced from; left as it was.
        P: a partition.
        data: batches or a dict of them by slice; any length.
        loss_fn: ``loss_fn(model, batch) -> scalar`` where the model returns no loss.
        tokenizer: shows tokens as text.
        seed: of halves, samples, random modules, bootstrap.
        max_batches: per slice; None reads everything.
        controls: random partitions of the same make-up measured in the same pass; the smallest p is 1 / (1 + controls).
        ablation: how modules are switched off.
        ablation_controls: how many of them are ablated too (default: at most 3).
        measure: ``use`` (forward and backward) or ``activity`` (forward only, for long streams).
        windows: kept per half for scores and readers.
        samples: of these, kept as inputs per half for ablations and signals.
        path: a folder. Evidence found there is returned if it fits and refused otherwise; a stream that was interrupted
            goes on; the result is stored.
        shard: deal batches to the ranks of ``torch.distributed``.
        step: called with words of progress.

    Raises:
        ValueError: too little data, labels of another graph, or stored evidence of something else.
    """
    if controls < 1:
        raise ValueError(f"controls must be at least 1 (no effect is given without one), got {controls}")
    if seed < 0 or windows < 1 or samples < 1:
        raise ValueError(f"seed must be >= 0, windows and samples >= 1, got {seed}, {windows} and {samples}")
    settings: dict[str, Any] = {
        "seed": seed,
        "max_batches": max_batches,
        "controls": controls,
        "ablation": ablation,
        "ablation_controls": min(controls, 3) if ablation_controls is None else ablation_controls,
        "measure": measure,
        "windows": windows,
        "samples": samples,
        "edge": P.graph.edge,
        "loss_fn": None if loss_fn is None else getattr(loss_fn, "__qualname__", type(loss_fn).__name__),
    }
    folder = None if path is None else Path(path)
    if folder is not None and (folder / "evidence.json").is_file():
        found = Evidence.load(folder)
        found.check(model, P, data, settings)
        return found
    say, decode = step or (lambda _: None), _evidence.decoder(tokenizer)
    identity = {"model": digest(model), "partition": labels_digest(P.labels), "settings": settings}
    seen = observe(
        model,
        P,
        data,
        loss_fn=loss_fn,
        seed=seed,
        max_batches=max_batches,
        controls=controls,
        ablation_controls=ablation_controls,
        mode=ablation,
        measure=measure,
        windows=windows,
        samples=samples,
        decode=decode if tokenizer is not None else None,
        folder=folder,
        settings=settings_digest(**identity),
        shard=shard,
        step=say,
    )
    say("scores of the evidence")
    signatures, scores = _scores.score_all(seen.sketch, P.k, controls, seed)
    for s, e in zip(scores, seen.effects, strict=True):
        s["effect"] = {
            "measure": f"rise of {seen.objective} over all held-out samples without the module",
            **e.total,
            "p": rank_p(e.total["value"], e.total["random"]),
            "n": e.total["windows"],
        }
    say("interfaces")
    blocks = _evidence.block_strengths(P)
    matrix = sum((m for _, _, m in blocks), np.zeros((P.k, P.k)))
    modules = _evidence.gather(P, seen, signatures, matrix, decode)
    interfaces = [_evidence.interfaces(P, i, matrix, blocks) for i in range(P.k)]
    carried, left, means = signals.carried_signals(
        model, P, seen.samples, seen.control_labels[: min(controls, SIGNAL_CONTROLS)], say=say
    )
    _signals(P, interfaces, carried, decode, seed)
    for known, direct in zip(modules, signals.direct_effects(model, P, seen.samples, seen.windows, means), strict=True):
        for o in [] if direct is None or not seen.tokens else direct["gains"] + direct["loses"]:
            o["text"] = decode([o["output"]])
        known["direct"] = direct
        try:
            known["code"], known["code_refused"] = module_code(model, P, known["module"]), None
        except CodeError as error:
            known["code"], known["code_refused"] = None, str(error)
    out = Evidence(
        plain(modules),
        plain(scores),
        plain(interfaces),
        plain(group_evidence(seen, matrix, decode, controls, seed)) if P.k > 1 else [],
        seen.windows,
        carried,
        {
            **identity,
            "data": seen.data,
            "n": seen.sketch.windows,
            "held_out": seen.sketch.held,
            "positions": seen.sketch.positions,
            "slices": list(seen.slices),
            "objective": seen.objective,
            "measured": seen.measured,
            "tokens": seen.tokens,
            "kept_windows": len(seen.windows),
            "samples": len(seen.samples),
            "table": matrix.tolist(),
            "signals_without": list(left),
        },
    )
    out.meta["evidence"] = settings_digest(**identity, data=seen.data)
    if folder is not None and (not shard or shards.place()[0] == 0):
        out.save(folder)
        for partial in folder.glob("partial-*-of-*.safetensors"):
            partial.unlink()
    return out


def _signals(
    P: Partition,
    interfaces: list[list[dict[str, Any]]],
    carried: list[Window],
    decode: Decode,
    seed: int,
) -> None:
    """Add directions, the carried signal and its score to every interface."""
    k = P.k
    sketch = of_windows(carried, seed=seed) if carried and any(w.selection for w in carried) else None
    held = [w for w in carried if not w.selection]
    pairs = [(a, b) for a in range(k) for b in range(k) if a != b]
    cache: dict[tuple[int, int], _scores.Signature] = {}
    directions: dict[tuple[int, int], list[dict[str, Any]]] = {}
    rows: dict[tuple[int, int], dict[str, Any]] = {}

    def evidence(draw: int, column: int) -> _scores.Signature:
        assert sketch is not None
        if (draw, column) not in cache:
            cache[draw, column] = _scores.signature(sketch, draw, column)
        return cache[draw, column]

    random: list[float] = []
    if sketch is not None and held:
        for draw in range(1, sketch.draws):
            for a, b in pairs:
                c = a * k + b
                random.append(_scores.correlation(_scores.simulation(held, draw, c, evidence(draw, c))))
    for i, entries in enumerate(interfaces):
        for e in entries:
            a, b = (i, e["module"]) if e["direction"] == "reads" else (e["module"], i)
            if (a, b) not in directions:  # the reader's and the source's card show the same interface
                directions[a, b] = signals.low_rank(P, a, b)
            e["low_rank"] = directions[a, b]
            e["carried"], e["scores"] = None, {}
            if sketch is None or not held:
                continue
            c = a * k + b
            own = evidence(0, c)
            e["carried"] = signals.interface_signal(carried, a, b, k)
            most = sorted(own.tokens.items(), key=lambda t: -t[1])[:8]
            e["carried"]["more_on"] = [{"token": t, "text": decode([t]), "relative_share": x} for t, x in most if x > 1]
            if (a, b) in rows:
                e["scores"]["interface"] = dict(rows[a, b])
                continue
            others = [p for p in pairs if p != (a, b)]
            if len(others) > SIGNAL_OTHERS:
                rng = np.random.default_rng([seed, a, b])
                others = [others[n] for n in rng.choice(len(others), SIGNAL_OTHERS, replace=False)]
            shuffled = [_scores.correlation(_scores.simulation(held, 0, c, evidence(0, x * k + y))) for x, y in others]
            rows[a, b] = e["scores"]["interface"] = _scores.row(
                "correlation of the signal's share predicted from its evidence with the carried one",
                _scores.simulation(held, 0, c, own),
                _scores.correlation,
                shuffled,
                random,
                seed,
            )


__all__ = ["Evidence", "collect_evidence"]
