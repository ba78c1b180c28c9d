"""Exact trees of many small graphs on a CUDA device: the answer is checked bit for bit, then time beside the host's.

    python benchmarks/bench_gpu_cuts.py [--out benchmarks/results/gpu_cuts.json]

``cpu2`` is the same source on two host threads, over the first graphs only and scaled up to the batch; ``engine`` is
``gomory_hu_tree`` with its certificates, graph by graph, likewise: on dense graphs it runs no flow, and is the one to
beat. A copy of the weights in the same run is the device's measure; what pulses read lies in caches.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import torch

import modcut
from bench_common import arguments, show, write
from bench_gpu_degree import median_seconds
from modcut import _native

CASES = {f"{b} graphs of {n} vertices, {str(t)[6:]}": (b, n, t) for b, n, t in (
    (2048, 64, torch.float32),
    (512, 128, torch.float32),
    (512, 256, torch.float32),
    (512, 256, torch.int32),
    (128, 256, torch.float64),
)}  # fmt: skip
HOST = 4  # graphs of a batch that the host is timed on


def graphs(b: int, n: int, dtype: torch.dtype) -> torch.Tensor:
    g = torch.Generator().manual_seed(0)
    w = torch.rand(b, n, n, generator=g) if dtype.is_floating_point else torch.randint(0, 1000, (b, n, n), generator=g)
    return (torch.triu(w) + torch.triu(w, 1).transpose(1, 2)).to(dtype)


def host_seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def run(name: str, repeat: int) -> dict[str, Any]:
    b, n, dtype = CASES[name]
    host = graphs(b, n, dtype)
    w, few = host.cuda(), host[:HOST]
    ours, theirs = modcut.gomory_hu_trees(w), modcut.gomory_hu_trees(few, threads=2)
    for x, y in zip((ours.parent, ours.weight, ours.lower), (theirs.parent, theirs.weight, theirs.lower), strict=True):
        assert torch.equal(x[:HOST].cpu(), y), "CPU and GPU must agree bit for bit"
    assert bool(ours.exact.all())
    out = torch.empty_like(w)
    seconds = {
        "modcut": median_seconds(lambda: modcut.gomory_hu_trees(w, check=False), repeat),
        "copy": median_seconds(lambda: out.copy_(w), repeat),
        "cpu2": host_seconds(lambda: modcut.gomory_hu_trees(few, threads=2)) * b / HOST,
        "engine": host_seconds(lambda: [modcut.gomory_hu_tree(x) for x in few]) * b / HOST,
    }
    row: dict[str, Any] = {"case": name, **{f"{k}_s": v for k, v in seconds.items()}}
    row["times_cpu2"], row["times_engine"] = (seconds[k] / seconds["modcut"] for k in ("cpu2", "engine"))
    row["copies"] = seconds["modcut"] / seconds["copy"]
    return row


def main() -> None:
    args = arguments(__doc__, list(CASES))
    if not torch.cuda.is_available():
        sys.exit(f"bench_gpu_cuts needs a CUDA device: {_native.devices()['message']}")
    rows = []
    for name in args.cases or CASES:
        rows.append({"device": torch.cuda.get_device_name(), **run(name, min(args.repeat, 5))})
        show(rows[-1])
    write(args, rows)


if __name__ == "__main__":
    main()
