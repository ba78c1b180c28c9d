"""Compile csrc/cuda/*.cu for some architectures and fail when a kernel spills registers or uses a stack frame.

Usage: python csrc/tests/check_ptxas.py [--arch 80 90 100]. Needs nvcc on PATH, no GPU. Prints one line per kernel.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

CSRC = Path(__file__).resolve().parent.parent
ENTRY = re.compile(r"Compiling entry function '(?P<name>\S+)' for '(?P<arch>\S+)'")
FRAME = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
USED = re.compile(r"Used (\d+) registers")


def kernels(source: Path, archs: list[int]) -> list[tuple[str, str, int, int, int]]:
    """(kernel, architecture, registers, stack bytes, spilled bytes) of every entry function of one file."""
    command = [
        "nvcc",
        "-std=c++20",
        "-O3",
        "--expt-relaxed-constexpr",
        "-fmad=false",
        f"-I{CSRC}",
        "-Xptxas=-v",
        "-c",
        str(source),
    ]
    for arch in archs:
        command += ["-gencode", f"arch=compute_{arch},code=sm_{arch}"]
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run([*command, "-o", f"{folder}/out.o"], capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"nvcc failed on {source.name}:\n{done.stderr}")
    rows, name, arch, stack, spill = [], "", "", 0, 0
    for line in done.stderr.splitlines():
        if found := ENTRY.search(line):
            name, arch = found["name"], found["arch"]
        elif found := FRAME.search(line):
            stack, spill = int(found[1]), int(found[2]) + int(found[3])
        elif (found := USED.search(line)) and name:
            rows.append((name, arch, int(found[1]), stack, spill))
            name = ""
    return rows


def main() -> int:
    """Return the number of kernels that spill."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arch", type=int, nargs="+", default=[80, 90, 100])
    archs = parser.parse_args().arch
    if shutil.which("nvcc") is None:
        print("nvcc is not on PATH: nothing to check")
        return 0
    bad = total = 0
    for source in sorted((CSRC / "cuda").glob("*.cu")):
        for name, arch, registers, stack, spill in kernels(source, archs):
            readable = subprocess.run(["c++filt", name], capture_output=True, text=True).stdout.strip() or name
            short = re.sub(r"\(anonymous namespace\)::|modcut::cuda::|void ", "", readable).split("(")[0]
            print(
                f"{source.name:12s} {arch:7s} {short:28s} {registers:3d} registers, {stack} B stack, {spill} B spilled"
            )
            total += 1
            bad += stack + spill > 0
    print(f"{total} kernels, {bad} with spills or a stack frame")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
