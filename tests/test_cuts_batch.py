"""Many small graphs at once: the trees are Gomory-Hu trees, equal the single call's, and bad batches are refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from scipy.sparse.csgraph import maximum_flow

from modcut import _native, gomory_hu_tree
from modcut._arrays import capsule
from modcut.cuts import gomory_hu_trees
from modcut.testing import validate_cut_tree


def graphs(b: int, n: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    if dtype.is_floating_point:
        w = torch.rand(b, n, n, generator=g, dtype=dtype)
    else:
        w = torch.randint(0, 50, (b, n, n), generator=g, dtype=dtype)
    w = torch.where(torch.rand(b, n, n, generator=g) < torch.rand(b, 1, 1, generator=g), w, torch.zeros_like(w))
    return torch.triu(w) + torch.triu(w, 1).transpose(1, 2)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.int64, torch.int32])
@pytest.mark.parametrize("n", [1, 2, 3, 17, 33])
def test_each_is_a_gomory_hu_tree_of_its_graph(n: int, dtype: torch.dtype) -> None:
    w = graphs(6, n, dtype)
    trees = gomory_hu_trees(w)
    assert len(trees) == 6 and bool(trees.exact.all())
    for i, tree in enumerate(trees):
        single = gomory_hu_tree(w[i])
        total, other = (float(t.weight[t.parent >= 0].sum()) for t in (tree, single))
        assert total == other if not dtype.is_floating_point else total == pytest.approx(other, rel=3e-6)
        validate_cut_tree(tree, w[i])


def test_all_pairs_equal_scipys_maximum_flows() -> None:
    w = graphs(3, 11, torch.int32, seed=4)
    for i, tree in enumerate(gomory_hu_trees(w)):
        rows = w[i].clone()
        rows.fill_diagonal_(0)
        a = sp.csr_array(rows.numpy())
        for u in range(11):
            for v in range(u):
                assert tree.min_cut_value(u, v) == maximum_flow(a, u, v).flow_value


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
def test_the_number_of_threads_changes_no_bit(dtype: torch.dtype) -> None:
    w = graphs(5, 40, dtype)
    one = gomory_hu_trees(w)
    for threads in (2, 3, 7):
        more = gomory_hu_trees(w, threads=threads)
        for a, b in zip((one.parent, one.weight, one.lower), (more.parent, more.weight, more.lower), strict=True):
            assert torch.equal(a, b)


def test_views_arrays_and_short_dtypes_are_read_as_they_are() -> None:
    w = graphs(4, 9, torch.int32)
    want = gomory_hu_trees(w).weight
    wide = torch.zeros(4, 9, 20, dtype=torch.int32)
    wide[:, :, 5:14] = w

    class Foreign:  # stands for CuPy, which cannot run without a device
        def __dlpack__(self, *args: Any, **kwargs: Any) -> Any:
            return w.__dlpack__(*args, **kwargs)

        def __dlpack_device__(self) -> Any:
            return w.__dlpack_device__()

    for given in (wide[:, :, 5:14], w.transpose(1, 2), w.numpy(), w.to(torch.int16), w.double(), w.half(), Foreign()):
        assert torch.equal(gomory_hu_trees(given).weight, want)
    assert torch.equal(gomory_hu_trees(w[:1].expand(3, 9, 9)).weight, want[:1].expand(3, 9))


@pytest.mark.parametrize("shape", [(0, 5, 5), (3, 0, 0), (0, 0, 0)])
def test_empty_batches_have_empty_trees(shape: tuple[int, int, int]) -> None:
    trees = gomory_hu_trees(torch.zeros(shape))
    assert tuple(trees.parent.shape) == shape[:2] and len(list(trees)) == shape[0]


@pytest.mark.parametrize(
    ("value", "back", "says"),
    [
        (float("nan"), float("nan"), r"graph 1 is NaN at \[2, 4\]"),
        (float("inf"), float("inf"), r"graph 1 is infinite at \[2, 4\]"),
        (-1.0, -1.0, r"graph 1 is negative at \[2, 4\]"),
        (1.0, 2.0, r"graph 1 is not, \[2, 4\] and \[4, 2\] differ"),
    ],
)
def test_bad_entries_are_named_and_without_check_told_in_the_status(value: float, back: float, says: str) -> None:
    w = graphs(3, 6, torch.float64)
    w[1, 2, 4], w[1, 4, 2] = value, back
    with pytest.raises(ValueError, match=says):
        gomory_hu_trees(w)
    trees = gomory_hu_trees(w, check=False)
    assert trees.status[:, 0].bool().tolist() == [False, True, False] == (~trees.exact).tolist()
    with pytest.raises(ValueError, match=says):
        trees[1]


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        (torch.zeros(3, 3), ValueError, r"shape \[b, n, n\], got \[3, 3\]"),
        (torch.zeros(2, 3, 4), ValueError, r"got \[2, 3, 4\]"),
        (torch.zeros(1, 3, 3, dtype=torch.bool), TypeError, "real numbers"),
        (torch.zeros(1, 3, 3, device="meta"), ValueError, "CPU or a CUDA device, got meta"),
        (torch.zeros(1, 3, 3).to_sparse(), TypeError, "must be dense"),
        (torch.zeros(1, 1, 1).expand(1, 4097, 4097), ValueError, "at most 4096 vertices, got 4097"),
        (torch.full((1, 2, 2), 2**30, dtype=torch.int32), ValueError, r"below 2\^30 \(pass int64\)"),
        (torch.full((1, 2, 2), 2**53), ValueError, r"less than 2\^53"),
    ],
)
def test_what_is_no_batch_is_refused(given: torch.Tensor, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        gomory_hu_trees(given)


def test_the_engine_refuses_wrong_outputs_and_host_arrays_for_the_device() -> None:
    w = torch.zeros(2, 3, 3)
    out = [torch.zeros(2, 3, dtype=torch.int64), *torch.zeros(2, 2, 3, dtype=torch.float64)]
    with pytest.raises(ValueError, match=r"status_out must have shape \[2, 4\], got \[2, 5\]"):
        _native.gomory_hu_batch_cpu(*map(capsule, (w, *out, torch.zeros(2, 5, dtype=torch.int64))), 1)
    with pytest.raises(ValueError, match="threads must be between 1 and 1024"):
        _native.gomory_hu_batch_cpu(*map(capsule, (w, *out, torch.zeros(2, 4, dtype=torch.int64))), 0)
    with pytest.raises((ValueError, RuntimeError), match=r"must be on a CUDA device|needs a build with CUDA"):
        _native.gomory_hu_batch_plan(capsule(w))


def test_numpy_integers_stay_exact() -> None:
    w = np.full((1, 3, 3), 2**40 + 1)
    assert gomory_hu_trees(w)[0].min_cut_value(0, 2) == 2 * (2**40 + 1)
