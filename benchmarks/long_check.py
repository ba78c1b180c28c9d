"""Draw tens of thousands of graphs and judge every cut tree that modcut finds for them.

    python benchmarks/long_check.py [--graphs 20000] [--out benchmarks/results/long_check.json]

Graph i depends on --seed and i only: any family of modcut.testing, disguised (ties, decimals, scales, holes ...), given
as a matrix, as a NumPy or sparse one, or in float32, with or without certificates, on one to three threads. Up to 14
vertices the truth is augmenting paths in exact arithmetic; of larger graphs, up to 60 vertices, capacities become
integers and the truth is igraph's, so that neither has a tolerance. One in thirty is a network of 10 to 120 vertices
with float weights, where certificates do their work; the truth is igraph's, up to its rounding. A failure prints the
graph's number, goes on, and makes the exit status 1.
"""

from __future__ import annotations

import argparse
import collections
import json
import random
import sys
import time
from pathlib import Path
from typing import Any

import scipy.sparse as sp
import torch

import modcut
from bench_common import provenance
from modcut import testing

_MODERATE = 1e15  # weights that span fewer decades than float64 holds must give an exact tree


def net(rng: random.Random) -> torch.Tensor:
    """A network large and dense enough for every kind of certificate, its weights from light- to heavy-tailed."""
    n, seed, power = rng.randint(40, 100), rng.randrange(10**6), rng.choice([1.0, 2.0, 3.0, 4.0, 6.0])
    match rng.randrange(4):
        case 0:
            return testing.dense(n, seed, power)
        case 1:
            return testing.planted(n, rng.randint(2, 5), 10 ** rng.uniform(-4, -0.3), seed) ** power
        case 2:
            widths = [rng.randint(5, 40) for _ in range(rng.randint(2, 4))]
            return testing.mlp(widths, seed, keep=rng.choice([1.0, 0.5, 0.2])) ** power
        case _:
            d = 2 * rng.randint(2, 4)
            return testing.gpt_graph(d, rng.randint(1, 2), 2, seed=seed, power=power).to_dense()


def draw(seed: int, number: int) -> tuple[torch.Tensor, dict[str, Any]]:
    """Graph ``number`` and how it is to be given to modcut."""
    rng = random.Random(f"{seed}/{number}")
    if rng.random() < 0.03:
        return net(rng), {"family": "net", "disguise": "as is", "form": "matrix", "certificates": True, "threads": 2}
    large = rng.random() < 0.2
    n = rng.randint(15, 60) if large else rng.randint(1, 14)
    family, how = rng.choice(sorted(testing.FAMILIES)), rng.choice(testing.DISGUISES)
    w = testing.disguised(testing.FAMILIES[family](n, rng.randrange(10**6)), how, rng.randrange(10**6))
    if w.shape[0] > 14 and w.dtype != torch.int64:
        top = float(w.max()) if w.numel() else 0.0
        w = (w.double() * (rng.choice([7, 1000, 2**30]) / (top or 1.0))).round().to(torch.int64)
    options = {
        "family": family,
        "disguise": how,
        "form": rng.choice(["matrix", "numpy", "csr"]),
        "certificates": rng.random() < 0.6,
        "threads": rng.randint(1, 3),
    }
    return w, options


def check(w: torch.Tensor, options: dict[str, Any]) -> modcut.CutTree:
    """Raise AssertionError unless modcut's tree of ``w`` is a Gomory-Hu tree."""
    g = {"matrix": lambda: w, "numpy": w.numpy, "csr": lambda: sp.csr_array(w.numpy())}[options["form"]]()
    tree = modcut.gomory_hu_tree(g, certificates=options["certificates"], threads=options["threads"])
    positive = w[w > 0].double()
    if not tree.exact and (not len(positive) or float(positive.max()) < _MODERATE * float(positive.min())):
        raise AssertionError(f"the tree is not exact, its gap is {tree.stats.gap}")
    testing.validate_cut_tree(tree, w, testing.reference_tree(w) if w.shape[0] <= 14 else None)
    return tree


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--graphs", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    start, seen, proofs = time.time(), collections.Counter(), collections.Counter()
    failures: list[dict[str, Any]] = []
    exact = edges = largest = 0
    for number in range(args.graphs):
        w, options = draw(args.seed, number)
        try:
            tree = check(w, options)
        except Exception as error:
            failures.append({"graph": number, **options, "n": w.shape[0], "error": f"{type(error).__name__}: {error}"})
            print(json.dumps(failures[-1]), flush=True)
        else:
            exact, edges, largest = exact + tree.exact, edges + len(tree.edges), max(largest, tree.n)
            proofs.update(tree.stats.certified_by)
        seen[options["family"]] += 1
        if number % 1000 == 999:
            print(f"{number + 1} graphs, {len(failures)} failures, {time.time() - start:.0f} s", flush=True)
    result = {
        "graphs": args.graphs,
        "failures": failures,
        "exact_trees": exact,
        "tree_edges": edges,
        "largest_n": largest,
        "edges_proven_by": dict(proofs),
        "graphs_of_family": dict(sorted(seen.items())),
        "seconds": time.time() - start,
    }
    print({k: v for k, v in result.items() if k != "failures"})
    if args.out:
        stamp = provenance.stamp(seed=args.seed)
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps({"command": provenance.command(), "stamp": stamp, **result}, indent=1) + "\n")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
