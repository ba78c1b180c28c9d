"""Which kernel computes the share loss: one table, and the environment variable that overrules it.

``MODCUT_KERNEL=reference`` makes everything run the formulas of :mod:`modcut.ops.reference`; ``torch`` the plain
operators, ``native`` and ``triton`` those kernels, or an error that says why they cannot. Read at every call.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from modcut import _fused
from modcut.ops import triton_share

VARIABLE = "MODCUT_KERNEL"
KERNELS = ("native", "triton", "torch", "reference")


class Row(NamedTuple):
    """One line of the table; the first that fits is taken."""

    device: str
    dtypes: str
    layout: str
    kernel: str
    where: str


_DENSE = "contiguous rows or columns, edge |W|"
TABLE = (
    Row("cpu", "float32, float64, bfloat16", f"{_DENSE}, k <= 254", "native", "csrc/core/share.hpp"),
    Row("cuda", "float32, bfloat16, float16", f"{_DENSE}, k <= 255", "triton", "ops/triton_kernels.py"),
    Row("any", "float16 to float64, also mixed", "any strides, W^2, torch.compile, DTensor", "torch", "ops/share.py"),
)


def forced() -> str | None:
    """Return the kernel that the environment asks for, or ``None``.

    Raises:
        ValueError: the variable names no kernel.
    """
    value = os.environ.get(VARIABLE, "").strip().lower()
    if value in ("", "auto"):
        return None
    if value not in KERNELS:
        raise ValueError(f"{VARIABLE} must be auto or one of {', '.join(KERNELS)}, got {value!r}")
    return value


def choose(weights: Sequence[Tensor], k: int, power: int = 1) -> str:
    """Return the kernel for these weights: ``native``, ``triton``, ``torch`` or ``reference``.

    Raises:
        RuntimeError: the kernel that the environment asks for cannot read them.
    """
    want = forced()
    if want in ("torch", "reference"):
        return want
    if want == "native" or want is None:
        fits = power == 1 and _fused.fits(weights, k)
        if fits or (want is None and not (weights and weights[0].is_cuda)):
            return "native" if fits else "torch"
        if want is not None:
            raise RuntimeError(f"{VARIABLE}=native, but the compiled kernel cannot read these weights")
    why = "edge square is not in it" if power != 1 else triton_share.fits(weights, k)
    if why is None and importlib.util.find_spec("triton") is None:
        why = "triton is not installed (pip install 'modcut[triton]')"
    if why is None:
        return "triton"
    if want is not None:
        raise RuntimeError(f"{VARIABLE}=triton, but it cannot run: {why}")
    return "torch"


def lines() -> list[str]:
    """Return the table as lines of text, with what the environment says."""
    out = [f"{r.device:<5} {r.dtypes:<30} {r.layout:<46} -> {r.kernel:<7} ({r.where})" for r in TABLE]
    return [*out, f"{VARIABLE}: {os.environ.get(VARIABLE) or 'not set'}"]
