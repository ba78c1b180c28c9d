"""Cuts proven without a flow are what flows find; every kind of proof is met, and none claims too much."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import modcut
from modcut import testing
from modcut.tree import CERTIFICATES, CutTree


def check(g: Any, expected: set[str] | None = None, **options: Any) -> CutTree:
    """Compare every edge of a certified tree with the tree of flows only."""
    tree = modcut.gomory_hu_tree(g, **options)
    truth = modcut.gomory_hu_tree(g, certificates=False)
    assert truth.stats.certified == sum(truth.stats.certified_by.get(name, 0) for name in ("component",))
    tolerance = 1e-11 if truth.weight.dtype == torch.float64 else 1e-6
    for v in tree.edges.tolist():
        minimum = float(truth.min_cut(v, int(tree.parent[v])).value)
        assert float(tree.lower[v]) <= minimum * (1 + tolerance), (v, CERTIFICATES[int(tree.certified[v])])
        assert minimum <= float(tree.weight[v]) * (1 + tolerance)
    if tree.eps == 0:
        torch.testing.assert_close(
            tree.weight[tree.edges].sort().values, truth.weight[truth.edges].sort().values, rtol=1e-6, atol=0.0
        )
    if expected is not None:
        assert expected <= set(tree.stats.certified_by), tree.stats.certified_by
    return tree


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("power", [1.0, 3.0, 6.0])
def test_stars_of_dense_graphs(seed: int, power: float) -> None:
    check(testing.dense(40 + 7 * seed, seed, power))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("keep", [1.0, 0.3, 0.1])
def test_stars_of_layers(seed: int, keep: float) -> None:
    check(testing.mlp_graph([24, 40, 30, 10], seed, keep=keep))


def test_layers_need_no_flow_and_one_pass_for_the_eigenvalue() -> None:
    tree = check(testing.mlp_graph([120, 140, 100], 0), {"deficiency"})
    assert tree.stats.flows == 0
    assert tree.stats.native["nu_proof"] == "frobenius"  # norms of blocks: no factorisation


@pytest.mark.parametrize("seed", range(3))
def test_modules_are_proven_inside_and_their_hubs_between_them(seed: int) -> None:
    tree = check(testing.planted(160, 4, 1e-3, seed), {"module", "quotient"})
    assert tree.stats.flows == 0


@pytest.mark.parametrize("eps", [0.02, 0.2, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_bounds_hold_and_are_as_close_as_asked(seed: int, eps: float) -> None:
    for g in (testing.heavy_tailed(40, seed), testing.planted(80, 3, 0.05, seed), testing.sparse(50, 0.1, seed)):
        tree = check(g, method="approx", eps=eps)
        edges = tree.edges
        assert bool((tree.lower[edges] * (1 + eps) * (1 + 1e-9) >= tree.weight[edges]).all())


def test_integers_are_exact() -> None:
    g = (testing.dense(60, 0) * 1000).long()
    assert check(g, {"deficiency"}).integer


def test_every_kind_has_a_name() -> None:
    tree = modcut.gomory_hu_tree(testing.planted(120, 3, 1e-3, 1))
    assert sum(tree.stats.certified_by.values()) == tree.n - 1
    assert set(tree.stats.certified_by) <= set(CERTIFICATES.values())
