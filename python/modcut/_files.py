"""Results on disk: files replaced in one step, so that a stopped run leaves the old one whole, and JSON without NaN."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def plain(value: Any) -> Any:
    """Return the value with None for every number that is not finite: JSON has no NaN, and none is ever 0."""
    if isinstance(value, Mapping):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_text(path: str | os.PathLike[str], text: str) -> Path:
    """Write UTF-8 text; folders are made, an existing file is replaced in one step."""
    target = Path(path)
    if target.is_dir():
        raise IsADirectoryError(f"path must be a file to write, got the folder {os.fspath(path)!r}")
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(target.name + ".tmp")
    try:
        draft.write_text(text, encoding="utf-8", errors="replace")  # a lone surrogate has no UTF-8: it becomes "?"
        os.replace(draft, target)
    except OSError:
        draft.unlink(missing_ok=True)
        raise
    return target


def write_json(path: str | os.PathLike[str], value: Any) -> Path:
    """Write plain values as JSON, in one step; numbers that are not finite become null."""
    return write_text(path, json.dumps(plain(value), indent=1, ensure_ascii=False, allow_nan=False) + "\n")
