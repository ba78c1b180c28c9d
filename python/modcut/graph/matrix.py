"""A matrix as a graph."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
import torch.utils.dlpack
from torch import Tensor

from modcut._arrays import as_matrix, from_numpy
from modcut._problem import ASYMMETRY
from modcut.graph.assemble import magnitude
from modcut.graph.types import Block, Matrix, Space, WeightGraph

DENSE_BELOW = 2**22  # entries below which a sparse matrix becomes dense: 32 MiB of float64


def from_matrix(weights: Any) -> WeightGraph:
    """See :meth:`WeightGraph.from_matrix`."""
    kept = _sparse(weights)
    if kept is not None:
        return _of_sparse(kept)
    w = _tensor(weights)
    if w.ndim != 2:
        raise ValueError(f"weights must be a matrix, got shape {list(w.shape)}")
    if w.is_floating_point() and not bool(torch.isfinite(w).all()):
        raise ValueError("weights must be finite, got NaN or infinity")
    rows, cols = w.shape
    ids = [torch.arange(n).reshape(-1, 1) for n in (rows, cols)]
    if rows == cols and _symmetric(w):
        space = Space("vertices", rows, "hidden", 0, "vertices")
        block = Block(space, space, w, "weights", ids[0], ids[0], magnitude, symmetric=True)
        matrix = Matrix("weights", w, ids[0].flatten(), ids[0].flatten())
        return WeightGraph(spaces=(space,), blocks=(block,), matrices=(matrix,))
    a = Space("rows", rows, "hidden", 0, "rows")
    b = Space("cols", cols, "hidden", rows, "cols")
    block = Block(a, b, w, "weights", ids[0], ids[1], magnitude)
    matrix = Matrix("weights", w, ids[0].flatten(), ids[1].flatten() + rows)
    return WeightGraph(spaces=(a, b), blocks=(block,), matrices=(matrix,))


def _tensor(weights: Any) -> Tensor:
    if isinstance(weights, Tensor):
        w = weights.detach()
    elif sp.issparse(weights):
        w = from_numpy(np.ascontiguousarray(weights.toarray()))  # type: ignore[attr-defined]
    elif isinstance(weights, np.ndarray):
        w = from_numpy(weights)
    elif hasattr(weights, "__dlpack__"):
        w = torch.utils.dlpack.from_dlpack(weights)
    else:
        try:
            w = from_numpy(np.asarray(weights, dtype=np.float64))
        except (TypeError, ValueError) as error:
            raise TypeError(f"weights must be an array of numbers, got {type(weights).__name__}") from error
    if w.dtype == torch.bool:
        raise TypeError("weights must be an array of numbers, got dtype torch.bool; convert with .to(torch.int64)")
    return w.to_dense() if w.layout != torch.strided else w


def _symmetric(w: Tensor) -> bool:
    """Up to the rounding that the cuts forgive (and average away)."""
    return torch.equal(w, w.T) or (w.dtype in ASYMMETRY and torch.allclose(w, w.T, rtol=ASYMMETRY[w.dtype], atol=0.0))


def _sparse(weights: Any) -> sp.csr_array | None:
    """The canonical rows of a sparse matrix that is to stay sparse; None where it is dense or small."""
    on_device = type(weights).__module__.startswith("cupyx.")
    strided = isinstance(weights, Tensor) and weights.layout == torch.strided
    if strided or not (isinstance(weights, Tensor) or on_device or sp.issparse(weights)):
        return None
    shape = tuple(weights.shape)
    if len(shape) != 2 or (float(np.prod(shape, dtype=np.float64)) <= DENSE_BELOW and not on_device):
        return None
    a = as_matrix(weights)
    if isinstance(a, Tensor):
        return None
    if not bool(np.isfinite(a.data).all()):
        raise ValueError("weights must be finite, got NaN or infinity")
    return a


def _of_sparse(a: sp.csr_array) -> WeightGraph:
    """One sparse block (torch COO): square and symmetric up to rounding, or bipartite."""
    rows, cols = a.shape
    symmetric = False
    if rows == cols:
        gap = abs(a - a.T)
        tolerance = 0.0 if a.dtype == np.int64 else ASYMMETRY[torch.float64]
        symmetric = gap.nnz == 0 or not bool((gap > tolerance * abs(a).maximum(abs(a.T))).nnz)
    coo = a.tocoo()
    keep = coo.coords[0] != coo.coords[1] if symmetric else np.ones(coo.nnz, dtype=bool)
    at = torch.from_numpy(np.stack([c[keep].astype(np.int64) for c in coo.coords]))
    w = torch.sparse_coo_tensor(at, from_numpy(coo.data[keep]), (rows, cols), check_invariants=False).coalesce()
    none = torch.zeros(0, 1, dtype=torch.int64)  # positions in a matrix: there is none to point into
    if symmetric:
        space = Space("vertices", rows, "hidden", 0, "vertices")
        return WeightGraph((space,), (Block(space, space, w, "weights", none, none, magnitude, symmetric=True),))
    r, c = Space("rows", rows, "hidden", 0, "rows"), Space("cols", cols, "hidden", rows, "cols")
    return WeightGraph((r, c), (Block(r, c, w, "weights", none, none, magnitude),))
