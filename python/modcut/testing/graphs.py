"""Families of weighted graphs; equal seeds give equal graphs.

Families of a few edges per vertex take ``form="csr"`` and then give a SciPy matrix that is never dense, for n up to
millions. What the literature defines as directed networks (RMF, Washington, acyclic-dense) is given here without the
directions, as modcut's capacities are undirected; :func:`undirected_equivalent` is for whoever needs the directed cut.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, overload

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

Form = Literal["dense", "csr"]
"""A symmetric torch matrix [n, n], or a SciPy CSR matrix of the same."""
Integers = np.ndarray[Any, np.dtype[np.int64]]


def generator(seed: int) -> torch.Generator:
    """Return a generator of its own, so that a graph depends on its seed only."""
    return torch.Generator().manual_seed(seed)


@overload
def from_edges(n: int, tail: Any, head: Any, weights: Tensor, form: Literal["dense"] = ...) -> Tensor: ...
@overload
def from_edges(n: int, tail: Any, head: Any, weights: Tensor, form: Form) -> Any: ...
def from_edges(n: int, tail: Any, head: Any, weights: Tensor, form: Form = "dense") -> Any:
    """Build the graph of edges tail[i] - head[i]: repeated edges add up, self-loops do not count.

    Raises:
        ValueError: unknown form.
    """
    if form not in ("dense", "csr"):
        raise ValueError(f'form must be "dense" or "csr", got {form!r}')
    i, j, x = np.asarray(tail, dtype=np.int64), np.asarray(head, dtype=np.int64), weights.numpy()
    keep = i != j
    i, j, x = i[keep], j[keep], x[keep]
    upper = sp.coo_array((x, (np.minimum(i, j), np.maximum(i, j))), shape=(n, n))
    a = sp.csr_array(upper + upper.T)
    return a if form == "csr" else torch.from_numpy(np.ascontiguousarray(a.toarray()))


def _weights(count: int, seed: int) -> Tensor:
    return torch.rand(count, generator=generator(seed), dtype=torch.float64) + 0.5


def _symmetric(upper: Tensor) -> Tensor:
    w = torch.triu(upper, 1)
    return w + w.T


# --- every pair of vertices -------------------------------------------------------------------------------------------


def dense(n: int, seed: int = 0, power: float = 1.0) -> Tensor:
    """Complete graph with weights |normal|^power, as an untrained fully connected layer has them."""
    return _symmetric(torch.randn(n, n, generator=generator(seed), dtype=torch.float64).abs() ** power)


def heavy_tailed(n: int, seed: int = 0) -> Tensor:
    """Complete graph with weights |normal|^6: a few edges carry most of the strength."""
    return dense(n, seed, power=6.0)


def acyclic_dense(n: int, seed: int = 0, largest: int = 1_000_000) -> Tensor:
    """DIMACS's acyclic-dense family without its directions: complete, integers 1 .. ``largest``, int64."""
    return _symmetric(torch.randint(1, largest + 1, (n, n), generator=generator(seed)))


def sparse(n: int, density: float = 0.2, seed: int = 0) -> Tensor:
    """Random graph: each pair is an edge with probability ``density``, weights in [0.5, 1.5)."""
    rng = generator(seed)
    kept = torch.rand(n, n, generator=rng, dtype=torch.float64) < density
    return _symmetric((torch.rand(n, n, generator=rng, dtype=torch.float64) + 0.5) * kept)


def planted(n: int, modules: int = 4, ratio: float = 0.01, seed: int = 0) -> Tensor:
    """``modules`` equal dense groups; weights between groups are ``ratio`` times those inside."""
    label = torch.arange(n) * modules // max(n, 1)
    inside = label[:, None] == label[None, :]
    return dense(n, seed) * torch.where(inside, 1.0, ratio)


def hub(n: int, seed: int = 0, strength: float = 1e6) -> Tensor:
    """Sparse graph in which vertex 0 reaches everything with weights ``strength`` times larger."""
    w = sparse(n, 0.3, seed)
    if n > 1:
        w[0, 1:] = w[1:, 0] = strength * _weights(n - 1, seed)
    return w


# --- a few edges per vertex -------------------------------------------------------------------------------------------


def path(n: int, seed: int = 0, *, form: Form = "dense") -> Any:
    """Path 0 - 1 - ... - (n - 1)."""
    i = np.arange(max(n - 1, 0))
    return from_edges(n, i, i + 1, _weights(len(i), seed), form)


def cycle(n: int, seed: int = 0, *, form: Form = "dense") -> Any:
    """Cycle: no cut is a bound on another, so certificates fail."""
    i = np.arange(n)
    return from_edges(n, i, (i + 1) % max(n, 1), _weights(n, seed), form)


def double_cycle(n: int, seed: int = 0, *, form: Form = "dense") -> Any:
    """Cycle with a lighter chord from each vertex to the one n/2 - 1 further (Goldberg and Tsioutsiouliklis, 2001)."""
    i = np.arange(n)
    ends = (i + 1) % max(n, 1), (i + max(n // 2 - 1, 1)) % max(n, 1)
    weights = torch.cat([2 * _weights(n, seed), _weights(n, seed + 1)])
    return from_edges(n, np.tile(i, 2), np.concatenate(ends), weights, form)


def tree(n: int, seed: int = 0, *, form: Form = "dense") -> Any:
    """Random recursive tree, its vertices shuffled; it is its own Gomory-Hu tree."""
    rng = generator(seed)
    name = torch.randperm(n, generator=rng).numpy()
    i = torch.arange(1, max(n, 1))
    above = (torch.rand(len(i), generator=rng, dtype=torch.float64) * i).long().clamp(max=max(n - 1, 0))
    return from_edges(n, name[i.numpy()], name[above.numpy()], _weights(len(i), seed), form)


def grid(rows: int, cols: int, seed: int = 0, *, form: Form = "dense") -> Any:
    """Rectangular grid; vertex r * cols + c."""
    v = np.arange(rows * cols).reshape(rows, cols)
    tail = np.concatenate([v[:, :-1].ravel(), v[:-1].ravel()])
    head = np.concatenate([v[:, 1:].ravel(), v[1:].ravel()])
    return from_edges(rows * cols, tail, head, _weights(len(tail), seed), form)


def noi(
    n: int, density: float = 0.2, clusters: int = 4, seed: int = 0, *, ratio: float = 10.0, form: Form = "dense"
) -> Any:
    """Clusters of heavier integers, after Nagamochi, Ono and Ibaraki (1994).

    A random Hamiltonian cycle, so that nothing is disconnected, and random edges until density * n * (n - 1) / 2 have
    been drawn; an edge weighs 1 .. 1000 inside a cluster and 1 .. 1000 / ratio between two, and pairs drawn twice add
    up. Vertices belong to random clusters. int64.
    """
    rng = np.random.default_rng(seed)
    label = rng.integers(0, max(clusters, 1), n)
    ring = rng.permutation(n)
    extra = max(round(density * n * (n - 1) / 2) - n, 0)
    tail = np.concatenate([ring, rng.integers(0, max(n, 1), extra)])
    head = np.concatenate([np.roll(ring, 1), rng.integers(0, max(n, 1), extra)])
    low = max(round(1000 / ratio), 1)
    largest = np.where(label[tail] == label[head], 1000, low)
    weights = rng.integers(1, largest + 1)
    return from_edges(n, tail, head, torch.from_numpy(weights), form)


def rmf(a: int, b: int, seed: int = 0, *, low: int = 1, high: int = 10_000, form: Form = "dense") -> Any:
    """RMF network (Goldfarb and Grigoriadis, 1988) without its directions: ``b`` frames of a x a grid points.

    Inside a frame, grid neighbours are joined by high * a * a; a random permutation joins every frame to the next by
    integers low .. high. The minimum cut between vertex 0 and the last one lies between frames. a * a * b vertices,
    int64.
    """
    rng = np.random.default_rng(seed)
    v = np.arange(a * a * b).reshape(b, a, a)
    inside = [(v[:, :, :-1], v[:, :, 1:]), (v[:, :-1], v[:, 1:])]
    tail = [x.ravel() for x, _ in inside] + [v[:-1].ravel()]
    frames = v.reshape(b, a * a)
    head = [y.ravel() for _, y in inside] + [rng.permutation(f) for f in frames[1:]]
    strong = sum(len(x.ravel()) for x, _ in inside)
    between = max(b - 1, 0) * a * a
    weights = np.concatenate([np.full(strong, high * a * a), rng.integers(low, high + 1, between)])
    return from_edges(a * a * b, np.concatenate(tail), np.concatenate(head), torch.from_numpy(weights), form)


_FUNCTIONS = {"mesh": 1, "random level": 2, "random 2-level": 3}


def washington(
    rows: int,
    levels: int,
    seed: int = 0,
    *,
    function: str = "random level",
    largest: int = 10_000,
    form: Form = "dense",
) -> Any:
    """One of the Washington generator's layered networks (DIMACS, 1991) without its directions, int64.

    ``levels`` columns of ``rows`` vertices; then the source (vertex rows * levels), tied to the first column, and the
    sink (the last vertex), tied to the last one, by edges that no minimum cut needs. All other capacities are integers
    1 .. ``largest``. The functions are the generator's 1 to 3:

    - ``"mesh"``: a vertex leads to its own row and the two beside it in the next column;
    - ``"random level"``: to three random vertices of the next column (RLG);
    - ``"random 2-level"``: to three random vertices of the next two columns.

    The families of the DIMACS challenge are RLG-long (64 rows, 2^(x - 6) levels) and RLG-wide (2^(x - 6) rows, 64
    levels): :func:`washington_long` and :func:`washington_wide`.

    Raises:
        ValueError: unknown function.
    """
    if function not in _FUNCTIONS:
        raise ValueError(f"function must be one of {', '.join(_FUNCTIONS)}, got {function!r}")
    rng = np.random.default_rng(seed)
    source, sink = rows * levels, rows * levels + 1
    level, row = np.divmod(np.repeat(np.arange(rows * max(levels - 1, 0)), 3), max(rows, 1))
    if function == "mesh":
        to_row = (row + np.tile([-1, 0, 1], len(row) // 3)) % max(rows, 1)
        to_level = level + 1
    else:
        to_row = rng.integers(0, max(rows, 1), len(row))
        ahead = 1 if function == "random level" else rng.integers(1, 3, len(row))
        to_level = np.minimum(level + ahead, max(levels - 1, 0))
    column = np.arange(rows)
    tail = np.concatenate([level * rows + row, np.full(rows, source), (levels - 1) * rows + column])
    head = np.concatenate([to_level * rows + to_row, column, np.full(rows, sink)])
    strong = 3 * 3 * largest * max(rows, 1)  # more than all that a vertex of the first or last column passes on
    weights = np.concatenate([rng.integers(1, largest + 1, len(row)), np.full(2 * rows, strong)])
    return from_edges(rows * levels + 2, tail, head, torch.from_numpy(weights), form)


def washington_long(x: int, seed: int = 0, *, form: Form = "csr") -> Any:
    """RLG-long of about 2^x vertices: 64 rows, 2^(x - 6) levels; x >= 6."""
    return washington(64, 2 ** (x - 6), seed, form=form)


def washington_wide(x: int, seed: int = 0, *, form: Form = "csr") -> Any:
    """RLG-wide of about 2^x vertices: 2^(x - 6) rows, 64 levels; x >= 6."""
    return washington(2 ** (x - 6), 64, seed, form=form)


def undirected_equivalent(
    n: int, tail: Any, head: Any, capacity: Any, s: int, t: int
) -> tuple[sp.csr_array, Callable[[int], int]]:
    """Return an undirected graph whose s-t cut gives a directed network's, and how to read its value.

    Every directed edge u -> v of capacity c becomes three undirected edges u - v, s - v and u - t of capacity c. A set
    with s and without t then cuts 3c of an edge that leaves it and c of any other, so that every undirected cut is the
    sum of all capacities plus twice the directed cut: the minimum sides are the same, and exact for integers.

    Args:
        n: number of vertices.
        tail: int [m], where edges start.
        head: int [m], where they end.
        capacity: int [m].
        s: source.
        t: sink.
    """
    u, v, c = (np.asarray(x, dtype=np.int64) for x in (tail, head, capacity))
    keep = u != v
    u, v, c = u[keep], v[keep], c[keep]
    every = np.concatenate([u, np.full(len(v), s), u]), np.concatenate([v, v, np.full(len(u), t)])
    total = int(c.sum())
    return from_edges(n, *every, torch.from_numpy(np.tile(c, 3)), "csr"), lambda value: (value - total) // 2


def known_graph() -> Tensor:
    """The six-vertex example of the literature, whose tree weighs 6, 8, 6, 7, 8 in some order; int64."""
    edges = {(0, 1): 1, (0, 2): 7, (1, 2): 1, (1, 3): 3, (1, 4): 2, (2, 4): 4, (3, 4): 1, (3, 5): 6, (4, 5): 2}
    tail, head = zip(*edges, strict=True)
    return from_edges(6, tail, head, torch.tensor(list(edges.values())))
