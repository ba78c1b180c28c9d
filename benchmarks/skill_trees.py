"""The exact tree of windows against spectral clustering of units, on networks of known skills.

    python benchmarks/skill_trees.py --resume --out benchmarks/results/skill_trees.json [--cases K-VOCABULARY-SEED ...]

Units follow the kinds of window that the tree cuts (``slice_labels``); ARI is over neurons and heads, with the label
oracle. ``k``: parts that the tree finds without being told. ``null``: the best edge of the tree on shuffled usage.
Directions (16) and neighbours (10) were chosen on seeds 0 and 1.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any

import torch

import modcut
import skills
from bench_common import main
from modcut.clustering import functional_labels, slice_labels, unit_profiles
from modcut.graph.edges import shuffled
from modcut.graph.statistics import collect
from modcut.partition import adjusted_rand
from modcut.skills import window_tree
from skill_nets import Tasks, loss_fn, trained

CASES = [f"{k}-{v}-{s}" for s in range(3, 8) for k, v in ((1, "shared"), (2, "disjoint"), (2, "shared"), (3, "shared"))]
CASES += [f"{k}-shared-{s}" for k in (4, 5, 6) for s in range(3, 8)]


def run(name: str, args: argparse.Namespace) -> dict[str, Any]:
    count, vocabulary, seed = name.split("-")
    k, s = int(count), int(seed)
    tasks = Tasks(k, vocabulary == "shared")
    model = trained(tasks, s, 1500 if k > 4 else 1000, skills.NETS)
    tokens, targets, skill = tasks.mixed(768, torch.Generator().manual_seed(5000 + s))
    graph = modcut.weight_graph(model, tokens[:2])
    statistics = collect(graph, model, list(zip(tokens.split(64), targets.split(64), strict=True)), loss_fn)
    z, inner = unit_profiles(graph, statistics.profile), skills.inner_units(graph)
    began = time.process_time()
    T = window_tree(z)
    took = time.process_time() - began
    free = T.labels()
    null = window_tree(unit_profiles(graph, shuffled(statistics, s, graph).profile))
    row = {"case": name, "skills": k, "vocabulary": vocabulary, "seed": s, "k": int(free.max()) + 1, "cpu_s": took}
    row |= {"conductance": T.conductance[: k + 1], "null": null.conductance[0], "null_k": int(null.labels().max()) + 1}
    if k == 1:
        return row
    oracle = slice_labels(graph, statistics.profile, skill)[inner]
    row["windows_ari"] = adjusted_rand(free, skill)
    told = T.labels(k)
    row["windows_ari_given_k"] = adjusted_rand(told, skill)
    enough = int(told.max()) > 0 and int(torch.bincount(told).min()) >= 2
    mine = slice_labels(graph, statistics.profile, told)[inner] if enough else torch.zeros_like(oracle)
    row["ari"] = adjusted_rand(mine, oracle)
    row["ari_spectral"] = adjusted_rand(functional_labels(graph, statistics.profile, k, s)[inner], oracle)
    return row


if __name__ == "__main__":
    skills.NETS = Path(os.environ.get("MODCUT_SKILL_NETS", str(skills.NETS)))
    main(__doc__, CASES, set(), run)
