"""modcut.testing: the validator catches what it is for, and the generators make what they say."""

from __future__ import annotations

import pytest
import torch

import modcut
from modcut import testing


def without_swap(seed: int) -> tuple[torch.Tensor, modcut.CutTree]:
    w = (testing.sparse(6, 0.7, seed) * 4).round().to(torch.int64)
    return w, testing.reference_tree(w, swap=False)


def test_gusfield_without_the_swap_has_the_right_values_but_fails_the_validator() -> None:
    failed = 0
    for seed in range(20):
        w, flow_tree = without_swap(seed)
        reference = testing.reference_tree(w)
        assert torch.equal(flow_tree.all_min_cut_values(), reference.all_min_cut_values())  # every value is right ...
        try:
            testing.validate_cut_tree(flow_tree, w, reference)
        except AssertionError as error:
            failed += 1
            assert "not a cut tree" in str(error)  # ... but the sides are not cuts of that value
    assert failed >= 5


def test_one_wrong_weight_fails_the_validator() -> None:
    w = testing.planted(12, 3, 0.05, seed=0)
    tree = modcut.gomory_hu_tree(w)
    testing.validate_cut_tree(tree, w)
    v = int(tree.edges[4])
    for factor in (1.01, 0.99, 1 + 1e-9):
        weight = tree.weight.clone()
        weight[v] *= factor
        wrong = modcut.CutTree(tree.parent, weight, weight.clone(), tree.certified)
        with pytest.raises(AssertionError, match="not a cut tree"):
            testing.validate_cut_tree(wrong, w)


def test_a_tree_of_cuts_that_are_not_minimal_fails_the_validator() -> None:
    w = testing.path(6, seed=0)
    degree = w.sum(1)  # a star of strengths: every edge weighs its induced cut, but on a path these are not minimal
    parent = torch.tensor([1, -1, 1, 1, 1, 1])
    weight = torch.where(parent < 0, float("inf"), degree)
    star = modcut.CutTree(parent, weight, weight.clone(), torch.zeros(6, dtype=torch.uint8))
    with pytest.raises(AssertionError, match="trusted tree"):
        testing.validate_cut_tree(star, w)
    with pytest.raises(AssertionError, match="trusted tree"):
        testing.validate_cut_tree(star, w, float(testing.reference_tree(w).weight[1:].sum()))


def test_the_validator_compares_sizes() -> None:
    with pytest.raises(AssertionError, match="6 vertices, the graph 5"):
        testing.validate_cut_tree(testing.reference_tree(testing.known_graph()), torch.ones(5, 5))


@pytest.mark.parametrize("family", sorted(testing.FAMILIES))
@pytest.mark.parametrize("n", [1, 2, 3, 10])
def test_generators_give_seeded_graphs(family: str, n: int) -> None:
    first, second = testing.FAMILIES[family](n, 4), testing.FAMILIES[family](n, 4)
    assert torch.equal(first, second)
    assert torch.equal(first, first.T)
    assert not torch.diagonal(first).any()
    if n == 10:
        assert not torch.equal(first, testing.FAMILIES[family](n, 5))
