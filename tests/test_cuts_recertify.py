"""The tree of the step before, checked again: always a Gomory-Hu tree of the new weights, and mostly for nothing."""

from __future__ import annotations

from typing import Any

import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import modcut
from modcut import testing

seeds = st.integers(0, 10_000)
families = st.sampled_from(sorted(testing.FAMILIES))


def moved(w: torch.Tensor, size: float, seed: int) -> torch.Tensor:
    """Weights after a step: every edge times 1 + size * uniform(-1, 1), symmetric."""
    noise = 2 * torch.rand(*w.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) - 1
    upper = torch.triu(w.double() * (1 + size * noise), 1)
    return upper + upper.T


@given(families, seeds, st.integers(1, 24), st.sampled_from([0.0, 1e-6, 0.02, 0.5, 1.0]), st.booleans())
@settings(max_examples=150, deadline=None)
def test_the_result_is_a_cut_tree_of_the_new_weights(family: str, seed: int, n: int, size: float, sparse: bool) -> None:
    old = testing.FAMILIES[family](n, seed)
    new = moved(old, size, seed + 1)
    tree = modcut.recertify(modcut.gomory_hu_tree(old), sp.csr_array(new.numpy()) if sparse else new)
    testing.validate_cut_tree(tree, new, testing.reference_tree(new))
    s = tree.stats
    assert s.kept + s.repaired + s.recomputed == max(tree.n - 1, 0)


@given(families, seeds, st.integers(2, 10), st.data())
@settings(max_examples=100, deadline=None)
def test_any_tree_is_mended(family: str, seed: int, n: int, data: st.DataObject) -> None:
    """Whatever tree it starts from (here one drawn at random, not of any weights), and with flows forced."""
    w = (testing.FAMILIES[family](n, seed).double() * 4).round().to(torch.int64)
    n = w.shape[0]
    names = data.draw(st.permutations(range(n)))
    parent = torch.full((n,), -1)
    for i in range(1, n):
        parent[names[i]] = names[data.draw(st.integers(0, i - 1))]
    weight = torch.where(parent < 0, float("inf"), 1.0).double()
    wrong = modcut.CutTree(parent, weight, weight.clone(), torch.zeros(n, dtype=torch.uint8))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("modcut._recertify._SHARE", 1e-9)
        tree = modcut.recertify(wrong, w, certificates=data.draw(st.booleans()))
    assert tree.stats.recomputed == 0
    assert tree.integer
    testing.validate_cut_tree(tree, w, testing.reference_tree(w))


def stepped(widths: tuple[int, ...], steps: int) -> tuple[Any, Any]:
    """Graphs of a perceptron before and after AdamW steps."""
    old, new = testing.mlp_graph(widths, seed=1), testing.mlp_graph(widths, seed=1)
    weights = [torch.nn.Parameter(b.weight.clone()) for b in new.blocks]
    optimizer = torch.optim.AdamW(weights, lr=1e-3)
    for i in range(steps):
        x = torch.randn(32, widths[0], generator=torch.Generator().manual_seed(i))
        for w in weights:
            x = torch.relu(x @ w.T)
        optimizer.zero_grad()
        x.square().mean().backward()
        optimizer.step()
    for b, w in zip(new.blocks, weights, strict=True):
        b.weight.copy_(w.detach())
    return old, new


def test_one_optimizer_step_costs_no_flow() -> None:
    old, new = stepped((64, 48, 32, 16), 1)
    tree = modcut.gomory_hu_tree(old)
    again = modcut.recertify(tree, new)
    assert again.stats.kept >= tree.n - 2, "all, or all but one where another vertex has become the strongest"
    assert again.stats.flows == 0
    assert again.stats.certified == tree.n - 1
    assert sum(again.stats.certified_by.values()) == tree.n - 1
    assert "flow" not in again.stats.certified_by
    assert again.exact
    testing.validate_cut_tree(again, new)
    more = modcut.recertify(again, stepped((64, 48, 32, 16), 2)[1])
    assert more.stats.kept >= tree.n - 2
    assert more.stats.flows == 0


def test_weights_that_moved_far_give_a_new_tree_and_say_so() -> None:
    old, new = testing.planted(60, 3, 1e-3, seed=0), testing.path(60, seed=1)
    tree = modcut.recertify(modcut.gomory_hu_tree(old), new)
    assert tree.stats.recomputed == 59
    testing.validate_cut_tree(tree, new)


def test_another_hub_takes_the_star_over() -> None:
    w = testing.dense(40, 0)
    tree = modcut.gomory_hu_tree(w)
    other = int(torch.argsort(w.sum(1))[-2])
    v = w.clone()
    v[other] *= 1.5
    v[:, other] = v[other]
    again = modcut.recertify(tree, v)
    assert again.root == other != tree.root
    testing.validate_cut_tree(again, v)


def test_without_certificates_every_edge_is_a_flow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modcut._recertify._SHARE", 1)
    w = testing.planted(24, 3, 0.01, seed=2)
    tree = modcut.recertify(modcut.gomory_hu_tree(w), moved(w, 0.01, 1), certificates=False)
    assert tree.stats.certified == 0
    assert tree.stats.flows >= 23
    assert tree.stats.kept >= 20
    testing.validate_cut_tree(tree, moved(w, 0.01, 1))


def test_what_was_kept_is_saved(tmp_path: Any) -> None:
    again = modcut.recertify(modcut.gomory_hu_tree(testing.dense(12, 0)), testing.dense(12, 0))
    assert (again.stats.kept, again.stats.repaired, again.stats.recomputed) == (11, 0, 0)
    again.save(tmp_path / "again")
    assert modcut.CutTree.load(tmp_path / "again").stats == again.stats


def test_bad_input_is_refused() -> None:
    tree = modcut.gomory_hu_tree(testing.dense(5, 0))
    with pytest.raises(TypeError, match=r"T must be a modcut\.CutTree, got str"):
        modcut.recertify("tree", testing.dense(5, 0))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"as many vertices as the tree \(5\), got 6"):
        modcut.recertify(tree, testing.dense(6, 0))
    with pytest.raises(ValueError, match="negative"):
        modcut.recertify(tree, -testing.dense(5, 0))
    with pytest.raises(ValueError, match="threads must be at least 1"):
        modcut.recertify(tree, testing.dense(5, 0), threads=0)
    for n in (0, 1):
        assert modcut.recertify(modcut.gomory_hu_tree(torch.ones(n, n)), torch.ones(n, n)).n == n


def test_disconnected_graphs_are_mended() -> None:
    w = torch.block_diag(testing.dense(8, 0), testing.dense(7, 1), torch.zeros(1, 1, dtype=torch.float64))
    new = moved(w, 0.1, 3)
    testing.validate_cut_tree(modcut.recertify(modcut.gomory_hu_tree(w), new), new)
    joined = new.clone()
    joined[0, 15] = joined[15, 0] = 0.1
    testing.validate_cut_tree(modcut.recertify(modcut.gomory_hu_tree(w), joined), joined)
