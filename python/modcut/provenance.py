"""Where a result came from: the digest of a model's weights and the stamp that every result carries."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


def digest(model: nn.Module | Mapping[str, Tensor]) -> str:
    """Return the SHA-256 (64 hex digits) of a model's state dict: sorted names, dtypes, shapes and raw bytes.

    Equal weights give equal digests on every device and for every memory layout; tied parameters count once per name.
    O(bytes of the state dict), one tensor in memory at a time.

    Raises:
        TypeError: ``model`` is neither a module nor a mapping of names to tensors.
    """
    if isinstance(model, nn.Module):
        state: Mapping[str, Any] = model.state_dict()
    elif isinstance(model, Mapping):
        state = model
    else:
        raise TypeError(f"model must be an nn.Module or a state dict, got {type(model).__name__}")
    h = hashlib.sha256()
    for name in sorted(state):
        value = state[name]
        if not isinstance(value, Tensor):  # `get_extra_state` may return anything: only its presence is recorded
            h.update(f"{name}|{type(value).__name__}\n".encode())
            continue
        h.update(f"{name}|{value.dtype}|{list(value.shape)}\n".encode())
        if value.numel():
            # reshape(-1) makes scalars viewable; viewing as bytes works for dtypes that NumPy lacks (bfloat16, float8).
            raw = value.detach().to("cpu").contiguous().reshape(-1).view(torch.uint8)
            h.update(raw.numpy().data)
    return h.hexdigest()


def stamp(**extra: Any) -> dict[str, Any]:
    """Return what is needed to tell how a result was made; ``extra`` (seed, digests, ...) is merged in.

    Never fails: what cannot be found out is ``None``.
    """
    from modcut import __version__

    return {
        "modcut": __version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": _version("numpy"),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        **extra,
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The git commit of the checkout that this file is tracked in, with ``+`` where tracked files were changed."""
    here = Path(__file__).resolve()
    try:
        # An installed copy may lie inside another project's checkout: only a repository that tracks this file counts.
        if _git(here.parent, "ls-files", "--error-unmatch", here.name) is None:
            return None
        head, changed = _git(here.parent, "rev-parse", "HEAD"), _git(here.parent, "status", "--porcelain", "-uno")
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
    return None if head is None else head + ("+" if changed != "" else "")


def _git(folder: Path, *arguments: str) -> str | None:
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=5, stdin=subprocess.DEVNULL
    )
    return None if done.returncode else done.stdout.strip()


def command() -> str:
    """The command line of this process, for the record of a run."""
    return " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]) if sys.argv else ""
