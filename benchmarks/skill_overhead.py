"""What gathering usage costs: a training step of the two-skill GPT with and without the recorder, best of several.

    python benchmarks/skill_overhead.py --out benchmarks/results/skill_overhead.json

Usage is needed in as many steps as fill the recorder (1024 windows: 16 of 1000 steps of batch 64), not in all.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch

import modcut
from bench_common import main
from modcut.graph.statistics import Recorder
from skill_nets import CONTEXT, GPT, Tasks, step_of

STEPS, WINDOWS, BATCH = 1000, 1024, 64


def run(name: str, args: argparse.Namespace) -> dict[str, Any]:
    tasks = Tasks(2, True)
    torch.manual_seed(0)
    model = GPT(tasks.vocabulary)
    step, _ = step_of(model, tasks, 0, STEPS)
    graph = modcut.weight_graph(model, torch.zeros(2, CONTEXT, dtype=torch.int64))
    for i in range(20):
        step(i)
    plain = recorded = float("inf")
    for _ in range(4 * args.repeat):  # in turns, so that both see the same machine
        start = time.process_time()
        for i in range(15):
            step(i)
        plain = min(plain, time.process_time() - start)
        with Recorder(graph, model, max_windows=WINDOWS):
            start = time.process_time()
            for i in range(15):
                step(i)
            recorded = min(recorded, time.process_time() - start)
    over = recorded / plain - 1
    return {
        "case": name,
        "step_ms": plain / 15 * 1e3,
        "recorded_step_ms": recorded / 15 * 1e3,
        "overhead_while_recording": over,
        "steps_needed": WINDOWS // BATCH,
        "overhead_of_training": over * WINDOWS / BATCH / STEPS,
        "memory_mb": WINDOWS * graph.n * 4 / 2**20,
    }


if __name__ == "__main__":
    main(__doc__, ["two-skill GPT"], set(), run)
