"""Pieces of evidence between the ranks of ``torch.distributed``: safetensors bytes, no pickle.

Every collective is called by all ranks in the same order; without an initialised process group there is one rank.
"""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor

from modcut.reading.store import as_tensor

Part = tuple[dict[str, Any], dict[str, Any]]


def place() -> tuple[int, int]:
    """Return ``(rank, world)``: ``(0, 1)`` where no process group is initialised."""
    dist = torch.distributed
    if not (dist.is_available() and dist.is_initialized()):
        return 0, 1
    return dist.get_rank(), dist.get_world_size()


def gather(part: Part) -> list[tuple[dict[str, Tensor], dict[str, Any]]]:
    """Return the parts (arrays, plain values) of all ranks, in the order of ranks, on every rank."""
    from safetensors.torch import load, save

    arrays, plain = part
    raw = save({n: as_tensor(v) for n, v in arrays.items()} or {"none": torch.zeros(1)})
    words = json.dumps(plain).encode()
    both = len(words).to_bytes(8, "little") + words + raw
    out = []
    for data in _all_gather(both):
        size = int.from_bytes(data[:8], "little")
        out.append((load(data[8 + size :]), json.loads(data[8 : 8 + size])))
    return out


def _all_gather(data: bytes) -> list[bytes]:
    dist = torch.distributed
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    size = torch.tensor([len(data)], device=device)
    sizes = [torch.zeros_like(size) for _ in range(dist.get_world_size())]
    dist.all_gather(sizes, size)
    most = max(int(s) for s in sizes)
    mine = torch.zeros(most, dtype=torch.uint8, device=device)
    mine[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8).to(device)
    parts = [torch.zeros_like(mine) for _ in sizes]
    dist.all_gather(parts, mine)
    return [p[: int(s)].cpu().numpy().tobytes() for p, s in zip(parts, sizes, strict=True)]
