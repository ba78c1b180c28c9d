"""Fail where ptxas reports spilled registers: `python .ci/spills.py build.log` (built with -Xptxas=-v)."""

from __future__ import annotations

import re
import sys
from pathlib import Path


def main(path: str) -> int:
    """Return the number of kernels that spill, after printing each."""
    kernel, kernels, spilling = "?", 0, 0
    for line in Path(path).read_text(errors="replace").splitlines():
        if found := re.search(r"Compiling entry function '(\w+)' for '(\w+)'", line):
            kernel, kernels = f"{found[1]} ({found[2]})", kernels + 1
        if (found := re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", line)) and int(found[1]) + int(
            found[2]
        ):
            spilling += 1
            print(f"{kernel}: {found[0]}")
    print(f"{kernels} kernels compiled, {spilling} spill registers")
    if not kernels:
        print("no kernel in the log: was it built with -Xptxas=-v?")
        return 1
    return spilling


if __name__ == "__main__":
    sys.exit(1 if main(sys.argv[1]) else 0)
