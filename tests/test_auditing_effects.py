from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from auditing_nets import accuracy, random_gpt, tokens, two_task_data, two_tasks
from modcut.auditing import ablate, effect_table
from modcut.auditing.effects import selectivity

X, Y = two_task_data()
MEASURES = {"a": lambda m: accuracy(m, X, Y, 0), "b": lambda m: accuracy(m, X, Y, 1)}


def test_the_table_of_the_two_task_net_names_the_module_of_each_task():
    model, P = two_tasks()
    t = effect_table(model, P, MEASURES, mode=("zero", "mean"), reference=[X], controls=60)
    for module, (own, other) in enumerate([("a", "b"), ("b", "a")]):
        row = t.row(module, own)
        assert row.drop.value > 0.4 and row.selectivity.value > 0.4
        assert row.gain > 0.3 and row.selectivity.low > 0.3
        assert row.selectivity.p < 0.1  # a draw of the same two inputs of the four comes near
        assert t.row(module, other).selectivity.value < -0.4
        assert t.best(own).module == module
    assert {r.mode for r in t.rows} == {"zero", "mean"} and len(t.rows) == 8 and len(t.worst) == 4
    assert not any(r.removed for r in t.rows)  # chance is half of the rate, not below a tenth


def test_a_random_module_gains_nothing_on_average():
    model, P = two_tasks()
    hidden_and_inputs = P.graph.n - 4
    gains = []
    for seed in range(12):
        labels = P.labels.clone()
        g = torch.Generator().manual_seed(seed)
        for s in P.graph.spaces:
            labels[s.vertices] = labels[s.vertices][torch.randperm(s.size, generator=g)]
        t = effect_table(model, type(P)(labels, P.graph, 2), MEASURES, controls=20, seed=seed)
        assert all(r.units == hidden_and_inputs // 2 for r in t.rows)
        gains += [r.gain for r in t.rows]
    assert abs(np.mean(gains)) < 0.08


def test_figures_equal_direct_measurement():
    model, P = two_tasks()
    t = effect_table(model, P, MEASURES, controls=3, seed=4)
    with ablate(model, P, 0):
        without = accuracy(model, X, Y, 0)
    row = t.row(0, "a", "zero")
    assert (row.baseline, row.ablated) == (1.0, pytest.approx(without))
    assert row.drop.value == pytest.approx(row.baseline - without)


def test_selectivity_is_the_drop_minus_the_mean_drop_of_the_rest():
    np.testing.assert_allclose(selectivity(np.array([0.5, 0.1, 0.3])), [0.3, -0.3, 0.0], atol=1e-12)
    np.testing.assert_allclose(selectivity(np.array([[0.5], [0.2]])), [[0.5], [0.2]])


def test_removal_needs_the_behaviour_gone_and_the_rest_kept():
    model, P = two_tasks()
    on = lambda column: lambda m: float(m(X).detach()[:, column].abs().mean() > 0)  # noqa: E731
    t = effect_table(model, P, {"a": on(0), "b": on(1)}, controls=2)
    assert t.row(0, "a").removed and not t.row(0, "b").removed
    assert effect_table(model, P, {"a": on(0)}, controls=2).row(0, "a").removed is None


def test_it_prints_and_saves_its_controls():
    model, P = two_tasks()
    t = effect_table(model, P, MEASURES, controls=4, seed=9)
    words = str(t)
    for part in ("n 4", "seed 9", "ablation zero", "4 random modules", t.record["model"][:12], "gain", "random drop"):
        assert part in words
    assert json.loads(json.dumps(t.to_dict()))["rows"][0]["selectivity"]["n"] == 4


def test_modules_without_reachable_units_are_listed():
    model, P = random_gpt()
    labels = P.labels.clone()
    labels[labels == 2] = 1
    labels[:12] = 2  # all tokens: embeddings are looked up, there is nothing to replace
    x = tokens()
    t = effect_table(model, type(P)(labels, P.graph, 3), {"logit": lambda m: float(m(x).detach().mean())}, controls=2)
    assert set(t.skipped) == {2} and "not measured" in str(t)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_interrupt_leaves_the_model_as_it_was(error):
    model, P = two_tasks()
    calls = []

    def measure(m):
        calls.append(1)
        if len(calls) == 4:
            raise error
        return 1.0

    model.train()
    with pytest.raises(error):
        effect_table(model, P, {"a": measure}, controls=5)
    assert model.training and not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"measures": {}}, "at least one function"),
        ({"mode": ()}, "at least one ablation mode"),
        ({"mode": "mean"}, "needs reference data"),
        ({"mode": "all"}, "mode must be one of"),
        ({"controls": 0}, "controls must be at least 1"),
        ({"measures": {"broken": lambda m: float("nan")}}, "'broken' of the intact model is nan"),
    ],
)
def test_bad_input_is_named(kwargs, words):
    model, P = two_tasks()
    with pytest.raises(ValueError, match=words):
        effect_table(model, P, **{"measures": MEASURES, "controls": 2, **kwargs})
