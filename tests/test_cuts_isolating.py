"""Isolating cuts by bits and regions are the cuts that one flow per terminal finds."""

from __future__ import annotations

import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import modcut
from modcut import testing
from modcut._contract import contracted
from modcut._engine import solve
from modcut._isolate import isolate
from modcut._problem import Problem, problem

seeds = st.integers(0, 10_000)


def one_flow_each(w: torch.Tensor, terminals: list[int]) -> list[float]:
    """The definition: a flow per terminal against the others, tied to one vertex too strongly to be cut."""
    p = problem(w)
    ties = [p.with_super_vertices([[u for u in terminals if u != v]]) for v in terminals]
    return [solve(q, v, p.n).value for q, v in zip(ties, terminals, strict=True)]


def smallest_side(w: torch.Tensor, terminals: list[int], v: int) -> torch.Tensor:
    """By brute force: the intersection of all minimum cuts between v and the other terminals."""
    n = w.shape[0]
    free = [x for x in range(n) if x not in terminals]
    best, common = None, torch.zeros(n, dtype=torch.bool)
    for bits in range(2 ** len(free)):
        side = torch.zeros(n, dtype=torch.bool)
        side[v] = True
        side[[x for i, x in enumerate(free) if bits >> i & 1]] = True
        value = int(w[side][:, ~side].sum())
        if best is None or value < best:
            best, common = value, side
        elif value == best:
            common = common & side
    return common


@given(st.sampled_from(sorted(testing.FAMILIES)), seeds, st.integers(4, 20), st.data())
@settings(max_examples=60, deadline=None)
def test_regions_change_no_value(family: str, seed: int, n: int, data: st.DataObject) -> None:
    w = testing.FAMILIES[family](n, seed)
    n = w.shape[0]
    terminals = data.draw(st.permutations(range(n)))[: data.draw(st.integers(2, n))]
    expected = one_flow_each(w, terminals)
    for form in (w, sp.csr_array(w.numpy())):
        for divide in (True, False):
            cuts = isolate(problem(form), terminals, 1, divide=divide)
            assert [c.value for c in cuts] == pytest.approx(expected, rel=1e-11, abs=0)
            assert all(c.exact and c.lower == c.value for c in cuts)
            sides = torch.stack([c.side for c in cuts])
            assert int(sides.sum(0).max()) == 1, "the sides are disjoint"
            assert sides[:, terminals].equal(torch.eye(len(terminals), dtype=torch.bool))


@given(seeds, st.integers(4, 9), st.data())
@settings(max_examples=40, deadline=None)
def test_sides_are_the_smallest(seed: int, n: int, data: st.DataObject) -> None:
    w = testing.sparse(n, 0.5, seed).round().to(torch.int64)  # many ties
    terminals = data.draw(st.permutations(range(n)))[: data.draw(st.integers(2, n))]
    for divide in (True, False):
        for v, cut in zip(terminals, isolate(problem(w), terminals, 1, divide=divide), strict=True):
            assert cut.side.equal(smallest_side(w, terminals, v))
            assert isinstance(cut.value, int)


def test_a_weight_graph_is_cut_block_by_block() -> None:
    g, w = testing.mlp_graph((12, 30, 20), seed=2), testing.mlp((12, 30, 20), seed=2)
    terminals = list(range(0, 60, 3))
    for a, b in zip(modcut.isolating_cuts(g, terminals), modcut.isolating_cuts(w, terminals), strict=True):
        assert a.value == pytest.approx(b.value, rel=1e-6)
    big = modcut.isolating_cuts(w, terminals)[0].stats["big_flows"]
    assert big == 5, "ceil(log2 20)"


@given(st.sampled_from(sorted(testing.FAMILIES)), seeds, st.integers(2, 12), st.integers(1, 3), st.booleans())
@settings(max_examples=60, deadline=None)
def test_drawing_vertices_together_adds_up_their_edges(family: str, seed: int, n: int, k: int, rows: bool) -> None:
    w = testing.FAMILIES[family](n, seed)
    n = w.shape[0]
    group = torch.randint(-1, k, (n,), generator=torch.Generator().manual_seed(seed))
    q, kept = contracted(problem(sp.csr_array(w.numpy()) if rows else w), group, k)
    label = torch.cat([torch.nonzero(group < 0).flatten(), torch.arange(n, n + k)])
    home = torch.where(group < 0, torch.arange(n), n + group)
    z = (home[:, None] == label[None, :]).double()
    expected = (z.T @ w.double() @ z).fill_diagonal_(0)
    assert kept.equal(torch.nonzero(group < 0).flatten())
    torch.testing.assert_close(dense(q), expected)


def dense(p: Problem) -> torch.Tensor:
    pairs, capacity = testing.edge_list(p)
    w = torch.zeros(p.n, p.n, dtype=torch.float64)
    for (i, j), c in zip(pairs.tolist(), capacity.tolist(), strict=True):
        if i != j:
            w[i, j] += c
            w[j, i] += c
    return w


def test_disconnected_terminals_are_cut_by_nothing() -> None:
    w = torch.block_diag(testing.dense(5, 0), testing.dense(4, 1))
    cuts = modcut.isolating_cuts(w, [0, 7])
    assert [c.value for c in cuts] == [0.0, 0.0]
    assert cuts[0].side.tolist() == [True] * 5 + [False] * 4


@pytest.mark.parametrize(
    ("terminals", "error", "message"),
    [
        ([], ValueError, "at least 2 vertices, got 0"),
        ([1], ValueError, "at least 2"),
        ([1, 1], ValueError, "1 more than once"),
        ([1, 6], ValueError, r"terminals\[1\] must be in"),
        ([1, 2.0], TypeError, r"terminals\[1\] must be an integer"),
        ([True, 0], TypeError, "got a bool"),
    ],
)
def test_bad_terminals_are_refused(terminals: list[int], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        modcut.isolating_cuts(testing.known_graph(), terminals)
