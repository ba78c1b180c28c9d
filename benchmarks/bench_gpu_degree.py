"""The strengths of a block on a CUDA device: the answer is checked, then bytes per second beside a copy's.

    python benchmarks/bench_gpu_degree.py [--out benchmarks/results/gpu_degree.json]

The kernel reads the weights twice (rows, then columns), the copy reads and writes them once: both move 2 x the bytes.
``torch`` is the unfused reference, ``w.abs().sum(1)`` and ``w.abs().sum(0)``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch

from bench_common import arguments, show, write
from modcut import _native
from modcut._arrays import capsule

SHAPES = {"768 x 3072": (768, 3072), "4096 x 4096": (4096, 4096), "16384 x 16384": (16384, 16384)}


def median_seconds(call: Callable[[], object], repeat: int) -> float:
    """Median over ``repeat`` timed calls, by device events, after three that are not timed."""
    times = []
    for i in range(repeat + 3):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        if i >= 3:
            times.append(start.elapsed_time(end) / 1e3)
    return sorted(times)[len(times) // 2]


def run(name: str, repeat: int) -> dict[str, Any]:
    w = torch.randn(SHAPES[name], device="cuda")
    rows = torch.empty(w.shape[0], dtype=torch.float64, device="cuda")
    cols = torch.empty(w.shape[1], dtype=torch.float64, device="cuda")
    out, stream = torch.empty_like(w), torch.cuda.current_stream().cuda_stream

    def ours() -> None:
        _native.degree_cuda(capsule(w), capsule(rows), capsule(cols), stream)

    ours()
    torch.testing.assert_close(rows, w.double().abs().sum(1), rtol=1e-12, atol=0)
    torch.testing.assert_close(cols, w.double().abs().sum(0), rtol=1e-12, atol=0)
    moved = 2 * w.numel() * w.element_size()
    seconds = {
        "modcut": median_seconds(ours, repeat),
        "copy": median_seconds(lambda: out.copy_(w), repeat),
        "torch": median_seconds(lambda: (w.abs().sum(1), w.abs().sum(0)), repeat),
    }
    row: dict[str, Any] = {"case": name, **{f"{k}_s": v for k, v in seconds.items()}}
    row["modcut_GB_per_s"], row["copy_GB_per_s"] = moved / seconds["modcut"] / 1e9, moved / seconds["copy"] / 1e9
    row["share_of_copy"] = seconds["copy"] / seconds["modcut"]
    return row


def main() -> None:
    args = arguments(__doc__, list(SHAPES))
    if not torch.cuda.is_available():
        sys.exit(f"bench_gpu_degree needs a CUDA device: {_native.devices()['message']}")
    rows = []
    for name in args.cases or SHAPES:
        rows.append({"device": torch.cuda.get_device_name(), **run(name, max(args.repeat, 20))})
        show(rows[-1])
    write(args, rows)


if __name__ == "__main__":
    main()
