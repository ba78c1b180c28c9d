"""Checkpoints as safetensors: everything that resuming to the bit needs, and nothing that could run code."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

FORMAT = "modcut-train-1"


def save(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    parts: Mapping[str, Mapping[str, Tensor]] | None = None,
    **plain: Any,
) -> None:
    """Write model, optimizer, further tensors by part, torch's random state and plain values.

    The file is written beside the old one, flushed to the disk, and takes its place in one step: a process or machine
    that dies leaves the old checkpoint or the new one, never half of one.
    """
    tensors = {f"model.{k}": v for k, v in model.state_dict().items() if isinstance(v, Tensor)}
    for part, content in (parts or {}).items():
        tensors |= {f"{part}.{k}": v for k, v in content.items()}
    scalars: dict[str, Any] = {}
    if optimizer is not None:
        for name, p in model.named_parameters():
            for key, value in optimizer.state.get(p, {}).items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer.{key}.{name}"] = value
                else:
                    scalars[f"{key}.{name}"] = value
    tensors["random"] = torch.get_rng_state()
    # Copies: tied parameters share memory, which safetensors refuses.
    ready = {k: v.detach().to("cpu", copy=True).contiguous() for k, v in tensors.items()}
    draft = path.with_name(path.name + ".tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(ready, str(draft), metadata={"modcut": json.dumps({"format": FORMAT, "optimizer": scalars, **plain})})
    with open(draft, "rb") as file:
        os.fsync(file.fileno())
    os.replace(draft, path)


def read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the plain values and all tensors of a checkpoint.

    Raises:
        ValueError: the file is no checkpoint of this format.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            plain: dict[str, Any] = json.loads((file.metadata() or {}).get("modcut", "{}"))
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"checkpoint {path} cannot be read: {error}; delete it to start anew") from error
    if plain.get("format") != FORMAT:
        raise ValueError(f"checkpoint {path} must be of format {FORMAT}, got {plain.get('format')!r}")
    return plain, tensors


def restore(
    read_from: tuple[dict[str, Any], dict[str, Tensor]],
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
) -> None:
    """Put what :func:`read` returned into a model and its optimizer, and set torch's random state.

    Raises:
        ValueError: the checkpoint is of another model.
    """
    plain, tensors = read_from
    try:
        model.load_state_dict(part(tensors, "model"))
    except RuntimeError as error:
        raise ValueError(f"the checkpoint is of another model: {str(error).splitlines()[-1].strip()}") from error
    if optimizer is not None:
        state = part(tensors, "optimizer")
        for name, p in model.named_parameters():
            found: dict[str, Any] = {k[: -len(name) - 1]: v for k, v in state.items() if k.endswith("." + name)}
            found |= {k[: -len(name) - 1]: v for k, v in plain["optimizer"].items() if k.endswith("." + name)}
            # A name may end like another (`a.weight`, `weight`): keys of the state hold no dot.
            found = {k: v for k, v in found.items() if "." not in k}
            if found:
                optimizer.state[p] = found
    torch.set_rng_state(tensors["random"])


def part(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """Return the tensors of one part, by their own names."""
    return {k[len(name) + 1 :]: v for k, v in tensors.items() if k.startswith(name + ".")}
