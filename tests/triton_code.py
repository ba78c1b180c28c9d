"""Compile the Triton kernels without a GPU and look at the machine code; run by test_triton.py in a process of its own.

python tests/triton_code.py            # one line a variant: registers, stack, 16-byte loads and stores
"""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from modcut.ops.triton_share import WARPS, kernels

share = kernels().share

BIN = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
POINTERS = {
    "matrices": "*i64", "programs": "*i32", "scales": "*fp32", "row_labels": "*u8", "col_labels": "*u8",
    "row_weights": "*fp32", "leaks": "*fp32", "strengths": "*fp32",
}  # fmt: skip
MODES = {"value": (0, True), "gradient": (1, True), "add": (2, False), "proximal": (3, False)}
KINDS = {"short rows": 1, "rows": 2 | 4, "long rows": 8, "any rows": 16, "columns": 32, "any columns": 64}
HOT = ("short rows", "rows", "long rows", "columns")


def compiled(arch: int, dtype: Any, mode: str, kinds: int) -> Any:
    number, stats = MODES[mode]
    known = {
        "T": dtype, "VEC": 128 // dtype.primitive_bitwidth, "MODE": number, "STATS": stats, "KINDS": kinds, "EVEN": True
    }  # fmt: skip
    signature = POINTERS | dict.fromkeys(known, "constexpr")
    source = ASTSource(
        fn=share,
        signature=signature,
        constexprs={(list(signature).index(name),): value for name, value in known.items()},
        attrs={(i,): [["tt.divisibility", 16]] for i in range(len(POINTERS))},
    )
    options = {"num_warps": WARPS, "enable_fp_fusion": False}
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)


def tool(name: str, path: Path, *options: str) -> str:
    return subprocess.run([str(BIN / name), *options, str(path)], capture_output=True, text=True, check=True).stdout


def measure(arch: int, dtype: Any, mode: str, kinds: int, folder: Path) -> dict[str, int]:
    made = compiled(arch, dtype, mode, kinds)
    path = folder / f"{arch}.{mode}.{kinds}.cubin"
    path.write_bytes(made.asm["cubin"])
    use = re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", tool("cuobjdump", path, "-res-usage"))
    assert use is not None
    code = tool("nvdisasm", path)
    return {
        "registers": int(use[1]),
        "stack": int(use[2]),
        "local": int(use[4]) + len(re.findall(r"\b(?:LDL|STL)\b", code)),
        "wide loads": len(re.findall(r"\bLDG\.E\.128\b|\bLDG\.E\.[\w.]*128\b", code)),
        "wide stores": len(re.findall(r"\bSTG\.E\.[\w.]*128\b", code)),
    }


def main() -> None:
    import tempfile

    wrong = []
    with tempfile.TemporaryDirectory() as folder:
        for arch, dtype, mode, (name, kinds) in itertools.product(
            (80, 90, 100), (tl.float32, tl.bfloat16), MODES, KINDS.items()
        ):
            if dtype == tl.bfloat16 and mode in ("value", "add"):
                continue
            if arch != 90 and (mode != "gradient" or name not in ("rows", "columns")):
                continue  # what is compiled differs little from one architecture to the next
            found = measure(arch, dtype, mode, kinds, Path(folder))
            good = found["local"] == 0 and found["stack"] == 0
            if name in HOT:
                good = good and found["wide loads"] > 0 and (mode == "value" or found["wide stores"] > 0)
            print("ok " if good else "BAD", f"sm_{arch} {dtype} {mode:<8} {name:<11}", found, flush=True)
            if not good:
                wrong.append((arch, str(dtype), mode, name))
    if wrong:
        sys.exit(f"spills, local memory or narrow accesses in {wrong}")


if __name__ == "__main__":
    main()
