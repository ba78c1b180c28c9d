"""Pictures of weight matrices: well-formed, self-contained, sorted by module, on one scale."""

from __future__ import annotations

import base64
import re
import xml.etree.ElementTree as ET
import zlib

import pytest
import torch

from modcut.reporting.draw import standalone
from modcut.reporting.weights import Panel, weight_maps


def pixels(svg: str) -> list[torch.Tensor]:
    """Decode the embedded pictures with nothing of ours: header, one IDAT, filter byte 0 in each line."""
    out = []
    for text in re.findall(r"data:image/png;base64,([^\"]+)", svg):
        data = base64.b64decode(text)
        assert data[:8] == b"\x89PNG\r\n\x1a\n"
        width, height = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
        at = data.index(b"IDAT")
        raw = zlib.decompress(data[at + 4 : at + 4 + int.from_bytes(data[at - 4 : at], "big")])
        lines = torch.frombuffer(bytearray(raw), dtype=torch.uint8).reshape(height, width + 1)
        assert (lines[:, 0] == 0).all()
        out.append(lines[:, 1:])
    return out


def test_a_matrix_without_cross_weights_is_drawn_block_diagonal() -> None:
    rows, cols = torch.tensor([1, 0, 1, 0, 0]), torch.tensor([0, 1, 1, 0])
    strength = (rows[:, None] == cols).float()
    (image,) = pixels(weight_maps([Panel("cut", strength, rows, cols)]))
    sorted_rows, sorted_cols = rows.sort().values, cols.sort().values
    assert torch.equal(image == 255, sorted_rows[:, None] == sorted_cols)
    assert torch.equal(image == 0, sorted_rows[:, None] != sorted_cols)


def test_panels_share_one_scale() -> None:
    label = torch.zeros(8, dtype=torch.int64)
    weak, strong = pixels(
        weight_maps(
            [Panel("weak", torch.full((8, 8), 1.0), label, label), Panel("x", torch.full((8, 8), 4.0), label, label)]
        )
    )
    assert (weak == 64).all() and (strong == 255).all()


@pytest.mark.parametrize("shape", [(1, 1), (1, 700), (513, 2), (1000, 1000)])
def test_any_shape_makes_a_well_formed_file(shape: tuple[int, int]) -> None:
    labels = [torch.arange(n) % 3 for n in shape]
    svg = standalone(weight_maps([Panel("<script>", torch.rand(shape), labels[0], labels[1], ["a & b"])]))
    root = ET.fromstring(svg)
    assert root.tag.endswith("svg") and "<script>" not in svg and "http://" not in svg.replace("http://www.w3.org/", "")
    assert len(svg) < 120_000


def test_nothing_but_zeros_is_a_blank_picture() -> None:
    label = torch.zeros(4, dtype=torch.int64)
    (image,) = pixels(weight_maps([Panel("zero", torch.zeros(4, 4), label, label)]))
    assert (image == 0).all()


def test_labels_must_fit() -> None:
    label = torch.zeros(3, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"panel 'p' must have a matrix of shape \[3, 3\], got \[3, 4\]"):
        weight_maps([Panel("p", torch.zeros(3, 4), label, label)])
    with pytest.raises(ValueError, match="at least one"):
        weight_maps([])
