"""Graphs of modules and cuts that isolate terminals."""

from __future__ import annotations

import pytest
import scipy.sparse as sp
import torch
from hypothesis import given
from hypothesis import strategies as st

import modcut
from cut_graphs import examples, graphs
from modcut import testing


def test_the_quotient_matrix_is_the_indicator_product() -> None:
    w = testing.dense(12, 0)
    labels = torch.arange(12) % 3
    z = torch.nn.functional.one_hot(labels, 3).double()
    expected = z.T @ w @ z
    for form in (w, sp.csr_array(w.numpy()), w + torch.eye(12)):
        torch.testing.assert_close(modcut.quotient_matrix(form, labels), expected)
    torch.testing.assert_close(modcut.quotient_matrix(w, labels.tolist()).sum(1), z.T @ w.sum(1))


def test_the_quotient_of_a_weight_graph_is_computed_block_by_block(monkeypatch: pytest.MonkeyPatch) -> None:
    g, w = testing.mlp_graph((5, 7, 4), seed=2), testing.mlp((5, 7, 4), seed=2)
    labels = torch.arange(16) % 4
    z = torch.nn.functional.one_hot(labels, 4).double()
    for name in ("to_dense", "to_scipy"):
        monkeypatch.setattr(type(g), name, lambda self: pytest.fail("a large graph would not fit"))
    torch.testing.assert_close(modcut.quotient_matrix(g, labels), z.T @ w @ z)
    partition = modcut.Partition(labels, g, 4)
    torch.testing.assert_close(modcut.quotient_matrix(g, partition), z.T @ w @ z)
    monkeypatch.undo()
    testing.validate_cut_tree(modcut.quotient_tree(g, partition), modcut.quotient_matrix(g, labels))


def test_the_quotient_of_integers_is_exact_and_keeps_empty_modules() -> None:
    w = testing.known_graph()
    tree = modcut.quotient_tree(w, [0, 0, 1, 1, 3, 3], k=5)
    assert tree.n == 5
    assert tree.integer
    assert tree.min_cut_value(0, 2) == 0
    assert modcut.quotient_matrix(w, [0, 0, 1, 1, 3, 3])[0, 1] == 11
    assert modcut.quotient_tree(sp.csr_array(w.numpy()), [0, 0, 1, 1, 3, 3], k=5).min_cut_value(
        0, 1
    ) == tree.min_cut_value(0, 1)


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        ([0, 1], ValueError, r"shape \[6\]"),
        ([0, 0, 0, 0, 0, -1], ValueError, "got -1 at vertex 5"),
        ([0.0] * 6, TypeError, "integers"),
        ([0, 1, 2, 3, 4, 9], ValueError, r"labels must be in \[0, 5\), got 9"),
    ],
)
def test_bad_labels_are_refused(labels: list[int], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        modcut.quotient_tree(testing.known_graph(), labels, k=5)


@given(graphs(max_n=9), st.data())
@examples(30)
def test_isolating_cuts_separate_each_terminal_from_the_others(w: torch.Tensor, data: st.DataObject) -> None:
    n = w.shape[0]
    if n < 3:
        return
    terminals = data.draw(st.permutations(range(n)))[: data.draw(st.integers(2, min(4, n)))]
    for v, cut in zip(terminals, modcut.isolating_cuts(w, terminals), strict=True):
        others = [u for u in terminals if u != v]
        assert cut.side[v]
        assert not cut.side[others].any()
        merged, keep = w.clone(), [u for u in range(n) if u not in others[1:]]
        for u in others[1:]:
            merged[others[0]] += merged[u]
            merged[:, others[0]] += merged[:, u]
        merged = merged[keep][:, keep].fill_diagonal_(0)
        expected, _ = testing.reference_min_cut(torch.maximum(merged, merged.T), keep.index(v), keep.index(others[0]))
        assert cut.value == pytest.approx(expected, rel=1e-9 if w.dtype != torch.float32 else 2e-6)


def test_isolating_cuts_refuse_bad_terminals() -> None:
    w = testing.known_graph()
    for terminals, message in (([1], "at least 2"), ([1, 1], "more than once"), ([1, 6], r"terminals\[1\] must be in")):
        with pytest.raises(ValueError, match=message):
            modcut.isolating_cuts(w, terminals)
