"""What the cut functions accept, what they refuse, and that they say why."""

from __future__ import annotations

import importlib
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

W = testing.sparse(9, 0.6, seed=3)
VALUE = testing.reference_min_cut(W, 0, 8)[0]


class OtherLibraryArray:
    """An array of a library that modcut has never heard of, and that only speaks DLPack (as CuPy does)."""

    def __init__(self, t: torch.Tensor) -> None:
        self.t = t

    def __dlpack__(self, **how: Any) -> Any:
        return self.t.__dlpack__(**how)

    def __dlpack_device__(self) -> tuple[int, int]:
        return 1, 0


class DeviceArray:
    """An array that says it lies on a GPU and hands out a host copy, as ``cupy.ndarray.get`` does."""

    def __dlpack__(self, **how: Any) -> Any:
        raise BufferError("there is no such device here")

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 0

    def get(self) -> np.ndarray:
        return W.numpy()


def readonly(a: np.ndarray) -> np.ndarray:
    a = a.copy()
    a.flags.writeable = False
    return a


FORMS = {
    "torch": W,
    "torch float32": W.float().double(),
    "torch requires grad": W.clone().requires_grad_(),
    "torch column-major": W.T.contiguous().T,
    "torch strided": torch.nn.functional.pad(W, (0, 3))[:, :9],
    "torch expanded from one storage": torch.stack([W, W], dim=2)[..., 0],
    "torch sparse COO": W.to_sparse_coo(),
    "torch sparse CSR": None,  # made in the test: torch warns that it is in beta
    "numpy": W.numpy(),
    "numpy read-only": readonly(W.numpy()),
    "numpy reversed twice": W.numpy()[::-1, ::-1].copy()[::-1, ::-1],
    "numpy big-endian": W.numpy().astype(">f8"),
    "nested lists": W.tolist(),
    "scipy csr_array": sp.csr_array(W.numpy()),
    "scipy coo_matrix": sp.coo_matrix(W.numpy()),
    "scipy lil_array": sp.lil_array(W.numpy()),
    "other library by DLPack": OtherLibraryArray(W),
    "CuPy-like on a device torch lacks": DeviceArray(),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
def test_every_form_of_matrix_gives_the_same_cut(form: str) -> None:
    w = W.to_sparse_csr() if form == "torch sparse CSR" else FORMS[form]
    cut = modcut.min_cut(w, 0, 8)
    rel = 1e-6 if form == "torch float32" else 1e-12
    assert cut.value == pytest.approx(VALUE, rel=rel)
    assert modcut.gomory_hu_tree(w).min_cut_value(0, 8) == pytest.approx(VALUE, rel=rel)


def test_input_is_not_changed() -> None:
    dense, sparse = W.clone(), sp.csr_array(W.numpy())
    before = sparse.copy()
    modcut.gomory_hu_tree(dense)
    modcut.gomory_hu_tree(sparse)
    assert torch.equal(dense, W)
    assert (sparse != before).nnz == 0


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint64])
def test_integers_give_integer_values(dtype: torch.dtype) -> None:
    cut = modcut.max_flow(testing.known_graph().to(dtype), 0, 5)
    assert cut.value == 6
    assert isinstance(cut.value, int)
    assert isinstance(cut.lower, int)
    assert cut.exact


@pytest.mark.parametrize("dtype", ["uint8", "uint32", "uint64", "int16", "int64"])
def test_numpy_and_sparse_integers_give_integer_values(dtype: str) -> None:
    w = testing.known_graph().numpy().astype(dtype)
    assert isinstance(modcut.min_cut(w, 0, 5).value, int)
    assert isinstance(modcut.min_cut(sp.csr_array(w), 0, 5).value, int)
    assert isinstance(modcut.gomory_hu_tree(w).min_cut_value(0, 5), int)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_floats_give_the_cut_of_the_rounded_weights(dtype: torch.dtype) -> None:
    w = W.to(dtype)
    assert modcut.min_cut(w, 0, 8).value == pytest.approx(testing.reference_min_cut(w.double(), 0, 8)[0], rel=1e-6)


def test_dtypes_are_kept() -> None:
    assert problem(W.float()).dtype == torch.float32
    assert problem(W.half()).dtype == torch.float32
    assert problem(W).dtype == torch.float64
    assert problem(W.bool().int()).dtype == torch.int64


def test_large_integers_are_exact() -> None:
    big = 2**52 + 1  # not exact in float32, its sums not in float64
    w = np.array([[0, big, big], [big, 0, big], [big, big, 0]])
    assert modcut.min_cut(w, 0, 2).value == 2 * big


def test_self_loops_do_not_count() -> None:
    loops = W + torch.diag(torch.full((9,), 100.0, dtype=torch.float64))
    for w in (loops, sp.csr_array(loops.numpy())):
        assert modcut.min_cut(w, 0, 8).value == pytest.approx(VALUE, rel=1e-12)
        assert torch.equal(modcut.gomory_hu_tree(w).weight, modcut.gomory_hu_tree(W).weight) or sp.issparse(w)


def test_a_rectangular_matrix_is_a_bipartite_graph() -> None:
    b = torch.rand(4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    full = torch.zeros(10, 10, dtype=torch.float64)
    full[:4, 4:], full[4:, :4] = b, b.T
    for form in (b, sp.csr_array(b.numpy())):
        assert modcut.min_cut(form, 0, 9, bipartite=True).value == pytest.approx(modcut.min_cut(full, 0, 9).value)
        testing.validate_cut_tree(modcut.gomory_hu_tree(form, bipartite=True), full)


def test_symmetrize_averages_with_the_transpose() -> None:
    a = torch.triu(W)
    for form in (a, sp.csr_array(a.numpy())):
        assert modcut.min_cut(form, 0, 8, symmetrize=True).value == pytest.approx(VALUE / 2, rel=1e-12)


def test_asymmetry_of_rounding_is_averaged() -> None:
    w = W.clone()
    w[0, 1] = w[1, 0] = 0.3
    w[0, 1] += 1e-16
    w[1, 0] *= 1 + 1e-12
    for form in (w, sp.csr_array(w.numpy())):
        assert modcut.min_cut(form, 0, 8).exact


def test_sparse_input_stays_sparse() -> None:
    n = 200_000
    i = np.arange(n - 1)
    a = sp.coo_array((np.ones(n - 1), (i, i + 1)), shape=(n, n))
    p = problem(sp.csr_array(a + a.T))
    assert not p.blocks
    assert p.csr is not None
    assert p.csr.nnz == 2 * (n - 1)


# --- weight graphs and models -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("widths", [(3, 4, 2), (5, 5), (1, 6, 1)])
def test_a_weight_graph_is_the_graph_of_its_blocks(widths: tuple[int, ...]) -> None:
    g, w = testing.mlp_graph(widths, seed=1), testing.mlp(widths, seed=1)
    assert torch.allclose(problem(g).degree(), w.sum(1), rtol=1e-6)
    tree = modcut.gomory_hu_tree(g)
    testing.validate_cut_tree(tree, g)
    assert torch.allclose(
        torch.sort(tree.weight).values, torch.sort(testing.reference_tree(w).weight).values, rtol=1e-6
    )


def test_parallel_blocks_add_up() -> None:
    g = testing.mlp_graph((3, 4), seed=0)
    twice = modcut.WeightGraph(g.spaces, g.blocks + g.blocks)
    assert modcut.min_cut(twice, 0, 6).value == pytest.approx(2 * modcut.min_cut(g, 0, 6).value, rel=1e-6)
    testing.validate_cut_tree(modcut.gomory_hu_tree(twice), twice)


def test_a_map_of_a_space_into_itself_adds_both_directions() -> None:
    from modcut.graph.types import Block, Space

    space = Space("h", 4, "hidden", 0)
    w = torch.arange(16, dtype=torch.float64).reshape(4, 4)
    index = torch.arange(4)[:, None]
    g = modcut.WeightGraph((space,), (Block(space, space, w, "recurrent", index, index, lambda b: b.weight.abs()),))
    testing.validate_cut_tree(modcut.gomory_hu_tree(g), w + w.T)


def test_a_model_is_cut_through_its_weight_graph() -> None:
    pytest.importorskip("modcut.graph.trace")
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    g = modcut.weight_graph(model)
    assert torch.equal(modcut.gomory_hu_tree(model).weight, modcut.gomory_hu_tree(g).weight)


# --- refusals ---------------------------------------------------------------------------------------------------------


def spoiled(i: int, j: int, value: float, both: bool = True) -> torch.Tensor:
    w = W.clone()
    w[i, j] = value
    if both:
        w[j, i] = value
    return w


@pytest.mark.parametrize("as_sparse", [False, True], ids=["dense", "sparse"])
@pytest.mark.parametrize(
    ("w", "message"),
    [
        (spoiled(2, 5, float("nan")), r"\[2, 5\] is NaN"),
        (spoiled(2, 5, float("inf")), r"\[2, 5\] is infinite"),
        (spoiled(2, 5, -0.25), r"non-negative.*\[2, 5\] is negative \(-0.25\)"),
        (spoiled(2, 5, 9.0, both=False), r"symmetric.*\[2, 5\] is 9.0 and \[5, 2\] is .*symmetrize=True"),
        (W[:, :7], r"square, got shape \[9, 7\].*bipartite=True"),
        (W * (1e308 / W.max()), "add up to less than"),
    ],
    ids=["NaN", "infinite", "negative", "asymmetric", "not square", "overflow"],
)
@pytest.mark.parametrize("call", [lambda w: modcut.min_cut(w, 0, 1), modcut.gomory_hu_tree, modcut.global_min_cut])
def test_bad_weights_are_refused_with_their_place(w: torch.Tensor, message: str, as_sparse: bool, call: Any) -> None:
    with pytest.raises(ValueError, match=message):
        call(sp.csr_array(w.numpy()) if as_sparse else w)


@pytest.mark.parametrize("as_sparse", [False, True], ids=["dense", "sparse"])
def test_integers_must_be_symmetric_exactly(as_sparse: bool) -> None:
    w = np.full((3, 3), 10**15)
    w[0, 1] += 1
    with pytest.raises(ValueError, match=r"symmetric exactly"):
        modcut.gomory_hu_tree(sp.csr_array(w) if as_sparse else w)


@pytest.mark.parametrize(
    ("w", "error", "message"),
    [
        (torch.ones(4), ValueError, "2 dimensions, got 1"),
        (torch.ones(2, 2, 2), ValueError, "2 dimensions, got 3"),
        (torch.tensor(3.0), ValueError, "2 dimensions, got 0"),
        (W.to(torch.complex64), TypeError, "real numbers"),
        (W.bool(), TypeError, "torch.bool"),
        (W.numpy().astype(bool), TypeError, "astype"),
        (W.numpy().astype(complex), TypeError, "complex"),
        (W.numpy().astype(object), TypeError, "object"),
        (sp.csr_array(W.numpy() > 0), TypeError, "bool"),
        ([[0.0, 1.0], [1.0]], ValueError, "rectangular"),
        ([["a", "b"], ["b", "a"]], TypeError, "real numbers"),
        (W.to("meta"), ValueError, "meta"),
        (np.ma.masked_greater(W.numpy(), 0.5), TypeError, r"masked.*filled\(0\)"),
        ("weights.pt", TypeError, "got str"),
        (None, TypeError, "got NoneType"),
        (3.0, TypeError, "got float"),
        (np.full((2, 2), 2**63, dtype=np.uint64), ValueError, r"int64.*\[0, 0\] is 9223372036854775808"),
        (torch.full((2, 2), 2**63, dtype=torch.uint64), ValueError, r"int64"),
        (np.full((3, 3), 2**61), ValueError, r"less than 2\^60"),
    ],
    ids=lambda x: type(x).__name__ if not isinstance(x, str) else None,
)
def test_what_is_no_graph_is_refused(w: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        modcut.gomory_hu_tree(w)


@pytest.mark.parametrize(
    ("s", "t", "error", "message"),
    [
        (3, 3, ValueError, "different vertices, got 3 twice"),
        (-1, 3, ValueError, r"s must be in \[0, 9\) .*got -1"),
        (0, 9, ValueError, r"t must be in \[0, 9\) .*got 9"),
        (0.0, 3, TypeError, "s must be an integer"),
        (0, "3", TypeError, "t must be an integer"),
        (True, 3, TypeError, "got a bool"),
        (0, None, TypeError, "t must be an integer"),
    ],
)
def test_bad_vertices_are_refused(s: Any, t: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        modcut.max_flow(W, s, t)
    if s != t:
        with pytest.raises(error):
            modcut.gomory_hu_tree(W).min_cut_value(s, t)


def test_vertices_may_be_any_kind_of_integer() -> None:
    for v in (8, np.int32(8), np.uint8(8), torch.tensor(8)):
        assert modcut.min_cut(W, 0, v).value == pytest.approx(VALUE)


def test_an_empty_graph_has_no_cut() -> None:
    with pytest.raises(ValueError, match="empty graph"):
        modcut.max_flow(torch.zeros(0, 0), 0, 1)
    with pytest.raises(ValueError, match="at least 2 vertices"):
        modcut.global_min_cut(torch.zeros(1, 1))


@pytest.mark.parametrize(
    ("how", "error", "message"),
    [
        ({"method": "fast"}, ValueError, 'method must be "exact" or "approx"'),
        ({"eps": 0.1}, ValueError, 'eps must be 0 with method="exact"'),
        ({"method": "approx", "eps": -0.1}, ValueError, r"eps must be a number in \[0, 1\]"),
        ({"method": "approx", "eps": float("nan")}, ValueError, "eps"),
        ({"method": "approx", "eps": "0.1"}, ValueError, "eps"),
        ({"threads": 0}, ValueError, "threads must be at least 1"),
        ({"seed": 0.5}, TypeError, "integer"),
        ({"bipartite": True, "symmetrize": True}, ValueError, "symmetrize must be False"),
    ],
)
def test_bad_options_are_refused(how: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        modcut.gomory_hu_tree(W, **how)


def test_a_bad_block_is_named() -> None:
    g = testing.mlp_graph((3, 4), seed=0)
    g.blocks[0].weight[2, 1] = float("nan")
    with pytest.raises(ValueError, match=r"block 'w0' \(layer1 x layer0\).*\[2, 1\] is NaN"):
        modcut.gomory_hu_tree(g)
    with pytest.raises(ValueError, match="matrices only"):
        modcut.gomory_hu_tree(g, bipartite=True)


def test_a_missing_engine_is_reported_with_how_to_build_it() -> None:
    code = """
        import sys
        sys.modules["modcut._native"] = None  # what a source tree without a build looks like
        import torch, modcut
        try:
            modcut.gomory_hu_tree(torch.ones(3, 3))
        except RuntimeError as error:
            print(error)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert "pip install" in done.stdout


def test_importing_the_cuts_does_not_load_the_engine_or_any_optional_package() -> None:
    code = (
        "import sys, modcut.cuts, modcut.testing; "
        "print([m for m in ('modcut._native', 'igraph', 'networkx', 'cupy') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert out.strip() == "[]"
    assert importlib.util.find_spec("modcut") is not None


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0), (0, 1)])
@pytest.mark.parametrize("kind", [torch.zeros, lambda s: sp.csr_array(s), lambda s: torch.zeros(s).T.contiguous().T])
def test_a_side_without_vertices_leaves_no_edges(shape: tuple[int, int], kind: Any) -> None:
    T = modcut.gomory_hu_tree(kind(shape), bipartite=True)
    assert T.n == sum(shape)
    assert T.weight[T.edges].tolist() == [0.0] * max(0, T.n - 1)


def test_integers_are_refused_at_one_limit_in_every_form() -> None:
    """2^60 over both directions, as the engine counts: the same graph is accepted or refused in every form."""
    for total, fine in ((2**59 - 2**10, True), (2**59, False)):
        w = np.array([[0, total], [total, 0]])
        for g, bipartite in ((w, False), (sp.csr_array(w), False), (w[:1, 1:], True), (sp.csr_array(w[:1, 1:]), True)):
            if fine:
                assert modcut.max_flow(g, 0, 1, bipartite=bipartite).value == total
            else:
                with pytest.raises(ValueError, match=r"less than 2\^60"):
                    modcut.max_flow(g, 0, 1, bipartite=bipartite)


def test_an_exact_cut_has_meeting_bounds() -> None:
    for scale in (1e-300, 1 / 3, 1e300):
        cut = modcut.max_flow(W * scale, 0, 8)
        assert cut.exact
        assert cut.lower == cut.value
        assert 0.0 <= cut.stats["gap"] <= 1e-12
