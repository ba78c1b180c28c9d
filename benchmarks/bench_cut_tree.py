"""Gomory-Hu trees: modcut against igraph, answers compared before anything is timed.

    python benchmarks/bench_cut_tree.py [--long] [--out benchmarks/results/cut_tree.json]

modcut's time is that of the public call (input checks included), igraph's leaves out building its graph. Columns:
``proven`` with certificates, ``flows_only`` without (the flow-for-flow comparison), ``read`` one pass that only sums
the weights.
"""

from __future__ import annotations

from typing import Any

import igraph
import numpy as np
import torch

import modcut
from bench_common import best_of, main
from modcut import testing
from modcut._problem import problem

CASES = {
    "dense 100": lambda seed: testing.dense(100, seed),
    "dense 200": lambda seed: testing.dense(200, seed),
    "dense 500": lambda seed: testing.dense(500, seed),
    "dense 1000": lambda seed: testing.dense(1000, seed),
    "heavy-tailed 200": lambda seed: testing.heavy_tailed(200, seed),
    "MLP 5 x 40": lambda seed: testing.mlp_graph([40] * 5, seed),
    "MLP 5 x 200": lambda seed: testing.mlp_graph([200] * 5, seed),
    "MLP 64-128-64-10": lambda seed: testing.mlp_graph([64, 128, 64, 10], seed),
    "same, pruned 90 %": lambda seed: testing.mlp_graph([64, 128, 64, 10], seed, keep=0.1),
    "same, pruned 97 %": lambda seed: testing.mlp_graph([64, 128, 64, 10], seed, keep=0.03),
    "10 modules, ratio 1e-3, 200": lambda seed: testing.planted(200, 10, 1e-3, seed),
    "10 modules, ratio 1e-3, 1000": lambda seed: testing.planted(1000, 10, 1e-3, seed),
    "cycle 200": lambda seed: testing.cycle(200, seed),
    "double cycle 200": lambda seed: testing.double_cycle(200, seed),
    "grid 14 x 14": lambda seed: testing.grid(14, 14, seed),
    "tree 200": lambda seed: testing.tree(200, seed),
    "path 200": lambda seed: testing.path(200, seed),
}
LONG = {"dense 500", "dense 1000", "MLP 5 x 200", "10 modules, ratio 1e-3, 1000"}


def run(name: str, seed: int, repeat: int, threads: int) -> dict[str, Any]:
    g = CASES[name](seed)
    p = problem(g)
    pairs, capacity = testing.edge_list(p)
    rival = igraph.Graph(n=p.n, edges=pairs.tolist())
    weights = capacity.tolist()
    igraph_s, other = best_of(1, lambda: rival.gomory_hu_tree(capacity=weights))
    if igraph_s < 10:  # as fair as to ourselves, where that does not take minutes
        igraph_s = min(igraph_s, best_of(max(repeat - 1, 1), lambda: rival.gomory_hu_tree(capacity=weights))[0])

    proven_s, tree = best_of(repeat, lambda: modcut.gomory_hu_tree(g, threads=threads))
    flows_s, flowed = best_of(repeat, lambda: modcut.gomory_hu_tree(g, certificates=False, threads=threads))
    for answer in (tree, flowed):
        ours, theirs = np.sort(answer.weight[answer.edges].numpy()), np.sort(np.array(other.es["flow"]))
        # igraph's own rounding bounds what can be compared: float32 layers here, long sums there
        np.testing.assert_allclose(ours, theirs, rtol=2e-6 if p.dtype == torch.float32 else 1e-9)
        testing.validate_cut_tree(answer, g, float(theirs.sum()))
    read_s, _ = best_of(max(repeat, 5), lambda: [b.values.sum() for b in p.blocks])
    return {
        "case": name,
        "n": p.n,
        "edges": len(pairs),
        "proven_s": proven_s,
        "flows_only_s": flows_s,
        "igraph_s": igraph_s,
        "igraph_runs": repeat if igraph_s < 10 else 1,
        "read_s": read_s,
        "igraph/proven": igraph_s / proven_s,
        "igraph/flows_only": igraph_s / flows_s,
        "proven/read": proven_s / read_s,
        "flows": tree.stats.flows,
        "certified": tree.stats.certified,
        "trivial": tree.stats.trivial_fraction,
        "exact": tree.exact,
        "threads": threads,
    }


if __name__ == "__main__":
    main(__doc__, list(CASES), LONG, lambda name, args: run(name, args.seed, args.repeat, args.threads))
