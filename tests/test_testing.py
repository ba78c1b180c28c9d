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


SPARSE = {
    "path": lambda form: testing.path(30, 1, form=form),
    "cycle": lambda form: testing.cycle(30, 1, form=form),
    "double cycle": lambda form: testing.double_cycle(30, 1, form=form),
    "tree": lambda form: testing.tree(30, 1, form=form),
    "grid": lambda form: testing.grid(5, 6, 1, form=form),
    "noi": lambda form: testing.noi(30, 0.2, 3, 1, form=form),
    "rmf": lambda form: testing.rmf(3, 4, 1, form=form),
    "mesh": lambda form: testing.washington(4, 5, 1, function="mesh", form=form),
    "random level": lambda form: testing.washington(4, 5, 1, form=form),
    "random 2-level": lambda form: testing.washington(4, 5, 1, function="random 2-level", form=form),
}


@pytest.mark.parametrize("name", SPARSE)
def test_sparse_forms_hold_the_same_graph(name: str) -> None:
    dense, rows = SPARSE[name]("dense"), SPARSE[name]("csr")
    assert torch.equal(dense, torch.from_numpy(rows.toarray()))
    assert rows.nnz == int((dense != 0).sum())
    assert torch.equal(dense, dense.T)


def test_unknown_forms_and_functions_are_refused() -> None:
    with pytest.raises(ValueError, match='form must be "dense" or "csr", got \'coo\''):
        testing.path(4, form="coo")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="function must be one of mesh, random level, random 2-level"):
        testing.washington(4, 5, function="line")
    with pytest.raises(ValueError, match="how must be one of as is"):
        testing.disguised(testing.path(4), "upside down")
    with pytest.raises(ValueError, match="d must be a multiple of heads"):
        testing.gpt_graph(10, heads=3)


def test_the_minimum_cut_of_an_rmf_network_lies_between_frames() -> None:
    w = testing.rmf(3, 5, seed=2)
    value, side = testing.reference_min_cut(w, 0, 44)
    frames = side.reshape(5, 9)
    assert bool((frames.all(1) | ~frames.any(1)).all())
    assert value == min(int(w[9 * i : 9 * i + 9, 9 * i + 9 : 9 * i + 18].sum()) for i in range(4))


def test_washington_networks_join_columns_and_leave_their_ends_uncut() -> None:
    rows, levels = 4, 6
    w = testing.washington(rows, levels, seed=0)
    inner = w[:-2, :-2]
    i, j = torch.nonzero(inner, as_tuple=True)
    assert bool(((i // rows - j // rows).abs() == 1).all())
    _, side = testing.reference_min_cut(w, rows * levels, rows * levels + 1)
    assert bool(side[:rows].all())
    assert not bool(side[rows * (levels - 1) : rows * levels].any())


def test_noi_clusters_hold_together() -> None:
    w = testing.noi(60, 0.5, 3, seed=0, ratio=100.0)
    assert int(modcut.gomory_hu_tree(w).n) == 60
    assert 0.3 < float((w > 0).double().mean()) < 0.5  # pairs drawn twice are one edge
    assert int((w[w > 0] > 10).sum()) > int((w > 0).sum()) // 4


def test_the_graph_of_gpt_2_small_has_its_size() -> None:
    toy = testing.gpt_graph(8, 2, 2, vocab=11, seed=3)
    assert toy.n == 8 + 11 + 2 * (3 * 8 + 32)
    assert sum(b.weight.numel() for b in toy.blocks) == 11 * 8 + 2 * (4 * 64 + 2 * 256)
    assert {b.weight.dtype for b in toy.blocks} == {torch.float32}
    heads = {s.head for s in toy.spaces if s.kind == "head"}
    assert heads == {f"layer{i}.head{h}" for i in range(2) for h in range(2)}
    w = toy.to_dense()
    assert torch.equal(w, testing.gpt_graph(8, 2, 2, vocab=11, seed=3).to_dense())
    testing.validate_cut_tree(modcut.gomory_hu_tree(toy), toy)
    heavy = testing.gpt_graph(8, 2, 2, seed=3, power=6.0).to_dense()
    assert heavy.max() / heavy.sum() > 3 * w.max() / w.sum()


@pytest.mark.parametrize("family", ["path", "grid", "noi", "planted", "tree"])
def test_the_validator_sums_all_cuts_at_once_as_it_does_one_by_one(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    w = testing.FAMILIES[family](30, 2)
    tree = modcut.gomory_hu_tree(w)
    one_by_one = testing.validate_cut_tree(tree, w)
    monkeypatch.setattr("modcut.testing.validate._DIRECT_SECONDS", 0.0)
    assert testing.validate_cut_tree(tree, w).edges == one_by_one.edges
    weight = tree.weight.clone()
    weight[int(tree.edges[3])] *= 1.01
    wrong = modcut.CutTree(tree.parent, weight, weight.clone(), tree.certified)
    with pytest.raises(AssertionError, match="not a cut tree"):
        testing.validate_cut_tree(wrong, w)
