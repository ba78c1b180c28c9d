"""The Triton kernels: their answers under Triton's interpreter, and the machine code that three GPUs would get.

No test here runs anything on a GPU (``tests/test_gpu.py`` does).
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

import modcut

HERE = Path(__file__).parent
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="needs triton: pip install 'modcut[triton]'"
)


def run(*command: str, **environment: str) -> str:
    known = {**os.environ, "PYTHONPATH": str(Path(modcut.__file__).parents[1]), "OMP_NUM_THREADS": "1", **environment}
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, env=known, timeout=280, cwd=HERE)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize("group", ["TestAnswers", "TestContract", "TestLoss", "TestPlantedBugs", "interpreter"])
def test_under_the_interpreter(group: str) -> None:
    out = run("-m", "pytest", "-q", "-p", "no:cacheprovider", "triton_suite.py", "-k", group)
    assert " passed" in out and "failed" not in out


def test_compiled_for_three_architectures(tmp_path: Path) -> None:
    """No spill, no local memory, and 16-byte accesses to weights, by what cuobjdump and nvdisasm say of the code."""
    out = run("triton_code.py", TRITON_CACHE_DIR=str(tmp_path), TRITON_INTERPRET="0")
    assert out.count("ok") >= 40, out
