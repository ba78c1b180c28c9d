"""Which kernel runs, and the one-pass operators as torch operators."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from modcut import info
from modcut.ops import dispatch, reference, share_pass, share_proximal_


def problem(dtype: torch.dtype = torch.float32) -> tuple[list[Tensor], Tensor, Tensor, Tensor, Tensor, int]:
    weights = [torch.randn(7, 5), torch.randn(5, 6).t(), torch.randn(4, 3, 3, 2)]
    weights = [w.to(dtype) for w in weights]
    rows, cols = sum(w.shape[0] for w in weights), sum(w.shape[1] for w in weights)
    return weights, torch.rand(cols) + 0.1, torch.arange(rows) % 4 - 1, torch.arange(cols) % 4 - 1, torch.randn(rows), 3


@pytest.mark.parametrize("kernel", ["native", "torch", "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_every_kernel_gives_the_reference(kernel: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(dispatch.VARIABLE, kernel)
    weights, s, row, col, a, k = problem(dtype)
    value, _, strength, grads = share_pass(weights, s, row, col, a, k)
    double = [w.double().requires_grad_() for w in weights]
    leak, want_strength = reference.share_rows(double, s.double(), row, col)
    want = (leak * a).sum()
    torch.testing.assert_close(value.double(), want.detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(strength.double(), want_strength.detach(), rtol=1e-5, atol=1e-6)
    for g, w in zip(grads, torch.autograd.grad(want, double), strict=True):
        torch.testing.assert_close(g.double(), w, rtol=1e-2 if dtype == torch.bfloat16 else 1e-4, atol=1e-6)
    wants, i, j = [], 0, 0
    for w in double:
        r, c = slice(i, i + w.shape[0]), slice(j, j + w.shape[1])
        wants.append(reference.shrunk(w.detach(), s[c].double(), row[r], col[c], a.abs()[r, None].double()))
        i, j = r.stop, c.stop
    share_proximal_(weights, s, row, col, a.abs(), k)
    for w, want in zip(weights, wants, strict=True):
        torch.testing.assert_close(w.double(), want, rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-6)


def test_library_checks_pass() -> None:
    weights, s, row, col, a, k = problem()
    learn = [w.detach().requires_grad_() for w in weights]
    torch.library.opcheck(torch.ops.modcut.share_pass.default, (learn, s, row, col, a, k))
    torch.library.opcheck(torch.ops.modcut.share_proximal_.default, (weights, s, row, col, a.abs(), k))


def test_compiles_into_one_graph_and_autocast_changes_nothing() -> None:
    weights, s, row, col, a, k = problem()
    eager, compiled = ([w.clone().requires_grad_() for w in weights] for _ in range(2))

    def f(w: list[Tensor]) -> Tensor:
        return 2 * share_pass(w, s, row, col, a, k)[0]

    x = f(eager)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = torch.compile(f, fullgraph=True, backend="aot_eager")(compiled)
    x.backward()
    y.backward()
    assert torch.equal(x, y)
    for p, q in zip(eager, compiled, strict=True):
        assert torch.equal(p.grad, q.grad)  # type: ignore[arg-type]


def test_the_table_says_what_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(dispatch.VARIABLE, raising=False)
    w = torch.randn(4, 6)
    for weights, power, want in (
        ([w], 1, "native"), ([w.t(), w], 1, "native"), ([w.double()], 1, "native"), ([w.half()], 1, "torch"),
        ([w, w.double()], 1, "torch"), ([w[:, ::2]], 1, "torch"), ([w], 2, "torch"),
    ):  # fmt: skip
        assert dispatch.choose(weights, 3, power) == want
    assert dispatch.choose([w], 255) == "torch"
    monkeypatch.setenv(dispatch.VARIABLE, "reference")
    assert dispatch.choose([w], 3) == "reference"
    text = "\n".join(info.lines(info.info(selftest=False)))
    assert all(row.where in text for row in dispatch.TABLE) and "MODCUT_KERNEL: reference" in text


def test_wishes_that_cannot_be_met_are_sentences(monkeypatch: pytest.MonkeyPatch) -> None:
    w = torch.randn(4, 6)
    for wish, weights, error, sentence in (
        ("cuda", [w], ValueError, "MODCUT_KERNEL must be auto or one of native, triton, torch, reference, got 'cuda'"),
        ("native", [w.half()], RuntimeError, "compiled kernel cannot read these weights"),
        ("triton", [w], RuntimeError, "weights must be on one CUDA device"),
    ):
        monkeypatch.setenv(dispatch.VARIABLE, wish)
        monkeypatch.delenv("TRITON_INTERPRET", raising=False)
        with pytest.raises(error, match=sentence):
            dispatch.choose(weights, 3)
