"""What the benchmarks share: timing, peers, targets, a table on the screen, and a JSON file with its origin."""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import os
import signal
import time
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from modcut import provenance

T = TypeVar("T")
_ENOUGH = 10.0  # seconds after which a call is not repeated
_VERSIONS = ("igraph", "scipy", "ortools", "thinhpf", "PyMaxflow", "networkx", "scikit-learn")


def best_of(repeat: int, call: Callable[[], T], threads: int = 1) -> tuple[float, T]:
    """The shortest time of ``repeat`` calls (fewer where they take long), and the last result.

    On one thread CPU seconds, user and system: a machine that does other things too stretches wall times, and those of
    slow rivals the most. On several threads wall seconds.
    """
    clock = time.process_time if threads == 1 else time.perf_counter
    best, total = float("inf"), 0.0
    for _ in range(repeat):
        start = clock()
        result = call()
        spent = clock() - start
        best, total = min(best, spent), total + spent
        if total > _ENOUGH:
            break
    return best, result


@contextlib.contextmanager
def limit(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in the main thread after so many seconds; modcut's long calls let it through."""

    def stop(*_: Any) -> None:
        raise TimeoutError(f"stopped after {seconds:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@dataclass(frozen=True)
class Target:
    """What a ratio (a peer's time over modcut's) should reach, and the words beside it."""

    peer: str
    at_least: float

    def judge(self, peers: Mapping[str, float | str], ours: float) -> dict[str, Any]:
        value = peers.get(self.peer, "not run")
        if isinstance(value, str):
            return verdict(f">= {self.at_least:g} x {self.peer}", None, value)
        return verdict(f">= {self.at_least:g} x {self.peer}", value / ours, value / ours >= self.at_least)


def verdict(what: str, reached: float | None, met: bool | str) -> dict[str, Any]:
    """One target's line: met, missed, or why it was not measured."""
    return {"target": what, "reached": reached, "verdict": met if isinstance(met, str) else "met" if met else "missed"}


def peer_times(
    peers: Mapping[str, Callable[..., Any]], chosen: Callable[[str], bool], call: Callable[[Any], tuple[float, Any]]
) -> tuple[dict[str, float | str], dict[str, Any]]:
    """Seconds of every chosen peer, or a sentence why there are none, and their answers."""
    seconds: dict[str, float | str] = {}
    answers: dict[str, Any] = {}
    for name, solve in peers.items():
        if not chosen(name):
            seconds[name] = "not run: too slow here"
            continue
        try:
            seconds[name], answers[name] = call(solve)
        except (ImportError, RuntimeError) as error:
            seconds[name] = f"skipped: {error}"
    return seconds, answers


def arguments(description: str | None, cases: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=cases, help="run only these (default: all but the long ones)")
    parser.add_argument("--long", action="store_true", help="also run the cases whose rivals take minutes")
    parser.add_argument("--resume", action="store_true", help="keep the rows that --out already has, run the others")
    parser.add_argument("--repeat", type=int, default=3, help="time the best of this many runs")
    parser.add_argument(
        "--limit", type=float, default=60.0, help="give a case of modcut alone up after so many seconds"
    )
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
    """One row on the screen; dictionaries and verdicts on lines of their own."""
    nested = {k: v for k, v in row.items() if isinstance(v, dict | list)}
    print("  ".join(f"{k}={_text(v)}" for k, v in row.items() if k not in nested))
    for key, value in nested.items():
        if isinstance(value, dict):
            print(f"    {key}: " + "  ".join(f"{k}={_text(v)}" for k, v in value.items()))
        else:
            for line in value:
                print("    " + "  ".join(_text(v) for v in line.values()) if isinstance(line, dict) else f"    {line}")
    print(end="", flush=True)


def _text(x: Any) -> str:
    return f"{x:.4g}" if isinstance(x, float) else str(x)


def write(args: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    """Write the rows beside machine, versions, commit and seed."""
    if args.out is None:
        return
    versions = {}
    for name in _VERSIONS:  # a GPU machine may lack the peers of the CPU benchmarks
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
    rows: list[dict[str, Any]] = []
    if args.resume and args.out is not None and args.out.exists():
        rows = json.loads(args.out.read_text())["rows"]
    chosen = args.cases or [c for c in cases if args.long or c not in long]
    done = {row["case"] for row in rows}
    for name in chosen:
        if name in done:
            continue
        start = time.time()
        row = run(name, args)
        # Rows of one file may come from several runs (--resume): each says when, at which commit and load.
        origin = {"commit": provenance.stamp()["commit"], "at": time.strftime("%Y-%m-%d %H:%M")}
        origin |= {"load": os.getloadavg()[0], "took_s": round(time.time() - start, 1)}
        rows.append(row | {"measured": origin})
        show(row)
        write(args, sorted(rows, key=lambda r: list(cases).index(r["case"]) if r["case"] in cases else len(cases)))
