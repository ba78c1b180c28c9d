"""Evidence on disk: arrays in safetensors, words in JSON, replaced in one step, told apart by digests. Never pickle."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor


def write_arrays(path: Path, arrays: Mapping[str, Any], header: Mapping[str, str]) -> None:
    """Write NumPy arrays or tensors to one safetensors file, in one step."""
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {n: as_tensor(v) for n, v in arrays.items()}
    draft = path.with_name(path.name + ".tmp")
    save_file(tensors, str(draft), metadata=dict(header))
    os.replace(draft, path)


def read_arrays(path: Path, expected: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read tensors and header of a safetensors file of the given format.

    Raises:
        ValueError: truncated, foreign, or of another format.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            header = dict(file.metadata() or {})
            if header.get("format") != expected:
                raise ValueError(f"{path} must be of format {expected!r}, got {header.get('format')!r}")
            return {name: file.get_tensor(name) for name in file.keys()}, header  # noqa: SIM118 - not a dict
    except SafetensorError as error:
        raise ValueError(f"{path} is truncated or not a safetensors file: {error}") from error


def as_tensor(value: Any) -> Tensor:
    """Return a tensor that owns its memory, as safetensors wants it."""
    if isinstance(value, Tensor):
        return value.detach().cpu().contiguous().clone()
    array = np.ascontiguousarray(value)
    return torch.from_numpy(array.reshape(np.shape(value)).copy())


def settings_digest(**settings: Any) -> str:
    """Return the SHA-256 of plain settings: sorted names, JSON."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()


def labels_digest(labels: Tensor) -> str:
    """Return the SHA-256 of a partition's labels."""
    return hashlib.sha256(labels.to("cpu", torch.int64).contiguous().numpy().tobytes()).hexdigest()
