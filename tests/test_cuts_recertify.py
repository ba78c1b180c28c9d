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


# --- one reading ------------------------------------------------------------------------------------------------------


def recertified(tree: modcut.CutTree, g: Any) -> tuple[modcut.CutTree, bool]:
    """The tree recertified, checked against a new one, and whether one reading proved all of it."""
    again, new = modcut.recertify(tree, g), modcut.gomory_hu_tree(g)
    testing.validate_cut_tree(again, g, new)
    torch.testing.assert_close(again.weight.sort().values, new.weight.sort().values, rtol=1e-12, atol=0.0)
    s = again.stats
    assert s.kept + s.repaired + s.recomputed == again.n - 1
    assert sum(s.certified_by.values()) == again.n - 1
    return again, "flows" in s.native or s.native["nu_proof"] == "carried" or "seconds_certificates" not in s.native


@given(seeds, st.sampled_from([1e-4, 1e-2, 0.2]), st.booleans(), st.integers(0, 4))
@settings(max_examples=60, deadline=None)
def test_adversarial_steps_of_a_network(seed: int, step: float, heavy: bool, trick: int) -> None:
    """Signs flip, an edge is deleted, a vertex isolated, another hub made, one edge outweighs a strength."""
    old, new = (testing.mlp_graph([20, 30, 24, 9], seed) for _ in range(2))
    rng = torch.Generator().manual_seed(seed)
    for g in (old, new):
        for b in g.blocks:
            if heavy:
                b.weight.copy_(b.weight.sign() * b.weight.abs() ** 2)
    for b in new.blocks:
        b.weight.add_(step * torch.randn(b.weight.shape, generator=rng))
    w = new.blocks[1].weight
    if trick == 1:
        w[3, 5] = 0.0
    elif trick == 2:
        w[7] = 0.0
        new.blocks[2].weight[:, 7] = 0.0
    elif trick == 3:
        w[:, 4] *= -9.0
    elif trick == 4:
        w[2, 2] = 40.0
    recertified(modcut.gomory_hu_tree(old), new)


def test_one_reading_is_what_a_step_takes() -> None:
    old, new = stepped((64, 48, 32, 16), 1)
    again, once = recertified(modcut.gomory_hu_tree(old), new)
    assert once
    assert again.stats.passes < 1.5
    assert again.stats.native["nu_proof"] == "frobenius"
    assert again._star


@pytest.mark.parametrize("form", ["signed", "dense"])
def test_a_factorised_gap_is_carried_over(form: str) -> None:
    old = testing.mlp_graph([60, 80, 50], 0) if form == "signed" else testing.dense(120, 0, power=3.0)
    if form == "signed":
        for b in old.blocks:
            b.weight.copy_(b.weight**3)
    tree = modcut.gomory_hu_tree(old)
    assert tree.stats.native["nu_proof"] in ("norms", "cholesky")
    if form == "signed":
        new: Any = testing.mlp_graph([60, 80, 50], 0)
        for i, b in enumerate(new.blocks):
            noise = torch.randn(b.weight.shape, generator=torch.Generator().manual_seed(i))
            b.weight.copy_(b.weight**3 + 1e-3 * noise * b.weight.pow(3).abs().mean())
    else:
        new = moved(old, 0.01, 1)
    again, _ = recertified(tree, new)
    if tree.stats.flows == 0:
        assert again.stats.native["nu_proof"] == "carried"
        assert 0.5 * tree.stats.native["nu"] < again.stats.native["nu"] <= tree.stats.native["nu"] * (1 + 1e-9)


def test_what_is_remembered_is_a_copy_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that change in place do not change what they are compared with."""
    from modcut import _recheck

    w = testing.dense(120, 0, power=3.0)
    tree = modcut.gomory_hu_tree(w)
    w.copy_(testing.planted(120, 4, 1e-4, seed=1))
    again = modcut.recertify(tree, w)
    testing.validate_cut_tree(again, w, modcut.gomory_hu_tree(w))
    monkeypatch.setattr(_recheck, "_last", None)
    monkeypatch.setattr(_recheck, "MOST", 1000)
    modcut.gomory_hu_tree(testing.dense(120, 0, power=3.0))
    assert _recheck._last is None


def test_a_tree_of_any_making_may_be_recertified() -> None:
    """Nothing of the tree before is trusted: its weights are a guess."""
    new = testing.mlp_graph([40, 50, 30], 1)
    n = new.n
    for scale in (1e-3, 0.9, 1.1, 1e3):
        parent = torch.zeros(n, dtype=torch.int64)
        parent[0] = -1
        weight = torch.where(parent < 0, float("inf"), scale * new.degree())
        wrong = modcut.CutTree(parent, weight, weight.clone(), torch.ones(n, dtype=torch.uint8))
        recertified(wrong, new)
