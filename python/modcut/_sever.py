"""How much it takes to separate two sets of neurons: a minimum cut as a differentiable number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from modcut._arrays import vertex
from modcut._batches import unwrap
from modcut._engine import solve
from modcut._problem import problem
from modcut._terms import LiveWeight
from modcut.graph.types import Block, Space, WeightGraph


def sever(g: Any, A: Any, B: Any, *, model: nn.Module | None = None, threads: int = 1) -> Tensor:
    """Return the minimum cut between two sets of vertices as a scalar that can be minimised by gradient descent.

    ::

        loss = task_loss + 0.1 * modcut.sever(model, trigger_inputs, output_units)

    ``v(w) = min over S with A inside, B outside, of the capacity between S and the rest`` is concave and piecewise
    linear in the capacities; where the cut is unique its gradient is the cut's indicator (Danskin's theorem), at ties
    any average of minimisers is a supergradient: here that of the one nearest to A and the one nearest to B. Norms and
    statistics behind the capacities are not differentiated. Two exact flows and one read of the weights; the value
    counts all routes between the sets, not only direct edges.

    Args:
        g: a model (it is traced), its WeightGraph, or a symmetric non-negative matrix [n, n], which may require grad.
        A: vertices on one side: ids, bool [n], or a Space (or several).
        B: vertices on the other side.
        model: where ``g`` is a graph: its model, whose parameters the gradient goes to. Without it there is none.
        threads: worker threads of the flows.

    Returns:
        float64 scalar; 0 where nothing joins the sets.

    Raises:
        ValueError: a set is empty, they share a vertex, or a vertex does not exist; a capacity is NaN or negative.
        TypeError: ``g`` is no graph.
    """
    if isinstance(g, nn.Module):
        from modcut.graph.trace import weight_graph

        model = unwrap(g)
        g = weight_graph(model)
    n = int(g.n) if isinstance(g, WeightGraph) else problem(g).n
    a, b = _vertices("A", A, n), _vertices("B", B, n)
    both = sorted(set(a) & set(b))
    if both:
        raise ValueError(f"A and B must share no vertex, both hold {both[0]}")
    p = problem(g).with_super_vertices([a, b])
    near_a = solve(p, n, n + 1, threads).side[:n]
    near_b = ~solve(p, n + 1, n, threads).side[:n]
    if isinstance(g, WeightGraph) and model is not None:
        parts = [(_strength(g, block, model), block.rows.vertices, block.cols.vertices) for block in g.blocks]
    elif isinstance(g, Tensor) and g.layout == torch.strided and g.is_floating_point():
        parts = [(g / 2, slice(0, n), slice(0, n))]  # every edge stands twice
    else:
        value = (float(p.cut_value(_grown(near_a, True))) + float(p.cut_value(_grown(near_b, True)))) / 2
        return torch.tensor(value, dtype=torch.float64)
    total = torch.zeros((), dtype=torch.float64, device=parts[0][0].device if parts else None)
    for c, rows, cols in parts:
        a_cuts, b_cuts = ((side[rows, None] != side[cols]).to(c.dtype) for side in (near_a, near_b))
        crossing = (a_cuts + b_cuts) / 2
        total = total + (c * crossing.to(c.device)).sum(dtype=torch.float64)
    return total


def _grown(side: Tensor, first: bool) -> Tensor:
    """The side with the two vertices that stand for the sets: the first inside, the second outside."""
    return torch.cat([side, torch.tensor([first, not first])])


def _vertices(name: str, value: Any, n: int) -> list[int]:
    if isinstance(value, Space):
        value = range(value.offset, value.offset + value.size)
    elif isinstance(value, Sequence) and value and all(isinstance(s, Space) for s in value):
        value = [v for s in value for v in range(s.offset, s.offset + s.size)]
    t = value if isinstance(value, Tensor) else torch.as_tensor(list(value))
    if t.dtype == torch.bool:
        if t.shape != (n,):
            raise ValueError(f"{name} must have shape [{n}] as a mask, got {list(t.shape)}")
        t = torch.nonzero(t).flatten()
    out = [vertex(v, f"{name}[{i}]", n) for i, v in enumerate(t.flatten().tolist())]
    if not out:
        raise ValueError(f"{name} must hold at least one vertex, got none")
    return sorted(set(out))


def _strength(g: WeightGraph, block: Block, model: nn.Module) -> Tensor:
    """Capacities of a block [rows, cols], differentiable in the model's parameter.

    They are |W|^p times what is held fixed: gains, input strengths, usage. Where a vertex has several columns in one
    matrix (a flattened convolution), the factor is their mean.
    """
    c = block.capacity().detach()
    c = c.to_dense() if c.is_sparse else c
    a = LiveWeight(model, block).get().to(c.device).abs()
    a = (a.flatten(2).sum(2) if a.ndim > 2 else a).to(c.dtype)
    a = a.square() if g.edge == "square" else a
    known = a.detach()
    return a * torch.where(known > 0, c / torch.where(known > 0, known, 1.0), 0.0)
