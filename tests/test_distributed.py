"""Two gloo processes by torchrun: gradients of one process, and a killed process that stops the run cleanly."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import modcut

pytestmark = pytest.mark.skipif(
    not (torch.distributed.is_available() and torch.distributed.is_gloo_available()), reason="needs gloo"
)
WORKER = Path(__file__).with_name("distributed_worker.py")


def start(*arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(modcut.__file__).parents[1])}
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.parametrize("kind", ["ddp", "fsdp", "tp"])
def test_two_processes_give_the_gradients_and_weights_of_one(kind: str) -> None:
    process = start(str(WORKER), kind)
    out = process.communicate(timeout=200)[0]
    assert process.returncode == 0 and out.count(f"{kind} equal") == 2, out[-3000:]


def test_a_killed_rank_ends_the_run_and_it_goes_on_from_the_checkpoint(tmp_path: Path) -> None:
    from modcut.training import checkpoint

    config = {
        "model": {"width": 16, "layers": 1, "heads": 2, "mlp": 32},
        "data": {"length": 24, "characters": 20_000},
        "training": {"steps": 40, "batch": 2, "evaluate_every": 20, "evaluate_batches": 2, "checkpoint_every": 5},
        "loss": {"k": 2, "warmup": 6, "ramp": 4},
        "report": {"random": 2, "winograd": False, "control": False},
    }
    (tmp_path / "c.json").write_text(json.dumps(config))

    def run(out: str) -> subprocess.Popen[str]:
        return start("-m", "modcut", "train", str(tmp_path / "c.json"), "--out", str(tmp_path / out))

    broken = run("a")
    saved = tmp_path / "a" / "checkpoints" / "modular.safetensors"
    for _ in range(6000):
        if saved.is_file() or broken.poll() is not None:
            break
        time.sleep(0.01)
    ranks = subprocess.run(["pgrep", "-P", str(broken.pid)], capture_output=True, text=True).stdout.split()
    os.kill(int(ranks[-1]), 9)
    out = broken.communicate(timeout=100)[0]
    assert broken.returncode != 0 and 5 <= checkpoint.read(saved)[0]["step"] < 40, out[-3000:]
    for name in ("a", "b"):
        process = run(name)
        out = process.communicate(timeout=200)[0]
        assert process.returncode == 0, out[-3000:]
    a, b = (json.loads((tmp_path / n / "results.json").read_text())["arms"][0] for n in "ab")
    assert a["digest"] == b["digest"] and a["curve"] == b["curve"]
