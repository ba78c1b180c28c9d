"""Minimum cuts and Gomory-Hu trees are right: against brute force, exact arithmetic, SciPy, igraph, and themselves."""

from __future__ import annotations

import igraph
import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse.csgraph import maximum_flow

import modcut
from cut_graphs import examples, graphs, moderate, seeds, tolerance
from modcut import testing
from modcut._problem import problem


@given(graphs(), st.booleans(), st.booleans())
@examples(120)
def test_every_tree_is_a_gomory_hu_tree(w: torch.Tensor, certificates: bool, sparse: bool) -> None:
    tree = modcut.gomory_hu_tree(sp.csr_array(w.numpy()) if sparse else w, certificates=certificates)
    assert tree.exact or not moderate(w)
    testing.validate_cut_tree(tree, w, testing.reference_tree(w))


@given(graphs(), st.data())
@examples(80)
def test_every_cut_has_the_value_of_exact_arithmetic_and_a_side_that_shows_it(
    w: torch.Tensor, data: st.DataObject
) -> None:
    n = w.shape[0]
    if n < 2:
        return
    s, t = data.draw(st.permutations(range(n)))[:2]
    cut = modcut.max_flow(w, s, t)
    assert cut.exact
    assert cut.value == pytest.approx(
        testing.reference_min_cut(w, s, t)[0], rel=1e-12 if w.dtype != torch.float32 else 2e-6, abs=0
    )
    assert cut.side.dtype == torch.bool
    assert cut.side.shape == (n,)
    assert cut.side[s]
    assert not cut.side[t]
    assert w.double()[cut.side][:, ~cut.side].sum().item() == pytest.approx(cut.value, rel=1e-12, abs=0)
    assert cut.lower <= cut.value


@pytest.mark.parametrize("family", sorted(testing.FAMILIES))
@pytest.mark.parametrize("n", [2, 5, 10])
def test_cuts_equal_brute_force_over_all_subsets(family: str, n: int) -> None:
    w = testing.FAMILIES[family](n, n)
    n = w.shape[0]
    tree = modcut.gomory_hu_tree(w)
    for s, t in [(0, n - 1), (n // 2, 0), (1, n - 1)]:
        if s != t and n > 1:
            best = testing.brute_force_min_cut(w, s, t)
            assert modcut.min_cut(w, s, t).value == pytest.approx(best, rel=1e-12)
            assert tree.min_cut_value(s, t) == pytest.approx(best, rel=1e-12)


@pytest.mark.parametrize("family", sorted(testing.FAMILIES))
def test_all_pairs_equal_scipy_on_integers(family: str) -> None:
    w = testing.FAMILIES[family](30, 7)
    w = (w * (1000 / w.max())).round().to(torch.int64)
    n, a = w.shape[0], sp.csr_array(w.numpy().astype(np.int32))
    values = modcut.gomory_hu_tree(w).all_min_cut_values()
    for s in range(n):
        for t in range(s):
            expected = maximum_flow(a, s, t).flow_value
            assert values[s, t] == values[t, s] == expected
            if (s + t) % 7 == 0:
                assert modcut.max_flow(w, s, t).value == expected


@pytest.mark.parametrize("family", sorted(testing.FAMILIES))
def test_trees_of_sixty_vertices_equal_igraph(family: str) -> None:
    w = testing.FAMILIES[family](60, 5)
    report = testing.validate_cut_tree(modcut.gomory_hu_tree(w), w)
    assert report.reference == "igraph"


@pytest.mark.parametrize("family", ["dense", "mlp", "planted", "hub", "grid"])
def test_one_cut_equals_igraph(family: str) -> None:
    w = testing.FAMILIES[family](60, 6)
    pairs, capacity = testing.edge_list(problem(w))
    graph = igraph.Graph(n=w.shape[0], edges=pairs.tolist())
    for s, t in [(0, 59), (30, 7)]:
        expected = graph.mincut(s, t, capacity=capacity.tolist()).value
        assert modcut.min_cut(w, s, t).value == pytest.approx(expected, rel=1e-9)


def test_the_known_graph_has_its_known_tree() -> None:
    tree = modcut.gomory_hu_tree(testing.known_graph())
    assert sorted(tree.weight[tree.edges].tolist()) == [6, 6, 7, 8, 8]
    assert modcut.global_min_cut(testing.known_graph()).value == 6
    testing.validate_cut_tree(tree, testing.known_graph())


# --- laws -------------------------------------------------------------------------------------------------------------


@given(graphs(), seeds)
@examples(30)
def test_renaming_vertices_renames_the_cuts(w: torch.Tensor, seed: int) -> None:
    perm = torch.randperm(w.shape[0], generator=torch.Generator().manual_seed(seed))
    tree, other = modcut.gomory_hu_tree(w), modcut.gomory_hu_tree(w[perm][:, perm])
    values, renamed = tree.all_min_cut_values(), other.all_min_cut_values()
    torch.testing.assert_close(renamed, values[perm][:, perm], rtol=tolerance(w, tree, other), atol=0.0)


@given(graphs(), st.integers(-40, 40))
@examples(30)
def test_scaling_by_a_power_of_two_scales_every_weight_exactly(w: torch.Tensor, exponent: int) -> None:
    if w.dtype == torch.int64:
        return
    tree, scaled = modcut.gomory_hu_tree(w), modcut.gomory_hu_tree(w.double() * 2.0**exponent)
    expected = tree.all_min_cut_values() * 2.0**exponent
    torch.testing.assert_close(scaled.all_min_cut_values(), expected, rtol=tolerance(w, tree, scaled), atol=0.0)


@given(graphs(), st.data())
@examples(30)
def test_adding_weight_never_lowers_a_cut(w: torch.Tensor, data: st.DataObject) -> None:
    n = w.shape[0]
    if n < 2:
        return
    i, j = data.draw(st.permutations(range(n)))[:2]
    more = w.clone()
    more[i, j] += 1
    more[j, i] = more[i, j]
    before, after = modcut.gomory_hu_tree(w), modcut.gomory_hu_tree(more)
    least = before.all_min_cut_values() * (1 - tolerance(w, before, after))
    assert bool((after.all_min_cut_values() >= least).all())


@given(graphs(), st.integers(1, 3))
@examples(30)
def test_equal_input_gives_equal_bits_whatever_the_threads(w: torch.Tensor, threads: int) -> None:
    first, second = modcut.gomory_hu_tree(w), modcut.gomory_hu_tree(w.clone(), threads=threads)
    for name in ("parent", "weight", "lower", "certified"):
        assert torch.equal(getattr(first, name), getattr(second, name))


@given(graphs())
@examples(30)
def test_the_lightest_edge_is_the_global_minimum_cut_and_no_edge_exceeds_a_strength(w: torch.Tensor) -> None:
    n = w.shape[0]
    if n < 2:
        return
    tree, degree = modcut.gomory_hu_tree(w), problem(w).degree().double()
    cut = modcut.global_min_cut(w)
    graph = igraph.Graph.Weighted_Adjacency(w.double().tolist(), mode="undirected", loops=False)
    expected = graph.mincut(capacity="weight").value if graph.ecount() else 0.0
    assert cut.value == float(tree.weight.min())
    assert cut.value == pytest.approx(expected, rel=max(1e-9, tolerance(w, tree)))
    for v in tree.edges.tolist():
        strength = torch.minimum(degree[v], degree[tree.parent[v]])
        assert tree.weight[v] <= strength * (1 + 1e-12)


@given(graphs())
@examples(30)
def test_certificates_change_no_value(w: torch.Tensor) -> None:
    proven, flowed = modcut.gomory_hu_tree(w), modcut.gomory_hu_tree(w, certificates=False)
    rtol = tolerance(w, proven, flowed)
    torch.testing.assert_close(proven.all_min_cut_values(), flowed.all_min_cut_values(), rtol=rtol, atol=0.0)


# --- traps ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [0, 1, 2, 3])
def test_the_smallest_graphs(n: int) -> None:
    w = torch.ones(n, n, dtype=torch.float64)
    for form in (w, w.to(torch.int64), w.numpy(), sp.csr_array(w.numpy())):
        tree = modcut.gomory_hu_tree(form)
        assert tree.n == n
        assert tree.parent.tolist().count(-1) == min(n, 1)
        assert tree.weight[tree.edges].tolist() == [n - 1.0] * max(n - 1, 0)


def test_disconnected_parts_hang_on_edges_of_weight_zero() -> None:
    w = torch.block_diag(testing.dense(5, 0), testing.dense(4, 1), torch.zeros(2, 2, dtype=torch.float64))
    tree = modcut.gomory_hu_tree(w)
    testing.validate_cut_tree(tree, w)
    assert int((tree.weight == 0).sum()) == 3
    assert modcut.min_cut(w, 0, 7).value == 0
    assert modcut.global_min_cut(w).value == 0
    assert tree.partition(4).tolist() == [0] * 5 + [1] * 4 + [2, 3]


def test_a_graph_without_edges() -> None:
    tree = modcut.gomory_hu_tree(torch.zeros(5, 5))
    assert tree.weight[tree.edges].tolist() == [0.0] * 4
    assert modcut.max_flow(torch.zeros(5, 5), 0, 1).value == 0
    assert modcut.max_flow(sp.csr_array((5, 5)), 0, 1).exact


@pytest.mark.parametrize("value", [0.1, 1 / 3, 0.7, 1e-3])
@pytest.mark.parametrize("n", [3, 7, 12])
def test_ties_of_decimal_weights(value: float, n: int) -> None:
    w = torch.full((n, n), value, dtype=torch.float64)
    tree = modcut.gomory_hu_tree(w)
    assert tree.exact
    torch.testing.assert_close(
        tree.weight[tree.edges], torch.full((n - 1,), (n - 1) * value, dtype=torch.float64), rtol=1e-14, atol=0
    )


def test_a_huge_hub_hides_no_small_cut() -> None:
    w = testing.hub(14, seed=2, strength=1e12)
    w[0, 5] = w[5, 0] = 0.0
    testing.validate_cut_tree(modcut.gomory_hu_tree(w), w, testing.reference_tree(w))


@pytest.mark.parametrize("exponent", [-300, -200, -30, 0, 30, 200, 300])
def test_float_torture_uniform_scale(exponent: int) -> None:
    w = testing.dense(10, 3) * 10.0**exponent
    testing.validate_cut_tree(modcut.gomory_hu_tree(w), w, testing.reference_tree(w))


@pytest.mark.parametrize("seed", range(12))
def test_float_torture_mixed_scales(seed: int) -> None:
    e = torch.randint(-300, 301, (9, 9), generator=torch.Generator().manual_seed(seed)).double()
    w = torch.triu(testing.sparse(9, 0.7, seed) * 10.0**e, 1)
    w = w + w.T
    reference = testing.reference_tree(w)
    tree = modcut.gomory_hu_tree(w)
    for s in range(9):
        for t in range(s):
            bound = reference.min_cut_value(s, t)
            assert tree.min_cut_value(s, t) >= bound * (1 - 1e-12)
            # What cannot be proven at such a spread must be admitted, never be called exact.
            if tree.exact:
                assert tree.min_cut_value(s, t) == pytest.approx(bound, rel=1e-11, abs=0)


def test_vertices_held_by_less_than_the_engine_resolves_are_put_on_their_side() -> None:
    w = torch.zeros(5, 5, dtype=torch.float64)
    for i, j, x in ((0, 2, 6.4837e-13), (1, 2, 0.1050797), (1, 3, 6e4), (3, 4, 6e5)):
        w[i, j] = w[j, i] = x
    for form in (w, sp.csr_array(w.numpy())):
        tree = modcut.gomory_hu_tree(form)
        assert tree.exact
        testing.validate_cut_tree(tree, w, testing.reference_tree(w))
        assert tree.min_cut(2, 1).side.tolist() == [True, False, True, False, False]


def test_a_path_over_twenty_decades_is_mended_on_either_side_of_the_root() -> None:
    weights = [5e11, 7e-8, 1.2e-6, 7.3e-9, 8.5e-7, 0.73, 1.1e11, 811.0, 1.5e11, 5.3e-13, 0.59, 9.1e10]
    w = torch.zeros(13, 13, dtype=torch.float64)
    for i, x in enumerate(weights):
        w[i, i + 1] = w[i + 1, i] = x
    tree = modcut.gomory_hu_tree(w)
    assert tree.exact
    testing.validate_cut_tree(tree, w, testing.reference_tree(w))


def test_edges_that_cannot_be_mended_weigh_what_they_induce_and_are_not_called_exact(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("modcut._engine.REPAIRS", 0)
    w = torch.zeros(5, 5, dtype=torch.float64)
    for i, j, x in ((0, 2, 6.4837e-13), (1, 2, 0.1050797), (1, 3, 6e4), (3, 4, 6e5)):
        w[i, j] = w[j, i] = x
    tree = modcut.gomory_hu_tree(w)
    assert not tree.exact
    assert 1e-12 < tree.stats.gap < 1e-11
    assert tree.stats.gap == pytest.approx(float((1 - tree.lower / tree.weight).nan_to_num().max()))
    testing.validate_cut_tree(tree, w)


def test_approximate_trees_meet_their_eps() -> None:
    w = testing.planted(20, 4, 0.05, seed=1)
    tree = modcut.gomory_hu_tree(w, method="approx", eps=0.1)
    assert tree.eps == 0.1
    edges = tree.edges
    assert bool((tree.weight[edges] <= 1.1 * tree.lower[edges]).all())
    testing.validate_cut_tree(tree, w)


def test_a_dense_network_is_a_star_and_runs_no_flow() -> None:
    tree = modcut.gomory_hu_tree(testing.dense(300, 0))
    assert tree.stats.trivial_fraction == 1.0
    assert tree.stats.flows == 0
    assert tree.stats.certified == 299
    assert sum(tree.stats.certified_by.values()) == 299
    flowed = modcut.gomory_hu_tree(testing.dense(60, 0), certificates=False)
    assert flowed.stats.certified == 0
    assert flowed.stats.flows > 0
