"""One s-t cut: modcut against every peer that has one, answers compared before anything is reported.

    python benchmarks/bench_max_flow.py [--out benchmarks/results/max_flow.json]

Capacities are integers below 10,000 (SciPy's and thinhpf's are int32), so that all answers must be equal. modcut's time
is that of the public call, input checks included; a peer's is its solver's alone, without building its graph. One
thread: CPU seconds; two: wall seconds. ``modcut`` reads the layers (or the matrix, for a grid mostly zeros),
``modcut, sparse`` the CSR matrix that SciPy gets.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp
import torch

import modcut
from bench_common import Target, best_of, main, peer_times
from modcut import testing
from modcut._problem import problem
from modcut.graph.types import WeightGraph
from peers import solvers


def layers(widths: list[int], seed: int) -> WeightGraph:
    """A perceptron whose capacities are integers."""
    g = testing.mlp_graph(widths, seed)
    largest = max(float(b.weight.abs().max()) for b in g.blocks)
    for b in g.blocks:
        b.weight.mul_(9999 / largest).round_()
        object.__setattr__(b, "strength", lambda block: block.weight.abs().to(torch.int64))
    return g


def integers(w: Any) -> Any:
    if sp.issparse(w):
        return sp.csr_array((np.round(w.data * (9999 / w.data.max())).astype(np.int64), w.indices, w.indptr), w.shape)
    return (w * (9999 / w.max())).round().to(torch.int64)


CASES = {
    "layers 256-128-64-10": lambda seed: layers([256, 128, 64, 10], seed),
    "MLP 5 x 200": lambda seed: layers([200] * 5, seed),
    "dense 200": lambda seed: integers(testing.dense(200, seed)),
    "dense 1000": lambda seed: integers(testing.dense(1000, seed)),
    "planted 500": lambda seed: integers(testing.planted(500, 5, 0.02, seed)),
    "grid 60 x 60": lambda seed: integers(testing.grid(60, 60, seed)),
    "RLG-wide 2^13": lambda seed: testing.washington_wide(13, seed),
    "RLG-long 2^13": lambda seed: testing.washington_long(13, seed),
    "RMF 8 x 8 x 32": lambda seed: testing.rmf(8, 32, seed, high=100, form="csr"),
    "NOI 2000": lambda seed: testing.noi(2000, 0.02, 8, seed, form="csr"),
}
LONG: set[str] = set()
AIMED = {"layers 256-128-64-10", "MLP 5 x 200", "dense 1000"}
TARGETS = {
    case: [Target("SciPy", 5.0), Target("thinhpf", 2.0)]
    + [Target(peer, 1.0) for peer in ("OR-tools", "PyMaxflow", "igraph", "LEMON", "NetworkX")]
    for case in AIMED
}


def run(name: str, args: Any) -> dict[str, Any]:
    g = CASES[name](args.seed)
    p = problem(g)
    # The last two vertices of Washington's networks are source and sink; opposite ends elsewhere.
    s, t = (p.n - 2, p.n - 1) if name.startswith("RLG") else (0, p.n - 1)
    pairs, capacity = testing.edge_list(p)
    capacity = capacity.astype(np.int64)
    a = sp.csr_array(sp.coo_array((np.tile(capacity, 2), np.concatenate([pairs, pairs[:, ::-1]]).T), shape=(p.n, p.n)))
    seconds: dict[str, float | str] = {}
    cuts = []
    if p.csr is None:
        seconds["modcut"], cut = best_of(args.repeat, lambda: modcut.max_flow(g, s, t))
        seconds["modcut, 2 threads"], two = best_of(args.repeat, lambda: modcut.max_flow(g, s, t, threads=2), 2)
        cuts += [cut, two]
        seconds["read"], _ = best_of(5, lambda: [b.values.sum() for b in p.blocks])
    else:
        seconds["read"], _ = best_of(5, lambda: a.data.sum())
    seconds["modcut, sparse"], cut = best_of(args.repeat, lambda: modcut.max_flow(a, s, t))
    cuts.append(cut)
    small = len(pairs) <= 60_000

    def chosen(peer: str) -> bool:
        return small or peer != "NetworkX"

    peers, answers = peer_times(solvers.FLOWS, chosen, lambda solve: solve(p.n, pairs, capacity, s, t, args.repeat))
    values = {c.value for c in cuts} | {p.cut_value(c.side) for c in cuts} | set(answers.values())
    if len(values) != 1:
        raise SystemExit(f"{name}: answers differ: modcut {[c.value for c in cuts]}, {answers}")
    # The form that the input has: layers and matrices as blocks, mostly-zero grids as rows.
    ours = float(seconds["modcut, sparse" if p.csr is not None or name.startswith("grid") else "modcut"])
    return {
        "case": name,
        "n": p.n,
        "edges": len(pairs),
        "value": cuts[0].value,
        "trivial": int(min(cuts[0].side.sum(), p.n - cuts[0].side.sum())) == 1,
        "modcut_s": ours,
        "seconds": seconds | peers,
        "ratio": {k: v / ours for k, v in peers.items() if isinstance(v, float)},
        "targets": [target.judge(peers, ours) for target in TARGETS.get(name, [])],
    }


if __name__ == "__main__":
    main(__doc__, list(CASES), LONG, run)
