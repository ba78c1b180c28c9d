"""State of the loss as one byte tensor: state dicts hold tensors only, so that safetensors can keep them."""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor

FORMAT = "modcut-loss-2"


def pack(plain: dict[str, Any], tensors: dict[str, Tensor]) -> Tensor:
    """Return plain values and tensors as bytes: a safetensors file in memory (no code), uint8 [size]."""
    from safetensors.torch import save

    text = torch.frombuffer(bytearray(json.dumps({"format": FORMAT, **plain}).encode()), dtype=torch.uint8)
    content = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    return torch.frombuffer(bytearray(save({"json": text, **content})), dtype=torch.uint8)


def unpack(state: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return what :func:`pack` packed.

    Raises:
        ValueError: it is no state of this format.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        tensors = load(bytes(torch.as_tensor(state).cpu().numpy()))
        plain: dict[str, Any] = json.loads(bytes(tensors.pop("json").numpy()))
    except (SafetensorError, KeyError, json.JSONDecodeError, TypeError, ValueError) as error:
        raise ValueError(f"the state must be of format {FORMAT}, but cannot be read as one: {error}") from error
    if plain.get("format") != FORMAT:
        raise ValueError(f"the state must be of format {FORMAT}, got {plain.get('format')!r}")
    return plain, tensors
