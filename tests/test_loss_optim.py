"""The proximal wrapper: the formula, exact zeros, and an optimizer to everything that expects one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

import hand_built
import modcut
from modcut.loss import ModularityLoss
from modcut.optim import Proximal


def setup(lam: float = 1.0, **kwargs: object) -> tuple[nn.Sequential, ModularityLoss, dict[str, Tensor]]:
    model = hand_built.mlp((8, 16, 16, 16, 4))[0]
    graph = modcut.weight_graph(model)
    labels = torch.arange(graph.n) % 2
    crit = ModularityLoss(model, partition=labels, lam=lam, **kwargs)  # type: ignore[arg-type]
    return model, crit, modcut.partition.cross_masks(graph, labels)  # type: ignore[attr-defined]


def task(model: nn.Module, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(32, 8, generator=g)
    return F.mse_loss(model(x), torch.sin(2 * x[:, :4]))


def test_one_step_is_the_formula() -> None:
    model, crit, masks = setup(lam=0.7)
    other = hand_built.mlp((8, 16, 16, 16, 4))[0]
    plain = torch.optim.SGD(other.parameters(), lr=0.1)
    optimizer = Proximal(torch.optim.SGD(model.parameters(), lr=0.1), crit)
    for m, o in ((model, optimizer), (other, plain)):
        task(m).backward()
        o.step()
    s = crit.scales()["4.weight"]
    want = other[4].weight.detach().clone()
    r = (want.abs() * s).sum(1)
    shrunk = want.sign() * (want.abs() - 0.1 * 0.7 * s / r[:, None]).clamp(min=0)
    torch.testing.assert_close(model[4].weight.detach(), torch.where(masks["4.weight"], shrunk, want))
    for i in (0, 6):  # weights at inputs and outputs: the dial is 0
        assert torch.equal(model[i].weight, other[i].weight)
    assert torch.equal(model[4].bias, other[4].bias)


def test_cross_weights_become_exactly_zero_while_the_task_is_learned() -> None:
    model, crit, masks = setup(lam=3.0, ramp=50)
    optimizer = Proximal(torch.optim.AdamW(model.parameters(), lr=3e-3), crit)
    before = task(model).item()
    for i in range(400):
        optimizer.zero_grad()
        task(model, i).backward()
        optimizer.step()
        crit.step()
    zero = torch.cat([(model.get_parameter(n)[masks[n]] == 0) for n in ("2.weight", "4.weight")]).float().mean().item()
    assert zero > 0.9 and task(model, 1000).item() < before
    assert crit.leak().item() < 0.05


def test_schedulers_groups_state_and_closures_pass_through() -> None:
    model, crit, _ = setup()
    inner = torch.optim.AdamW([{"params": model[0].parameters()}, {"params": model[2].parameters(), "lr": 0.5}], lr=0.1)
    optimizer = Proximal(inner, crit)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    task(model).backward()
    optimizer.step()
    scheduler.step()
    assert [g["lr"] for g in inner.param_groups] == [0.05, 0.25] and optimizer.param_groups is inner.param_groups
    optimizer.add_param_group({"params": model[4].parameters()})
    assert len(inner.param_groups) == 3 and len(optimizer.state) == 4
    state = optimizer.state_dict()
    fresh = Proximal(torch.optim.AdamW(inner.param_groups[0]["params"]), crit)
    with pytest.raises(ValueError, match="group"):
        fresh.load_state_dict(state)
    optimizer.load_state_dict(state)
    optimizer.zero_grad()
    assert model[0].weight.grad is None and isinstance(optimizer, torch.optim.Optimizer)
    lbfgs = Proximal(torch.optim.LBFGS(model.parameters(), lr=0.1), crit)

    def closure() -> Tensor:
        lbfgs.zero_grad()
        loss = task(model)
        loss.backward()
        return loss

    assert isinstance(lbfgs.step(closure), Tensor)


def test_gradient_scaler_steps_it() -> None:
    model, crit, masks = setup(lam=50.0)
    optimizer = Proximal(torch.optim.SGD(model.parameters(), lr=0.1), crit)
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(task(model)).backward()
    scaler.step(optimizer)
    scaler.update()
    assert bool((model[2].weight[masks["2.weight"]] == 0).any())


def test_leaves_alone_what_is_frozen_not_held_or_not_due() -> None:
    model, crit, _ = setup(lam=100.0)
    model[2].weight.requires_grad_(False)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer = Proximal(torch.optim.SGD([*model[2].parameters(), *model[0].parameters()], lr=0.1), crit)
    task(model).backward()
    optimizer.step()
    assert torch.equal(model[2].weight, before["2.weight"]) and torch.equal(model[4].weight, before["4.weight"])
    crit = ModularityLoss(model, k=2, warmup=5)  # still warming up: nothing is shrunk
    optimizer = Proximal(torch.optim.SGD(model.parameters(), lr=0.0), crit)
    task(model).backward()
    optimizer.step()
    assert torch.equal(model[4].weight, before["4.weight"])


def test_a_transposed_parameter_is_shrunk_in_place() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (nn.Parameter(torch.randn(i, j)) for i, j in ((4, 6), (6, 6), (6, 3)))

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(torch.relu(x @ self.a) @ self.b) @ self.c

    model, x = Net(), torch.randn(4, 4)
    graph = modcut.weight_graph(model, x)
    labels = torch.arange(graph.n) % 2
    crit = ModularityLoss(model, partition=labels, graph=graph, lam=1e4)
    optimizer = Proximal(torch.optim.SGD(model.parameters(), lr=0.1), crit)
    model(x).sum().backward()
    optimizer.step()
    assert crit.leak().item() == 0 and bool(model.b.any())


def test_refuses_what_is_no_optimizer_or_no_loss() -> None:
    model, crit, _ = setup()
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(TypeError, match=r"optimizer must be a torch\.optim\.Optimizer, got Sequential"):
        Proximal(model, crit)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"crit must be a modcut\.ModularityLoss, got SGD"):
        Proximal(sgd, sgd)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="square"):
        Proximal(sgd, setup(edge="square")[1])
