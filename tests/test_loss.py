"""The modularity loss of a whole model: its value, what it is invariant to, and what it refuses."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
from torch import Tensor, nn

import hand_built
import modcut
import modcut.loss
from modcut.loss import ModularityLoss, modularity_loss


@pytest.fixture(autouse=True)
def _no_cache() -> None:
    modcut.loss.reset()


def labelled(graph: modcut.WeightGraph, k: int, seed: int = 0) -> Tensor:
    """Random labels, whole heads alike."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, k, (graph.n,), generator=g)
    heads: dict[str, int] = {}
    for s in graph.spaces:
        if s.head:
            labels[s.vertices] = heads.setdefault(s.head, int(labels[s.offset]))
    return labels


def mlp(*sizes: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    return hand_built.mlp(sizes, seed)[0].to(dtype)


@torch.no_grad()
def awake(model: nn.Sequential) -> nn.Sequential:
    """The model with biases that leave no neuron dead: a module that is dead in a layer counts as leaking there."""
    for m in model:
        if isinstance(m, nn.Linear):
            m.bias.add_(2.0)
    return model


def loss_of(model: nn.Module, labels: Tensor, x: Tensor, **kwargs: object) -> ModularityLoss:
    """The loss with given labels and the input norms of one training pass."""
    crit = ModularityLoss(model, partition=labels, **kwargs)  # type: ignore[arg-type]
    model.train()
    model(x)
    return crit


def by_formula(model: nn.Sequential, labels: Tensor, x: Tensor) -> Tensor:
    """The loss of an MLP, written independently: dense shares, autograd; inner weights only."""
    linears = [m for m in model if isinstance(m, nn.Linear)]
    at = x.shape[1] + linears[0].out_features
    total, h, before = torch.zeros((), dtype=x.dtype), torch.relu(linears[0](x)).detach(), x.shape[1]
    for m in linears[1:-1]:
        s = h.square().mean(0).sqrt()
        a = m.weight.abs() * s
        p = a / a.sum(1, keepdim=True)
        same = labels[at : at + m.out_features, None] == labels[None, before : before + m.in_features]
        after = torch.relu(m(h)).detach()
        total = total + (1 - (p * same).sum(1))[(after > 0).any(0)].mean()  # neurons that never fire do not count
        h, before, at = after, at, at + m.out_features
    return total / len(linears[1:-1])


# ---- value and gradient ----------------------------------------------------------------------------------------------
def test_value_and_gradient_are_those_of_the_formula() -> None:
    model, x = awake(mlp(5, 6, 7, 6, 3, dtype=torch.float64)), torch.randn(40, 5, dtype=torch.float64)
    crit = loss_of(model, labelled(modcut.weight_graph(model), 3), x)
    assert crit.labels.numel() == 5 + 6 + 7 + 6 + 3
    want = by_formula(model, crit.labels, x)
    torch.testing.assert_close(crit(), want)
    weights = [model[2].weight, model[4].weight]
    for a, b in zip(torch.autograd.grad(crit(), weights), torch.autograd.grad(want, weights), strict=True):
        torch.testing.assert_close(a, b)


def test_gradcheck_of_a_whole_transformer_in_float64() -> None:
    model = hand_built.GPT(vocab=6, d=4, heads=2, layers=1, hidden=6).double()
    example = torch.zeros(1, 4, dtype=torch.long)
    labels = labelled(modcut.weight_graph(model, example), 2)
    crit = loss_of(model, labels, torch.randint(6, (3, 8)), example_inputs=example, inputs=0.5)
    parameters = [p for name, p in model.named_parameters() if p.ndim == 2 and "pos" not in name]
    assert torch.autograd.gradcheck(lambda *_: crit(), parameters)


def test_traced_and_hand_written_graphs_give_the_same_loss() -> None:
    model, graph = hand_built.gpt()
    tokens = torch.randint(12, (4, 10))
    traced = modcut.weight_graph(model, tokens)
    a = loss_of(model, labelled(traced, 2), tokens, graph=traced)
    ids = {s.name.replace("mlp", "up"): s for s in traced.spaces}
    assert {s.kind for s in graph.spaces} == {s.kind for s in traced.spaces} and len(ids) == len(graph.spaces)
    # The two number their spaces alike up to the order inside a layer: match by what a matrix joins.
    labels = torch.zeros(graph.n, dtype=torch.int64)
    other = {m.name: m for m in traced.matrices}
    for m in graph.matrices:
        labels[m.row_vertex] = a.labels[other[m.name].row_vertex]
        labels[m.col_vertex] = a.labels[other[m.name].col_vertex]
    b = loss_of(model, labels, tokens, graph=graph)
    torch.testing.assert_close(a(), b())


def test_backward_in_place_adds_what_autograd_adds() -> None:
    model = hand_built.gpt()[0]
    tokens = torch.randint(12, (4, 10))
    crit = loss_of(model, labelled(modcut.weight_graph(model, tokens), 2), tokens, example_inputs=tokens, inputs=0.3)
    for p in model.parameters():
        p.grad = torch.full_like(p, 0.25)
    (0.5 * crit()).backward()
    want = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    for p in model.parameters():
        p.grad = torch.full_like(p, 0.25)
    value = crit.backward_(0.5)
    assert value == pytest.approx(crit().item())
    for n, p in model.named_parameters():
        torch.testing.assert_close(p.grad, want[n], msg=n)


def test_one_call_on_any_model_gives_a_differentiable_scalar() -> None:
    conv = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(96, 3)
    )
    for model, example in (
        (mlp(5, 6, 6, 3), None),
        (mlp(5, 6, 3), None),  # one hidden layer: only weights at inputs and outputs
        (conv, torch.randn(2, 1, 8, 8)),
        (hand_built.gpt()[0], torch.zeros(1, 4, dtype=torch.long)),
    ):
        value = modularity_loss(model, example_inputs=example)
        assert value.ndim == 0 and 0 < value.item() <= 1
        value.backward()
        assert any(p.grad is not None and bool(p.grad.any()) for p in model.parameters())


# ---- invariances -----------------------------------------------------------------------------------------------------
def same(a: Tensor, b: Tensor, rel: float = 1e-5) -> None:
    assert abs(a.item() - b.item()) <= rel * abs(a.item()), (a.item(), b.item())


@torch.no_grad()
def rescale_relu(model: nn.Sequential) -> None:
    for first, second in ((model[0], model[2]), (model[2], model[4])):
        c = torch.logspace(-3, 3, first.out_features)[torch.randperm(first.out_features)].to(first.weight)
        first.weight.mul_(c[:, None])
        first.bias.mul_(c)
        second.weight.div_(c)


def test_rescaling_relu_neurons_changes_nothing() -> None:
    model, x = mlp(5, 8, 8, 8, 3), torch.randn(64, 5)
    labels = labelled(modcut.weight_graph(model), 2)
    before, out = loss_of(model, labels, x, inputs=0.5)(), model(x)
    rescale_relu(model)
    torch.testing.assert_close(model(x), out, rtol=1e-3, atol=1e-4)
    same(before, loss_of(model, labels, x, inputs=0.5)())


def test_bare_weights_do_change_under_the_same_rescaling() -> None:
    model, x = mlp(5, 8, 8, 8, 3), torch.randn(64, 5)
    labels = labelled(modcut.weight_graph(model), 2)
    before = {e: loss_of(model, labels, x, edge=e)().item() for e in ("abs", "square")}
    rescale_relu(model)
    for edge, value in before.items():
        assert abs(loss_of(model, labels, x, edge=edge)().item() / value - 1) > 0.01


def test_without_data_balanced_sources_take_the_place_of_norms() -> None:
    model = mlp(5, 8, 8, 8, 3, dtype=torch.float64)
    labels = labelled(modcut.weight_graph(model), 2)
    before = ModularityLoss(model, partition=labels)()
    weights = [p.clone() for p in model.parameters()]
    rescale_relu(model)
    after = ModularityLoss(model, partition=labels)()
    assert after.item() == pytest.approx(before.item(), rel=1e-4)
    assert any(not torch.allclose(p, w, rtol=0.5) for p, w in zip(model.parameters(), weights, strict=True))


@torch.no_grad()
def test_norm_gains_and_value_output_and_query_key_scales_change_nothing() -> None:
    model, tokens = hand_built.gpt()[0], torch.randint(12, (4, 10))
    labels = labelled(modcut.weight_graph(model, tokens), 2)
    before, out = loss_of(model, labels, tokens, example_inputs=tokens)(), model(tokens)
    for layer in model.layers:
        for norm, readers in ((layer.ln1, (layer.q, layer.k, layer.v)), (layer.ln2, (layer.up,))):
            c = torch.rand(16) * 3 + 0.1
            norm.weight.mul_(c)
            norm.bias.mul_(c)
            for r in readers:
                r.weight.div_(c)
        for first, second, dim in ((layer.v, layer.o, 1), (layer.q, layer.k, 0)):
            c = torch.rand(16) * 3 + 0.1
            first.weight.mul_(c[:, None])
            first.bias.mul_(c)
            second.weight.div_(c if dim else c[:, None])
            if not dim:
                second.bias.div_(c)
    torch.testing.assert_close(model(tokens), out, rtol=1e-3, atol=1e-4)
    same(before, loss_of(model, labels, tokens, example_inputs=tokens)())


def test_permuting_neurons_with_their_labels_changes_nothing() -> None:
    model, tokens = hand_built.gpt()[0], torch.randint(12, (4, 10))
    graph = modcut.weight_graph(model, tokens)
    labels = labelled(graph, 3)
    before = loss_of(model, labels, tokens, graph=graph)()
    grads = torch.autograd.grad(before, model.layers[0].up.weight)[0]
    space = next(s for s in graph.spaces if s.kind == "hidden")
    for s in graph.spaces:
        if not s.fixed and s.kind in ("hidden", "residual", "head"):
            perm = torch.randperm(s.size)
            graph.permute_(s, perm)
            labels[s.vertices] = labels[s.vertices][perm]
            if s == space:
                grads = grads[perm]
            if s.kind == "residual":
                grads = grads[:, perm]
    crit = loss_of(model, labels, tokens, graph=graph)
    same(before, crit())
    torch.testing.assert_close(torch.autograd.grad(crit(), model.layers[0].up.weight)[0], grads, rtol=1e-3, atol=1e-6)


def test_names_of_modules_do_not_matter_and_one_module_has_no_leak() -> None:
    model, x = mlp(5, 6, 6, 6, 3), torch.randn(16, 5)
    labels = labelled(modcut.weight_graph(model), 3)
    torch.testing.assert_close(loss_of(model, labels, x)(), loss_of(model, torch.tensor([2, 0, 1])[labels], x)())
    assert loss_of(model, torch.zeros_like(labels), x)().item() == 0


@pytest.mark.parametrize("inputs", [0.0, 0.5, 1.0])
def test_zero_exactly_when_nothing_crosses(inputs: float) -> None:
    model, x = awake(mlp(6, 8, 8, 8, 4)), torch.randn(16, 6)
    graph = modcut.weight_graph(model)
    labels = torch.arange(graph.n) % 2
    assert 0.2 < loss_of(model, labels, x, inputs=inputs)().item() <= 1
    masks = modcut.partition.cross_masks(graph, labels)  # type: ignore[attr-defined]
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name in masks:
                p[masks[name]] = 0
    assert loss_of(model, labels, x, inputs=inputs)().item() == 0
    with torch.no_grad():
        model[2].weight[0, 1] = 1e-6  # vertex 6 from vertex 13: other modules
    crit = loss_of(model, 1 - labels, x + 1, inputs=inputs)
    assert (crit().item() > 0) == (labels[6] != labels[7])


def test_the_dial_counts_weights_at_inputs_and_outputs_as_their_share() -> None:
    model, x = mlp(5, 6, 6, 3), torch.randn(16, 5)
    labels = labelled(modcut.weight_graph(model), 2)
    at = {d: loss_of(model, labels, x, inputs=d)().item() for d in (0.0, 0.25, 1.0)}
    boundary = (3 * at[1.0] - at[0.0]) / 2  # one inner class, two boundary classes
    assert at[0.25] == pytest.approx((at[0.0] + 0.25 * 2 * boundary) / 1.5, rel=1e-5)


def test_inputs_and_outputs_have_dials_of_their_own() -> None:
    model, x = mlp(5, 6, 6, 3), torch.randn(16, 5)
    labels = labelled(modcut.weight_graph(model), 2)
    names = {
        (i, o): loss_of(model, labels, x, inputs=i, outputs=o)._terms.weights for i in (0.0, 1.0) for o in (0.0, 1.0)
    }
    got = {key: [w.name for w in weights] for key, weights in names.items()}
    assert got[0.0, 0.0] == ["2.weight"] and got[1.0, 0.0] == ["0.weight", "2.weight"]
    assert got[0.0, 1.0] == ["2.weight", "4.weight"] and len(got[1.0, 1.0]) == 3
    inner, end = (loss_of(model, labels, x, inputs=0.0, outputs=o)().item() for o in (0.0, 1.0))
    both = loss_of(model, labels, x, inputs=1.0)().item()
    assert (
        loss_of(model, labels, x, inputs=0.5, outputs=1.0)().item()
        == pytest.approx((2 * end + 0.5 * (3 * both - 2 * end)) / 2.5, rel=1e-5)
        and end != inner
    )


def test_frozen_parameters_count_and_get_no_gradient() -> None:
    model, x = mlp(5, 6, 6, 6, 3), torch.randn(16, 5)
    labels = labelled(modcut.weight_graph(model), 2)
    value = loss_of(model, labels, x)()
    model[2].weight.requires_grad_(False)
    crit = loss_of(model, labels, x)
    torch.testing.assert_close(crit(), value)
    crit().backward()
    assert model[2].weight.grad is None and model[4].weight.grad is not None
    crit.backward_()
    assert model[2].weight.grad is None


# ---- the one-line form -----------------------------------------------------------------------------------------------
def test_the_cache_keeps_no_model_alive_and_is_used() -> None:
    model = mlp(5, 6, 6, 3)
    modularity_loss(model, k=2)
    crit = modcut.loss._cache[model][2]
    modularity_loss(model, k=2)
    assert modcut.loss._cache[model][2] is crit
    modularity_loss(model, k=3)
    assert modcut.loss._cache[model][2] is not crit and modcut.loss._cache[model][2].k == 3
    del crit
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None and not len(modcut.loss._cache)


@pytest.mark.parametrize("change", ["replaced", "reshaped"])
def test_the_cache_notices_new_parameters(change: str) -> None:
    model = mlp(5, 6, 6, 3)
    modularity_loss(model, k=2)
    if change == "replaced":
        model[2].weight = nn.Parameter(torch.eye(6))
    else:
        model[2], model[4] = nn.Linear(6, 9), nn.Linear(9, 3)
    value = modularity_loss(model, k=2)
    value.backward()
    assert model[2].weight.grad is not None


def test_reset_removes_the_hooks() -> None:
    model = mlp(5, 6, 6, 3)
    modularity_loss(model, k=2)
    assert any(m._forward_pre_hooks for m in model.modules())
    modcut.loss.reset(model)
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_a_copied_model_is_its_own() -> None:
    model = mlp(5, 6, 6, 3)
    crit = loss_of(model, labelled(modcut.weight_graph(model), 2), torch.randn(8, 5))
    value = crit().item()
    other = copy.deepcopy(model)
    other(1e3 * torch.randn(8, 5))  # must not reach the norms of the first
    assert crit().item() == value
    model[2].weight.data.zero_()
    assert modularity_loss(other, k=2).item() > 0 and crit().item() == 0


# ---- bad input -------------------------------------------------------------------------------------------------------
def test_refuses_what_it_cannot_do_in_a_sentence() -> None:
    model = mlp(5, 6, 6, 3)
    with pytest.raises(ValueError, match=r"k must be between 1 and .* \(6\), got 100"):
        ModularityLoss(model, k=100)
    with pytest.raises(ValueError, match="k must be between 1"):
        ModularityLoss(model, k=0)
    with pytest.raises(ValueError, match=r"assignment must be one of 'hard', 'soft', got 'warm'"):
        ModularityLoss(model, k=2, assignment="warm")
    with pytest.raises(ValueError, match=r"method must be one of 'share', 'ncut', 'tree', 'spectral', got 'nonsense'$"):
        ModularityLoss(model, k=2, method="nonsense")
    with pytest.raises(ValueError, match=r"edge must be one of .*'contribution'.*, got 'cousage'"):
        ModularityLoss(model, k=2, edge="cousage")
    with pytest.raises(ValueError, match="warmup must be an integer of at least 0, got -1"):
        ModularityLoss(model, k=2, warmup=-1)
    with pytest.raises(ValueError, match="inputs must be in"):
        ModularityLoss(model, k=2, inputs=1.5)
    with pytest.raises(ValueError, match="lam must be in"):
        ModularityLoss(model, k=2, lam=-1)
    with pytest.raises(ValueError, match="lam must be in"):
        ModularityLoss(model, k=2, lam=float("nan"))
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, got list"):
        ModularityLoss([model], k=2)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, got dict"):
        modularity_loss({})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"must have .*parameter"):
        modularity_loss(nn.ReLU())
    with pytest.raises(ValueError, match=r"shape \[20\], got \[7\]"):
        ModularityLoss(model, partition=torch.zeros(7, dtype=torch.int64))
    with pytest.raises(ValueError, match="inputs must be above 0"):
        ModularityLoss(mlp(5, 6, 3), k=2, inputs=0.0)
    other = modcut.weight_graph(mlp(5, 7, 6, 3))
    with pytest.raises(ValueError, match="partition must be of this model's graph"):
        ModularityLoss(model, partition=modcut.Partition(torch.zeros(21, dtype=torch.int64), other, 2))
    with pytest.raises(ValueError, match="graph must have been traced from this model"):
        ModularityLoss(model, k=2, graph=other)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_names_the_parameter_that_is_not_finite(bad: float) -> None:
    model = mlp(5, 6, 6, 3)
    crit = ModularityLoss(model, partition=labelled(modcut.weight_graph(model), 2))
    with torch.no_grad():
        model[2].weight[1, 1] = bad
    for act in (crit, crit.backward_, lambda: ModularityLoss(model, k=2, warmup=0)):
        with pytest.raises(ValueError, match=r"parameter 2\.weight must be finite"):
            act()


def test_says_when_its_model_is_gone_or_reshaped() -> None:
    model = mlp(5, 6, 6, 3)
    crit = ModularityLoss(model, partition=labelled(modcut.weight_graph(model), 2))
    model[2].weight.data = torch.zeros(4, 4)
    with pytest.raises(RuntimeError, match=r"2\.weight must keep the shape.*build a new loss"):
        crit()
    del model
    gc.collect()
    with pytest.raises(RuntimeError, match="no longer exists"):
        crit()
