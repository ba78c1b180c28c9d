"""A matrix as a graph."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
import torch.utils.dlpack
from torch import Tensor

from modcut._arrays import from_numpy
from modcut._problem import ASYMMETRY
from modcut.graph.assemble import magnitude
from modcut.graph.types import Block, Matrix, Space, WeightGraph

DENSE_LIMIT = 2**27  # entries of a sparse matrix that may become dense: 1 GiB of float64


def from_matrix(weights: Any) -> WeightGraph:
    """See :meth:`WeightGraph.from_matrix`."""
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
        _check_size(tuple(weights.shape))  # type: ignore[attr-defined]
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
    if w.layout != torch.strided:
        _check_size(tuple(w.shape))
        return w.to_dense()
    return w


def _symmetric(w: Tensor) -> bool:
    """Up to the rounding that the cuts forgive (and average away)."""
    return torch.equal(w, w.T) or (w.dtype in ASYMMETRY and torch.allclose(w, w.T, rtol=ASYMMETRY[w.dtype], atol=0.0))


def _check_size(shape: tuple[int, ...]) -> None:
    entries = float(np.prod(shape, dtype=np.float64))
    if entries > DENSE_LIMIT:
        raise ValueError(
            f"a sparse matrix becomes dense in a WeightGraph, which must have at most {DENSE_LIMIT} entries, got shape "
            f"{list(shape)}; max_flow, gomory_hu_tree and quotient_tree take it as it is and keep it sparse"
        )
