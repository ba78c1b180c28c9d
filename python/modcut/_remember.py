"""What a tree remembers of its graph: the normalised weights, and a second eigenvalue with room to move.

The engine proves no more of the eigenvalue than its star needs. A tree that is to be checked again after the weights
have moved needs more, so the most that can be proven is proven once: Cholesky's factorisation of (1 - nu - shift) I -
D^-1/2 W D^-1/2 + u u' in float64 runs to its end, as in section 4 of ``docs/mathematics``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from scipy.sparse.linalg import ArpackError, LinearOperator, eigsh
from torch import Tensor

from modcut._problem import Problem
from modcut.tree import Memory

_DENSE = 4096  # vertices up to which the matrix is put together and factorised: 128 MiB of float64
_TARGETS = (0.99, 0.95, 0.8)  # of the estimate, until one is proven


def memory_of(p: Problem, r: dict[str, Any]) -> Memory | None:
    """Return what a later tree of nearly the same weights can start from; None where no eigenvalue can be proven.

    ``r`` is the engine's account of the tree. O(n^3 / 3) up to 4,096 vertices, above them what the engine proved.
    """
    if p.csr is not None or not p.blocks or r.get("components") != 1:
        return None
    blocks = tuple(normalised(p))
    nu = float(r.get("nu", 0.0))
    if p.n <= _DENSE:
        nu = max(nu, _proven(p, blocks))
    return Memory(nu, blocks) if nu > 0 else None


def _proven(p: Problem, blocks: tuple[Tensor, ...]) -> float:
    n = p.n
    a = torch.zeros(n, n, dtype=torch.float64)
    degree = p.degree().to(torch.float64)
    scale = degree.rsqrt()
    for b in p.blocks:  # again from the weights: the remembered blocks may be float32
        rows, cols = b.values.shape
        r, c = slice(b.row_offset, b.row_offset + rows), slice(b.col_offset, b.col_offset + cols)
        part = b.values.double() * scale[r, None] * scale[c]
        a[r, c] += part
        if not b.symmetric:
            a[c, r] += part.T
    a.fill_diagonal_(0)
    u = (degree / degree.sum()).sqrt()

    def rest(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        v = torch.from_numpy(np.ascontiguousarray(x)).reshape(-1)
        return (a @ v - u * (u @ v)).numpy()

    try:  # an estimate: what is wrong with it is found by the factorisation
        start = np.cos(np.arange(n, dtype=np.float64))
        top = eigsh(
            LinearOperator((n, n), matvec=rest, dtype=np.float64),
            k=1,
            which="LA",
            tol=1e-3,
            v0=start,
            return_eigenvectors=False,
        )
    except (ArpackError, TypeError, ValueError):  # did not converge; fewer than three vertices
        return 0.0
    shift = 1e-15 * n * (n + 8)
    a.neg_().add_(torch.outer(u, u))
    for share in _TARGETS:
        nu = share * (1.0 - float(top[0]))
        if nu <= 0:
            break
        a.fill_diagonal_(0).diagonal().add_(1.0 - nu - shift + u * u)
        if int(torch.linalg.cholesky_ex(a).info) == 0:
            return nu
    return 0.0


def normalised(p: Problem) -> Iterator[Tensor]:
    """Yield D^-1/2 W D^-1/2 of a graph without isolated vertices, block by block, in the dtype of floats."""
    scale = p.degree().to(torch.float64).rsqrt()
    for b in p.blocks:
        rows, cols = b.values.shape
        kind = torch.float64 if p.integer else b.values.dtype
        a = b.values * scale[b.row_offset : b.row_offset + rows].to(kind)[:, None]
        a *= scale[b.col_offset : b.col_offset + cols].to(kind)
        yield a.fill_diagonal_(0) if b.symmetric else a
