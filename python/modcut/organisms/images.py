"""Small pictures of digits for organisms: the real ones where scikit-learn is installed, else drawn ones."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from modcut._together import generator_of

# 5 x 7 letters of a dot-matrix display, row by row.
_FONT = (
    "01110 10001 10011 10101 11001 10001 01110",
    "00100 01100 00100 00100 00100 00100 01110",
    "01110 10001 00001 00110 01000 10000 11111",
    "11111 00010 00100 00010 00001 10001 01110",
    "00010 00110 01010 10010 11111 00010 00010",
    "11111 10000 11110 00001 00001 10001 01110",
    "00110 01000 10000 11110 10001 10001 01110",
    "11111 00001 00010 00100 01000 01000 01000",
    "01110 10001 10001 01110 10001 10001 01110",
    "01110 10001 10001 01111 00001 00010 01100",
)


@dataclass(frozen=True)
class Images:
    """Pictures and their classes."""

    x: Tensor
    """float32 [n, 64], 0 to 1: rows of 8 x 8 pictures."""
    y: Tensor
    """int64 [n], 0 to 9."""
    origin: str


def digits(source: Literal["auto", "real", "drawn"] = "auto") -> Images:
    """Return 1797 pictures of digits, 8 x 8.

    ``real``: the handwritten digits of scikit-learn (extra ``bench``; UCI, CC BY 4.0). ``drawn``: a dot-matrix font,
    shifted, slanted, thickened and blurred at random, seeded; needs nothing. ``auto``: real where they are installed.

    Raises:
        ValueError: unknown source.
        MissingDependencyError: ``real`` without scikit-learn.
    """
    if source not in ("auto", "real", "drawn"):
        raise ValueError(f"source must be auto, real or drawn, got {source!r}")
    if source == "real" or (source == "auto" and importlib.util.find_spec("sklearn") is not None):
        from modcut._require import require

        load = require("sklearn.datasets", extra="bench", why="organisms on real digits").load_digits
        x, y = load(return_X_y=True)
        return Images(torch.tensor(x, dtype=torch.float32) / 16, torch.tensor(y), "handwritten digits (scikit-learn)")
    return _drawn(1797)


def _drawn(n: int) -> Images:
    g = generator_of(20_000)
    font = torch.tensor([[[float(c) for c in row] for row in glyph.split()] for glyph in _FONT])
    y = torch.randperm(n, generator=g) % 10
    plain = torch.zeros(n, 1, 8, 8)
    plain[:, 0, :7, 1:6] = font[y]

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(n, *shape, generator=g)

    turn, slant, size = uniform(-0.25, 0.25), uniform(-0.25, 0.25), uniform(0.85, 1.15)
    affine = torch.zeros(n, 2, 3)
    affine[:, 0, 0], affine[:, 0, 1] = torch.cos(turn) / size, -torch.sin(turn) + slant
    affine[:, 1, 0], affine[:, 1, 1] = torch.sin(turn), torch.cos(turn) / size
    affine[:, :, 2] = uniform(-0.2, 0.2, 2) - torch.tensor([0.0, 0.125])
    grid = torch.nn.functional.affine_grid(affine, [n, 1, 8, 8], align_corners=False)
    moved = torch.nn.functional.grid_sample(plain, grid, align_corners=False).flatten(1)
    ink = (moved * uniform(1.0, 1.8, 1) + 0.08 * torch.randn(n, 64, generator=g) * (moved > 0.02)).clamp(0, 1)
    return Images(ink, y, "drawn digits (a dot-matrix font, distorted)")


__all__ = ["Images", "digits"]
