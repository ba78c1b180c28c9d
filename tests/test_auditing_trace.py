from __future__ import annotations

import json

import pytest
import torch
from torch import nn

import modcut
from auditing_nets import random_gpt, random_mlp, tokens, two_tasks
from modcut.auditing import ablate, random_modules, trace
from modcut.auditing.depth import depths, in_order, site_name

LETTERS = "abcdefghijkl"


def decode(ids):
    return "".join(LETTERS[i] for i in ids)


def direct(model, P, modules, x, target, **kwargs):
    """Logit, probability, log-probability of an answer without some modules, measured in the plainest way."""
    with torch.no_grad(), ablate(model, P, modules, **kwargs):
        z = model(x)[0, -1].double()
    return z[target].item(), z.softmax(0)[target].item(), z.log_softmax(0)[target].item()


@pytest.mark.parametrize("mode", ["zero", "mean"])
def test_effects_are_what_ablate_measures(mode):
    model, P = random_gpt()
    x, reference = tokens(1), [tokens(20, seed=1)]
    t = trace(model, x, P, mode=mode, reference=reference, controls=3, steps=6, follow=None, step_controls=2, seed=5)
    z = model(x)[0, -1].double()
    target = int(z.argmax())
    assert t.decision.target == target and t.decision.probability == pytest.approx(z.softmax(0)[target].item())
    base = (z[target].item(), z.softmax(0)[target].item(), z.log_softmax(0)[target].item())
    for e in t.modules:
        got = direct(model, P, e.module, x, target, mode=mode, reference=reference)
        controls = [
            direct(model, P, c, x, target, mode=mode, reference=reference)
            for c in random_modules(P, ablate(model, P, e.module).reached, 3, seed=5)
        ]
        for i, effect in enumerate((e.logit, e.probability, e.log_probability)):
            assert effect.value == pytest.approx(got[i] - base[i], abs=1e-6)
            assert effect.control_mean == pytest.approx(sum(c[i] - base[i] for c in controls) / 3, abs=1e-6)
    for s in t.steps:
        for e in s.effects:
            got = direct(model, P, e.module, x, target, mode=mode, reference=reference, taps=s.site.taps)
            assert e.logit.value == pytest.approx(got[0] - base[0], abs=1e-6)


def test_the_module_of_a_task_is_named_and_the_decision_changes_without_it():
    model, P = two_tasks()
    x = torch.tensor([[2.0, 0.1, -1.0, 0.2]])  # task A: yes by a wide margin -> logit 2
    t = trace(model, x, P, controls=30, seed=1)
    assert t.decision.target == 2
    first, second = t.modules
    assert (first.module, second.module) == (0, 1)
    assert first.logit.value == pytest.approx(-9.0) and second.logit.value == 0.0
    assert first.without.changed and not second.without.changed
    assert abs(first.log_probability.gain) > 2 * abs(second.log_probability.value)
    assert t.rerun(without=[0]) == first.without and t.rerun() == t.decision
    # inputs and hidden units: the answer is carried from the first to the second step
    assert [s.site.name for s in t.steps] == ["0", "2"]
    assert all(s.effects[0].module == 0 and s.effects[0].logit.value == pytest.approx(-9.0) for s in t.steps)


def test_rerun_without_several_modules_equals_ablating_them_together():
    model, P = random_gpt()
    x = tokens(1)
    t = trace(model, x, P, controls=1, steps=0)
    assert t.rerun([0, 2]).logit == pytest.approx(direct(model, P, [0, 2], x, t.decision.target)[0], abs=1e-6)
    with pytest.raises(ValueError, match="without must hold module indices"):
        t.rerun([3])


def test_steps_follow_the_forward_pass():
    model, P = random_gpt()
    t = trace(model, tokens(1), P, controls=2, steps=100, step_controls=1)
    names = [s.site.name for s in t.steps]
    expected = [f"layers.{i}.{part}" for i in range(2) for part in ("q", "k", "v", "o", "up", "down")]
    assert names == [*expected, "head"]
    assert [s.depth for s in t.steps] == sorted(s.depth for s in t.steps)
    few = trace(model, tokens(1), P, controls=2, steps=3, step_controls=1)
    assert len(few.steps) == 3 and few.steps[0].site.name == "layers.0.q ... layers.0.up"
    assert sum((s.site.taps for s in few.steps), ()) == sum((s.site.taps for s in t.steps), ())


def test_sites_are_layers_of_the_usual_names():
    assert site_name("transformer.h.3.attn.c_attn:input") == "transformer.h.3.attn"
    assert site_name("model.layers.11.mlp.down_proj:input") == "model.layers.11.mlp"
    assert site_name("lm_head:input") == "lm_head"
    assert site_name("2:input") == "2"
    assert site_name("features.0:output") == "features.0"
    assert site_name("layer1.0.conv2:input") == "layer1.0.conv2"


class Backwards(nn.Module):
    """Runs its layers in an order that their names do not tell, and one of them never."""

    def __init__(self) -> None:
        super().__init__()
        self.model, _ = random_mlp((5, 5, 5, 5))

    def forward(self, x):
        return self.model[0](self.model[4](x))


def test_the_order_is_that_of_the_run_and_unused_taps_are_left_out():
    _, P = random_mlp((5, 5, 5, 5))
    net = Backwards()
    order = in_order(net.model, P.graph, torch.zeros(1, 5))
    assert order == ("0:input", "2:input", "4:input", "4:output")
    net.model.forward = net.forward
    assert in_order(net.model, P.graph, torch.zeros(1, 5)) == ("4:input", "4:output", "0:input")
    assert [len(s.taps) for s in depths(order, 2)] == [2, 2]


def test_resample_averages_draws_and_repeats_with_its_seed():
    model, P = random_gpt()
    runs = [
        trace(model, tokens(1), P, mode="resample", reference=[tokens(40, seed=1)], controls=2, steps=0, seed=s)
        for s in (0, 0, 1)
    ]
    assert runs[0].modules[0].log_probability == runs[1].modules[0].log_probability
    assert runs[0].modules[0].log_probability != runs[2].modules[0].log_probability


def test_it_prints_words_controls_and_origin_and_saves_json(tmp_path):
    model, P = random_gpt()
    t = modcut.trace(model, tokens(1)[0], P, reference=[tokens(9, seed=1)], controls=3, seed=7, tokenizer=decode)
    words = str(t)
    for part in (
        "seed 7",
        "ablation mean",
        "3 random modules",
        t.record["model"][:12],
        "layers.1.up",
        repr(t.decision.text),
    ):
        assert part in words
    assert len(t.inputs) == 8 and t.inputs[0] in LETTERS
    t.save(tmp_path / "trace.json")
    saved = json.loads((tmp_path / "trace.json").read_text())
    assert saved["modules"][0]["log_probability"]["n"] == 3 and saved["steps"][0]["effects"]
    assert {"n", "seed", "control", "ablation", "model", "modcut"} <= set(saved["record"])


def test_tokens_are_accepted_as_a_list_a_row_or_a_batch_of_one():
    model, P = random_gpt()
    x = tokens(1)
    same = [trace(model, i, P, controls=1, steps=0).decision for i in (x, x[0], x[0].tolist(), (x, x))]
    assert all(d == same[0] for d in same)


def test_another_answer_and_position_can_be_followed():
    model, P = random_gpt()
    t = trace(model, tokens(1), P, target=3, position=2, controls=1, steps=0)
    z = model(tokens(1))[0, 2].double()
    assert t.decision.target == 3 and t.decision.logit == pytest.approx(z[3].item())


def test_the_model_is_left_as_it_was():
    model, P = random_gpt()
    model.train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    trace(model, tokens(1), P, controls=1)
    assert model.training and all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(
    ("inputs", "kwargs", "words"),
    [
        (tokens(2), {}, r"inputs must be one sample.*got shape \[2, 8\]"),
        (tokens(1), {"target": 12}, r"target must be in \[0, 12\), got 12"),
        (tokens(1), {"position": 8}, r"position must be in \[-8, 8\), got 8"),
        (tokens(1), {"mode": "mean"}, "needs reference data"),
        (tokens(1), {"mode": "noise"}, "mode must be one of zero, mean, resample"),
        (tokens(1), {"controls": 0}, "no effect is given without its control"),
        (tokens(1), {"step_controls": 0}, "no effect is given without its control"),
        (tokens(1), {"steps": -1}, "steps and follow must be at least 0"),
    ],
)
def test_bad_input_is_named(inputs, kwargs, words):
    model, P = random_gpt()
    with pytest.raises(ValueError, match=words):
        trace(model, inputs, P, **kwargs)


def test_nan_scores_are_refused():
    model, P = random_gpt()
    with torch.no_grad():
        model.head.weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match="must be numbers, got NaN"):
        trace(model, tokens(1), P)
