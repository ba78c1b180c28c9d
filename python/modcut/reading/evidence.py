"""What is known about each module, as plain numbers and strings: the only source of every card's text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F  # noqa: N812

from modcut.partition import Partition
from modcut.reading.contexts import Decode, inputs
from modcut.reading.effects import rank_p
from modcut.reading.observe import Observation
from modcut.reading.scores import Signature

OUTPUTS = 8
# An interface gets words of its own when it carries at least this part of a module's strength to other modules.
SIZEABLE = 0.05
# Random modules of other cards count as controls where no module is larger or smaller by more than this part.
ALIKE = 0.1


def decoder(tokenizer: Any) -> Decode:
    """Return a function from token ids to text: ``tokenizer.decode``, the callable itself, or ``#id`` without one.

    Raises:
        TypeError: the tokenizer has no ``decode`` and cannot be called.
    """
    if tokenizer is None:
        return lambda ids: " ".join(f"#{i}" for i in ids)
    decode = getattr(tokenizer, "decode", None)
    spell = decode if callable(decode) else tokenizer
    if callable(spell):

        def decoded(ids: Sequence[int]) -> str:
            text = spell([int(i) for i in ids])
            if not isinstance(text, str):
                raise TypeError(f"tokenizer must turn a list of ids into a str, got {type(text).__name__}")
            return text

        return decoded
    raise TypeError(f"tokenizer must have decode(list[int]) or be callable, got {type(tokenizer).__name__}")


def block_strengths(P: Partition) -> list[tuple[str, str, NDArray[np.float64]]]:
    """Return the strength from module to module of every block: ``(target space, source space, [k, k])``.

    Entry (i, j): module ``i`` reads from module ``j`` (rows of a block are targets, columns sources); a block that is
    one symmetric matrix counts half each way. O(k * edges), one pass.
    """
    labels, out = P.labels.cpu(), []
    for block, capacity in P.graph.capacities():
        c = capacity.detach().to("cpu")
        c = c if c.dtype == torch.float64 else c.float()
        if block.rows == block.cols:
            c = c - torch.diag(torch.diagonal(c))
        to = F.one_hot(labels[block.rows.vertices], P.k).to(c.dtype)
        fro = F.one_hot(labels[block.cols.vertices], P.k).to(c.dtype)
        part = (to.T @ (c @ fro)).double()
        out.append((block.rows.name, block.cols.name, ((part + part.T) / 4 if block.symmetric else part).numpy()))
    return out


def gather(
    P: Partition,
    seen: Observation,
    signatures: Sequence[Signature],
    matrix: NDArray[np.float64],
    decode: Decode,
) -> list[dict[str, Any]]:
    """Return the evidence of every module, ready for JSON; ``matrix`` is the sum of :func:`block_strengths`, [k, k]."""
    separations = _separations(matrix)
    return [
        {
            "module": i,
            "make_up": _make_up(P, i, seen),
            "use": _use(seen, i),
            "inputs": inputs(seen, i, signatures[i], decode),
            "effect": _effect(seen, i, decode),
            "reads_from": _ends(matrix[i], i),
            "writes_to": _ends(matrix[:, i], i),
            "cut": _cut(matrix, i, separations),
        }
        for i in range(P.k)
    ]


def interfaces(P: Partition, i: int, matrix: NDArray[np.float64], blocks: Sequence[Any]) -> list[dict[str, Any]]:
    """Return the sizeable interfaces of module ``i``, strongest first, each with a sentence of its own."""
    out = []
    for j in range(P.k):
        if j == i:
            continue
        for direction, value, total in (
            ("reads", matrix[i, j], matrix[i].sum() - matrix[i, i]),
            ("writes", matrix[j, i], matrix[:, i].sum() - matrix[i, i]),
        ):
            if total <= 0 or value < SIZEABLE * total:
                continue
            a, b = (i, j) if direction == "reads" else (j, i)
            parts = sorted(((m[a, b], rows, cols) for rows, cols, m in blocks), key=lambda p: -p[0])[:3]
            places = [{"into": rows, "from": cols, "strength": float(s)} for s, rows, cols in parts if s > 0]
            verb = "reads from" if direction == "reads" else "writes to"
            text = f"Module {i} {verb} module {j}: {100 * value / total:.0f} % of what it {direction} across modules"
            if places:
                text += f", most through {places[0]['from']} to {places[0]['into']} "
                text += f"({100 * places[0]['strength'] / value:.0f} % of this interface)"
            out.append(
                {
                    "module": j,
                    "direction": direction,
                    "strength": float(value),
                    "share": float(value / total),
                    "places": places,
                    "text": text + ".",
                    "origin": "evidence only",
                }
            )
    return sorted(out, key=lambda entry: -float(entry["strength"]))


def _make_up(P: Partition, i: int, seen: Observation) -> dict[str, Any]:
    mine = P.labels.cpu() == i
    spaces = []
    for s in P.graph.spaces:
        units = int(mine[s.vertices].sum())
        spaces.append({"space": s.name, "kind": s.kind, "family": s.family or s.name, "units": units, "of": s.size})
    return {
        "units": int(mine.sum()),
        "of": P.graph.n,
        "unreachable": int((mine & ~seen.reachable).sum()),
        "spaces": [s for s in spaces if s["units"]],
    }


def _use(seen: Observation, i: int) -> dict[str, Any]:
    def part(name: str | None) -> dict[str, Any]:
        total, windows, _ = seen.sketch.use(name, selection=False)
        whole = total.sum(-1)
        shares = [float(total[r, i] / whole[r]) if whole[r] > 0 else None for r in range(len(total))]
        return {"share": shares[0], "controls": shares[1:], "windows": windows}

    names = [n for n in seen.slices if n]
    return {
        "measure": f"share of the network's use, {seen.measured}",
        **part(None),
        "slices": [{"slice": n, **found} for n in names if (found := part(n))["windows"]],
    }


def _effect(seen: Observation, i: int, decode: Decode) -> dict[str, Any]:
    e = seen.effects[i]
    out: dict[str, Any] = {
        "ablation": e.mode,
        "controls": len(e.total["random"]),
        "windows": e.total["windows"],
        "objective": seen.objective,
        "slices": [
            {**s, "control_mean": float(np.mean(s["controls"])), "control_sd": _sd(s["controls"])} for s in e.slices
        ],
        "behaviours": [{**b, "p_pooled": _pooled(seen, b, i)} for b in e.behaviours],
        "loses": [],
        "gains": [],
    }
    if e.changes is not None and e.control_changes is not None:
        order = np.argsort(e.changes, kind="stable")

        def entry(v: int) -> dict[str, Any]:
            assert e.changes is not None and e.control_changes is not None
            named = {"text": decode([v])} if seen.tokens else {}
            control = float(e.control_changes[:, v].mean())
            return {"output": v, **named, "change": float(e.changes[v]), "control_mean": control}

        out["loses"] = [entry(int(v)) for v in order[:OUTPUTS] if e.changes[v] < 0]
        out["gains"] = [entry(int(v)) for v in order[::-1][:OUTPUTS] if e.changes[v] > 0]
    return out


def _pooled(seen: Observation, b: dict[str, Any], i: int) -> float | None:
    """Rank of a rise among the random modules of all cards: finer than among its own, if all are of about one size."""
    sizes = torch.stack([torch.bincount(row[seen.reachable], minlength=seen.sketch.k) for row in seen.control_labels])
    sizes = sizes.double()
    if float((sizes - sizes[:, [i]]).abs().max()) > ALIKE * float(sizes[:, i].mean()):
        return None
    at = (b["kind"], b["behaviour"])
    same = [o for e in seen.effects for o in e.behaviours if (o["kind"], o["behaviour"]) == at]
    return rank_p(b["rise"], [c for o in same for c in o["controls"]])


def _sd(values: Sequence[float]) -> float | None:
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def _ends(row: NDArray[np.float64], i: int) -> list[dict[str, Any]]:
    total = float(row.sum() - row[i])
    order = [int(j) for j in np.argsort(-row, kind="stable") if j != i and row[j] > 0]
    return [{"module": j, "strength": float(row[j]), "share": float(row[j]) / total} for j in order]


def _cut(matrix: NDArray[np.float64], i: int, separations: list[dict[str, Any] | None]) -> dict[str, Any]:
    both = matrix + matrix.T
    leaving = float(both[i].sum() - both[i, i])
    inside = float(matrix[i, i])
    volume = leaving + 2 * inside
    return {
        "leaving": leaving,
        "inside": inside,
        "leaving_share": leaving / volume if volume > 0 else None,
        "separation": separations[i],
    }


def _separations(matrix: NDArray[np.float64]) -> list[dict[str, Any] | None]:
    """The cheapest cut between each module and any other one, modules taken as wholes, with its proven lower bound."""
    k = len(matrix)
    if k < 2:
        return [None] * k
    from modcut._arrays import native
    from modcut.cuts import gomory_hu_tree

    try:
        native()
    except RuntimeError:  # without the compiled engine (a plain source folder) this one figure is left out
        return [None] * k
    quotient = matrix + matrix.T
    np.fill_diagonal(quotient, 0.0)
    tree = gomory_hu_tree(quotient)
    out: list[dict[str, Any] | None] = []
    for i in range(k):
        values = [(float(tree.min_cut_value(i, j)), j) for j in range(k) if j != i]
        value, j = min(values)
        cut = tree.min_cut(i, j)
        out.append(
            {
                "value": value,
                "from": j,
                "lower": float(cut.lower),
                "exact": bool(cut.exact),
                "tree_edge": int(cut.stats["tree_edge"]),
                "with": [v for v in range(k) if bool(cut.side[v])],
            }
        )
    return out
