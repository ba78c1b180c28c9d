"""What the benchmarks share: timing, a table on the screen, and a JSON file that says where the figures came from."""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import os
import time
from collections.abc import Callable, Container, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

from modcut import provenance

T = TypeVar("T")


def best_of(repeat: int, call: Callable[[], T]) -> tuple[float, T]:
    """The shortest wall time of ``repeat`` calls, and the last result."""
    best = float("inf")
    for _ in range(repeat):
        start = time.perf_counter()
        result = call()
        best = min(best, time.perf_counter() - start)
    return best, result


def arguments(description: str | None, cases: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--cases", nargs="+", choices=cases, help="run only these (default: all but the long ones)")
    parser.add_argument("--long", action="store_true", help="also run the cases whose rivals take minutes")
    parser.add_argument("--repeat", type=int, default=3, help="time the best of this many runs")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="write the rows, the machine and the versions here, as JSON")
    return parser.parse_args()


def cpu_model() -> str | None:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return None
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), None)


def show(row: dict[str, Any]) -> None:
    print(
        "  ".join(f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}" for key, value in row.items())
    )


def write(args: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    """Write the rows beside machine, versions, commit and seed."""
    if args.out is None:
        return
    versions = {}
    for name in ("igraph", "scipy"):  # a GPU machine may lack the peers of the CPU benchmarks
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    # A busy machine stretches all times alike at best: the load says how far to trust the ratios.
    stamp = provenance.stamp(seed=args.seed, cpu=cpu_model(), load=os.getloadavg(), **versions)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps({"command": provenance.command(), "stamp": stamp, "rows": rows}, indent=1) + "\n")


def main(
    description: str | None,
    cases: Sequence[str],
    long: Container[str],
    run: Callable[[str, argparse.Namespace], dict[str, Any]],
) -> None:
    """Run the chosen cases one after the other; what is done is on the screen and in the file at once."""
    args = arguments(description, cases)
    torch.set_num_threads(args.threads)
    rows = []
    for name in args.cases or [c for c in cases if args.long or c not in long]:
        rows.append(run(name, args))
        show(rows[-1])
        write(args, rows)
