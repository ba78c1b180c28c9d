"""Edge strengths that look at data: contribution and co-usage capacities, and the null that belongs beside them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from modcut.graph.interventions import read_vertices
from modcut.graph.statistics import Statistics
from modcut.graph.types import Block, Matrix, Strength, WeightGraph
from modcut.graph.units import Units, units_of

_TINY = torch.finfo(torch.float32).tiny
NAMES = ("abs", "square", "contribution", "cousage")


def with_edge(
    graph: WeightGraph,
    edge: str | Callable[[Block], Tensor],
    statistics: Statistics | None = None,
    *,
    power: float = 4,
) -> WeightGraph:
    """Return the graph with other edge strengths; spaces, matrices and taps are shared, blocks stay live views.

    - ``abs``: ``|W_ij|`` with the gains of adjacent normalisations folded in; ``square``: its square.
    - ``contribution``: ``|W_ij| * rms(input_j)``, the input as the weight sees it (its gain included).
    - ``cousage``: ``|W_ij| * max(0, corr_ij) ** power`` with corr the correlation over windows of the two vertices'
      centred ``sqrt(|activation * gradient|)`` profiles (:func:`usage`; a head's vertices share the head's). The graph
      whose small cuts are functional; to be read beside the same graph on :func:`shuffled` statistics. Correlations are
      computed block by block, O(windows) per edge.
    - a callable ``Block -> Tensor [rows.size, cols.size]``.

    Args:
        graph: The model's graph.
        edge: See above.
        statistics: For contribution and cousage; default ``graph.statistics``.
        power: Of the correlation (4: at 1 the tree is still a star, at 8 even the null shows cuts).

    Raises:
        ValueError: unknown edge, missing or foreign statistics, power not positive.
    """
    statistics = graph.statistics if statistics is None else statistics
    matrices = {m.name: m for m in graph.matrices}
    strength: Strength
    if callable(edge):
        name, strength = getattr(edge, "__name__", "custom"), edge
    elif edge not in NAMES:
        raise ValueError(f"edge must be one of {', '.join(NAMES)} or a callable, got {edge!r}")
    elif edge in ("abs", "square"):
        name, strength = edge, _Folded(matrices, 2 if edge == "square" else 1)
    else:
        if not isinstance(statistics, Statistics):
            raise ValueError(f'edge="{edge}" needs statistics over data (pass data= or statistics=), got none')
        if statistics.profile.shape[1] != graph.n:
            raise ValueError(
                f"statistics must be of this graph: it has {graph.n} vertices, they have {statistics.profile.shape[1]}"
            )
        if edge == "contribution":
            name, strength = edge, _contribution(matrices, statistics)
        else:
            if not power > 0:
                raise ValueError(f"power must be positive, got {power}")
            if statistics.windows < 2:
                raise ValueError(f"co-usage needs at least 2 windows, got {statistics.windows}")
            name, strength = edge, _cousage(_Folded(matrices, 1), graph, statistics.profile, power)
    blocks = tuple(replace(b, strength=strength) for b in graph.blocks)
    return replace(graph, blocks=blocks, edge=name, statistics=statistics)


def shuffled(statistics: Statistics, seed: int = 0, graph: WeightGraph | None = None) -> Statistics:
    """Return the null of co-usage: every profile with its windows in an order of its own.

    Each vertex keeps its weights and the distribution of its usage; who is used together is left to chance. With the
    ``graph``, whole heads are shuffled as one, as they are read by :func:`usage`.
    """
    generator = torch.Generator().manual_seed(seed)
    # The loss of a window scales all its usage: it is taken out before windows are mixed, as the correlations do.
    p = statistics.profile
    p = p / (p if graph is None else p[:, _inner(graph)]).sum(1, keepdim=True).clamp_min(_TINY)
    if graph is None:
        order = torch.rand(p.shape, generator=generator).argsort(0)
    else:
        units = units_of(graph)
        order = torch.rand(p.shape[0], units.count, generator=generator).argsort(0)[:, units.unit]
    return replace(statistics, profile=p.gather(0, order))


def usage(graph: WeightGraph, profile: Tensor) -> tuple[Tensor, Units]:
    """Return the standardised usage of every unit, float32 [windows, units], and the units.

    A head is one unit: the sum over its value vertices (its query-key vertices measure the same head a second time).
    Windows are normalised by their total over neurons, heads and residual channels (a hard window uses everything
    more: without this the first direction is the loss), square roots are centred over windows, and columns scaled to
    norm 1, so that ``Z.T @ Z`` holds correlations. Columns without variance are 0.

    Raises:
        ValueError: the profile is not a finite, non-negative matrix [windows, n].
    """
    if profile.ndim != 2 or profile.shape[1] != graph.n:
        raise ValueError(f"profile must have shape [windows, {graph.n}], got {list(profile.shape)}")
    if not bool(torch.isfinite(profile).all()) or bool((profile < 0).any()):
        raise ValueError("profile must be finite and non-negative, got NaN, infinity or a negative entry")
    units = units_of(graph)
    values = profile.detach().cpu().float()
    inner = _inner(graph)
    total = values[:, inner].sum(1, keepdim=True)
    read, heads = read_vertices(graph), torch.zeros(graph.n, dtype=torch.bool)
    for s in graph.spaces:
        heads[s.vertices] = bool(s.head)
    if bool((heads & read).any()):
        values = values * (~heads | read)
    x = units.sum(values)
    x = torch.where(total > 0, x / total.clamp_min(_TINY), x).sqrt()
    level = x.norm(dim=0)
    x = x - x.mean(0)
    norm = x.norm(dim=0)
    varies = (norm > 1e-12) & (norm > 1e-5 * level)  # windows that differ by rounding are alike
    return torch.where(varies, x / norm.clamp_min(1e-12), torch.zeros_like(x)), units


def _inner(graph: WeightGraph) -> Tensor:
    """Vertices whose usage a window is normalised by, bool [n]: read by weights, neither inputs nor outputs."""
    inner = read_vertices(graph)
    for s in graph.spaces:
        if s.kind in ("input", "output"):
            inner[s.vertices] = False
    return inner if bool(inner.any()) else torch.ones(graph.n, dtype=torch.bool)


def _entries(block: Block, matrices: dict[str, Matrix]) -> Tensor:
    """Absolute weights between every repeat of a row and of a column, float [rows, row repeats, cols, col repeats]."""
    if (block.row_index.shape[1] == 1 and block.col_index.shape[1] == 1) or block.source not in matrices:
        a = block.weight.detach().abs()
        a = a.flatten(2).sum(2) if a.ndim > 2 else a
        return a[:, None, :, None]
    w = matrices[block.source].weight.detach().abs()
    w = w.flatten(2).sum(2) if w.ndim > 2 else w
    rows, cols = block.row_index.to(w.device), block.col_index.to(w.device)
    return w[rows[:, :, None, None], cols[None, None]]


def _scaled(block: Block, matrices: dict[str, Matrix], column: Tensor | None, power: int = 1) -> Tensor:
    """|W| times a factor per column [cols of the matrix] and the gain of the rows, summed over repeats."""
    a = _entries(block, matrices)
    a = a if a.dtype == torch.float64 else a.float()
    m = matrices.get(block.source)
    if m is not None:
        if column is None and m.gain is not None:
            column = m.gain().detach().abs()
        if column is not None:
            a = a * column.to(a.device, a.dtype)[block.col_index.to(a.device)]
        if m.row_gain is not None:
            rows = m.row_gain().detach().abs().to(a.device, a.dtype)[block.row_index.to(a.device)]
            a = a * rows[:, :, None, None]
    return (a if power == 1 else a**power).sum((1, 3))


@dataclass(frozen=True)
class _Folded:
    """|W| ** power with the gains of adjacent normalisations folded in."""

    matrices: dict[str, Matrix]
    power: int

    def __call__(self, block: Block) -> Tensor:
        return _scaled(block, self.matrices, None, self.power)

    def signed(self, block: Block) -> Tensor | None:
        m = self.matrices.get(block.source)
        once = m is None or block.row_index.shape[1] == block.col_index.shape[1] == 1
        plain = m is None or (m.gain is None and m.row_gain is None)
        return block.weight if once and plain and self.power == 1 and block.weight.ndim == 2 else None


def _contribution(matrices: dict[str, Matrix], statistics: Statistics) -> Strength:
    rms = {
        name: square.sqrt()
        for name, square in statistics.input_mean_square.items()
        if name not in statistics.not_observed
    }
    return lambda block: _scaled(block, matrices, rms.get(block.source))


def _cousage(base: Strength, graph: WeightGraph, profile: Tensor, power: float) -> Strength:
    z, units = usage(graph, profile)

    def strength(block: Block) -> Tensor:
        a = base(block)
        rows, cols = units.unit[block.rows.vertices], units.unit[block.cols.vertices]
        corr = z[:, rows].to(a.device).T @ z[:, cols].to(a.device)
        return a * corr.clamp(0, 1).pow(power).to(a.dtype)

    return strength
