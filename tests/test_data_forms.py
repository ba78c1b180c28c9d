"""Every form in which a user may hand over data, and every state in which a model may be."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import modcut
from modcut import _batches
from modcut.loss import reset


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))


X, Y = torch.randn(64, 8), torch.randint(0, 4, (64,))


def pieces(size: int = 16):
    return ((X[i : i + size], Y[i : i + size]) for i in range(0, 64, size))


@pytest.mark.parametrize(
    "data",
    [[(X, Y)], (X, Y), pieces(), {"": pieces()}, list(pieces(7))],
    ids=["list", "one pair", "generator", "generator in a dict", "uneven batches"],
)
def test_every_form_of_the_same_data_gives_every_window_and_the_same_modules(data) -> None:
    model = mlp()
    expected = modcut.find_modules(model, 2, data=[(X, Y)])
    found = modcut.find_modules(model, 2, data=data)
    assert found.meta["statistics"]["windows"] == 64
    assert torch.equal(found.labels, expected.labels)


def test_slices_given_as_generators_keep_their_first_batch() -> None:
    found = modcut.find_modules(mlp(), data={"a": pieces(), "b": pieces()})
    assert found.meta["statistics"]["slices"] == {"a": 64, "b": 64}


def test_two_batches_of_inputs_in_a_tuple_stay_two_batches() -> None:
    assert len(list(_batches.iterate((X, X + 1)))) == 2
    assert len(list(_batches.iterate((X, Y)))) == 1


def test_k_may_be_any_integer() -> None:
    assert modcut.find_modules(mlp(), np.int64(4)).k == 4
    with pytest.raises(TypeError, match="k must be an integer"):
        modcut.find_modules(mlp(), 2.0)


def test_windows_that_are_all_alike_show_no_function() -> None:
    with pytest.raises(ValueError, match="usage that varies over windows"):
        modcut.find_modules(mlp(), 2, data=[(X[:1].repeat(64, 1), Y[:1].repeat(64))])


def test_contribution_edges_need_no_loss() -> None:
    graph = modcut.weight_graph(mlp(), edge="contribution", data=[X])
    assert graph.statistics.windows == 0
    assert modcut.find_modules(graph, 2).meta["method"] == "spectral"


def test_finding_and_the_loss_work_in_inference_mode_and_train_afterwards() -> None:
    model = mlp()
    with torch.inference_mode():
        inside = X * 1.0
        value = float(modcut.modularity_loss(model, k=4))
        found = modcut.find_modules(model, 2, data=[(inside, Y)])
    assert torch.equal(found.labels, modcut.find_modules(model, 2, data=[(X, Y)]).labels)
    loss = modcut.modularity_loss(model, k=4)
    assert float(loss.detach()) == pytest.approx(value)
    loss.backward()
    model(X).sum().backward()
    modcut.modularity_loss(model, k=4).backward()
    reset(model)


def test_the_one_line_loss_starts_anew_when_the_memory_layout_changes() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(128, 4))
    x = torch.randn(2, 3, 8, 8)
    before = float(modcut.modularity_loss(model, example_inputs=x).detach())
    model.to(memory_format=torch.channels_last)
    assert float(modcut.modularity_loss(model, example_inputs=x).detach()) == pytest.approx(before, rel=1e-5)


def test_a_model_without_a_layer_to_split_is_refused_instead_of_given_a_loss_of_zero() -> None:
    model = nn.Sequential(nn.Linear(4, 1), nn.ReLU(), nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 3))
    with pytest.raises(ValueError, match="at least 2 neurons or heads"):
        modcut.modularity_loss(model)


def test_a_loss_inside_its_own_model_says_that_it_cannot_be_copied() -> None:
    import copy

    model = mlp()
    model.crit = modcut.ModularityLoss(model, 4, warmup=0)
    with pytest.raises(RuntimeError, match="submodule of its own model"):
        copy.deepcopy(model)


def test_what_the_loss_found_carries_the_strengths_that_it_reads() -> None:
    model = mlp()
    crit = modcut.ModularityLoss(model, 4, data=[(X, Y)])
    crit.step()
    model(X)
    assert crit.partition.graph.edge == "contribution"
    assert crit.partition.meta["stamp"]["modcut"] == modcut.__version__
    value = modcut.cut_and_run(model, crit.partition, lambda m: m(X).sum().item(), "mean")
    assert np.isfinite(value)


def test_compiled_models_are_traced_by_the_module_inside_and_refused_where_hooks_may_not_be_seen() -> None:
    model = mlp()
    compiled = torch.compile(model, backend="eager")
    found = modcut.find_modules(compiled, 2, data=[(X, Y)])
    traced = modcut.trace(compiled, X[:1], found, controls=2, step_controls=2)
    assert traced.modules == modcut.trace(model, X[:1], found, controls=2, step_controls=2).modules
    with pytest.raises(ValueError, match="must not be compiled"):
        modcut.ablate(compiled, found, [0])
