"""Hooks on a model stay with that model: a copy or a file of it carries none that do anything."""

from __future__ import annotations

import copy
import io
import warnings

import pytest
import torch
from torch import nn

import hand_built
import modcut
from modcut.graph.statistics import Recorder


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_a_model_can_be_saved_and_loaded_while_usage_is_gathered() -> None:
    model, _ = hand_built.mlp()
    crit = modcut.ModularityLoss(model, 2, warmup=4, gather=4)
    x = torch.randn(5, 6)
    model(x).sum().backward()
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert torch.equal(loaded(x), model(x))
    assert crit.phase == "warm-up"


def test_copies_of_a_model_leave_no_trace_in_what_is_gathered() -> None:
    model, graph = hand_built.mlp()
    with Recorder(graph, model) as recorder:
        model(torch.randn(5, 6)).sum().backward()
        rows, squares = recorder.rows, recorder.input_mean_square
        ema = copy.deepcopy(model)
        ema(100 * torch.randn(5, 6)).sum().backward()
        assert torch.equal(recorder.rows, rows)
        for name, square in recorder.input_mean_square.items():
            assert torch.equal(square, squares[name])


def test_a_copy_made_inside_an_ablation_is_whole() -> None:
    model, graph = hand_built.mlp()
    partition = modcut.find_modules(graph, 2)
    x = torch.randn(5, 6)
    whole = model(x)
    with modcut.ablate(model, partition, [0]):
        assert not torch.equal(model(x), whole)
        assert torch.equal(copy.deepcopy(model)(x), whole)


def test_mean_folding_leaves_no_hook_where_its_warning_is_an_error() -> None:
    class Stacked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Parameter(torch.randn(2, 6, 8)), nn.Parameter(torch.randn(2, 8, 6))
            self.out = nn.Linear(6, 3)

        def forward(self, x):
            for i in range(2):
                x = torch.relu(x @ self.up[i]) @ self.down[i]
            return self.out(torch.relu(x))

    model = Stacked()
    batch = (torch.randn(9, 6), torch.randint(0, 3, (9,)))
    partition = modcut.find_modules(model, 2, example_inputs=batch[0])
    before = {n: p.clone() for n, p in model.named_parameters()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="cannot be folded"):
            modcut.cut_and_run(model, partition, lambda m: m(batch[0]), "mean", data=[batch])
    assert hooks(model) == 0
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    # The same model is ablated although its matrices are slices of parameters.
    with modcut.ablate(model, partition, [0]):
        model(batch[0])
