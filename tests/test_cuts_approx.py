"""A tree within 1 + eps says so for every edge and every pair, and is right."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import modcut
from modcut import testing

families = st.sampled_from(sorted(testing.FAMILIES))


@given(families, st.integers(0, 10_000), st.integers(2, 20), st.sampled_from([1e-3, 0.1, 0.5, 1.0]), st.booleans())
@settings(max_examples=150, deadline=None)
def test_bounds_hold_for_every_pair(family: str, seed: int, n: int, eps: float, certificates: bool) -> None:
    w = testing.FAMILIES[family](n, seed)
    n = w.shape[0]
    true = testing.reference_tree(w).all_min_cut_values()
    tree = modcut.gomory_hu_tree(w, method="approx", eps=eps, certificates=certificates)
    assert tree.eps == eps
    e = tree.edges
    assert bool((tree.weight[e] <= (1 + eps) * tree.lower[e] * (1 + 1e-12)).all())
    assert tree.stats.gap <= eps / (1 + eps) + 1e-12
    for u in range(n):
        for v in range(u):
            cut = tree.min_cut(u, v)
            assert float(cut.lower) <= true[u, v] * (1 + 1e-12)
            assert true[u, v] <= float(cut.value) * (1 + 1e-12)
            assert float(cut.value) <= (1 + eps) * float(cut.lower) * (1 + 1e-12)
            side = w.double()[cut.side][:, ~cut.side].sum()
            assert float(side) == pytest.approx(float(cut.value), rel=1e-11, abs=0)
            assert cut.exact == tree.exact
    if tree.exact:
        assert torch.equal(tree.lower, tree.weight)


@given(families, st.integers(0, 10_000), st.integers(1, 20))
@settings(max_examples=50, deadline=None)
def test_eps_zero_is_the_exact_tree(family: str, seed: int, n: int) -> None:
    w = testing.FAMILIES[family](n, seed)
    exact, approx = modcut.gomory_hu_tree(w), modcut.gomory_hu_tree(w, method="approx")
    for name in ("parent", "weight", "lower", "certified"):
        assert torch.equal(getattr(exact, name), getattr(approx, name))
    assert approx.eps == 0.0


def test_flows_end_early_and_a_tree_that_is_not_exact_says_so() -> None:
    w = testing.planted(120, 4, 0.01, seed=0)
    half = modcut.gomory_hu_tree(w, method="approx", eps=0.5, certificates=False)
    assert half.stats.passes < 0.8 * modcut.gomory_hu_tree(w, certificates=False).stats.passes
    assert not half.exact
    assert "within 1 + 0.5" in repr(half)


@pytest.mark.parametrize("eps", [-0.1, 1.1, float("nan"), "0.1", True, None])
def test_bad_eps_is_refused(eps: Any) -> None:
    with pytest.raises(ValueError, match=r"eps must be a number in \[0, 1\]"):
        modcut.gomory_hu_tree(torch.ones(3, 3), method="approx", eps=eps)
    if eps == -0.1:
        with pytest.raises(ValueError, match='eps must be 0 with method="exact"'):
            modcut.gomory_hu_tree(torch.ones(3, 3), eps=0.1)
        with pytest.raises(ValueError, match="method must be"):
            modcut.gomory_hu_tree(torch.ones(3, 3), method="nearly")  # type: ignore[arg-type]
