"""The benchmarks' page says what their JSON files say, and their small parts work."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.parametrize("script", ["table.py", "audit_table.py"])
def test_a_page_of_results_is_what_the_measured_files_say(script: str) -> None:
    done = subprocess.run([sys.executable, str(BENCHMARKS / script), "--check"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, ""), f"run: python benchmarks/{script}"


@pytest.mark.slow
def test_a_thousand_drawn_graphs_pass_the_long_check() -> None:
    command = [sys.executable, str(BENCHMARKS / "long_check.py"), "--graphs", "1000", "--seed", "3"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
