"""One s-t cut: modcut against SciPy's Dinic and igraph, answers compared before anything is timed.

    python benchmarks/bench_max_flow.py [--out benchmarks/results/max_flow.json]

Capacities are integers below 10,000 (SciPy's are int32), so all answers must be equal. modcut's time is that of the
public call, input checks included; the rivals' leave out building their graphs. ``blocks`` is modcut on the layers,
``sparse`` on the same CSR matrix that SciPy gets; a grid is given to ``blocks`` as a full matrix, mostly zeros.
"""

from __future__ import annotations

from typing import Any

import igraph
import numpy as np
import scipy.sparse as sp
import torch
from scipy.sparse.csgraph import maximum_flow

import modcut
from bench_common import best_of, main
from modcut import testing
from modcut._problem import problem
from modcut.graph.types import WeightGraph


def layers(widths: list[int], seed: int) -> WeightGraph:
    """A perceptron whose capacities are integers."""
    g = testing.mlp_graph(widths, seed)
    largest = max(float(b.weight.abs().max()) for b in g.blocks)
    for b in g.blocks:
        b.weight.mul_(9999 / largest).round_()
        object.__setattr__(b, "strength", lambda block: block.weight.abs().to(torch.int64))
    return g


def integers(w: torch.Tensor) -> torch.Tensor:
    return (w * (9999 / w.max())).round().to(torch.int64)


CASES = {
    "layers 256-128-64-10": lambda seed: layers([256, 128, 64, 10], seed),
    "MLP 5 x 200": lambda seed: layers([200] * 5, seed),
    "dense 300": lambda seed: integers(testing.dense(300, seed)),
    "dense 1000": lambda seed: integers(testing.dense(1000, seed)),
    "grid 60 x 60": lambda seed: integers(testing.grid(60, 60, seed)),
}
LONG: set[str] = set()


def run(name: str, seed: int, repeat: int, threads: int) -> dict[str, Any]:
    g = CASES[name](seed)
    p = problem(g)
    s, t = 0, p.n - 1
    pairs, capacity = testing.edge_list(p)
    both = np.concatenate([pairs, pairs[:, ::-1]]).T
    a = sp.csr_array((np.tile(capacity, 2).astype(np.int32), (both[0], both[1])), shape=(p.n, p.n))
    rival = igraph.Graph(n=p.n, edges=pairs.tolist())
    weights = capacity.tolist()

    scipy_s, dinic = best_of(repeat, lambda: maximum_flow(a, s, t, method="dinic").flow_value)
    igraph_s, push = best_of(repeat, lambda: rival.maxflow_value(s, t, capacity=weights))
    blocks_s, cut = best_of(repeat, lambda: modcut.max_flow(g, s, t, threads=threads))
    sparse_s, same = best_of(repeat, lambda: modcut.max_flow(a, s, t, threads=threads))
    if not cut.value == same.value == dinic == round(push) == p.cut_value(cut.side):
        raise SystemExit(f"{name}: answers differ: {cut.value}, {same.value}, SciPy {dinic}, igraph {push}")
    return {
        "case": name,
        "n": p.n,
        "edges": len(pairs),
        "value": cut.value,
        "blocks_s": blocks_s,
        "sparse_s": sparse_s,
        "scipy_s": scipy_s,
        "igraph_s": igraph_s,
        "scipy/blocks": scipy_s / blocks_s,
        "igraph/blocks": igraph_s / blocks_s,
        "scipy/sparse": scipy_s / sparse_s,
        "igraph/sparse": igraph_s / sparse_s,
        "trivial": int(min(cut.side.sum(), p.n - cut.side.sum())) == 1,
        "threads": threads,
    }


if __name__ == "__main__":
    main(__doc__, list(CASES), LONG, lambda name, args: run(name, args.seed, args.repeat, args.threads))
