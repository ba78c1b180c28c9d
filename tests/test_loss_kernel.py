"""The compiled kernel of the share loss: the numbers of the plain operators, whatever the layout, dtype and moment."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import hand_built
from modcut import _fused
from modcut.loss import ModularityLoss
from modcut.optim import Proximal


class Conv1D(nn.Module):
    """A linear map whose weight lies transposed, [inputs, outputs], as in GPT-2."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(inputs, outputs) / 3), nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


def transposed() -> nn.Module:
    return nn.Sequential(
        Conv1D(5, 70), nn.ReLU(), Conv1D(70, 150), nn.ReLU(), Conv1D(150, 33), nn.ReLU(), Conv1D(33, 4)
    )


def conv() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 2), nn.ReLU(), nn.Flatten(),
        nn.Linear(54, 3),
    )  # fmt: skip


NETS = {
    "mlp": (lambda: hand_built.mlp((5, 70, 33, 150, 4))[0], lambda: torch.randn(32, 5)),
    "transposed": (transposed, lambda: torch.randn(32, 5)),
    "conv": (conv, lambda: torch.randn(16, 1, 8, 8)),
    "gpt": (lambda: hand_built.gpt()[0], lambda: torch.randint(12, (4, 10))),
}


def twins(name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch, **kwargs: object) -> list[ModularityLoss]:
    """The same loss twice: by the kernel, and by the plain operators."""
    torch.manual_seed(0)
    make, inputs = NETS[name]
    model, x = make(), inputs()
    pair = []
    for _ in range(2):
        twin = copy.deepcopy(model)
        crit = ModularityLoss(twin, k=3 if name != "gpt" else 2, warmup=0, example_inputs=x, **kwargs)  # type: ignore[arg-type]
        twin.train()
        twin(x)
        twin.to(dtype)
        pair.append(crit)
        crit.keep = twin  # type: ignore[assignment]  # the loss holds its model weakly
    monkeypatch.setattr(pair[1], "_fusible", lambda weights: False)
    assert pair[0]._fusible([w.get() for w in pair[0]._terms.weights])
    return pair


def grads(crit: ModularityLoss) -> dict[str, Tensor]:
    return {n: p.grad.double() for n, p in crit.model.named_parameters() if p.grad is not None}


def close(a: Tensor, b: Tensor, dtype: torch.dtype) -> None:
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 1e-2}[dtype]
    torch.testing.assert_close(a, b, rtol=tolerance * 10, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", NETS)
def test_value_and_gradient_are_those_of_the_operators(
    name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    fast, plain = twins(name, dtype, monkeypatch, inputs=0.5, lam=0.7)
    for crit in (fast, plain):
        (crit() * 2).backward()
        assert crit.backward_(0.5) == pytest.approx(crit().item(), rel=1e-5)
    assert fast().item() == pytest.approx(plain().item(), rel=1e-5 if dtype != torch.float64 else 1e-12)
    with torch.no_grad():
        assert fast().item() == pytest.approx(plain().item(), rel=1e-5)
    a, b = grads(fast), grads(plain)
    assert a.keys() == b.keys()
    for n in a:
        close(a[n], b[n], dtype)


@pytest.mark.parametrize("name", NETS)
def test_the_proximal_step_is_that_of_the_operators(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = twins(name, torch.float64, monkeypatch, inputs=0.5, lam=2.0)
    for crit in pair:
        optimizer = Proximal(torch.optim.SGD(crit.model.parameters(), lr=0.3), crit)
        for p in crit.model.parameters():
            p.grad = torch.zeros_like(p)
        optimizer.step()
    for (n, a), b in zip(pair[0].model.named_parameters(), pair[1].model.parameters(), strict=True):
        torch.testing.assert_close(a, b, msg=n)
    weights = [w.get() for w in pair[0]._terms.weights]
    assert any(bool((w == 0).any()) for w in weights)


def test_gradient_by_finite_differences_through_the_kernel() -> None:
    model = hand_built.mlp((4, 6, 7, 5, 3))[0].double()
    crit = ModularityLoss(model, k=2, warmup=0)
    model(torch.randn(32, 4, dtype=torch.float64))
    assert torch.autograd.gradcheck(lambda *_: crit(), [model[2].weight, model[4].weight])


def test_a_row_that_loses_or_regains_all_it_receives_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    fast, plain = twins("mlp", torch.float64, monkeypatch)
    for fill in (0.0, 1.0, 0.0):
        for crit in (fast, plain):
            crit.model.zero_grad()
            with torch.no_grad():
                crit.model[2].weight[3:9] = fill
            crit.backward_()
            crit().backward()
        assert fast().item() == pytest.approx(plain().item(), rel=1e-12)
        for n, g in grads(plain).items():
            torch.testing.assert_close(grads(fast)[n], g)


def test_new_norms_labels_and_factors_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = twins("mlp", torch.float64, monkeypatch)
    x = 3 * torch.randn(8, 5, dtype=torch.float64)
    values = []
    for crit in pair:
        crit()
        crit.model(x)
        mine = [crit().item()]
        crit.lam = 5.0
        mine.append(crit().item())
        crit.set_labels((crit.labels + torch.arange(len(crit.labels)) // 9) % 3)
        values.append([*mine, crit().item()])
    assert values[0] == pytest.approx(values[1], rel=1e-12) and len(set(values[0])) == 3


def test_backward_may_run_twice_and_notices_changed_weights() -> None:
    model = hand_built.mlp((4, 6, 7, 5, 3))[0]
    crit = ModularityLoss(model, k=2, warmup=0)
    value = crit()
    value.backward(retain_graph=True)
    once = model[2].weight.grad.clone()
    value.backward()
    torch.testing.assert_close(model[2].weight.grad, 2 * once)
    value = crit()
    with torch.no_grad():
        model[2].weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()


def test_two_threads_give_the_same_bits() -> None:
    torch.manual_seed(0)
    for shape in ((300, 40), (40, 300)):
        w = torch.randn(*shape)
        for weight in (w, w.t()):
            rows, cols = weight.shape
            labels = torch.randint(-1, 4, (rows,)), torch.randint(-1, 4, (cols,))
            out = []
            for threads in (1, 2, 3):
                kernel = _fused.FusedShare([weight], *labels, 4)
                kernel.threads = threads
                grad = torch.empty_strided(weight.shape, weight.stride())
                value, leak, strength = kernel.run([weight], [grad], torch.ones(cols), torch.ones(rows))
                out.append((torch.tensor(value), leak, strength, grad))
            for other in out[1:]:
                assert all(torch.equal(a, b) for a, b in zip(out[0], other, strict=True))


def test_what_the_kernel_cannot_read_goes_the_plain_way() -> None:
    w = torch.randn(8, 8)
    assert _fused.fits([w, w.t()], 4)
    for other in (w.half(), w[::2, ::2], w.to("meta"), torch.randn(4, 4, 3, 3).to(memory_format=torch.channels_last)):
        assert not _fused.fits([other], 4)
    assert not _fused.fits([w, w.double()], 4) and not _fused.fits([w], 255) and not _fused.fits([], 4)
    model = hand_built.mlp((4, 6, 7, 5, 3))[0].half()
    crit = ModularityLoss(model, k=2, warmup=0)
    crit().backward()
    assert model[2].weight.grad is not None


def test_lying_arguments_are_refused() -> None:
    from modcut._native import share_pass

    cap = _fused.capsule
    w, one = torch.randn(3, 4), torch.ones(4)
    labels = torch.zeros(3, dtype=torch.uint8), torch.zeros(4, dtype=torch.uint8)

    def call(**change: object) -> float:
        known = {
            "weights": [cap(w)], "grads": [], "taps": [1], "scales": cap(one), "row_labels": cap(labels[0]),
            "col_labels": cap(labels[1]), "row_weights": cap(one[:3]), "leak_out": cap(torch.empty(3)),
            "strength_out": cap(torch.empty(3)), "k": 2, "accumulate": False, "threads": 1,
        } | change  # fmt: skip
        return share_pass(**known)

    assert call() == 0.0
    for change, sentence in (
        ({"grads": [cap(torch.empty(4, 3))]}, r"grads\[0\] must have the shape and strides"),
        ({"grads": [cap(torch.empty(4, 3).t())]}, r"grads\[0\] must have the shape and strides"),
        ({"taps": [3]}, r"taps\[0\] must divide the columns \(4\), got 3"),
        ({"scales": cap(torch.ones(5))}, r"scales must have shape \[4\], got \[5\]"),
        ({"row_labels": cap(labels[0] + 7)}, r"labels must be below k \(2\) or 255, got 7"),
        ({"k": 300}, "k must be between 1 and 255, got 300"),
        ({"weights": [cap(torch.randn(6, 8)[::2, ::2])]}, r"weights\[0\] must have contiguous rows"),
    ):
        with pytest.raises(ValueError, match=sentence):
            call(**change)
    with pytest.raises(TypeError, match="leak_out must be float32"):
        call(leak_out=cap(torch.empty(3, dtype=torch.float64)))
