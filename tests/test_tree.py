"""The cut tree as an object: queries, partitions, ranking, other forms, files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import networkx as nx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import modcut
from modcut import testing
from modcut.tree import CutTree, TreeStats


def tree_of(parent: list[int], weight: list[float], **how: Any) -> CutTree:
    w = torch.tensor(weight, dtype=torch.float64)
    return CutTree(
        torch.tensor(parent, dtype=torch.int64), w, w.clone(), torch.zeros(len(parent), dtype=torch.uint8), **how
    )


INF = float("inf")
#        2
#      5/ \3          path 0 - 2 - 1 - 4, and 3 below 0
#      0   1
#    7/     \1
#    3       4
SMALL = tree_of([2, 2, -1, 0, 1], [5.0, 3.0, INF, 7.0, 1.0])


@st.composite
def trees(draw: st.DrawFn) -> CutTree:
    n = draw(st.integers(1, 12))
    names = draw(st.permutations(range(n)))
    parent, weight = [-1] * n, [INF] * n
    for i in range(1, n):
        parent[names[i]] = names[draw(st.integers(0, i - 1))]
        weight[names[i]] = draw(st.sampled_from([0.0, 0.1, 1 / 3, 1.0, 1.0, 2.5, 1e300, 5e-324]))
    return tree_of(parent, weight)


def test_the_minimum_cut_is_the_lightest_edge_of_the_path() -> None:
    assert SMALL.min_cut_value(3, 2) == 5
    assert SMALL.min_cut_value(3, 0) == 7
    assert SMALL.min_cut_value(3, 4) == 1
    assert SMALL.min_cut_value(4, 0) == 1
    cut = SMALL.min_cut(3, 1)
    assert cut.value == 3
    assert cut.side.tolist() == [True, False, True, True, False]
    assert SMALL.min_cut(1, 3).side.tolist() == [False, True, False, False, True]


@given(trees())
@settings(deadline=None)
def test_queries_equal_networkx_on_the_same_tree(tree: CutTree) -> None:
    graph = tree.to_networkx()
    assert nx.is_tree(graph)
    values = tree.all_min_cut_values()
    for u in range(tree.n):
        assert values[u, u] == INF
        for v in range(u):
            path = nx.shortest_path(graph, u, v)
            expected = min(graph.edges[e]["weight"] for e in nx.utils.pairwise(path))
            assert tree.min_cut_value(u, v) == tree.min_cut(v, u).value == expected == values[u, v]
            side = tree.min_cut(u, v).side
            assert side[u]
            assert not side[v]


@given(trees())
@settings(deadline=None)
def test_sides_and_subtree_sums_agree(tree: CutTree) -> None:
    x = torch.arange(tree.n, dtype=torch.float64)
    sums = tree.subtree_sums(x)
    for v in range(tree.n):
        assert sums[v] == x[tree.side(v)].sum()


@given(trees(), st.data())
@settings(deadline=None)
def test_partitions_are_the_parts_left_by_the_lightest_edges(tree: CutTree, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, tree.n))
    labels = tree.partition(k)
    assert sorted(set(labels.tolist())) == list(range(k))
    first = [labels.tolist().index(i) for i in range(k)]
    assert first == sorted(first)
    graph = tree.to_networkx()
    across = sorted(w for u, v, w in graph.edges(data="weight") if labels[u] != labels[v])
    assert across == sorted(w for *_, w in graph.edges(data="weight"))[: k - 1]


@pytest.mark.parametrize(("k", "error"), [(0, ValueError), (6, ValueError), (2.0, TypeError), (-1, ValueError)])
def test_impossible_partitions_are_refused(k: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="k must be"):
        SMALL.partition(k)


def test_bad_vertices_are_refused() -> None:
    for u, v in ((0, 5), (-1, 2)):
        with pytest.raises(ValueError, match=r"must be in \[0, 5\)"):
            SMALL.min_cut(u, v)
    with pytest.raises(ValueError, match="different vertices, got 2 twice"):
        SMALL.min_cut_value(2, 2)
    with pytest.raises(TypeError, match="u must be an integer"):
        SMALL.min_cut_value(0.5, 2)  # type: ignore[arg-type]


def test_conductance_ranks_modules_above_neurons_where_values_do_not() -> None:
    w = torch.block_diag(testing.dense(10, 0), testing.dense(10, 1)) + 0.01
    w.fill_diagonal_(0.0)
    w[0, :10] *= 0.05  # a weak neuron inside the first module: the lightest edge of all
    w[:10, 0] = w[0, :10]
    w[0, 10:] = w[10:, 0] = 0.0
    tree = testing.reference_tree(w)
    edges, conductance = tree.edges_by_conductance(w)
    assert sorted(edges.tolist()) == tree.edges.tolist()
    assert torch.equal(conductance, conductance.sort().values)
    best = tree.side(int(edges[0]))
    assert best.sum() == 10
    assert set(best.tolist()[:10]) == {best[0].item()}
    lightest = tree.side(int(torch.argmin(tree.weight)))
    assert min(int(lightest.sum()), 20 - int(lightest.sum())) == 1
    assert conductance[-1] == pytest.approx(1.0)
    volume = torch.minimum(w[best].sum(), w[~best].sum())
    assert conductance[0] == pytest.approx(float(w[best][:, ~best].sum() / volume))
    with pytest.raises(ValueError, match="20 vertices, got 3"):
        tree.edges_by_conductance(torch.ones(3, 3))


def test_isolated_vertices_rank_last() -> None:
    w = torch.block_diag(testing.dense(3, 0), torch.zeros(1, 1, dtype=torch.float64), testing.dense(3, 1))
    edges, conductance = testing.reference_tree(w).edges_by_conductance(w)
    assert conductance[-1] == INF
    assert conductance[0] == 0.0
    assert len(edges) == 6


def test_the_share_of_single_vertex_cuts() -> None:
    assert tree_of([-1, 0, 0, 0], [INF, 1, 2, 3]).trivial_fraction == 1.0
    assert tree_of([1, -1, 1, 1], [1, INF, 2, 3]).trivial_fraction == 1.0
    assert tree_of([-1, 0, 1, 2], [INF, 1, 2, 3]).trivial_fraction == pytest.approx(2 / 3)
    assert tree_of([-1], [INF]).trivial_fraction == 0.0


def test_other_forms_hold_the_same_edges() -> None:
    graph, other = SMALL.to_networkx(), SMALL.to_igraph()
    assert {tuple(sorted(e)): w for *e, w in graph.edges(data="weight")} == {(0, 2): 5, (1, 2): 3, (0, 3): 7, (1, 4): 1}
    assert {tuple(sorted(e.tuple)): e["weight"] for e in other.es} == {(0, 2): 5, (1, 2): 3, (0, 3): 7, (1, 4): 1}
    assert graph.number_of_nodes() == other.vcount() == 5
    assert tree_of([-1], [INF]).to_networkx().number_of_nodes() == 1


def test_to_dict_is_json_and_carries_its_origin() -> None:
    tree = modcut.gomory_hu_tree(testing.known_graph(), seed=7)
    data = json.loads(json.dumps(tree.to_dict(), allow_nan=False))
    assert data["n"] == 6
    assert data["seed"] == 7
    assert data["stamp"]["modcut"] == modcut.__version__
    assert data["weight"].count(None) == 1
    cut = json.loads(json.dumps(modcut.min_cut(testing.known_graph(), 0, 5).to_dict(), allow_nan=False))
    assert cut["value"] == 6
    assert 0 in cut["side"]


def test_repr_says_what_matters() -> None:
    assert repr(tree_of([-1], [INF])) == "CutTree(n=1)"
    assert "n=5, exact, cuts 1 .. 7, 75 % single" in repr(tree_of([2, 2, -1, 0, 2], [5.0, 3.0, INF, 7.0, 1.0]))
    assert "value=6" in repr(modcut.min_cut(testing.known_graph(), 0, 5))


# --- files ------------------------------------------------------------------------------------------------------------


@given(tree=trees())
@settings(deadline=None, max_examples=25)
def test_a_saved_tree_comes_back_bit_for_bit(tree: CutTree, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("tree") / "t.safetensors"
    tree.save(path)
    back = CutTree.load(path)
    for name in ("parent", "weight", "lower", "certified"):
        assert torch.equal(getattr(back, name), getattr(tree, name))
    assert back.to_dict() | {"stamp": None} == tree.to_dict() | {"stamp": None}


def test_everything_beside_the_arrays_comes_back(tmp_path: Path) -> None:
    for w in (testing.known_graph(), testing.dense(30, 0), torch.zeros(0, 0), torch.zeros(1, 1)):
        tree = modcut.gomory_hu_tree(w, method="approx", eps=0.25, seed=3)
        tree.save(tmp_path / "t")
        back = modcut.CutTree.load(str(tmp_path / "t"))
        assert (back.exact, back.integer, back.seed, back.eps) == (tree.exact, tree.integer, 3, 0.25)
        assert back.stats == tree.stats


def test_foreign_and_damaged_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    with pytest.raises(FileNotFoundError, match="no file"):
        CutTree.load(path)
    SMALL.save(path)
    whole = path.read_bytes()
    for size in (0, 5, 40, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match="truncated or not a safetensors file"):
            CutTree.load(path)
    path.write_bytes(b"\x80\x04\x95 a pickle, perhaps")
    with pytest.raises(ValueError, match="not a safetensors file"):
        CutTree.load(path)
    save_file({"weight": torch.ones(3)}, str(path))
    with pytest.raises(ValueError, match=r"not one that CutTree\.save wrote"):
        CutTree.load(path)
    header = {"format": "modcut.CutTree", "format_version": "1", "meta": "{}"}
    save_file({"weight": torch.ones(3)}, str(path), metadata=header)
    with pytest.raises(ValueError, match="does not hold a tree"):
        CutTree.load(path)
    save_file({"weight": torch.ones(3)}, str(path), metadata=header | {"format_version": "9"})
    with pytest.raises(ValueError, match="format version 9"):
        CutTree.load(path)


@pytest.mark.parametrize(
    ("parent", "weight", "message"),
    [
        ([0, 0], [INF, 1.0], "exactly one vertex"),
        ([-1, -1], [INF, INF], "exactly one vertex"),
        ([-1, 5], [INF, 1.0], "vertex ids below 2"),
        ([-1, -2], [INF, 1.0], "vertex ids below 2"),
        ([-1, 2, 1], [INF, 1.0, 1.0], "2 are on cycles"),
        ([-1, 0], [INF, -1.0], "weight must be finite"),
        ([-1, 0], [INF, float("nan")], "weight must be finite"),
        ([-1, 0], [INF, INF], "weight must be finite"),
        ([-1, 0], [0.0, 1.0], "must be inf at the root"),
    ],
)
def test_what_is_no_tree_is_refused(parent: list[int], weight: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tree_of(parent, weight)


def test_wrong_dtypes_and_lower_bounds_are_refused() -> None:
    parent, weight, code = torch.tensor([-1, 0]), torch.tensor([INF, 1.0]).double(), torch.zeros(2, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"parent must be torch\.int64 of shape \[2\], got torch\.int32"):
        CutTree(parent.int(), weight, weight, code)
    with pytest.raises(ValueError, match=r"weight must be torch\.float64 of shape \[2\], got .* \[1\]"):
        CutTree(parent, weight[1:], weight, code)
    with pytest.raises(ValueError, match=r"lower in \[0, weight\]"):
        CutTree(parent, weight, torch.tensor([INF, 1.5]).double(), code)


def test_integer_trees_beyond_float64_are_refused() -> None:
    w = torch.full((3, 3), 2**53)
    with pytest.raises(ValueError, match=r"below 2\^53"):
        modcut.gomory_hu_tree(w)
    assert modcut.max_flow(w, 0, 1).value == 2**54


def test_a_long_path_is_no_recursion() -> None:
    n = 20_000
    tree = tree_of([*range(1, n), -1], [1.0 + i for i in range(n - 1)] + [INF])
    assert tree.min_cut_value(0, n - 1) == 1.0
    assert tree.partition(2).sum() == n - 1
    assert tree.stats == TreeStats()
