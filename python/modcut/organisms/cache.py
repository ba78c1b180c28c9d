"""Trained organisms on disk: parameters in safetensors, found again by everything they depend on."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from modcut._together import Together

Cache = bool | str | os.PathLike[str]


def folder(cache: Cache) -> Path | None:
    """Return the folder of cached organisms, None for no cache.

    True: ``$MODCUT_CACHE``, else ``$XDG_CACHE_HOME/modcut``, else ``~/.cache/modcut``.
    """
    if cache is False:
        return None
    if cache is not True:
        return Path(cache)
    own = os.environ.get("MODCUT_CACHE")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "modcut"


def trained(
    together: Together, recipe: Mapping[str, Any], train: Callable[[], Any], cache: Cache = True
) -> Path | None:
    """Load the parameters of ``together`` from the cache, or call ``train()`` and store them.

    A file that is damaged or of other shapes is trained anew and replaced. Returns the file, None without cache.

    Args:
        together: the networks; their parameters are overwritten in place.
        recipe: everything the trained weights depend on, as plain values; a version of the recipe among them.
        train: trains ``together``.
        cache: see :func:`folder`.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file, save_file

    where = folder(cache)
    if where is None:
        train()
        return None
    key = hashlib.sha256(json.dumps(dict(recipe), sort_keys=True).encode()).hexdigest()
    path = where / f"{recipe['kind']}-{key[:16]}.safetensors"
    if path.is_file():
        try:
            state: dict[str, Tensor] = load_file(str(path))
            if {k: v.shape for k, v in state.items()} == {k: v.shape for k, v in together.parameters.items()}:
                together.load(state)
                return path
        except (SafetensorError, OSError):
            pass
    train()
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        where.mkdir(parents=True, exist_ok=True)
        save_file(
            {k: v.detach().contiguous() for k, v in together.parameters.items()},
            str(draft),
            metadata={"recipe": json.dumps(dict(recipe), sort_keys=True)},
        )
        os.replace(draft, path)
    except OSError:  # a read-only home is no reason to fail
        with contextlib.suppress(OSError):
            draft.unlink()
        return None
    return path


__all__ = ["Cache", "folder", "trained"]
