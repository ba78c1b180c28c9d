"""Do free changes of basis lower the leak of a pretrained model? Leak of partitions found in each basis.

    python benchmarks/symmetries.py --model smollm2 --out benchmarks/results/symmetries.json

The function is the same in every row (checked); only which numbers are called neurons changes. The control is a random
rotation, which should not help.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import modcut
from modcut import provenance, symmetries
from modcut.clustering import functional_labels
from modcut.graph.edges import with_edge
from modcut.graph.statistics import collect
from modcut.loading import load_model
from modcut.partition import Partition
from modcut.pipeline import read_text


def leak(model: Any, slices: dict[str, Any], k: int, seed: int) -> dict[str, Any]:
    batches = [b for part in slices.values() for b in part]
    graph = modcut.weight_graph(model, batches[0], include_inputs=False, include_outputs=False)
    statistics = collect(graph, model, batches)
    labels = functional_labels(graph, statistics.profile, k, seed, input_mean_square=statistics.input_mean_square)
    return {"leak": Partition(labels, with_edge(graph, "contribution", statistics), k).leak}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--k", type=int, default=2)
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    loaded = load_model(args.model)
    model: Any = loaded.model
    slices, origin = read_text(loaded.tokenizer, None, windows=args.windows, length=48, seed=args.seed)
    probe = next(iter(slices.values()))[0]
    with torch.no_grad():
        want = model(**probe).logits
    width = model.model.embed_tokens.weight.shape[1]
    g = torch.Generator().manual_seed(args.seed)
    bases: list[tuple[str, Tensor | None]] = [
        ("as it came", None),
        ("norms folded", None),
        ("eigenvectors of the weights", symmetries.modular_residual_basis(model)),
        ("random rotation (control)", torch.linalg.qr(torch.randn(width, width, generator=g, dtype=torch.float64)).Q),
    ]
    rows = []
    for i, (name, basis) in enumerate(bases):
        if i == 1:
            symmetries.fold_norms_(model)
        if basis is not None:
            symmetries.rotate_residual_(model, basis)
        with torch.no_grad():
            changed = float((model(**probe).logits - want).abs().max() / want.abs().max())
        row = {"case": name, **leak(model, slices, args.k, args.seed), "function_changed": changed}
        rows.append(row)
        print(row, flush=True)
        if args.out is not None:
            stamp = provenance.stamp(seed=args.seed, text=origin, k=args.k, model=loaded.facts)
            record = {"command": provenance.command(), "stamp": stamp, "rows": rows}
            args.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
