"""What passes through interfaces, and what modules write straight to the outputs: measured on kept samples.

The carried signal of the interface "i reads from j" at a position is ``sqrt(sum over matrices of |W[i, j] (x[j] -
mean)|^2 / |W x - mean|^2)``: how much of what the rows of i receive there comes out of j, every matrix weighed alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from modcut import _batches
from modcut.graph import interventions
from modcut.graph.statistics import input_source
from modcut.graph.types import Matrix, WeightGraph
from modcut.partition import Partition
from modcut.reading.sketch import Window, shares
from modcut.reading.stream import Sample, batches_of, thinned

Step = Callable[[str], None]
RANK = 3
UNITS = 5
OUTPUTS = 8


def carried_signals(
    model: nn.Module,
    P: Partition,
    samples: Sequence[Sample],
    random: Tensor,
    *,
    say: Step = lambda _: None,
) -> tuple[list[Window], tuple[str, ...], dict[str, Tensor]]:
    """Return the signal of every interface on the samples, the matrices left out, and the mean input of every tap.

    Args:
        model: the model.
        P: the partition.
        samples: kept inputs of both halves; the selection half gives means and norms.
        random: int64 [controls, n]: labels of random partitions.
        say: called with words of progress.

    Returns:
        Windows whose use is [positions, 1 + controls, k * k], column ``reader * k + source`` (0 inside a module);
        names of matrices whose inputs no hook sees; means float64 by tap. Cost: two forward passes, and (1 + controls)
        more through the matrices; one position per sample where the inputs are not tokens.
    """
    graph, k, device = P.graph, P.k, _batches.device_of(model)
    sources = {m.name: input_source(graph, model, m) for m in graph.matrices}
    read = [m for m in graph.matrices if m.weight.ndim == 2 and (s := sources[m.name]) and not s[0].endswith(":ids")]
    left = tuple(m.name for m in graph.matrices if m not in read)
    taps = {interventions.tap_key(t): t for t in graph.taps if t.side == "input"}
    keys = {sources[m.name][0] for m in read}  # type: ignore[index]
    labelings = torch.cat([P.labels.cpu()[None], random.cpu()])
    means: dict[str, Any] = {}
    count = 0
    with interventions.evaluation(model):
        for _, batch, _ in _runs(samples, True):
            x, _ = _activations(model, taps, keys, _batches.to_device(batch, device))
            for key, v in x.items():
                means[key] = means.get(key, 0.0) + v.flatten(0, 1).double().sum(0)
            count += next(iter(x.values())).flatten(0, 1).shape[0] if x else 0
        means = {key: v / max(count, 1) for key, v in means.items()}
        norms: dict[str, float] = {}
        out: list[Window] = []
        for half in (True, False):
            for name, batch, rows in _runs(samples, half):
                say(f"signals: {len(out)} of {len(samples)} samples")
                x, inputs = _activations(model, taps, keys, _batches.to_device(batch, device))
                total: Any = 0.0
                for m in read:
                    key, where = sources[m.name]  # type: ignore[misc]
                    if key not in x:
                        continue
                    v = (x[key] - means[key].to(x[key]))[..., where.to(device)]
                    w = m.weight.detach().to(v)
                    if m.name not in norms:  # by the first batch of the selection half: one figure per matrix
                        norms[m.name] = float((v @ w.T).square().sum(-1).mean()) or 1.0
                    total = total + _received(v, w, m, labelings, k).cpu() / norms[m.name]
                if isinstance(total, float):
                    continue
                out += _windows(name, batch, rows, inputs, total.sqrt().numpy(), half)
    return sorted(out, key=lambda w: w.index), left, {key: v.cpu() for key, v in means.items()}


def _received(v: Tensor, w: Tensor, m: Matrix, labelings: Tensor, k: int) -> Tensor:
    """Squared norm of what every module's rows receive from every other, [samples, positions, draws, k * k]."""
    out = torch.zeros(*v.shape[:2], len(labelings), k, k, device=v.device)
    rows, cols = m.row_vertex.cpu(), m.col_vertex.cpu()
    for r, labels in enumerate(labelings):
        to = torch.where(rows >= 0, labels[rows.clamp_min(0)], -1)
        fro = torch.where(cols >= 0, labels[cols.clamp_min(0)], -1)
        member = torch.zeros(len(to), k, device=v.device)
        member[to >= 0, to[to >= 0].to(v.device)] = 1.0
        for j in range(k):
            at = torch.nonzero(fro == j).flatten().to(v.device)
            if at.numel():
                out[:, :, r, :, j] = (v[..., at] @ w[:, at].T).square() @ member
        out[:, :, r].diagonal(dim1=-2, dim2=-1).zero_()
    return out.flatten(3)


def _runs(samples: Sequence[Sample], half: bool) -> Any:
    """Batches of one half with the samples they are made of."""
    chosen = sorted((s for s in samples if s.selection == half), key=lambda s: s.index)
    groups: dict[tuple[Any, ...], list[Sample]] = {}
    for s in chosen:
        groups.setdefault(s.shape, []).append(s)
    for group in groups.values():
        for start in range(0, len(group), 8):
            part = group[start : start + 8]
            for name, batch in batches_of(part):
                yield name, batch, part


def _activations(
    model: nn.Module, taps: dict[str, Any], keys: set[str], batch: Any
) -> tuple[dict[str, Tensor], Tensor]:
    """Inputs of the matrices, [samples, positions, features] float32; taps of other shapes are left out."""
    found: dict[str, Tensor] = {}
    inputs = _batches.inputs_of(batch)
    tokens = inputs.ndim == 2 and not inputs.is_floating_point()

    def visitor(key: str) -> Callable[[Tensor], None]:
        def visit(x: Tensor) -> None:
            x = x.detach().float().movedim(taps[key].dim, -1)
            if tokens and x.ndim == 3 and x.shape[:2] == inputs.shape:
                found[key] = x
            elif not tokens and x.ndim == 2:
                found[key] = x[:, None]

        return visit

    handles = [interventions.hook_tap(model, taps[key], visitor(key)) for key in sorted(keys)]
    try:
        with torch.no_grad():
            _batches.forward(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    return found, inputs


def _windows(
    name: str, batch: Any, rows: Sequence[Sample], inputs: Tensor, use: NDArray[np.float32], half: bool
) -> list[Window]:
    tokens = inputs.ndim == 2 and not inputs.is_floating_point()
    mask = batch.get("attention_mask") if isinstance(batch, dict) else None
    out = []
    for n, s in enumerate(rows):
        shown = inputs[n].detach().cpu()
        keep: Any = slice(None)
        if tokens and isinstance(mask, Tensor) and mask.shape == inputs.shape:
            keep = mask[n].bool().cpu().numpy()
        ids = shown.numpy().astype(np.int64)[keep] if tokens else None
        out.append(
            Window(s.index, name, half, ids, None if tokens else thinned(shown.float().flatten().numpy()), use[n][keep])
        )
    return out


def interface_signal(carried: Sequence[Window], i: int, j: int, k: int) -> dict[str, Any]:
    """Return how much of all signals the interface "i reads from j" carries on held-out samples, beside controls."""
    held = [w for w in carried if not w.selection]
    total = sum((w.use.sum(0, dtype=np.float64) for w in held), np.zeros(carried[0].use.shape[1:]))
    whole = total.sum(-1)
    share = [float(total[r, i * k + j] / whole[r]) if whole[r] > 0 else None for r in range(len(total))]
    positions = max(sum(len(w.use) for w in held), 1)
    return {
        "mean": float(total[0, i * k + j]) / positions,
        "share": share[0],
        "controls": share[1:],
        "windows": len(held),
    }


def low_rank(P: Partition, i: int, j: int) -> list[dict[str, Any]]:
    """Return the strongest directions of the weights by which module ``i`` reads from ``j``, matrix by matrix.

    ``W[i, j] = sum of s * left * right``: each entry has a matrix, the part of the whole interface's energy (sum of
    squares) in the direction, and the units with the largest entries of ``right`` (read) and ``left`` (written to).
    """
    labels, energy = P.labels.cpu(), 0.0
    found: list[tuple[float, str, Tensor, Tensor, Tensor]] = []
    for m in P.graph.matrices:
        if m.weight.ndim != 2:
            continue
        r, c = m.row_vertex.cpu(), m.col_vertex.cpu()
        rows = torch.nonzero((r >= 0) & (labels[r.clamp_min(0)] == i)).flatten()
        cols = torch.nonzero((c >= 0) & (labels[c.clamp_min(0)] == j)).flatten()
        if not rows.numel() or not cols.numel():
            continue
        # Sliced before it is folded: a whole matrix copied for every interface is most of the time of a large model.
        w = m.weight.detach()[rows.to(m.weight.device)][:, cols.to(m.weight.device)].to("cpu", torch.float32)
        if m.gain is not None:
            w = w * m.gain().detach().to("cpu", torch.float32)[cols]
        if m.row_gain is not None:
            w = w * m.row_gain().detach().to("cpu", torch.float32)[rows, None]
        size = float(w.square().sum())
        energy += size
        found.append((size, m.name, w, r[rows], c[cols]))
    out: list[dict[str, Any]] = []
    for size, name, w, r, c in sorted(found, key=lambda f: -f[0])[:RANK]:
        if size == 0:
            continue
        u, s, v = torch.linalg.svd(w, full_matrices=False)
        for d in range(min(RANK, int((s > 1e-6 * s[0]).sum()))):
            out.append(
                {
                    "matrix": name,
                    "energy": float(s[d] ** 2) / energy,
                    "reads": _top(P.graph, c, v[d]),
                    "writes": _top(P.graph, r, u[:, d]),
                }
            )
    return sorted(out, key=lambda e: -float(e["energy"]))[:RANK]


def _top(graph: WeightGraph, vertex: Tensor, x: Tensor) -> list[list[Any]]:
    order = torch.argsort(-x.abs(), stable=True)[:UNITS].tolist()
    named = []
    for n in order:
        space, index = graph.space_of(int(vertex[n]))
        named.append([f"{space.name}[{index}]", round(float(x[n]), 4)])
    return named


def direct_effects(
    model: nn.Module,
    P: Partition,
    samples: Sequence[Sample],
    windows: Sequence[Window],
    means: dict[str, Tensor],
) -> list[dict[str, Any] | None]:
    """Return which outputs each module moves through the weights alone when it is active (logit lens), [k].

    The difference of the module's inner activations between its most active tenth of the selection positions and all
    of them, sent through the matrices that write to what the output matrix reads (normalisation gains multiplied in),
    and through the output matrix; as z-scores over the outputs. None where no output matrix is found.
    """
    found = _output_matrix(model, P.graph)
    if found is None:
        return [None] * P.k
    weight, cols, own_tap = found
    graph, labels = P.graph, P.labels.cpu()
    place = torch.full((graph.n + 1,), -1, dtype=torch.int64)
    place[cols] = torch.arange(len(cols))
    stream = _is_stream(graph, cols)
    # Matrices add into a residual stream; hidden units behind a non-linearity speak for themselves.
    writers = [
        m for m in graph.matrices if stream and m.weight.ndim == 2 and bool((place[m.row_vertex.cpu()] >= 0).any())
    ]
    sources = {m.name: input_source(graph, model, m) for m in graph.matrices}
    writers = [m for m in writers if (s := sources[m.name]) and s[0] in means]
    keys = {sources[m.name][0] for m in writers} | ({own_tap} if own_tap in means else set())  # type: ignore[index]
    taps = {interventions.tap_key(t): t for t in graph.taps if t.side == "input"}
    kept = {w.index: w for w in windows if w.selection}
    parts = [shares(w.use[:, 0]) for w in kept.values()]
    together = np.concatenate(parts) if parts else np.empty((0, P.k))
    if not np.isfinite(together).any(0).all():  # nothing was ever active: no module writes anything
        return [None] * P.k
    bars = np.nanquantile(together, 0.9, axis=0)
    sums = {key: torch.zeros(P.k, len(means[key]), dtype=torch.float64) for key in keys}
    counts = torch.zeros(P.k, dtype=torch.float64)
    with interventions.evaluation(model):
        for _, batch, rows in _runs([s for s in samples if s.index in kept], True):
            x, _ = _activations(model, taps, keys, _batches.to_device(batch, _batches.device_of(model)))
            for n, s in enumerate(rows):
                y = shares(kept[s.index].use[:, 0])
                if any(len(v[n]) != len(y) for v in x.values()):
                    continue  # padded: positions of the window and of the batch differ
                active = torch.from_numpy(np.nan_to_num(y, nan=-1.0) >= bars).double()
                counts += active.sum(0)
                for key in keys & x.keys():
                    sums[key] += active.T @ x[key][n].double().cpu()
    out: list[dict[str, Any] | None] = []
    for i in range(P.k):
        moved = torch.zeros(len(cols), dtype=torch.float64)
        if counts[i] == 0:
            out.append(None)
            continue
        for m in writers:
            key, where = sources[m.name]  # type: ignore[misc]
            delta = (sums[key][i] / counts[i] - means[key])[where]
            c, r = m.col_vertex.cpu(), place[m.row_vertex.cpu()]
            # What passes through other modules is theirs: only the module's own units write here.
            delta = torch.where((c >= 0) & (labels[c.clamp_min(0)] == i), delta, 0.0)
            got = m.weight.detach().double().cpu() @ delta
            moved.index_add_(0, r[r >= 0], got[r >= 0])
        if own_tap in sums and not stream:
            delta = sums[own_tap][i] / counts[i] - means[own_tap]
            moved = torch.where(labels[cols] == i, delta, 0.0)
        scores = (weight.cpu() @ moved.to(weight.dtype)).double()
        spread = float(scores.std())
        z = (scores - scores.mean()) / spread if spread > 0 else torch.zeros_like(scores)
        order = torch.argsort(-z, stable=True).tolist()
        out.append(
            {
                "measure": "z-score over outputs of what the module's units write when it is active (weights only)",
                "gains": [{"output": o, "z": float(z[o])} for o in order[:OUTPUTS] if z[o] > 0],
                "loses": [{"output": o, "z": float(z[o])} for o in order[::-1][:OUTPUTS] if z[o] < 0],
            }
        )
    return out


def _is_stream(graph: WeightGraph, cols: Tensor) -> bool:
    """Whether what the output matrix reads is a residual stream, which the modules' units write to."""
    return any(s.kind == "residual" and s.offset <= int(cols[0]) < s.offset + s.size for s in graph.spaces)


def _output_matrix(model: nn.Module, graph: WeightGraph) -> tuple[Tensor, Tensor, str] | None:
    """The matrix that makes the outputs, with normalisation gains, the vertices of its columns, and their tap."""
    outputs = torch.zeros(graph.n + 1, dtype=torch.bool)
    for s in graph.spaces:
        outputs[s.vertices] = s.kind == "output"
    for m in graph.matrices:
        if m.weight.ndim == 2 and bool(outputs[m.row_vertex.cpu()].all()) and bool((m.col_vertex >= 0).all()):
            source = input_source(graph, model, m)
            return m.folded().detach(), m.col_vertex.cpu(), "" if source is None else source[0]
    head = getattr(model, "get_output_embeddings", lambda: None)()
    streams = [s for s in graph.spaces if s.kind == "residual"]
    if head is None or getattr(head, "weight", None) is None or len(streams) != 1:
        return None
    weight, size = head.weight.detach(), streams[0].size
    if weight.ndim != 2 or weight.shape[1] != size:
        return None
    norms = [m for n, m in model.named_modules() if "norm" in type(m).__name__.lower() and _size(m) == size]
    gain = norms[-1].weight.detach() if norms else torch.ones(size)
    start = streams[0].offset
    return weight * gain, torch.arange(start, start + size), ""


def _size(module: nn.Module) -> int:
    w = getattr(module, "weight", None)
    return int(w.numel()) if isinstance(w, Tensor) and w.ndim == 1 else -1
