"""Gomory-Hu trees: modcut against igraph, LEMON and Gusfield's method over OR-tools, every tree validated.

    python benchmarks/bench_cut_tree.py --out FILE                   # a few minutes
    python benchmarks/bench_cut_tree.py --long --resume --out FILE   # and the cases with slow peers

modcut's time is that of the public call: input checks and proof included. A peer's is its solver's alone. Columns:
``modcut`` exact on one thread, ``flows only`` without certificates (the flow-for-flow comparison, so that nobody takes
the certificates' gain for the flows'), ``read`` one pass that only sums the weights. Cases without peers run in a
process of their own, so that the peak memory is theirs, and are given up after --limit seconds. One thread: CPU
seconds; two: wall seconds.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import modcut
from bench_common import Target, best_of, limit, main, peer_times, verdict
from modcut import testing
from modcut._problem import problem
from peers import solvers

Make = Callable[[int], Any]
LAYERS = [64, 256, 64, 10]

# Peers run on every one of these; the larger sizes of a family show how both grow.
COMPARED: dict[str, Make] = {
    "dense 200": lambda seed: testing.dense(200, seed),
    "dense 500": lambda seed: testing.dense(500, seed),
    "dense 1000": lambda seed: testing.dense(1000, seed),
    "heavy-tailed 200": lambda seed: testing.heavy_tailed(200, seed),
    "acyclic-dense 200": lambda seed: testing.acyclic_dense(200, seed),
    "MLP 5 x 40": lambda seed: testing.mlp_graph([40] * 5, seed),
    "MLP 5 x 200": lambda seed: testing.mlp_graph([200] * 5, seed),
    "10 modules, ratio 1e-3, 200": lambda seed: testing.planted(200, 10, 1e-3, seed),
    "10 modules, ratio 1e-3, 1000": lambda seed: testing.planted(1000, 10, 1e-3, seed),
    "digits MLP, trained": lambda seed: testing.DigitsNet(seed=seed).graph(),
    "digits MLP, pruned 90 %": lambda seed: testing.DigitsNet(seed=seed).graph(0.1),
    "digits MLP, pruned 97 %": lambda seed: testing.DigitsNet(seed=seed).graph(0.03),
    "cycle 200": lambda seed: testing.cycle(200, seed, form="csr"),
    "cycle 500": lambda seed: testing.cycle(500, seed, form="csr"),
    "cycle 2000": lambda seed: testing.cycle(2000, seed, form="csr"),
    "double cycle 200": lambda seed: testing.double_cycle(200, seed, form="csr"),
    "double cycle 500": lambda seed: testing.double_cycle(500, seed, form="csr"),
    "double cycle 1000": lambda seed: testing.double_cycle(1000, seed, form="csr"),
    "grid 14 x 14": lambda seed: testing.grid(14, 14, seed, form="csr"),
    "grid 22 x 22": lambda seed: testing.grid(22, 22, seed, form="csr"),
    "grid 45 x 45": lambda seed: testing.grid(45, 45, seed, form="csr"),
    "tree 200": lambda seed: testing.tree(200, seed, form="csr"),
    "tree 500": lambda seed: testing.tree(500, seed, form="csr"),
    "tree 2000": lambda seed: testing.tree(2000, seed, form="csr"),
    "path 200": lambda seed: testing.path(200, seed, form="csr"),
    "path 500": lambda seed: testing.path(500, seed, form="csr"),
    "path 2000": lambda seed: testing.path(2000, seed, form="csr"),
    "NOI 200": lambda seed: testing.noi(200, 0.05, 4, seed, form="csr"),
    "NOI 500": lambda seed: testing.noi(500, 0.05, 4, seed, form="csr"),
    "NOI 2000": lambda seed: testing.noi(2000, 0.01, 8, seed, form="csr"),
    "RMF 4 x 4 x 12": lambda seed: testing.rmf(4, 12, seed, high=100, form="csr"),
    "RMF 5 x 5 x 20": lambda seed: testing.rmf(5, 20, seed, high=100, form="csr"),
    "RMF 8 x 8 x 32": lambda seed: testing.rmf(8, 32, seed, high=100, form="csr"),
    "RLG 16 x 30": lambda seed: testing.washington(16, 30, seed, form="csr"),
}
LONG = {"dense 500", "dense 1000", "MLP 5 x 200", "10 modules, ratio 1e-3, 1000"}

# No peer could finish these in the time of a benchmark: modcut alone, in seconds and passes over the edges.
ALONE: dict[str, Make] = {
    "dense 2000": lambda seed: testing.dense(2000, seed),
    "path 100,000": lambda seed: testing.path(100_000, seed, form="csr"),
    "tree 100,000": lambda seed: testing.tree(100_000, seed, form="csr"),
    "cycle 20,000": lambda seed: testing.cycle(20_000, seed, form="csr"),
    "grid 100 x 100": lambda seed: testing.grid(100, 100, seed, form="csr"),
    "RMF 16 x 16 x 64": lambda seed: testing.rmf(16, 64, seed, high=100, form="csr"),
    "NOI 5,000, 10^5 edges": lambda seed: testing.noi(5000, 0.008, 10, seed, form="csr"),
    "NOI 20,000, 10^6 edges": lambda seed: testing.noi(20_000, 0.005, 10, seed, form="csr"),
    "GPT-2 small's shape, light-tailed": lambda seed: testing.gpt_graph(768, 12, 12, seed=seed),
    "GPT-2 small's shape, heavy-tailed": lambda seed: testing.gpt_graph(768, 12, 12, seed=seed, power=6.0),
}
Stepped = tuple[Callable[[], modcut.WeightGraph], Callable[[], Any]]  # its graph now; one step


def stepped_digits(keep: float) -> Callable[[int], Stepped]:
    def make(seed: int) -> Stepped:
        net = testing.DigitsNet(seed=seed)
        return lambda: net.graph(keep), net.step

    return make


def stepped_weights(make: Make, power: float = 1.0) -> Callable[[int], Stepped]:
    """AdamW (lr 1e-3) on the weights of a graph, sign(x) |x|^power of what they were, down random gradients."""

    def stepped(seed: int) -> Stepped:
        g, rng = make(seed), torch.Generator().manual_seed(seed)
        for b in g.blocks:
            b.weight.copy_(b.weight.sign() * (b.weight / b.weight.std()).abs() ** power * b.weight.std())
        parameters = [torch.nn.Parameter(b.weight) for b in g.blocks]  # share their memory
        optimizer = torch.optim.AdamW(parameters, lr=1e-3)

        def step() -> None:
            for w in parameters:
                w.grad = torch.randn(w.shape, generator=rng)
            optimizer.step()

        return lambda: g, step

    return stepped


STEPS: dict[str, Callable[[int], Stepped]] = {
    "digits MLP, one AdamW step": stepped_digits(1.0),
    "digits MLP pruned 90 %, one AdamW step": stepped_digits(0.1),
    "MLP 6 x 1000, one AdamW step": stepped_weights(lambda seed: testing.mlp_graph([1000] * 6, seed)),
    "MLP 6 x 1000 of |N|^3, one AdamW step": stepped_weights(lambda seed: testing.mlp_graph([1000] * 6, seed), 3.0),
    "GPT of 12 layers of 256, one AdamW step": stepped_weights(lambda seed: testing.gpt_graph(256, 12, 4, seed=seed)),
}
CASES = [*COMPARED, *ALONE, *STEPS]

_SPARSE = ("cycle", "double cycle", "grid", "tree", "path", "NOI", "RMF")
TARGETS = {
    "dense 500": [Target("igraph", 1000), Target("LEMON", 300), Target("OR-tools", 100)],
    "dense 1000": [Target("igraph", 5000), Target("LEMON", 1000), Target("OR-tools", 500)],
    "MLP 5 x 200": [Target("igraph", 300), Target("LEMON", 100)],
    "10 modules, ratio 1e-3, 1000": [Target("igraph", 200)],
    "digits MLP, trained": [Target("igraph", 50)],
    "digits MLP, pruned 90 %": [Target("igraph", 1)],
    "digits MLP, pruned 97 %": [Target("igraph", 1)],
}
READS = {"dense 2000": 40.0, "GPT-2 small's shape, light-tailed": 80.0, "GPT-2 small's shape, heavy-tailed": 400.0}


def read_pass(g: Any) -> float:
    """Seconds of one pass that only sums the weights where they lie."""
    if isinstance(g, torch.Tensor):
        return best_of(5, lambda: float(g.sum()))[0]
    if isinstance(g, modcut.WeightGraph):
        return best_of(5, lambda: [float(b.weight.sum()) for b in g.blocks])[0]
    return best_of(5, lambda: g.data.sum())[0]


def solved(g: Any, repeat: int) -> tuple[dict[str, float], list[modcut.CutTree]]:
    """modcut's four times and trees: proof included, and flows only, on one thread and on two."""
    seconds, trees = {}, []
    for certificates, name in ((True, "modcut"), (False, "flows only")):
        for threads in (1, 2):
            key = name if threads == 1 else f"{name}, 2 threads"
            how = {"certificates": certificates, "threads": threads}
            seconds[key], tree = best_of(repeat, lambda how=how: modcut.gomory_hu_tree(g, **how), threads)
            trees.append(tree)
    return seconds, trees


def described(tree: modcut.CutTree) -> dict[str, Any]:
    stats = tree.stats
    return {
        "flows": stats.flows,
        "certified": stats.certified,
        "trivial": stats.trivial_fraction,
        "passes": stats.passes,
        "exact": tree.exact,
    }


def compare(name: str, args: Any) -> dict[str, Any]:
    g = COMPARED[name](args.seed)
    p = problem(g)
    pairs, capacity = testing.edge_list(p)
    ours, trees = solved(g, args.repeat)
    ours["read"] = read_pass(g)

    def chosen(peer: str) -> bool:
        if peer == "NetworkX":
            return len(pairs) * p.n <= 10**5
        # Hundreds of seconds for a figure that the two others give: left out where nothing is aimed at it.
        return name in TARGETS or name.startswith(_SPARSE) or p.n <= 1000

    peers, answers = peer_times(solvers.TREES, chosen, lambda solve: solve(p.n, pairs, capacity, args.repeat))
    for tree in trees:
        weights = np.sort(tree.weight[tree.edges].numpy())
        for peer, theirs in answers.items():
            # float32 layers, long sums elsewhere, integers of 30 bits: what others' rounding leaves
            rtol = 1e-6 if peer == "OR-tools" else 2e-6 if p.dtype == torch.float32 else 1e-9
            np.testing.assert_allclose(weights, np.sort(theirs), rtol=rtol, err_msg=f"{name}: {peer}")
        testing.validate_cut_tree(tree, g, float(np.sum(answers["LEMON"])) if "LEMON" in answers else None)
    return finished(name, p.n, len(pairs), ours, peers, trees[0])


def finished(
    name: str, n: int, edges: int, ours: dict[str, float], peers: dict[str, Any], tree: modcut.CutTree
) -> dict[str, Any]:
    times = {k: v for k, v in peers.items() if isinstance(v, float)}
    targets = [t.judge(peers, ours["modcut"]) for t in TARGETS.get(name, [])]
    best = min((times[k] for k in ("igraph", "LEMON") if k in times), default=None)
    if name.startswith(_SPARSE) and best is not None:
        least = 0.8 if n <= 500 else 1.0
        ratio = best / ours["modcut"]
        targets.append(verdict(f">= {least:g} x the best of igraph and LEMON", ratio, ratio >= least))
    return {
        "case": name,
        "n": n,
        "edges": edges,
        "modcut_s": ours["modcut"],
        "seconds": ours | peers,
        "ratio": {k: v / ours["modcut"] for k, v in times.items()},
        "ratio, flows only": {k: v / ours["flows only"] for k, v in times.items()},
        "proven/read": ours["modcut"] / ours["read"],
        **described(tree),
        "targets": targets,
    }


# --- modcut alone -----------------------------------------------------------------------------------------------------


def alone(name: str, args: Any) -> dict[str, Any]:
    """Run the case in a process of its own and read its JSON."""
    command = [sys.executable, str(Path(__file__)), "--child", name, str(args.seed), str(args.repeat), str(args.limit)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{name}: {done.stderr.strip()[-500:]}")
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return row


def child(name: str, seed: int, repeat: int, seconds: float) -> dict[str, Any]:
    g = ALONE[name](seed)
    is_net = isinstance(g, modcut.WeightGraph)
    edges = sum(b.weight.numel() for b in g.blocks) if is_net else g.nnz // 2 if hasattr(g, "nnz") else g.numel() // 2
    ours: dict[str, float | str] = {"read": read_pass(g)}
    row: dict[str, Any] = {"case": name, "n": int(g.n if is_net else g.shape[0]), "edges": int(edges)}
    page = os.sysconf("SC_PAGE_SIZE")
    before = int(Path("/proc/self/statm").read_text().split()[1]) * page
    tree = None
    # Two threads first: what the call takes at its peak is then the most that it takes at all.
    for key, how in (
        ("modcut, 2 threads", {"threads": 2}),
        ("modcut", {"threads": 1}),
        ("flows only", {"certificates": False}),
    ):
        if key == "flows only" and is_net:
            continue  # tens of thousands of flows over 85 million edges: hours

        def call(how: dict[str, Any] = how) -> modcut.CutTree:
            with limit(seconds):
                return modcut.gomory_hu_tree(g, **how)

        try:
            ours[key], tree_now = best_of(repeat, call, how.get("threads", 1))
        except TimeoutError as error:
            ours[key] = str(error)
            continue
        if tree is None:
            tree = tree_now
            row["peak MiB beyond the weights"] = (
                resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
            ) / 2**20
    row |= {"seconds": ours, "targets": []}
    fastest = min((v for k, v in ours.items() if k.startswith("modcut") and isinstance(v, float)), default=None)
    if fastest is not None and tree is not None:
        row["modcut_s"] = fastest if is_net else ours["modcut"]
        row["proven/read"] = row["modcut_s"] / ours["read"]
        row |= described(tree)
        # No peer's tree to compare with: the re-summed cuts and, where there are some, the other way to compute it.
        testing.validate_cut_tree(tree, g, float(tree.weight[tree.edges].sum()))
    if name in READS:
        reached = row.get("proven/read")
        met = reached <= READS[name] if reached is not None else str(ours.get("modcut, 2 threads"))
        row["targets"].append(verdict(f"<= {READS[name]:g} read passes", reached, met))
    if is_net and "peak MiB beyond the weights" in row:
        beyond = row["peak MiB beyond the weights"]
        row["targets"].append(verdict("<= 1024 MiB beyond the weights", beyond, beyond <= 1024))
    return row


def step(name: str, args: Any) -> dict[str, Any]:
    """A new tree after one more AdamW step of the same net, against the old tree checked and repaired."""
    graph, move = STEPS[name](args.seed)
    old = modcut.gomory_hu_tree(graph())
    move()
    g = graph()
    ours: dict[str, float] = {"read": read_pass(g)}
    # First this: a new tree is remembered, and a gap would be carried over no distance at all.
    ours["recertify"], tree = best_of(args.repeat, lambda: modcut.recertify(old, g))
    ours["modcut"], new = best_of(args.repeat, lambda: modcut.gomory_hu_tree(g))
    row: dict[str, Any] = {"case": name, "n": g.n, "edges": sum(int((b.weight != 0).sum()) for b in g.blocks)}
    testing.validate_cut_tree(tree, g, new)
    reached = ours["modcut"] / ours["recertify"]
    return row | {
        "modcut_s": ours["modcut"],
        "seconds": ours,
        **described(tree),
        "recertify/read": ours["recertify"] / ours["read"],
        "targets": [verdict(">= 10 x a new tree", reached, reached >= 10)],
    }


def run(name: str, args: Any) -> dict[str, Any]:
    if name in COMPARED:
        return compare(name, args)
    return alone(name, args) if name in ALONE else step(name, args)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        torch.set_num_threads(1)
        print(json.dumps(child(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), float(sys.argv[5]))))
    else:
        main(__doc__, CASES, LONG, run)
