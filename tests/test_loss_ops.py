"""The contribution-share operators: equal to the formula written as loops, and to their own reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from modcut.ops import reference, share, share_rows, share_rows_grad, share_shrink_, sums


def by_loops(w: Tensor, s: Tensor, row: Tensor, col: Tensor, power: int) -> tuple[list[float], list[float]]:
    leaks, strengths = [], []
    for i in range(w.shape[0]):
        total = inside = 0.0
        for j in range(w.shape[1]):
            if col[j] < 0:
                continue
            a = sum(abs(float(x)) ** power for x in w[i, j].reshape(-1)) * float(s[j])
            total += a
            inside += a if row[i] == col[j] else 0.0
        live = row[i] >= 0 and total > 0
        leaks.append(1 - inside / total if live else 0.0)
        strengths.append(total if live else 0.0)
    return leaks, strengths


def problem(dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
    """A whole, a transposed, a convolution and a strided weight; labels with -1."""
    g = torch.Generator().manual_seed(seed)

    def weight(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)

    weights = [weight(7, 5), weight(5, 6).t(), weight(4, 3, 3, 2), weight(6, 8)[1:5:2, ::2]]
    rows, cols = sum(w.shape[0] for w in weights), sum(w.shape[1] for w in weights)
    s = torch.rand(cols, generator=g, dtype=torch.float64) + 0.1
    return weights, s, torch.randint(-1, 3, (rows,), generator=g), torch.arange(cols) % 4 - 1


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("implementation", ["operator", "reference"])
def test_leak_is_the_formula_written_as_loops(implementation: str, power: int) -> None:
    weights, s, row, col = problem()
    if implementation == "operator":
        leak, strength = share_rows(weights, s, row, col, 3, power=power)
    else:
        leak, strength = reference.share_rows(weights, s, row, col, power)
    want_leak, want_strength, i, j = [], [], 0, 0
    for w in weights:
        r, c = slice(i, i + w.shape[0]), slice(j, j + w.shape[1])
        a, b = by_loops(w, s[c], row[r], col[c], power)
        want_leak += a
        want_strength += b
        i, j = r.stop, c.stop
    torch.testing.assert_close(leak, torch.tensor(want_leak, dtype=torch.float64))
    torch.testing.assert_close(strength, torch.tensor(want_strength, dtype=torch.float64))


@given(
    rows=st.integers(1, 9), cols=st.integers(1, 9), k=st.integers(1, 4), power=st.sampled_from([1, 2]),
    zeros=st.floats(0, 1), seed=st.integers(0, 10_000),
)  # fmt: skip
def test_operator_equals_the_reference_on_drawn_matrices(
    rows: int, cols: int, k: int, power: int, zeros: float, seed: int
) -> None:
    g = torch.Generator().manual_seed(seed)
    w = torch.randn(rows, cols, generator=g, dtype=torch.float64)
    w = (w * (torch.rand(w.shape, generator=g) >= zeros)).requires_grad_()
    s = torch.rand(cols, generator=g, dtype=torch.float64)
    row, col = torch.randint(-1, k, (rows,), generator=g), torch.randint(-1, k, (cols,), generator=g)
    omega = torch.randn(rows, generator=g, dtype=torch.float64)
    leak, strength = share_rows([w], s, row, col, k, power=power)
    want, want_strength = reference.share_rows([w], s, row, col, power)
    torch.testing.assert_close(leak, want)
    torch.testing.assert_close(strength, want_strength)
    assert bool((leak >= 0).all()) and bool((leak <= 1 + 1e-12).all())
    torch.testing.assert_close(*(torch.autograd.grad((omega * x).sum(), w)[0] for x in (leak, want)))
    torch.testing.assert_close(
        share_rows_grad(omega, leak, strength, [w], s, row, col, k, power=power)[0],
        reference.gradient_of(omega, w, s, row, col, power),
    )


@pytest.mark.parametrize("power", [1, 2])
def test_gradcheck_in_float64(power: int) -> None:
    weights, s, row, col = problem()
    weights = [w.detach().requires_grad_() for w in weights]
    assert torch.autograd.gradcheck(lambda *w: share_rows(list(w), s, row, col, 3, power=power)[0], weights)


def test_gradcheck_catches_a_gradient_that_forgets_the_sign(monkeypatch: pytest.MonkeyPatch) -> None:
    weights, s, row, col = problem()
    weights = [w.detach().requires_grad_() for w in weights]
    right = share._gradients

    def without_sign(*args: Any) -> list[Tensor]:
        return [g * w.sign() for g, w in zip(right(*args), args[3], strict=True)]

    monkeypatch.setattr(share, "_gradients", without_sign)
    with pytest.raises(RuntimeError, match="Jacobian mismatch"):
        torch.autograd.gradcheck(lambda *w: share_rows(list(w), s, row, col, 3)[0], weights)


def test_library_checks_pass() -> None:
    weights, s, row, col = problem(torch.float32)
    s = s.float()
    learn = [w.detach().requires_grad_() for w in weights]
    torch.library.opcheck(torch.ops.modcut.share_rows.default, (learn, s, row, col, 3, 1))
    leak, strength = share_rows(weights, s, row, col, 3)
    args = (torch.randn_like(leak), leak, strength, weights, s, row, col, 3, 1)
    torch.library.opcheck(torch.ops.modcut.share_rows_grad.default, args)


def test_compiles_into_one_graph_with_its_backward() -> None:
    weights, s, row, col = problem(torch.float32)
    s = s.float()
    eager = [w.detach().clone().requires_grad_() for w in weights]
    compiled = [w.detach().clone().requires_grad_() for w in weights]

    def f(w: list[Tensor]) -> Tensor:
        return share_rows(w, s, row, col, 3)[0].square().sum()

    a, b = f(eager), torch.compile(f, fullgraph=True, backend="aot_eager")(compiled)
    a.backward()
    b.backward()
    torch.testing.assert_close(a, b)
    for x, y in zip(eager, compiled, strict=True):
        torch.testing.assert_close(x.grad, y.grad)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_dtypes_keep_precision_and_gradients_come_in_the_weights_dtype(dtype: torch.dtype) -> None:
    weights, s, row, col = problem(dtype)
    weights = [w.detach().requires_grad_() for w in weights]
    leak, _ = share_rows(weights, s, row, col, 3)
    assert leak.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    want, _ = reference.share_rows([w.double() for w in weights], s, row, col)
    torch.testing.assert_close(leak.double(), want, rtol=1e-5, atol=1e-6)
    for g, w in zip(torch.autograd.grad(leak.sum(), weights), weights, strict=True):
        assert g.dtype == dtype and g.shape == w.shape


def test_autocast_changes_nothing() -> None:
    weights, s, row, col = problem(torch.float32)
    plain = share_rows(weights, s.float(), row, col, 3)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = share_rows(weights, s.float(), row, col, 3)[0]
    assert inside.dtype == torch.float32 and torch.equal(plain, inside)


def test_tiles_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    weights, s, row, col = problem()
    whole = share_rows(weights, s, row, col, 3)
    grads = share_rows_grad(torch.ones_like(whole[0]), *whole, weights, s, row, col, 3)
    monkeypatch.setattr(sums, "TILE", 7)
    tiled = share_rows(weights, s, row, col, 3)
    torch.testing.assert_close(whole, tiled)
    torch.testing.assert_close(grads, share_rows_grad(torch.ones_like(whole[0]), *tiled, weights, s, row, col, 3))


def test_a_transposed_weight_gets_a_gradient_of_its_own_strides() -> None:
    w = torch.randn(5, 6).t().detach().requires_grad_()
    leak, strength = share_rows([w], torch.ones(5), torch.arange(6) % 2, torch.arange(5) % 2, 2)
    args = ([w], torch.ones(5), torch.arange(6) % 2, torch.arange(5) % 2, 2)
    assert share_rows_grad(torch.ones(6), leak, strength, *args)[0].stride() == w.stride()


def test_columns_without_vertex_count_neither_inside_nor_across() -> None:
    w = torch.tensor([[1.0, 2.0, 100.0]], requires_grad=True)
    leak, strength = share_rows([w], torch.ones(3), torch.tensor([0]), torch.tensor([0, 1, -1]), 2)
    assert leak.item() == pytest.approx(2 / 3) and float(strength) == 3
    leak.backward()
    assert w.grad is not None and float(w.grad[0, 2]) == 0


def test_rows_without_weight_or_vertex_are_not_live_and_get_no_gradient() -> None:
    w = torch.tensor([[0.0, 0.0], [1.0, 1.0], [1.0, 1.0]], requires_grad=True)
    leak, strength = share_rows([w], torch.ones(2), torch.tensor([0, -1, 0]), torch.tensor([0, 1]), 2)
    assert leak.tolist() == [0, 0, 0.5] and strength.tolist() == [0, 0, 2]
    leak.sum().backward()
    assert w.grad is not None and not w.grad[:2].any() and w.grad[2].any()


def test_exactly_zero_where_nothing_crosses_and_nan_is_not_hidden() -> None:
    w = torch.block_diag(torch.randn(3, 3), torch.randn(2, 4))
    row, col = torch.tensor([0, 0, 0, 1, 1]), torch.tensor([0, 0, 0, 1, 1, 1, 1])
    assert share_rows([w], torch.ones(7), row, col, 2)[0].tolist() == [0.0] * 5
    w[1, 0] = torch.nan
    assert bool(share_rows([w], torch.ones(7), row, col, 2)[0][1].isnan())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_shrinking_equals_the_reference_in_place_and_through_a_transposed_view(dtype: torch.dtype) -> None:
    w = torch.randn(5, 6, dtype=torch.float64).to(dtype).t()
    s, row, col = torch.rand(5, dtype=torch.float64), torch.arange(6) % 3 - 1, torch.arange(5) % 3 - 1
    r = reference.leak_of(w.double(), s, row, col)[1]
    want = reference.shrunk(w.double(), s, row, col, 0.7)
    share_shrink_(w, s, row, col, r, 0.7)
    torch.testing.assert_close(w.double(), want, rtol=0, atol=1e-12 if dtype == torch.float64 else 1e-2)
    cross = (row[:, None] != col) & (row >= 0)[:, None] & (col >= 0)
    assert bool((w[cross] == 0).any()), "some cross weights are small enough to vanish"


def test_errors_are_sentences() -> None:
    w, s, row, col = (
        torch.randn(3, 2),
        torch.ones(2),
        torch.zeros(3, dtype=torch.int64),
        torch.zeros(2, dtype=torch.int64),
    )
    with pytest.raises(ValueError, match=r"scales must have shape \[2\].*got \[3\]"):
        share_rows([w], torch.ones(3), row, col, 2)
    with pytest.raises(ValueError, match=r"row_labels must have shape \[3\]"):
        share_rows([w], s, col, col, 2)
    with pytest.raises(TypeError, match=r"weights\[0\] must be float32.*int64"):
        share_rows([w.long()], s, row, col, 2)
    with pytest.raises(TypeError, match="labels must be int64"):
        share_rows([w], s, row.int(), col, 2)
    with pytest.raises(ValueError, match="at least one matrix"):
        share_rows([], s, row, col, 2)
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        share_rows([w], s, row, col, 0)
    with pytest.raises(ValueError, match="power must be 1 or 2, got 3"):
        share_rows([w], s, row, col, 2, power=3)
    with pytest.raises(ValueError, match="rows, cols"):
        share_rows([w[0]], s, row, col, 2)
