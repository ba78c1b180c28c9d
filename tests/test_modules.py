"""Claims about finding modules, cutting them apart, healing, and what they specialise in."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from hand_built import GPT, gpt, gpt_graph, mlp
from modcut import _batches
from modcut.graph.contract import contract
from modcut.graph.edges import shuffled
from modcut.graph.statistics import collect
from modcut.graph.types import WeightGraph
from modcut.graph.units import units_of
from modcut.modules import cut_and_heal, cut_and_run, find_modules, specialisation, tree_cut
from modcut.partition import Partition, adjusted_rand, cross_masks


def tokens(batches=3, size=5, time=9, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [torch.randint(12, (size, time), generator=g) for _ in range(batches)]


def partition(graph: WeightGraph, k: int = 2, seed: int = 0) -> Partition:
    return find_modules(graph, k, method="spectral", seed=seed)


def bits(model: nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def same(a, b) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()) + sum(
        len(p._backward_hooks or ()) for p in model.parameters()
    )


def two_tasks(width: int = 32, seed: int = 0):
    """An MLP trained on two tasks from a start where hidden units (in random order) belong to one or the other.

    Returns model, graph, ``batch(n, task)`` (task None: both halves of the input at once) and the planted labels [n].
    """
    g = torch.Generator().manual_seed(seed)
    model, graph = mlp((12, width, width, 4), seed=seed)
    truth = [torch.arange(12) // 6, *(torch.randperm(width, generator=g) % 2 for _ in range(2)), torch.arange(4) // 2]
    with torch.no_grad():
        for layer, cols, rows in zip((0, 2, 4), truth[:-1], truth[1:], strict=True):
            model[layer].weight[rows[:, None] != cols[None]] *= 0.05
    teach = [torch.randn(6, 2, generator=g) for _ in range(2)]

    def batch(n: int, task: int | None = None):
        x = torch.randn(n, 16, 12, generator=g)  # a window is 16 positions of one task
        if task is not None:
            x[..., 6 * (1 - task) : 6 * (1 - task) + 6] = 0
        return x, torch.cat([(x[..., :6] @ teach[0]).sin(), (x[..., 6:] @ teach[1]).sin()], -1)

    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(300):
        x, y = batch(8)
        optimizer.zero_grad()
        F.mse_loss(model(x), y).backward()
        optimizer.step()
    return model, graph, batch, torch.cat(truth)


# -- find -------------------------------------------------------------------------------------------------------------


def test_the_method_follows_from_what_is_given():
    model, graph = gpt()
    assert find_modules(graph, 2).meta["method"] == "spectral"
    statistics = collect(graph, model, tokens())
    P = find_modules(graph, 2, statistics=statistics)
    assert P.meta["method"] == "functional" and P.graph.statistics is statistics
    assert P.meta["statistics"]["windows"] == 15
    auto = find_modules(graph, statistics=statistics)
    assert auto.meta["k_chosen_by"] == "prediction strength" and auto.k == 1  # 15 windows of an untrained net
    assert auto.meta["verdict"].startswith("no skills found")


def test_labelled_slices_name_the_modules():
    model, graph, batch, truth = two_tasks()
    statistics = collect(graph, model, {"left": [batch(64, 0)], "right": [batch(64, 1)]})
    P = find_modules(graph, statistics=statistics)
    assert P.k == 2 and P.meta["slices"] == ["left", "right"] and P.meta["k_chosen_by"] == "slices"
    assert float((P.labels == truth).double().mean()) > 0.85  # module 0 is the left task, inputs and outputs included


def test_modules_found_without_labels_are_those_of_the_tasks():
    model, graph, batch, truth = two_tasks()
    mixed = [tuple(torch.cat(t) for t in zip(batch(32, 0), batch(32, 1), strict=True)) for _ in range(4)]
    P = find_modules(graph, 2, statistics=collect(graph, model, mixed))
    assert adjusted_rand(P.labels, truth) > 0.5
    parts = {"left": [batch(128, 0)], "right": [batch(128, 1)]}
    result = specialisation(model, P, parts, random=19)
    assert result.tv > 2 * result.random_mean and result.p <= 0.1
    # The null: with every profile shuffled over windows, the same method finds nothing.
    null = find_modules(graph, 2, statistics=shuffled(collect(graph, model, mixed), 0, graph))
    assert abs(adjusted_rand(null.labels[12:76], truth[12:76])) < 0.2


def test_bad_calls_of_find_modules_are_errors():
    model, graph = gpt()
    for kwargs, error, message in (
        ({"method": "louvain"}, ValueError, "method must be one of"),
        ({"k": 2.0}, TypeError, "k must be an integer"),
        ({"k": 25}, ValueError, "got 25"),
        ({"method": "functional"}, ValueError, "needs data"),
        ({"method": "tree"}, ValueError, "needs data"),
        ({"data": tokens()}, ValueError, "data needs the model"),
    ):
        with pytest.raises(error, match=message):
            find_modules(graph, **kwargs)
    with pytest.raises(TypeError, match="a model or its WeightGraph, got list"):
        find_modules([1, 2])
    with torch.no_grad():
        model.layers[0].up.weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"layers\.0\.up\.weight must be finite"):
        find_modules(graph, 2)


def test_the_tree_shows_a_planted_skill_cut_and_its_null_does_not():
    """Weights without structure, usage with: only the co-usage graph has a small cut, and shuffling removes it."""
    model, graph = gpt(layers=1)
    units = units_of(graph)
    g = torch.Generator().manual_seed(0)
    group = torch.zeros(units.count, dtype=torch.int64)
    for _, _, ids in units.members():
        group[ids[torch.randperm(len(ids), generator=g)[: len(ids) // 2]]] = 1
    topic = torch.arange(64) % 2
    profile = (0.1 + (topic[:, None] == group[units.unit][None])) * (0.5 + torch.rand(64, graph.n, generator=g))
    s = replace(collect(graph, model, tokens()), profile=profile, slice=torch.zeros(64, dtype=torch.int64))
    real, null = tree_cut(graph, s), tree_cut(graph, shuffled(s, 0, graph))
    inner = torch.cat([torch.arange(graph.n)[x.vertices] for x in graph.spaces if x.kind not in ("input", "output")])
    assert adjusted_rand(real.side()[inner], group[units.unit][inner]) == 1.0
    assert real.conductance[0] < 0.2 * null.conductance[0]
    P = find_modules(graph, 2, statistics=s, method="tree")
    assert adjusted_rand(P.labels[inner], group[units.unit][inner]) == 1.0
    assert P.meta["conductance"][0] < P.meta["null_conductance"][0]
    with pytest.raises(ValueError, match="k must be between 1 and the number of units"):
        real.labels(10_000)


def test_contraction_adds_up_heads_and_leaves_inputs_and_outputs_out():
    _, graph = gpt()
    small = contract(graph)
    units = units_of(graph)
    dense = torch.zeros(units.count, units.count, dtype=torch.float64)
    ends = (units.unit[:, None].expand(-1, graph.n), units.unit[None].expand(graph.n, -1))
    dense.index_put_(ends, graph.to_dense(), accumulate=True)
    kept = torch.cat([ids for _, kind, ids in units.members() if kind in ("hidden", "head", "residual")])
    torch.testing.assert_close(small.graph.to_dense(), dense[kept][:, kept].fill_diagonal_(0))
    assert small.graph.n == 16 + 2 * (4 + 24)
    assert bool((small.vertex[:12] == -1).all())


# -- cut and run ------------------------------------------------------------------------------------------------------


def test_cut_and_run_evaluates_the_model_without_its_cross_weights_and_restores_every_bit():
    model, graph = gpt()
    P, batch = partition(graph), tokens(1)[0]
    twin = copy.deepcopy(model)
    twin_graph = gpt_graph(twin)
    with torch.no_grad():
        for m, mask in zip(twin_graph.matrices, cross_masks(twin_graph, P.labels).values(), strict=True):
            m.weight[mask] = 0
    before = bits(model)
    cut = cut_and_run(model, P, lambda m: m(batch))
    assert torch.equal(cut, twin(batch))
    assert same(before, bits(model)) and hooks(model) == 0
    assert not torch.allclose(cut, model(batch))


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("mode", ["zero", "mean"])
def test_the_model_is_restored_when_evaluation_raises(error, mode):
    model, graph = gpt()
    before = bits(model)

    def fail(m):
        assert not same(before, bits(m))
        raise error("stop")

    with pytest.raises(error):
        cut_and_run(model, partition(graph), fail, mode, data=tokens())
    assert same(before, bits(model)) and hooks(model) == 0


def test_tied_weights_are_cut_once_and_restored():
    model, _ = gpt()
    model.head.weight = model.emb.weight
    graph = gpt_graph(model)
    before = bits(model)
    P = partition(graph)
    seen = []
    cut_and_run(model, P, lambda m: seen.append(m.emb.weight.detach().clone()))
    gone = cross_masks(graph, P.labels)
    assert bool((seen[0][gone["head.weight"]] == 0).all()) and bool((seen[0].T[gone["emb.weight"]] == 0).all())
    assert same(before, bits(model))


def test_the_mean_fold_removes_only_the_variation():
    """On data without variation nothing is lost; on the mean of the data a linear map gives what it gave."""
    model, graph = gpt()
    P = partition(graph)
    one = tokens(1)[0][:1].expand(4, -1)[:, :1]  # one token: every activation equals its mean
    plain = model(one)
    folded = cut_and_run(model, P, lambda m: m(one), "mean", data=[one])
    torch.testing.assert_close(folded, plain, atol=1e-5, rtol=1e-5)
    zeroed = cut_and_run(model, P, lambda m: m(one))
    assert not torch.allclose(zeroed, plain, atol=1e-2)


def test_means_may_come_from_the_partition_and_are_asked_for_otherwise():
    model, graph = gpt()
    with pytest.raises(ValueError, match='mode="mean" needs the mean inputs'):
        cut_and_run(model, partition(graph), lambda m: 0, "mean")
    P = find_modules(graph, 2, statistics=collect(graph, model, tokens()))
    batch = tokens(1)[0]
    a = cut_and_run(model, P, lambda m: m(batch), "mean")
    b = cut_and_run(model, P, lambda m: m(batch), "mean", data=tokens())
    torch.testing.assert_close(a, b)


def test_a_partition_of_another_model_is_refused(tmp_path):
    model, graph = gpt()
    P = partition(graph)
    for other in (copy.deepcopy(model), gpt(seed=1)[0]):
        with pytest.raises(ValueError, match=r"P\.graph must be the graph of this model"):
            cut_and_run(other, P, lambda m: 0)
    P.save(tmp_path / "p")
    with pytest.raises(ValueError, match="must have been traced from a model"):
        cut_and_run(model, Partition.load(tmp_path / "p"), lambda m: 0)
    with pytest.raises(ValueError, match='mode must be "zero" or "mean"'):
        cut_and_run(model, P, lambda m: 0, "half")


# -- cut and heal -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
        lambda p: torch.optim.AdamW(p, lr=3e-3, weight_decay=0.1),
    ],
    ids=["SGD with momentum", "AdamW"],
)
def test_removed_weights_stay_zero_while_the_rest_heals(optimizer):
    torch.manual_seed(0)
    model, graph = gpt()
    batches = tokens(1, size=16)
    opt = optimizer(model.parameters())

    def step():
        loss = _batches.loss_of(model, batches[0])
        opt.zero_grad()
        loss.backward()
        opt.step()
        return loss

    for _ in range(10):  # momentum from before the cut must not revive what is removed
        step()
    P = partition(graph)
    healed = cut_and_heal(model, P, step, steps=30)
    gone = cross_masks(graph, P.labels)
    for m in graph.matrices:
        assert torch.equal(healed.masks[m.name], gone[m.name])
        assert float(m.weight.detach()[gone[m.name]].abs().max()) == 0
        assert float(m.weight.detach()[~gone[m.name]].abs().max()) > 0
    assert healed.interface_edges == 0 and healed.cross_edges > 0
    assert len(healed.losses) == 30 and healed.losses[-1] < healed.losses[0]
    assert P.leak == pytest.approx(0.0, abs=1e-6)
    step()  # still held: gradients of removed weights are masked
    assert float(model.layers[0].up.weight.grad[gone["layers.0.up.weight"]].abs().max()) == 0
    healed.release()
    healed.release()
    assert hooks(model) == 0
    for _ in range(2):
        step()
    assert float(model.layers[0].up.weight.detach()[gone["layers.0.up.weight"]].abs().max()) > 0


@pytest.mark.parametrize("keep", [0.05, 0.3, 1.0])
def test_the_strongest_cross_weights_are_kept(keep):
    model, graph = gpt()
    P = partition(graph)
    gone = cross_masks(graph, P.labels)
    shares = {m.name: m.weight.abs() / m.weight.abs().sum(1, keepdim=True) for m in graph.matrices}
    total = sum(int(x.sum()) for x in gone.values())
    healed = cut_and_heal(model, P, lambda: None, keep, steps=0)
    assert healed.cross_edges == total
    assert healed.interface_edges == round(keep * total)
    kept = torch.cat([shares[n][gone[n] & ~healed.masks[n]] for n in gone])
    lost = torch.cat([shares[n][healed.masks[n]] for n in gone])
    if lost.numel():
        assert float(kept.min()) >= float(lost.max())
    healed.release()


def test_train_step_may_take_the_model_and_the_step():
    model, graph = gpt()
    P, seen = partition(graph), []
    for f in (lambda: seen.append(0), lambda m: seen.append(m is model), lambda m, s: seen.append(s)):
        cut_and_heal(model, P, f, steps=2).release()
    assert seen == [0, 0, True, True, 0, 1]


def test_an_interrupted_healing_leaves_no_hook_and_no_half_state():
    model, graph = gpt()
    P = partition(graph)

    def step(m, i):
        with torch.no_grad():
            m.layers[0].up.weight.add_(1.0)
        if i == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cut_and_heal(model, P, step, steps=5)
    assert hooks(model) == 0
    assert (
        float(model.layers[0].up.weight.detach()[cross_masks(graph, P.labels)["layers.0.up.weight"]].abs().max()) == 0
    )


def test_bad_calls_of_cut_and_heal_are_errors():
    model, graph = gpt()
    with pytest.raises(ValueError, match=r"keep must be in \[0, 1\], got 2"):
        cut_and_heal(model, partition(graph), lambda: None, 2)
    with pytest.raises(ValueError, match="steps must not be negative"):
        cut_and_heal(model, partition(graph), lambda: None, steps=-1)


# -- specialisation ---------------------------------------------------------------------------------------------------


def disjoint() -> tuple[nn.Sequential, WeightGraph]:
    """Two independent linear tasks in one MLP: half of the hidden layer serves output 0, the other half output 1."""
    model, graph = mlp((2, 8, 2))
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].weight[:4, 0] = model[0].weight[4:, 1] = 1
        model[0].bias.fill_(5.0)
        model[2].weight.zero_()
        model[2].weight[0, :4] = model[2].weight[1, 4:] = 0.25
        model[2].bias.fill_(-5.0)
    return model, graph


def slices(n: int = 40):
    x = torch.randn(n, 2, generator=torch.Generator().manual_seed(0))

    def loss(i):
        return [{"input": x, "target": torch.tensor(i)}]

    return {"first": loss(0), "second": loss(1)}


def task_loss(model, batch):
    i = int(batch["target"])
    return (model(batch["input"])[:, i] - batch["input"][:, i]).square().mean()


def test_disjoint_modules_score_one_and_shared_ones_zero():
    model, graph = disjoint()
    right = Partition(torch.tensor([0, 1, *[0] * 4, *[1] * 4, 0, 1]), graph, 2)
    wrong = Partition(torch.tensor([0, 1, *[0, 0, 1, 1] * 2, 0, 1]), graph, 2)
    a = specialisation(model, right, slices(), task_loss, random=30)
    assert a.base_loss["first"] < 1e-9
    assert a.tv == pytest.approx(1.0)
    assert a.p <= 3 / 31 and a.random_mean < 0.7
    b = specialisation(model, wrong, slices(), task_loss, random=30)
    assert b.tv == pytest.approx(0.0, abs=1e-6) and b.p == 1.0
    assert a.to_dict()["control"].startswith("30 random partitions")
    assert hooks(model) == 0


def test_specialisation_of_an_unlearned_task_is_refused():
    model, graph = disjoint()
    P = Partition(torch.tensor([0, 1, *[0] * 4, *[1] * 4, 0, 1]), graph, 2)
    with pytest.raises(RuntimeError, match="slice 'first' must be learned"):
        specialisation(mlp((2, 8, 2))[0], P, slices(), task_loss, max_loss=0.1)
    with pytest.raises(ValueError, match="at least 2 parts"):
        specialisation(model, P, {"a": []}, task_loss)
    with pytest.raises(ValueError, match="random must be at least 1"):
        specialisation(model, P, slices(), task_loss, random=0)


def test_a_slice_that_no_ablation_hurts_has_no_score():
    model, graph = disjoint()
    with torch.no_grad():
        model[2].weight.zero_()
    P = Partition(torch.tensor([0, 1, *[0] * 4, *[1] * 4, 0, 1]), graph, 2)
    result = specialisation(model, P, slices(), task_loss, random=3)
    assert math.isnan(result.tv) and result.p == 1.0


# -- through the tracer -----------------------------------------------------------------------------------------------


def test_a_model_goes_in_and_modules_come_out():
    torch.manual_seed(0)
    model = GPT()
    P = find_modules(model, 2, data=tokens())
    assert P.graph.edge == "contribution" and len(P.meta["model"]) == 64 and P.meta["units_without_usage"] == 0
    before = bits(model)
    for mode in ("zero", "mean"):
        cut_and_run(model, P, lambda m: m(tokens(1)[0]).sum().item(), mode)
    assert same(before, bits(model))
    for counts in P.balance.values():
        assert int(counts.max() - counts.min()) <= 1
    assert find_modules(model, 2).meta["method"] == "spectral"


def test_convolutions_are_cut_and_their_means_folded():
    torch.manual_seed(0)
    conv = [nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU()]
    model = nn.Sequential(*conv, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    x, y = torch.randn(6, 1, 10, 10), torch.randint(4, (6,))
    P = find_modules(model, 2, data=[(x, y)])
    before = bits(model)
    cut = cut_and_run(model, P, lambda m: m(x))
    flat = torch.full_like(x, 0.7)
    torch.testing.assert_close(cut_and_run(model, P, lambda m: m(flat), "mean", data=[flat]), model(flat))
    assert same(before, bits(model)) and not torch.allclose(cut, model(x))
