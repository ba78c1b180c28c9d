"""Ways to look modular without being it: each is tried on the loss, and on |W| or W^2 where those fall for it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import hand_built
import modcut
from modcut.loss import ModularityLoss


def net(seed: int = 0) -> tuple[nn.Sequential, Tensor, Tensor]:
    """A network, inputs, and labels that alternate: balanced in every layer, unrelated to the weights."""
    model = hand_built.mlp((6, 12, 12, 12, 4), seed)[0]
    with torch.no_grad():
        for m in model:
            if isinstance(m, nn.Linear):
                m.bias.add_(0.5)  # no dead neurons to begin with
    graph = modcut.weight_graph(model)
    return model, torch.arange(graph.n) % 2, torch.randn(64, 6)


def value(model: nn.Module, labels: Tensor, x: Tensor, edge: str = "contribution") -> float:
    crit = ModularityLoss(model, partition=labels, edge=edge)
    model.train()
    model(x)
    return crit().item()


@torch.no_grad()
def golechha(model: nn.Sequential, labels: Tensor) -> float:
    """Share of squared weight inside modules (the published clusterability), to be shown being fooled."""
    graph = modcut.weight_graph(model)
    masks = modcut.partition.cross_masks(graph, labels)  # type: ignore[attr-defined]
    names = ("2.weight", "4.weight")
    cross = sum(float(model.get_parameter(n)[masks[n]].square().sum()) for n in names)
    return 1 - cross / sum(float(model.get_parameter(n).square().sum()) for n in names)


@pytest.mark.parametrize("edge", ["contribution", "abs", "square"])
@torch.no_grad()
def test_shrinking_all_weights_gains_nothing(edge: str) -> None:
    model, labels, x = net()
    before = value(model, labels, x, edge)
    for p in model.parameters():
        p.mul_(1e-3)
    assert value(model, labels, x, edge) == pytest.approx(before, rel=0.05 if edge == "contribution" else 1e-5)


def test_the_gradient_has_no_component_along_the_scale_of_a_row() -> None:
    model, labels, x = net()
    crit = ModularityLoss(model, partition=labels)
    model(x)
    crit().backward()
    w = model[2].weight
    assert w.grad is not None
    torch.testing.assert_close((w.grad * w).sum(1), torch.zeros(12), atol=1e-7, rtol=0)


@torch.no_grad()
def test_rescaling_neurons_fools_squared_weights_and_not_the_loss() -> None:
    model, labels, x = net()
    before, published, out = value(model, labels, x), golechha(model, labels), model(x)
    # One large pair of neurons in the same module: rows up, the columns that read them down, same function.
    hidden = labels[6 + 12 : 6 + 24]
    middle = (model[2].weight.abs() * (labels[6 : 6 + 12] == hidden[:, None])).sum(1) / model[2].weight.abs().sum(1)
    c = torch.where(middle > middle.median(), 1e3, 1e-3)
    model[2].weight.mul_(c[:, None])
    model[2].bias.mul_(c)
    model[4].weight.div_(c)
    torch.testing.assert_close(model(x), out, rtol=1e-3, atol=1e-4)
    assert abs(golechha(model, labels) - published) > 0.02
    assert value(model, labels, x) == pytest.approx(before, rel=1e-5)


@torch.no_grad()
def test_a_few_huge_weights_inside_do_not_hide_the_rest_that_leaks() -> None:
    model, labels, x = net()
    before = value(model, labels, x)
    model[2].weight[0, 0] = 1e4  # vertices 18 and 6: one module
    model[4].weight[0, 0] = 1e4
    assert golechha(model, labels) > 0.999
    after = value(model, labels, x)
    assert after > 0.9 * before  # one of twelve rows a layer has changed


@torch.no_grad()
def test_many_tiny_cross_weights_count_by_what_they_carry_together() -> None:
    model, labels, _ = net()
    w = model[2].weight
    own = labels[18:30, None] == labels[6:18]
    w.copy_(torch.where(own, 0.0, 1e-3))
    w[torch.arange(12), torch.arange(12)] = 6e-3  # the six tiny cross weights of a row add up to its one inner weight
    row = ModularityLoss(model, partition=labels, edge="abs")
    assert row.leak().item() == pytest.approx((0.5 + value_of_layer(model, labels, "4.weight")) / 2, rel=1e-4)


def value_of_layer(model: nn.Sequential, labels: Tensor, name: str) -> float:
    w = model.get_parameter(name).detach().abs()
    cross = labels[30:42, None] != labels[18:30]
    return float(((w * cross).sum(1) / w.sum(1)).mean())


@pytest.mark.parametrize("warm", [False, True], ids=["by weights", "by function"])
def test_found_partitions_are_balanced_in_every_layer_so_all_in_one_is_no_way_out(warm: bool) -> None:
    model, _, x = net()
    data = {"data": [(x, torch.randn(64, 4))]} if warm else {"warmup": 0}
    crit = ModularityLoss(model, k=3, **data)  # type: ignore[arg-type]
    for s in crit.graph.spaces:
        if s.kind == "hidden":
            counts = torch.bincount(crit.labels[s.vertices], minlength=3)
            assert counts.tolist() == [4, 4, 4]


def test_modules_are_no_blocks_of_layers() -> None:
    model, tokens = hand_built.gpt()[0], torch.zeros(1, 4, dtype=torch.long)
    crit = ModularityLoss(model, k=2, warmup=0, example_inputs=tokens)
    for s in crit.graph.spaces:
        if s.kind in ("hidden", "residual"):
            share = (crit.labels[s.vertices] == 0).float().mean().item()
            assert 0.4 <= share <= 0.6, s.name
    heads = {s.head: int(crit.labels[s.offset]) for s in crit.graph.spaces if s.head}
    for s in crit.graph.spaces:
        if s.head:
            assert bool((crit.labels[s.vertices] == heads[s.head]).all()), "whole heads"


@torch.no_grad()
def test_dead_neurons_do_not_count_as_isolated_modules() -> None:
    model, labels, x = net()
    before = value(model, labels, x)
    own = labels[18:30, None] == labels[6:18]
    dead = torch.arange(12) < 6
    w = model[2].weight
    # Half the neurons of a layer die (bias far below 0), with all their weight inside their own module.
    w[dead] = torch.where(own, w, 0.0)[dead]
    model[2].bias[dead] = -1e3
    after = value(model, labels, x)
    # What is left is judged by itself; counted as neurons, the dead ones would lower the loss by a quarter.
    alive = ModularityLoss(model, partition=labels)
    model(x)
    s = torch.relu(model[0](x)).square().mean(0).sqrt()
    p = (w.abs() * s)[~dead]
    first = float(((p * ~own[~dead]).sum(1) / p.sum(1)).mean())
    rows = torch.relu(model[2](torch.relu(model[0](x)))).square().mean(0).sqrt()
    q = model[4].weight.abs() * rows
    fires = (torch.relu(model[4](torch.relu(model[2](torch.relu(model[0](x)))))) > 0).any(0)
    second = float(((q * (labels[30:42, None] != labels[18:30])).sum(1) / q.sum(1))[fires].mean())
    assert alive().item() == pytest.approx((first + second) / 2, rel=1e-4)
    assert after > 0.8 * before


@torch.no_grad()
def test_neurons_without_incoming_weight_do_not_count() -> None:
    model, labels, _ = net()
    w = model[2].weight
    w[:6] = 0
    crit = ModularityLoss(model, partition=labels, edge="abs")
    cross = labels[24:30, None] != labels[6:18]
    first = float(((w[6:].abs() * cross).sum(1) / w[6:].abs().sum(1)).mean())
    assert crit().item() == pytest.approx((first + value_of_layer(model, labels, "4.weight")) / 2, rel=1e-5)


def test_one_label_a_neuron_not_one_a_matrix() -> None:
    """A network that is modular layer by layer, but whose modules swap partners between layers, does leak."""
    model, labels, x = net()
    with torch.no_grad():
        own = labels[18:30, None] == labels[6:18]
        model[2].weight.copy_(torch.where(own, model[2].weight, 0.0))
        model[4].weight.copy_(torch.where(~own, model[4].weight, 0.0))  # reads only the other module
    assert golechha(model, labels) < 0.9
    assert value(model, labels, x) == pytest.approx(0.5, abs=1e-6)  # 0 in the first layer, 1 in the second
