"""Optional packages, asked for when they are needed and never at import."""

from __future__ import annotations

import importlib
from types import ModuleType


class MissingDependencyError(ImportError):
    """An optional package that the call needs is not installed; the message says how to get it."""


def require(name: str, *, extra: str, why: str) -> ModuleType:
    """Import the optional package ``name`` or say what it is needed for and how to install it.

    Raises:
        MissingDependencyError: ``name`` cannot be imported.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingDependencyError(
            f"{why} needs the package {name!r}, which is not importable here ({error}); "
            f"install it with: pip install 'modcut[{extra}]'"
        ) from error
