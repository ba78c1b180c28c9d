"""Find planted blocks by likelihood: weights inside a block come from a wider distribution than those between blocks.

Spectral clustering of ``|W|`` throws most of the evidence away where the two distributions overlap. For Gaussian
weights the log-likelihood ratio of "same block" against "different blocks" is ``a w^2 + b``, so squares, weighted and
centred as the model says, are all there is to know (a weighted stochastic block model; Aicher, Jacobs & Clauset 2014).
Fitted by mean-field variational EM from spectral and random starts, annealed; the best bound wins.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from modcut import provenance
from modcut.clustering import spectral_labels
from modcut.graph.types import WeightGraph
from modcut.partition import Partition

_ROUNDS = 60
_SURE, _CONTRAST = 20, 0.25
_TINY = 1e-12


@dataclass(frozen=True)
class _Layer:
    """The squares of one block of weights, scaled to mean 1, and where its ends are."""

    squares: Tensor
    rows: slice
    cols: slice


def fit_blocks(graph: WeightGraph, k: int, *, starts: int = 8, seed: int = 0) -> Partition:
    """Partition the vertices by a block model of the weights' squares.

    Every block of weights has two variances, inside and between modules. Weights are taken as they are (no
    statistics), so this recovers structure in the weights, not function; neurons of one layer are exchangeable and may
    be unbalanced.

    Args:
        graph: a network's graph, or a matrix's.
        k: number of modules, at least 2.
        starts: how many starts: one from spectral clustering, the others random.
        seed: of the starts.

    Returns:
        The partition; ``meta["gain"]``: the bound on the log-likelihood per weight above one variance per layer,
        ``meta["ratio"]``: per block the standard deviation between modules over that inside.

    Raises:
        ValueError: ``k`` or ``starts`` too small, or a graph without weights.

    O(starts * rounds * weights * k).
    """
    if k < 2:
        raise ValueError(f"k must be at least 2, got {k}")
    if starts < 1:
        raise ValueError(f"starts must be at least 1, got {starts}")
    layers = []
    for block in graph.blocks:
        c = block.capacity().detach().to("cpu", torch.float64)
        c = c.to_dense() if c.is_sparse else c
        squares = c.square() if graph.edge != "square" else c
        layers.append(_Layer(squares / squares.mean().clamp_min(_TINY), block.rows.vertices, block.cols.vertices))
    if not layers:
        raise ValueError("graph must have weights to fit, it has none")
    generator = torch.Generator().manual_seed(seed)
    best: tuple[float, Tensor, list[float]] | None = None
    for start in range(starts):
        if start == 0:
            labels = spectral_labels(graph, k, seed)
            q = 0.5 * torch.nn.functional.one_hot(labels, k).double() + 0.5 / k
        else:
            q = torch.softmax(0.5 * torch.randn(graph.n, k, generator=generator, dtype=torch.float64), 1)
        found = _ascend(layers, q, anneal=start > 0)
        if best is None or found[0] > best[0]:
            best = found
    assert best is not None
    gain, q, ratio = best
    meta = {"method": "block model", "seed": seed, "gain": gain, "ratio": ratio, "stamp": provenance.stamp()}
    return Partition(q.argmax(1), graph, k, meta)


def _ascend(layers: list[_Layer], q: Tensor, *, anneal: bool) -> tuple[float, Tensor, list[float]]:
    """Mean-field EM; returns (bound per weight above one variance, q [n, k], ratio of standard deviations)."""
    same = [0.0] * len(layers)
    evidence: list[tuple[float, float]] = []
    for step in range(_ROUNDS):
        evidence, same = [], []
        for layer in layers:
            p = q[layer.rows] @ q[layer.cols].T
            inside = float((p * layer.squares).sum() / p.sum().clamp_min(_TINY))
            between = float(((1 - p) * layer.squares).sum() / (1 - p).sum().clamp_min(_TINY))
            # Modules hold the strong weights: the other way round is bipartite structure, which a cut does not see.
            between, inside = max(min(between, inside), 1e-6), max(inside, between, 1e-6)
            if step < _SURE and between > _CONTRAST * inside:
                # Rough labels blur the two variances, and a blurred model forgets the labels: start out too sure.
                inside = 1.0 / (p.mean().item() * (1 - _CONTRAST) + _CONTRAST)
                between = _CONTRAST * inside
            evidence.append((0.5 / between - 0.5 / inside, 0.5 * torch.tensor(between / inside).log().item()))
            same.append((between / inside) ** 0.5)
        heat = min(1.0, 0.1 + step / (_ROUNDS / 2)) if anneal else 1.0
        before = q
        # Layer by layer: neighbours see what was just updated, as sequential mean field needs to converge.
        for span in dict.fromkeys((s.start, s.stop) for layer in layers for s in (layer.rows, layer.cols)):
            field = torch.zeros(span[1] - span[0], q.shape[1], dtype=q.dtype)
            for layer, (a, b) in zip(layers, evidence, strict=True):
                ratio = a * layer.squares + b
                if (layer.rows.start, layer.rows.stop) == span:
                    field += ratio @ q[layer.cols]
                if (layer.cols.start, layer.cols.stop) == span:
                    field += ratio.T @ q[layer.rows]
            q = q.clone()
            q[span[0] : span[1]] = torch.softmax(heat * field, 1)
        if heat == 1.0 and step >= _SURE and float((q - before).abs().max()) < 1e-4:
            break
    gain, count = 0.0, 0
    for layer, (a, b) in zip(layers, evidence, strict=True):
        # log N(w; between) summed, plus what the pairs in one module gain; relative to one variance (mean square 1).
        between = float(((1 - q[layer.rows] @ q[layer.cols].T) * layer.squares).sum()) / max(
            float((1 - q[layer.rows] @ q[layer.cols].T).sum()), _TINY
        )
        between = max(between, 1e-6)
        size, power = layer.squares.numel(), float(layer.squares.sum())
        base = -0.5 * (torch.tensor(between).log().item() * size + power / between)
        p = q[layer.rows] @ q[layer.cols].T
        gain += base + float((p * (a * layer.squares + b)).sum()) + 0.5 * layer.squares.numel()
        count += layer.squares.numel()
    entropy = -float((q * q.clamp_min(_TINY).log()).sum()) - q.shape[0] * float(torch.tensor(float(q.shape[1])).log())
    return (gain + entropy) / count, q, same


__all__ = ["fit_blocks"]
