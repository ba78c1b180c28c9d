"""Ways to look modular without being it: each is tried on the loss, and on |W| or W^2 where those fall for it."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import hand_built
import modcut
from modcut.loss import ModularityLoss

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import baselines


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


NAMES = ("2.weight", "4.weight")


def hidden(model: nn.Sequential, labels: Tensor) -> tuple[list[Tensor], list[tuple[Tensor, Tensor]]]:
    """The hidden matrices and the labels of their rows and columns: what the published losses read."""
    weights = [model.get_parameter(n).detach() for n in NAMES]
    return weights, [(labels[18:30], labels[6:18]), (labels[30:42], labels[18:30])]


def golechha(model: nn.Sequential, labels: Tensor) -> float:
    """Share of squared weight inside modules (the published clusterability), to be shown being fooled."""
    return float(baselines.clusterability(*hidden(model, labels)))


def filan(model: nn.Sequential, k: int = 2) -> float:
    """The published eigenvalue regulariser."""
    return float(baselines.eigenvalue_regulariser([model.get_parameter(n).detach() for n in NAMES], k))


@pytest.mark.parametrize("edge", ["contribution", "abs", "square"])
@torch.no_grad()
def test_shrinking_all_weights_gains_nothing(edge: str) -> None:
    model, labels, x = net()
    weights, _ = hidden(model, labels)
    before, l1, bimt = (
        value(model, labels, x, edge),
        float(baselines.l1(weights)),
        float(baselines.Bimt(weights).loss()),
    )
    for p in model.parameters():
        p.mul_(1e-3)
    assert value(model, labels, x, edge) == pytest.approx(before, rel=0.05 if edge == "contribution" else 1e-5)
    assert float(baselines.l1(weights)) < 0.01 * l1, "L1 is satisfied"
    assert float(baselines.Bimt(weights).loss()) < 0.01 * bimt, "and so is BIMT"


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
    spectrum = filan(model)
    # One large pair of neurons in the same module: rows up, the columns that read them down, same function.
    hidden = labels[6 + 12 : 6 + 24]
    middle = (model[2].weight.abs() * (labels[6 : 6 + 12] == hidden[:, None])).sum(1) / model[2].weight.abs().sum(1)
    c = torch.where(middle > middle.median(), 1e3, 1e-3)
    model[2].weight.mul_(c[:, None])
    model[2].bias.mul_(c)
    model[4].weight.div_(c)
    torch.testing.assert_close(model(x), out, rtol=1e-3, atol=1e-4)
    assert abs(golechha(model, labels) - published) > 0.02
    assert filan(model) < 0.7 * spectrum, "the eigenvalues fall without any change of the function"
    assert abs(value(model, labels, x) - before) < 1e-5


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
    first = hidden(model, labels)[0][:1], hidden(model, labels)[1][:1]
    assert float(baselines.clusterability(*first)) > 0.85, "squares say: nearly all inside"
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
    weights, pairs = hidden(model, labels)
    untied = [pairs[0], (pairs[1][0], 1 - pairs[1][1])]  # as published: each matrix has labels of its own
    assert float(baselines.clusterability(weights, untied)) == 1
    assert golechha(model, labels) < 0.9
    assert value(model, labels, x) == pytest.approx(0.5, abs=1e-6)  # 0 in the first layer, 1 in the second


@torch.no_grad()
def test_a_module_that_is_dead_counts_as_leaking_not_as_separate() -> None:
    """Training can switch a module off: nothing crosses any more, and nothing of it works."""
    model, labels, x = net()
    before = value(model, labels, x)
    for i, at in ((2, 18), (4, 30)):
        own = labels[at : at + 12, None] == labels[at - 12 : at]
        model[i].weight.copy_(torch.where(own, model[i].weight, 0.0))
        model[i].bias[labels[at : at + 12] == 1] = -1e3
    assert golechha(model, labels) == 1, "published: perfect"
    assert value(model, labels, x) == pytest.approx(0.5), "half of the neurons belong to a module that is dead"
    assert before > 0.3


@torch.no_grad()
def test_a_junk_pair_satisfies_the_eigenvalues_and_is_two_rows_of_24_here() -> None:
    """Two neurons that talk only to each other: a second component, so the second eigenvalue is 0."""
    model, labels, x = net()
    before, spectrum = value(model, labels, x), filan(model)
    first, second = model[2].weight, model[4].weight
    first[:, 0] = 0  # neuron 6 feeds neuron 18 alone, which feeds neuron 30 alone
    first[0] = 0
    first[0, 0] = 1.0
    second[:, 0] = 0
    second[0] = 0
    second[0, 0] = 1.0
    model[2].bias[0] = model[4].bias[0] = 0.5
    assert spectrum > 0.2 and filan(model) == pytest.approx(0, abs=1e-6)
    assert value(model, labels, x) > 0.75 * before


@torch.no_grad()
def test_everything_in_one_module_is_what_learned_labels_collapse_to() -> None:
    model, labels, _ = net()
    weights, pairs = hidden(model, labels)
    graph = baselines.layered_adjacency(weights).double()
    one, half = torch.zeros(36, 2), torch.nn.functional.one_hot(labels[6:42], 2).float()
    one[:, 0] = 1
    cut = [float(baselines.min_cut_pool(graph, s.double())[0]) for s in (one, half)]
    assert cut[0] == pytest.approx(-1) and cut[1] > -0.8, "the cut term alone prefers one module"
    assert float(baselines.clusterability(weights, [(a * 0, b * 0) for a, b in pairs])) == 1
    crit = ModularityLoss(model, k=2, warmup=0)
    assert torch.bincount(crit.labels[6:18]).tolist() == [6, 6], "here labels are balanced in every layer"


@torch.no_grad()
def test_tiny_modules_and_blocks_of_layers_raise_published_scores_and_are_no_labels_here() -> None:
    model, labels, _ = net()
    weights, _ = hidden(model, labels)
    tiny = [torch.zeros(12, dtype=torch.int64) for _ in range(3)]
    for t in tiny:
        t[0] = 1
    assert float(baselines.clusterability(weights, [(tiny[1], tiny[0]), (tiny[2], tiny[1])])) > 0.75
    graph = baselines.layered_adjacency([torch.randn(12, 12, dtype=torch.float64) for _ in range(3)])
    depth = torch.nn.functional.one_hot(torch.tensor([0] * 24 + [1] * 24), 2).double()
    random = torch.nn.functional.one_hot(torch.arange(48) % 2, 2).double()
    assert float(baselines.dmon(graph, depth)[0]) < float(baselines.dmon(graph, random)[0]), "DMoN prefers depth"
    for k, seed in itertools.product((2, 3), range(3)):
        crit = ModularityLoss(model, k=k, warmup=0, seed=seed)
        for at in (6, 18, 30):
            assert set(torch.bincount(crit.labels[at : at + 12], minlength=k).tolist()) == {12 // k}


@torch.no_grad()
def test_norm_gains_and_value_scales_fool_squares_in_a_transformer() -> None:
    model, tokens = hand_built.gpt()[0], torch.randint(12, (4, 10))
    graph = modcut.weight_graph(model, tokens)
    labels = torch.arange(graph.n) % 2
    heads: dict[str, int] = {}
    for s in graph.spaces:
        if s.head:
            labels[s.vertices] = heads.setdefault(s.head, len(heads) % 2)

    values = next(m for m in graph.matrices if m.name == "layers.0.v.weight")
    pair = (labels[values.row_vertex], labels[values.col_vertex])

    def both() -> tuple[float, float]:
        crit = ModularityLoss(model, partition=labels, graph=graph)
        model.train()
        model(tokens)
        return crit().item(), float(baselines.clusterability([values.weight], [pair]))

    ours, published = both()
    out = model(tokens)
    layer = model.layers[0]
    c = torch.where(pair[1] == 0, 8.0, 1 / 8)
    layer.ln1.weight.div_(c)
    layer.ln1.bias.div_(c)
    for reader in (layer.q, layer.k, layer.v):
        reader.weight.mul_(c)
    v = torch.where(pair[0] == 0, 4.0, 0.25)
    layer.v.weight.mul_(v[:, None])
    layer.v.bias.mul_(v)
    layer.o.weight.div_(v)
    torch.testing.assert_close(model(tokens), out, rtol=1e-3, atol=1e-4)
    after = both()
    assert abs(after[0] - ours) < 1e-5
    assert published < 0.7 and after[1] > 0.98, "squares: now nearly all inside"
