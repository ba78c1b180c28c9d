"""The global minimum cut by scans and by certificates is that of brute force, of the tree, and of NetworkX."""

from __future__ import annotations

from typing import Any

import networkx as nx
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import modcut
from modcut import testing
from modcut._engine import lightest
from modcut._problem import problem

seeds = st.integers(0, 10_000)
families = st.sampled_from(sorted(testing.FAMILIES))


def reference(w: torch.Tensor) -> float:
    """Over all sets of vertices that hold vertex 0, in float64."""
    n, best = w.shape[0], float("inf")
    for bits in range(2 ** (n - 1) - 1):
        side = torch.tensor([True, *(bool(bits >> i & 1) for i in range(n - 1))])
        best = min(best, float(w.double()[side][:, ~side].sum()))
    return best


@given(families, seeds, st.integers(2, 9), st.sampled_from(["as is", "integers", "float32", "decades"]), st.booleans())
@settings(max_examples=120, deadline=None)
def test_it_is_the_lightest_of_all_sets(family: str, seed: int, n: int, kind: str, certify: bool) -> None:
    w = testing.FAMILIES[family](n, seed)
    n = w.shape[0]
    if n < 2:
        return
    if kind == "integers":
        w = (w.double() * 3).round().to(torch.int64)
    elif kind == "float32":
        w = w.float()
    elif kind == "decades":
        e = torch.randint(-15, 16, (n, n), generator=torch.Generator().manual_seed(seed)).double()
        w = torch.triu(w * 10.0**e, 1)
        w = w + w.T
    for form in (w, sp.csr_array(w.numpy())):
        cut = lightest(problem(form), 1, certify=certify)
        assert cut.exact
        assert cut.value == pytest.approx(reference(w), rel=1e-11 if w.dtype != torch.float32 else 2e-6, abs=0)
        assert 0 < int(cut.side.sum()) < n
        assert float(w.double()[cut.side][:, ~cut.side].sum()) == pytest.approx(float(cut.value), rel=1e-11, abs=0)
        assert cut.side[cut.s]
        assert not cut.side[cut.t]


@pytest.mark.parametrize("family", sorted(testing.FAMILIES))
def test_it_equals_networkx_and_the_tree(family: str) -> None:
    w = testing.FAMILIES[family](40, 3)
    graph = nx.from_numpy_array(w.double().numpy())
    expected = nx.stoer_wagner(graph)[0] if nx.is_connected(graph) else 0.0
    cut = modcut.global_min_cut(w)
    assert cut.value == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert cut.value == pytest.approx(float(modcut.gomory_hu_tree(w).weight.min()), rel=1e-11, abs=0)
    scanned = lightest(problem(w), 1, certify=False)
    assert scanned.stats["method"] == "scans"
    assert scanned.value == pytest.approx(float(cut.value), rel=1e-11, abs=0)


@pytest.mark.parametrize("family", ["path", "cycle"])
def test_long_thin_graphs_take_few_rounds(family: str) -> None:
    n = 20_000
    weight = torch.rand(n, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.5
    i = torch.arange(n - (family == "path"))
    j = (i + 1) % n
    half = sp.coo_array((weight[i].numpy(), (i.numpy(), j.numpy())), shape=(n, n))
    cut = modcut.global_min_cut(half + half.T)
    expected = torch.sort(weight[i]).values[: 1 if family == "path" else 2].sum()
    assert cut.value == pytest.approx(float(expected), rel=1e-12)
    assert cut.stats["rounds"] < 40


def test_a_dense_graph_is_proven_without_scans() -> None:
    cut = modcut.global_min_cut(testing.dense(200, 0))
    assert cut.stats["method"] == "certificates"
    assert int(cut.side.sum()) in (1, 199)


def test_scale_does_not_matter() -> None:
    w = testing.planted(12, 3, 0.01, seed=1)
    for exponent in (-300, -30, 30, 300):
        cut = lightest(problem(w * 10.0**exponent), 1, certify=False)
        assert cut.exact
        assert cut.value == pytest.approx(reference(w) * 10.0**exponent, rel=1e-11)


def test_a_cut_far_below_every_strength_is_exact() -> None:
    w = torch.block_diag(testing.dense(20, 0), testing.dense(20, 1))
    w[3, 25] = w[25, 3] = 1e-14
    cut = lightest(problem(w), 1, certify=False)
    assert cut.exact
    assert cut.value == pytest.approx(1e-14, rel=1e-12)
    assert int(cut.side.sum()) == 20


@pytest.mark.parametrize(
    ("g", "message"),
    [
        (torch.zeros(1, 1), "at least 2 vertices to be cut, got 1"),
        (torch.zeros(0, 0), "got 0"),
        (torch.full((3, 3), float("nan")), "NaN"),
        (-torch.ones(3, 3), "negative"),
    ],
)
def test_bad_input_is_refused(g: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        modcut.global_min_cut(g)
    with pytest.raises(ValueError, match="threads must be at least 1"):
        modcut.global_min_cut(torch.ones(3, 3), threads=0)


def test_parts_without_an_edge_between_them() -> None:
    cut = modcut.global_min_cut(torch.block_diag(testing.dense(4, 0), testing.dense(3, 1)))
    assert cut.value == 0
    assert sorted((int(cut.side.sum()), int((~cut.side).sum()))) == [3, 4]
    assert modcut.global_min_cut(sp.csr_array((5, 5))).value == 0
