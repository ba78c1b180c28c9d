"""LEMON (https://lemon.cs.elte.hu) through lemon_driver.cpp, compiled here where g++ and its headers are found."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np


@cache
def driver() -> Path | str:
    """The compiled driver, or why there is none."""
    compiler = shutil.which("g++")
    if compiler is None:
        return "LEMON: skipped, no g++ on the PATH"
    folder = Path(tempfile.mkdtemp(prefix="modcut-lemon-"))
    source = Path(__file__).with_name("lemon_driver.cpp")
    # Debian's headers predate C++20; -O3 as modcut itself is built.
    command = [compiler, "-O3", "-DNDEBUG", "-std=c++14", "-w", str(source), "-o", str(folder / "driver"), "-llemon"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        return f"LEMON: skipped, its driver does not compile (Debian: liblemon-dev): {lines[0] if lines else ''}"
    return folder / "driver"


def solve(n: int, pairs: Any, capacity: Any, *how: str) -> tuple[float, list[float]]:
    """Seconds in the solver, and the flow's value or the tree's weights; ``how`` is "tree", or "flow", s, t."""
    program = driver()
    if isinstance(program, str):
        raise RuntimeError(program)
    with tempfile.NamedTemporaryFile(suffix=".graph") as file:
        for part in (np.array([n, len(pairs)], np.int64), *pairs.astype(np.int32).T, capacity.astype(np.float64)):
            file.write(np.ascontiguousarray(part).tobytes())
        file.flush()
        done = subprocess.run([str(program), how[0], file.name, *how[1:]], capture_output=True, text=True, check=True)
    numbers = [float(x) for x in done.stdout.split()]
    return numbers[0], numbers[1:]
