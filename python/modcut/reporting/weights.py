"""Weight matrices as pictures, rows and columns sorted by module: off the diagonal is what a cut deletes."""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from modcut.reporting.draw import caption, colour, frame

# Pixels of a panel's longer side; matrices are averaged down to at most this many cells.
_SIDE = 220
_GAP = 34


@dataclass(frozen=True)
class Panel:
    """One matrix with the module of every row and column, and a line or two of text below it."""

    title: str
    strength: Tensor
    """float [rows, cols], non-negative."""
    row_label: Tensor
    """int64 [rows]."""
    col_label: Tensor
    """int64 [cols]."""
    notes: Sequence[str] = ()


def weight_maps(panels: Sequence[Panel], *, title: str = "Weights, sorted by module") -> str:
    """Return one ``<svg>`` with the matrices side by side; all share one scale, so that darker is stronger everywhere.

    Each cell is the root mean square of the strengths it covers, its ink proportional to that, full at the 99th
    percentile over all panels. Coloured bars beside a matrix are the modules of its rows and columns.

    Raises:
        ValueError: no panel, or labels that do not fit a panel's matrix.
    """
    if not panels:
        raise ValueError("panels must hold at least one matrix, got none")
    for p in panels:
        want = (p.row_label.numel(), p.col_label.numel())
        if tuple(p.strength.shape) != want or 0 in want:
            raise ValueError(
                f"panel {p.title!r} must have a matrix of shape {list(want)}, got {list(p.strength.shape)}"
            )
    cells = [_cells(p) for p in panels]
    full = float(np.quantile(np.concatenate([c.ravel() for c in cells]), 0.99)) or 1.0
    lines = max(len(p.notes) for p in panels)
    width = len(panels) * (_SIDE + _GAP) + _GAP
    height = 40 + _SIDE + 14 + 18 * lines + 10
    parts: list[str] = []
    for i, (p, c) in enumerate(zip(panels, cells, strict=True)):
        x, y = _GAP + i * (_SIDE + _GAP), 40
        parts.append(caption(x + _SIDE / 2, 22, p.title, 14, "middle"))
        # Ink as opacity: the picture follows a light or dark page because its colour comes from the page.
        parts.append(
            f'<mask id="ink-{i}"><image x="{x}" y="{y}" width="{_SIDE}" height="{_SIDE}" preserveAspectRatio="none" '
            f'style="image-rendering:pixelated" href="data:image/png;base64,{_png(np.minimum(c / full, 1.0))}"/></mask>'
            f'<rect x="{x}" y="{y}" width="{_SIDE}" height="{_SIDE}" fill="var(--panel)"/>'
            f'<rect x="{x}" y="{y}" width="{_SIDE}" height="{_SIDE}" fill="var(--ink)" mask="url(#ink-{i})"/>'
        )
        for label, share, start in _runs(p.row_label):
            parts.append(_bar(x - 8, y + start * _SIDE, 5, share * _SIDE, label))
        for label, share, start in _runs(p.col_label):
            parts.append(_bar(x + start * _SIDE, y + _SIDE + 3, share * _SIDE, 5, label))
        for j, note in enumerate(p.notes):
            parts.append(caption(x + _SIDE / 2, y + _SIDE + 26 + 18 * j, note, 12, "middle", soft=j > 0))
    told = "; ".join(f"{p.title}: {', '.join(p.notes)}" if p.notes else p.title for p in panels)
    return frame(width, height, title, told, parts)


def _cells(p: Panel) -> NDArray[np.float64]:
    """Sort by module and average squares down to at most _SIDE cells a side."""
    rows, cols = torch.argsort(p.row_label, stable=True), torch.argsort(p.col_label, stable=True)
    square = p.strength.detach().cpu().double()[rows.cpu()][:, cols.cpu()].numpy() ** 2
    for axis in (0, 1):
        size = square.shape[axis]
        edges = np.unique(np.linspace(0, size, min(size, _SIDE) + 1).astype(np.int64))
        counts = np.diff(edges).reshape([-1, 1] if axis == 0 else [1, -1])
        square = np.add.reduceat(square, edges[:-1], axis=axis) / counts
    return np.asarray(np.sqrt(square), dtype=np.float64)


def _runs(label: Tensor) -> list[tuple[int, float, float]]:
    """(module, share, start) of the sorted labels."""
    counts = torch.bincount(label.cpu())
    start, out = 0.0, []
    for module, count in enumerate(counts.tolist()):
        if count:
            share = count / label.numel()
            out.append((module, share, start))
            start += share
    return out


def _bar(x: float, y: float, width: float, height: float, module: int) -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"'
    return f'<rect {place} fill="{colour(module)}"><title>module {module}</title></rect>'


def _png(ink: NDArray[np.float64]) -> str:
    """Encode values in [0, 1] as a grey PNG, base64 (8 bits, no filter; ISO/IEC 15948)."""
    grey = np.round(ink * 255).astype(np.uint8)
    raw = b"".join(b"\x00" + row.tobytes() for row in grey)

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", grey.shape[1], grey.shape[0], 8, 0, 0, 0, 0)
    data = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(raw, 9)) + chunk(b"IEND", b"")
    return base64.b64encode(b"\x89PNG\r\n\x1a\n" + data).decode()
