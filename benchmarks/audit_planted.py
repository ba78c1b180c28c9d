"""Tier T0: blocks planted in random weights, by how strong the weights between blocks are.

    python benchmarks/audit_planted.py --out benchmarks/results/audit_planted.json

ARI of the block model (modcut.blockmodel.fit_blocks) and of spectral clustering of the same graph, told k; the null is
rho 1, where nothing is planted. Oracle: every vertex is placed by its own weights, told all other labels and both
variances, though not that the blocks are balanced. Five layers (32, 48, 48, 48, 32), four blocks.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from modcut import provenance
from modcut._files import write_json
from modcut.auditing.selftest import bootstrap
from modcut.blockmodel import fit_blocks
from modcut.clustering import spectral_labels
from modcut.organisms import Planted, planted
from modcut.partition import adjusted_rand

RHO = (0.0, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0)
TARGET = {0.0: 0.995, 0.2: 0.995, 0.3: 0.995, 0.4: 0.995, 0.5: 0.995, 0.6: 0.8}  # 1.0, rounded to two places


def oracle(p: Planted) -> float:
    """ARI where each vertex is placed by its own weights, told all other labels and the variances."""
    known = torch.nn.functional.one_hot(p.labels, 4).double()
    evidence = torch.zeros_like(known)
    for block in p.graph.blocks:
        squares = block.capacity().detach().double().square()
        r, c = block.rows.vertices, block.cols.vertices
        same = p.labels[r][:, None] == p.labels[c][None, :]
        inside, between = squares[same].mean(), squares[~same].mean().clamp_min(1e-12)
        ratio = squares * (0.5 / between - 0.5 / inside) + 0.5 * (between / inside).log()
        evidence[r] += ratio @ known[c]
        evidence[c] += ratio.T @ known[r]
    return adjusted_rand(evidence.argmax(1), p.labels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--nets", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1000)
    args = parser.parse_args()
    rows = []
    for rho in RHO:
        found: dict[str, list[float]] = {"block model": [], "spectral": [], "oracle": []}
        for seed in range(args.seed, args.seed + args.nets):
            p = planted(rho, seed)
            found["block model"].append(adjusted_rand(fit_blocks(p.graph, 4, seed=seed).labels, p.labels))
            found["spectral"].append(adjusted_rand(spectral_labels(p.graph, 4, seed), p.labels))
            found["oracle"].append(oracle(p))
        row = {
            "rho": rho,
            **{k: {"ari": float(np.mean(v)), "interval": bootstrap(v), "least": min(v)} for k, v in found.items()},
        }
        if rho in TARGET:
            row["target"] = TARGET[rho]
            row["verdict"] = "met" if np.mean(found["block model"]) >= TARGET[rho] else "missed"
        rows.append(row)
        print(rho, {k: round(float(np.mean(v)), 3) for k, v in found.items()}, row.get("verdict", ""), flush=True)
        stamp = provenance.stamp(seed=args.seed)
        write_json(args.out, {"command": provenance.command(), "nets": args.nets, "k": 4, "stamp": stamp, "rows": rows})


if __name__ == "__main__":
    main()
