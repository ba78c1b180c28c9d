"""Arrays of any library -> host tensors and CSR rows of int64, float32 or float64; no library is imported for it."""

from __future__ import annotations

import importlib
import operator
from types import ModuleType
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

ACCEPTED = (
    "a torch.Tensor, a NumPy or CuPy array, anything with __dlpack__, a SciPy or CuPy sparse matrix, nested lists, "
    "a modcut.WeightGraph or a torch.nn.Module"
)


def as_matrix(w: Any) -> Tensor | sp.csr_array:
    """Return a matrix-like object as a host tensor, or as canonical SciPy CSR where it is sparse; dtype checked."""
    if isinstance(w, Tensor):
        if w.layout != torch.strided:
            return _torch_sparse(w)
        return host(w, "weights")
    if type(w).__module__.startswith("cupyx.") and hasattr(w, "get"):
        w = w.get()  # CuPy's sparse matrices speak no DLPack; their host copy is a SciPy matrix
    if sp.issparse(w):
        return canonical(w)
    if isinstance(w, np.ma.MaskedArray) and np.ma.is_masked(w):
        raise TypeError("weights must not be masked: fill the masked entries first, with .filled(0) for no edge")
    if isinstance(w, np.ndarray | np.generic | list | tuple) or (
        hasattr(w, "__array__") and not hasattr(w, "__dlpack__")  # pandas and the like
    ):
        return host(from_numpy(_numpy(w)), "weights")
    if hasattr(w, "__dlpack__") and hasattr(w, "__dlpack_device__"):
        return host(from_dlpack(w), "weights")
    raise TypeError(f"the graph must be {ACCEPTED}; got {type(w).__name__}")


def vertex(value: Any, name: str, n: int) -> int:
    """Return a vertex id as an int, or say why it is none."""
    if isinstance(value, bool | np.bool_) or (isinstance(value, Tensor) and value.dtype == torch.bool):
        raise TypeError(f"{name} must be an integer vertex id, got a bool")
    try:
        v = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer vertex id, got {value!r} ({type(value).__name__})") from None
    if not 0 <= v < n:
        raise ValueError(f"{name} must be in [0, {n}) for a graph of {n} vertices, got {v}")
    return v


def as_labels(labels: Any, n: int, k: int | None = None) -> tuple[Tensor, int]:
    """Return labels (int64 [n], on the host) and their number; ``labels`` may be a Partition."""
    if k is None and hasattr(labels, "labels"):
        k = int(labels.k)
    raw = getattr(labels, "labels", labels)
    a = raw.detach().cpu().numpy() if isinstance(raw, Tensor) else np.asarray(raw)
    if a.shape != (n,):
        raise ValueError(f"labels must have shape [{n}], one label per vertex, got {list(a.shape)}")
    if n and a.dtype.kind not in "iu":
        raise TypeError(f"labels must be integers, got dtype {a.dtype}")
    x = torch.from_numpy(a.astype(np.int64))
    low, high = (int(x.min()), int(x.max())) if n else (0, -1)
    k = high + 1 if k is None else operator.index(k)
    if low < 0 or high >= k:
        bad = low if low < 0 else high
        raise ValueError(f"labels must be in [0, {k}), got {bad} at vertex {int(torch.nonzero(x == bad)[0])}")
    return x, k


def capsule(t: Tensor) -> Any:
    """Return the tensor as a DLPack capsule for the engine."""
    return torch.utils.dlpack.to_dlpack(t)  # type: ignore[attr-defined]


def native() -> ModuleType:
    """Return the compiled engine.

    Raises:
        RuntimeError: it was not built for this Python, with how to build it.
    """
    try:
        module = importlib.import_module("modcut._native")
    except ImportError as error:
        raise RuntimeError(
            f"modcut's compiled cut engine (modcut._native) cannot be loaded: {error}. Build it from the source folder "
            "with: pip install . (or, for development: pip install --no-build-isolation -e . -Cbuild-dir=build/ed)"
        ) from error
    return module


def host(t: Tensor, where: str) -> Tensor:
    """Return a tensor of capacities as int64, float32 or float64 on the host, detached."""
    if t.device.type == "meta":
        raise ValueError(f"{where} must hold data, got a tensor on the meta device")
    if t.is_complex() or t.dtype == torch.bool:
        hint = "convert with .to(torch.int64)" if t.dtype == torch.bool else "pass magnitudes"
        raise TypeError(f"{where} must be real numbers, got dtype {t.dtype}; {hint}")
    t = t.detach()
    if t.layout != torch.strided:
        t = t.to_dense()
    if t.dtype in (torch.float64, torch.float32, torch.int64):
        return t.cpu()
    if t.is_floating_point():
        return t.cpu().to(torch.float32)
    if t.dtype == torch.uint64:
        return from_numpy(_integers(t.cpu().numpy()))
    return t.cpu().to(torch.int64)


def _numpy(w: Any) -> np.ndarray[Any, Any]:
    try:
        return np.asarray(w)
    except ValueError as error:  # NumPy's sentence for ragged nesting does not name the argument
        raise ValueError(f"weights must be a rectangular array of numbers: {error}") from None


def _integers(a: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    if a.size and a.dtype == np.uint64 and int(a.max()) > 2**63 - 1:
        at = [int(i) for i in np.unravel_index(int(a.argmax()), a.shape)]
        raise ValueError(f"integer weights must fit in int64 (at most 2^63 - 1): the entry at {at} is {int(a.max())}")
    return a.astype(np.int64, copy=False)


def from_numpy(a: np.ndarray[Any, Any]) -> Tensor:
    """Return a NumPy array as a tensor, sharing memory where torch can."""
    if a.dtype == np.bool_ or a.dtype.kind not in "iuf" or a.dtype.itemsize > 8:
        hint = "; convert with .astype(int)" if a.dtype == np.bool_ else ""
        raise TypeError(f"weights must be real numbers of at most 64 bits, got dtype {a.dtype}{hint}")
    if a.dtype.kind in "iu" and a.dtype != np.int64:
        a = _integers(a)
    a = a.astype(a.dtype.newbyteorder("="), copy=False)
    if not a.flags.writeable or any(s < 0 for s in a.strides):  # torch cannot hold either
        a = a.copy()
    return torch.from_numpy(a)


def from_dlpack(w: Any) -> Tensor:
    """Take an array of any library that speaks DLPack, CuPy among them, without importing the library."""
    on_host = int(w.__dlpack_device__()[0]) == 1  # kDLCPU
    if not on_host and not torch.cuda.is_available() and hasattr(w, "get"):
        return from_numpy(_numpy(w.get()))  # CuPy beside a torch built without CUDA
    try:
        return torch.utils.dlpack.from_dlpack(w)
    except (BufferError, RuntimeError, TypeError) as error:
        raise TypeError(f"weights of type {type(w).__name__} could not be read through __dlpack__: {error}") from error


def _torch_sparse(w: Tensor) -> sp.csr_array:
    coo = w.detach().cpu().to_sparse_coo().coalesce()  # type: ignore[no-untyped-call]
    if coo.ndim != 2 or coo.dense_dim():
        raise ValueError(f"weights must be a matrix with 2 dimensions, got shape {list(w.shape)}")
    values = host(coo.values(), "weights").numpy()
    i, j = coo.indices().numpy()
    return canonical(sp.coo_array((values, (i, j)), shape=tuple(w.shape)))


def canonical(a: Any) -> sp.csr_array:
    """Return sorted CSR with duplicates added up, data int64 or float64; the input is not changed."""
    if a.ndim != 2:
        raise ValueError(f"weights must be a matrix with 2 dimensions, got {a.ndim} (shape {list(a.shape)})")
    dtype = a.dtype
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise TypeError(f"weights must be real numbers of at most 64 bits, got dtype {dtype}")
    coo = sp.coo_array(a)
    data = _integers(coo.data) if dtype.kind in "iu" else coo.data.astype(np.float64)
    csr = sp.csr_array(sp.coo_array((data, coo.coords), shape=a.shape))
    csr.sum_duplicates()
    return csr
