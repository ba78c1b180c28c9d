"""All families under one roof, and what may be done to a graph of any of them: ties, decimals, scales, holes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from modcut.testing import graphs, networks


def _grid_of(n: int, seed: int) -> Tensor:
    w: Tensor = graphs.grid(max(n // 3, 1), min(n, 3), seed)
    return w


def _thirds(n: int) -> list[int]:
    return [n - 2 * (n // 3), n // 3, n // 3]


FAMILIES: dict[str, Callable[[int, int], Tensor]] = {
    "acyclic_dense": graphs.acyclic_dense,
    "cycle": graphs.cycle,
    "dense": graphs.dense,
    "double_cycle": graphs.double_cycle,
    "gpt": lambda n, seed: networks.gpt_graph(max(n // 5, 1), 1, 1, mlp=max(n // 5, 1), seed=seed).to_dense(),
    "grid": _grid_of,
    "heavy_tailed": graphs.heavy_tailed,
    "hub": graphs.hub,
    "mlp": lambda n, seed: networks.mlp(_thirds(n), seed),
    "noi": lambda n, seed: graphs.noi(n, 0.4, 3, seed),
    "path": graphs.path,
    "planted": lambda n, seed: graphs.planted(n, 3, 0.01, seed),
    "pruned": lambda n, seed: networks.pruned(_thirds(n), seed, keep=0.3),
    "rmf": lambda n, seed: graphs.rmf(2, max(n // 4, 1), seed),
    "sparse": lambda n, seed: graphs.sparse(n, 0.2, seed),
    "tree": graphs.tree,
    "washington": lambda n, seed: graphs.washington(max((n - 2) // 3, 1), 3, seed, largest=100),
}
"""Every family as a function (n, seed) -> [about n, about n]; none takes an optional package."""

DISGUISES = ("as is", "integers", "ones", "decimals", "thirds", "float32", "scales", "holes", "two parts")
"""What :func:`disguised` can do to a graph."""


def disguised(w: Tensor, how: str, seed: int = 0) -> Tensor:
    """Return a graph changed in a way that has broken cut algorithms before.

    - ``"integers"``, ``"ones"``: few different integers (int64), or all weights equal: ties everywhere;
    - ``"decimals"``, ``"thirds"``: multiples of 0.1 and 1/3, whose sums round;
    - ``"float32"``; ``"scales"``: every edge times a power of ten from 1e-12 to 1e12;
    - ``"holes"``: some vertices without edges; ``"two parts"``: disconnected halves.

    Raises:
        ValueError: unknown way.
    """
    n, rng = w.shape[0], graphs.generator(seed)
    share = w.double() / w.double().max().clamp(min=1e-9) if n else w.double()
    match how:
        case "as is":
            return w
        case "integers":
            return (5 * share).round().to(torch.int64)
        case "ones":
            return (w > 0).double()
        case "decimals":
            return (7 * share).round() * 0.1
        case "thirds":
            return (3 * share).round() / 3
        case "float32":
            return w.float()
        case "scales":
            e = torch.randint(-12, 13, (n, n), generator=rng).double()
            upper = torch.triu(w * 10.0**e, 1)
            return upper + upper.T
        case "holes":
            dead = torch.rand(n, generator=rng) < 0.3
            return w.clone().masked_fill_(dead[:, None] | dead[None, :], 0)
        case "two parts":
            w = w.clone()
            w[: n // 2, n // 2 :] = 0
            w[n // 2 :, : n // 2] = 0
            return w
    raise ValueError(f"how must be one of {', '.join(DISGUISES)}, got {how!r}")
