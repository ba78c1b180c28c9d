"""A sparse graph stays sparse, in every function that cuts and in the graph that is made of it."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
import torch

import modcut
from modcut import testing
from modcut._problem import problem

pytestmark = pytest.mark.filterwarnings("ignore:Sparse CS[RC] tensor support is in beta")


def large(n: int = 3000, m: int = 12_000, seed: int = 0) -> sp.csr_array:
    """Connected, symmetric, n^2 beyond what becomes dense."""
    rng = np.random.default_rng(seed)
    i = np.concatenate([np.arange(n - 1), rng.integers(0, n, m)])
    j = np.concatenate([np.arange(1, n), rng.integers(0, n, m)])
    half = sp.coo_array((rng.random(len(i)) + 0.5, (i, j)), shape=(n, n))
    a = sp.csr_array(half + half.T)
    a.setdiag(0)
    a.eliminate_zeros()
    return a


FORMS = {
    "csr": lambda a: a,
    "csc": sp.csc_array,
    "coo": sp.coo_array,
    "matrix": sp.csr_matrix,
    "torch coo": lambda a: torch.sparse_coo_tensor(
        np.stack(a.tocoo().coords), a.tocoo().data, a.shape, check_invariants=True
    ),
    "torch csr": lambda a: torch.sparse_csr_tensor(a.indptr, a.indices, a.data, a.shape, check_invariants=True),
    "torch csc": lambda a: torch.sparse_csc_tensor(
        sp.csc_array(a).indptr, sp.csc_array(a).indices, sp.csc_array(a).data, a.shape, check_invariants=True
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_graph_of_a_sparse_matrix_is_sparse(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    a = large()
    g = modcut.WeightGraph.from_matrix(FORMS[form](a))
    monkeypatch.setattr(
        torch.Tensor, "to_dense", lambda self, *_: pytest.fail("made dense") if self.ndim == 2 else self
    )
    monkeypatch.setattr(sp.csr_array, "toarray", lambda self: pytest.fail("made dense"))
    assert g.blocks[0].weight.is_sparse
    assert (g.n, g.num_edges) == (3000, sp.triu(a, 1).nnz)
    torch.testing.assert_close(g.degree(), torch.from_numpy(a.sum(1)))
    assert (g.to_scipy() != a).nnz == 0
    p = problem(g)
    assert not p.blocks
    assert modcut.max_flow(g, 0, 2999).value == modcut.max_flow(a, 0, 2999).value
    assert modcut.global_min_cut(g).value == modcut.global_min_cut(a).value


def test_functions_of_a_sparse_graph_equal_those_of_its_matrix() -> None:
    a = large(2100, 6000)
    g = modcut.WeightGraph.from_matrix(a)
    labels = torch.arange(2100) // 700
    torch.testing.assert_close(modcut.quotient_matrix(g, labels), modcut.quotient_matrix(a, labels))
    terminals = [0, 700, 1400, 2099]
    for x, y in zip(modcut.isolating_cuts(g, terminals), modcut.isolating_cuts(a, terminals), strict=True):
        assert x.value == y.value
        assert x.side.equal(y.side)
    P = modcut.Partition(labels, g, 3)
    torch.testing.assert_close(P.table, modcut.quotient_matrix(a, labels))
    assert 0 < P.leak < 1
    better, record = modcut.improve_partition(g, P, balance=0.3)
    assert isinstance(better, modcut.Partition)
    assert max(record.conductance_after) <= max(record.conductance_before)
    torch.testing.assert_close(better.conductance, torch.tensor(record.conductance_after, dtype=torch.float64))


def test_a_sparse_rectangle_is_bipartite() -> None:
    a = sp.random_array((3000, 2000), density=1e-3, rng=np.random.default_rng(0), format="csr")
    g = modcut.WeightGraph.from_matrix(a)
    assert g.n == 5000
    assert g.blocks[0].weight.is_sparse
    assert modcut.max_flow(g, 0, 3000).value == modcut.max_flow(a, 0, 3000, bipartite=True).value
    torch.testing.assert_close(g.degree()[:3000], torch.from_numpy(a.sum(1)))


def test_integers_and_signs_and_rounding() -> None:
    a = large()
    whole = sp.csr_array((a.data.round().astype(np.int64), a.indices, a.indptr), shape=a.shape)
    assert isinstance(modcut.max_flow(modcut.WeightGraph.from_matrix(whole), 0, 9).value, int)
    signed = a.copy()
    signed.data = -signed.data
    assert modcut.max_flow(modcut.WeightGraph.from_matrix(signed), 0, 9).value == modcut.max_flow(a, 0, 9).value
    nearly = a.copy()
    nearly.data[0] *= 1 + 1e-15
    assert modcut.WeightGraph.from_matrix(nearly).n == 3000
    far = a.copy()
    far.data[0] *= 2
    assert modcut.WeightGraph.from_matrix(far).n == 6000, "asymmetric: rows and columns are different vertices"
    far.data[0] = np.nan
    with pytest.raises(ValueError, match="finite"):
        modcut.WeightGraph.from_matrix(far)


class FakeCupy:
    """What ``cupyx.scipy.sparse.csr_matrix`` offers: a host copy."""

    def __init__(self, a: Any) -> None:
        self.a, self.shape = a, a.shape

    def get(self) -> Any:
        return self.a


FakeCupy.__module__ = "cupyx.scipy.sparse._csr"


def test_cupy_sparse_goes_through_its_host_copy() -> None:
    a = large()
    assert modcut.max_flow(FakeCupy(a), 0, 9).value == modcut.max_flow(a, 0, 9).value
    assert modcut.WeightGraph.from_matrix(FakeCupy(a)).n == 3000
    small = sp.csr_array(testing.known_graph().numpy())
    assert modcut.WeightGraph.from_matrix(FakeCupy(small)).n == 6


@pytest.mark.slow
def test_a_million_edges_take_no_more_than_their_own_memory() -> None:
    code = """
        import resource
        import numpy as np, scipy.sparse as sp, torch, modcut
        n, m = 100_000, 1_000_000
        rng = np.random.default_rng(0)
        i = np.concatenate([np.arange(n - 1), rng.integers(0, n, m)])
        j = np.concatenate([np.arange(1, n), rng.integers(0, n, m)])
        half = sp.coo_array((rng.random(len(i)), (i, j)), shape=(n, n))
        a = sp.csr_array(half + half.T)
        modcut.max_flow(torch.ones(3, 3), 0, 1)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        g = modcut.WeightGraph.from_matrix(a)
        for graph in (a, g):
            assert modcut.max_flow(graph, 0, n // 2).exact
            assert modcut.global_min_cut(graph).exact
            modcut.isolating_cuts(graph, [0, 10, 20])
            modcut.quotient_tree(graph, torch.arange(n) % 5)
        modcut.improve_partition(g, torch.arange(n) * 2 // n, rounds=1, balance=0.4)
        print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 1024, "MiB; dense it would be 75 GiB, its rows are 24 MiB"


@pytest.mark.parametrize("family", ["path", "tree", "cycle"])
def test_what_bridges_and_chains_decide_needs_no_flow(family: str) -> None:
    g = getattr(testing, family)(300, 1, form="csr")
    tree = modcut.gomory_hu_tree(g)
    assert tree.exact and tree.stats.flows == 0
    assert tree.stats.certified_by == {"reduction": 299}
    testing.validate_cut_tree(tree, g, modcut.gomory_hu_tree(g, certificates=False))


def test_stored_zeros_and_loops_are_no_edges() -> None:
    clean = testing.grid(5, 6, 3, form="csr")
    rows, cols = (c.astype(np.int64) for c in clean.tocoo().coords)
    loops = np.arange(30)
    coo = sp.coo_array(
        (
            np.concatenate([clean.data, np.full(30, 7.0), [0.0, 0.0]]),
            (np.concatenate([rows, loops, [0, 29]]), np.concatenate([cols, loops, [29, 0]])),
        ),
        shape=clean.shape,
    )
    dirty = sp.csr_array(coo)
    assert dirty.nnz == clean.nnz + 32
    a, b = modcut.gomory_hu_tree(clean), modcut.gomory_hu_tree(dirty)
    assert torch.equal(a.parent, b.parent)
    assert torch.equal(a.weight, b.weight)
