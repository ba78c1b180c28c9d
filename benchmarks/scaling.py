"""What the loss costs at scale: a formula for bytes, memory and messages, checked at two small sizes.

    python benchmarks/scaling.py --out benchmarks/results/scaling.json

Time is one read and one write of the weights times a factor, which is measured here; docs/scaling.md uses it.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

import modcut
from modcut import provenance
from modcut.organisms import GPT, GPTConfig


def formula(width: int, mlp: int, layers: int, k: int, *, kv: float = 1.0, gated: bool = False) -> dict[str, float]:
    """Weights of the blocks, and what the loss keeps and sends, for one transformer."""
    weights = layers * (width * width * (2 + 2 * kv) + width * mlp * (3 if gated else 2))
    rows = layers * (width * (2 + 2 * kv) + mlp * (2 if gated else 1) + width)
    columns = layers * (width * (4 if not gated else 6) + mlp)
    vertices = width + layers * (width * (1 + kv) + mlp)
    return {
        "weights": weights,
        "bytes_moved": 3 * 4 * weights,  # read for the sums; read for the sign and written into the gradient
        "norm_bytes": 4 * columns,
        "label_bytes": 8 * vertices,
        "row_bytes": 4 * rows * (k + 4),
        "message_numbers": columns + 6 * layers * k,
    }


def measured(width: int, layers: int, k: int, repeat: int) -> dict[str, Any]:
    shape = GPTConfig(width=width, layers=layers, heads=4, mlp=4 * width)
    model = GPT(shape)
    graph = modcut.weight_graph(
        model, torch.zeros(1, 8, dtype=torch.int64), include_inputs=False, include_outputs=False
    )
    crit = modcut.ModularityLoss(model, partition=torch.arange(graph.n) % k, graph=graph)
    model(torch.zeros(2, 8, dtype=torch.int64))
    blocks = [p for n, p in model.named_parameters() if n.startswith("blocks") and p.ndim == 2]
    for p in blocks:
        p.grad = torch.zeros_like(p)
    ours, copy = float("inf"), float("inf")
    for _ in range(repeat):
        at = time.process_time()
        crit.backward_()
        ours = min(ours, time.process_time() - at)
        at = time.process_time()
        with torch.no_grad():
            for p in blocks:
                assert p.grad is not None
                p.grad.copy_(p)
        copy = min(copy, time.process_time() - at)
    expected = formula(width, 4 * width, layers, k)
    found = {
        "weights": sum(p.numel() for p in blocks),
        "norm_bytes": 4 * crit.norms.mean_square.numel(),
        "label_bytes": 8 * crit.labels.numel(),
    }
    return {
        "case": f"width {width}, {layers} layers, k={k}",
        "expected": expected,
        "found": found,
        "loss_and_gradient_s": ours,
        "read_and_write_all_weights_s": copy,
        "factor": ours / copy,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--repeat", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = [measured(w, n, 8, args.repeat) for w, n in ((128, 4), (512, 4))]
    for r in rows:
        for key, value in r["found"].items():
            assert abs(value / r["expected"][key] - 1) < 0.1, (r["case"], key, value, r["expected"][key])
        print(r)
    large = {
        "GPT-2 small": formula(768, 3072, 12, 8),
        "7B (Llama 2)": formula(4096, 11008, 32, 8, gated=True),
        "70B (Llama 2)": formula(8192, 28672, 80, 8, kv=0.125, gated=True),
    }
    for name, estimate in large.items():
        print(name, {key: f"{v:.4g}" for key, v in estimate.items()})
    if args.out is not None:
        record = {"command": provenance.command(), "stamp": provenance.stamp(), "rows": rows, "estimates": large}
        args.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
