"""What a network computes decides its modules and its loss: not the scale of its neurons, not their order."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import modcut
from modcut.graph.balance import balance


def mlp(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))


def rescaled(model: nn.Sequential) -> nn.Sequential:
    """The same function: every neuron of the first layer times a number, its readers divided by it."""
    other, a = copy.deepcopy(model), torch.exp(torch.randn(32))
    rescale_(other, a)
    return other


def rescale_(model: nn.Sequential, a: Tensor) -> None:
    # Through .data, as many scripts do: no version counter sees it.
    model[0].weight.data.mul_(a[:, None])
    model[0].bias.data.mul_(a)
    model[2].weight.data.div_(a)


def permuted(model: nn.Sequential) -> nn.Sequential:
    other = copy.deepcopy(model)
    graph = modcut.weight_graph(other)
    for space in graph.spaces:
        if not space.fixed:
            graph.permute_(space, torch.randperm(space.size))
    return other


def one_line(model: nn.Module) -> float:
    return float(modcut.modularity_loss(model, k=4).detach())


def on_data(model: nn.Module) -> float:
    torch.manual_seed(7)
    batch = (torch.randn(64, 8), torch.randint(0, 4, (64,)))
    crit = modcut.ModularityLoss(model, 4, data=[batch])
    crit.step()
    return float(crit().detach())


@pytest.mark.parametrize("value", [one_line, on_data])
@pytest.mark.parametrize("change", [rescaled, permuted])
@pytest.mark.parametrize("seed", range(3))
def test_a_network_with_the_same_function_gets_the_same_loss_from_scratch(value, change, seed) -> None:
    model = mlp(seed)
    other = change(model)
    x = torch.randn(16, 8)
    torch.testing.assert_close(model(x), other(x), rtol=1e-4, atol=1e-5)
    assert value(other) == pytest.approx(value(model), rel=1e-5)


def test_the_cached_one_line_loss_sees_weights_that_were_changed_through_data() -> None:
    model = mlp(0)
    before = one_line(model)
    rescale_(model, torch.exp(torch.randn(32)))
    assert one_line(model) == pytest.approx(before, rel=1e-5)
    model[2].weight.data[:16] *= torch.linspace(0, 3, 32)
    assert abs(one_line(model) - before) > 1e-4 * before


def test_balanced_rows_and_columns_have_equal_sums_and_do_not_move_with_scale() -> None:
    a = torch.rand(7, 12, dtype=torch.float64) + 0.01
    rows, cols = balance(a, 500)
    n = rows[:, None] * a * cols
    torch.testing.assert_close(n.sum(1), torch.ones(7, dtype=torch.float64))
    torch.testing.assert_close(n.sum(0), torch.full((12,), 7 / 12, dtype=torch.float64), rtol=1e-5, atol=0)
    b = a * torch.rand(7, 1).double().exp() * torch.rand(12).double().exp()
    rows_b, cols_b = balance(b, 500)
    torch.testing.assert_close(rows_b[:, None] * b * cols_b, n, rtol=1e-5, atol=0)


def test_rows_and_columns_without_weight_are_left_out_of_the_balance() -> None:
    a = torch.rand(4, 5)
    a[2], a[:, 1] = 0, 0
    rows, cols = balance(a)
    assert rows[2] == 0
    assert cols[1] == 0
    assert not balance(torch.zeros(3, 2))[0].any()
