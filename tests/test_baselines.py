"""The baselines are what their papers say: each against its formula, written as loops or by another library."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import networkx as nx
import numpy as np
import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import baselines as b

K = 2


def weights(*sizes: int, seed: int = 0) -> list[Tensor]:
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(j, i, generator=g, dtype=torch.float64) for i, j in itertools.pairwise(sizes)]


def labels(ws: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
    return [(b.index_labels(w.shape[0], K), b.index_labels(w.shape[1], K)) for w in ws]


def test_norms_are_sums_over_entries() -> None:
    ws = weights(3, 4, 2)
    entries = [float(x) for w in ws for x in w.flatten()]
    assert b.l1(ws).item() == pytest.approx(sum(map(abs, entries)))
    assert b.l2(ws).item() == pytest.approx(sum(x * x for x in entries) / 2)


def test_top_k_keeps_the_largest_of_every_matrix() -> None:
    ws = weights(6, 5, 4)
    want = [sorted(w.abs().flatten().tolist(), reverse=True)[: round(0.3 * w.numel())] for w in ws]
    assert b.top_k_(ws, 0.3) == sum(len(x) for x in want)
    for w, x in zip(ws, want, strict=True):
        assert sorted(w.abs()[w != 0].tolist(), reverse=True) == pytest.approx(x)


def test_blocks_are_contiguous_and_the_rest_is_zeroed_or_scaled() -> None:
    assert b.index_labels(7, 3).tolist() == [0, 0, 0, 1, 1, 2, 2]
    ws = weights(4, 4)
    before = ws[0].clone()
    b.modular_initialisation_(ws, labels(ws), 4)
    for i, j in itertools.product(range(4), range(4)):
        factor = 1 + 0.4 * 3 if i // 2 == j // 2 else 0.6
        assert float(ws[0][i, j]) == pytest.approx(float(before[i, j]) * factor)
    b.block_diagonal_(ws, labels(ws))
    assert [(i, j) for i, j in torch.nonzero(ws[0]).tolist() if i // 2 != j // 2] == []
    assert int((ws[0] != 0).sum()) == 8


def test_clusterability_is_the_share_of_squares_inside() -> None:
    ws = weights(4, 6, 4)
    inner = total = 0.0
    for w in ws:
        rows, cols = w.shape
        for i, j in itertools.product(range(rows), range(cols)):
            total += float(w[i, j]) ** 2
            inner += float(w[i, j]) ** 2 if i * K // rows == j * K // cols else 0
    assert b.clusterability(ws, labels(ws)).item() == pytest.approx(inner / total)


def test_eigenvalue_regulariser_is_networkx_spectrum_and_differentiable() -> None:
    ws = weights(4, 5, 3)
    graph = nx.Graph()
    at = 0
    for w in ws:
        rows, cols = w.shape
        for i, j in itertools.product(range(rows), range(cols)):
            graph.add_edge(at + j, at + cols + i, weight=abs(float(w[i, j])))
        at += cols
    laplacian = nx.normalized_laplacian_matrix(graph, nodelist=range(12)).toarray()
    values = np.sort(np.linalg.eigvalsh(laplacian))
    assert b.eigenvalue_regulariser(ws, 3).item() == pytest.approx(values[1] + values[2])
    learn = [w.requires_grad_() for w in ws]
    assert torch.autograd.gradcheck(lambda *w: b.eigenvalue_regulariser(list(w), 3), learn)


def test_bimt_costs_length_and_swaps_only_when_it_lowers_the_cost() -> None:
    ws = weights(4, 4, 4)
    bimt = b.Bimt(ws, layer=0.2)
    want = sum(
        abs(float(w[i, j])) * (abs((i + 0.5) / 4 - (j + 0.5) / 4) + 0.2)
        for w in ws
        for i, j in itertools.product(range(4), range(4))
    )
    assert bimt.loss().item() == pytest.approx(want)
    # One neuron sits at the wrong end: all it is joined to is at the other.
    far = [torch.zeros(4, 4, dtype=torch.float64), torch.zeros(4, 4, dtype=torch.float64)]
    far[0][0, 3], far[1][3, 0] = 1.0, 1.0
    bimt = b.Bimt(far)
    before = bimt.loss().item()
    assert bimt.swap() >= 1 and bimt.loss().item() < before
    assert bimt.places[1][0] > bimt.places[1][1]
    for _ in range(5):
        last = bimt.loss().item()
        bimt.swap()
        assert bimt.loss().item() <= last + 1e-12
    assert [len(x) for x in bimt.labels(2)] == [4, 4, 4] and bimt.labels(2)[1][0] == 1


def test_learned_labels_have_their_papers_losses() -> None:
    torch.manual_seed(0)
    a = torch.rand(6, 6, dtype=torch.float64)
    a = (a + a.T).fill_diagonal_(0)
    s = torch.softmax(torch.randn(6, 3, dtype=torch.float64), 1)
    d = torch.diag(a.sum(1))
    cut, orthogonal = b.min_cut_pool(a, s)
    assert cut.item() == pytest.approx(float(-torch.trace(s.T @ a @ s) / torch.trace(s.T @ d @ s)))
    gram = s.T @ s
    want = torch.linalg.norm(gram / torch.linalg.norm(gram) - torch.eye(3, dtype=torch.float64) / 3**0.5)
    assert orthogonal.item() == pytest.approx(float(want))
    modularity, collapse = b.dmon(a, s)
    m = float(a.sum()) / 2
    matrix = a - torch.outer(a.sum(1), a.sum(1)) / (2 * m)
    assert modularity.item() == pytest.approx(float(-torch.trace(s.T @ matrix @ s) / (2 * m)))
    assert collapse.item() == pytest.approx(float(3**0.5 / 6 * torch.linalg.norm(s.sum(0))) - 1)
    hard = torch.nn.functional.one_hot(torch.arange(6) % 3, 3).double()
    graph = nx.from_numpy_array(a.numpy())
    communities = [{v for v in range(6) if v % 3 == c} for c in range(3)]
    assert b.dmon(a, hard)[0].item() == pytest.approx(-nx.community.modularity(graph, communities, weight="weight"))
    assert b.min_cut_pool(a, hard)[1].item() == pytest.approx(0, abs=1e-12), "balanced labels are orthogonal"
