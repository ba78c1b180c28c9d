from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from torch import nn

import modcut
from auditing_nets import accuracy, random_gpt, random_mlp, tokens, two_task_data, two_tasks
from modcut.auditing import ablate, compare
from modcut.auditing.weights import paired, weight_change

X, Y = two_task_data()
MEASURES = {"a": lambda m: accuracy(m, X, Y, 0), "b": lambda m: accuracy(m, X, Y, 1)}


def loss(model, batch):
    return nn.functional.mse_loss(model(batch), batch[:, :1].expand(-1, 4))


def harmed(model: nn.Sequential) -> nn.Sequential:
    """The two-task net in which task A was unlearned: its hidden units read nothing."""
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin[0].weight[::2] = 0.0
    return twin


def test_a_model_compared_with_itself_raises_no_flag():
    model, P = random_gpt()
    d = compare(model, copy.deepcopy(model), P, data=[tokens(8)], controls=10)
    assert d.total == 0.0
    for m in d.modules:
        assert m.flags == () and m.inside.value == m.border.value == 0.0
        assert m.usage.value == pytest.approx(0.0, abs=1e-9) and m.activation.value == pytest.approx(0.0, abs=1e-9)
        assert all(f.difference.value == pytest.approx(0.0, abs=1e-9) for f in m.functions)


def hidden_partition(model, P):
    """Modules of hidden units only, so that no random module holds the same inputs by chance; the rest is module 2."""
    labels = P.labels.clone()
    labels[:4] = labels[16:] = 2
    return type(P)(labels, P.graph, 3)


def test_the_module_that_was_unlearned_is_the_one_that_vanished():
    model, P = two_tasks()
    P = hidden_partition(model, P)
    d = compare(model, harmed(model), P, data=[X], behaviours=MEASURES, loss_fn=loss, mode="zero", controls=60)
    a, b, _ = d.modules
    fa = next(f for f in a.functions if f.measure == "a")
    assert d.intact["a"] == (1.0, 0.5) and d.intact["b"] == (1.0, 1.0)
    assert fa.harmless.value == -0.5 and fa.harmful.value == 0.0 and fa.difference.value == 0.5
    assert fa.flag == "vanished" and "vanished: a" in a.flags
    assert not any(flag.endswith((": a", ": b")) for flag in b.flags)
    assert next(f for f in b.functions if f.measure == "b").difference.value == 0.0
    # the other way round the module appeared
    back = compare(harmed(model), model, P, behaviours=MEASURES, mode="zero", controls=60)
    assert "appeared: a" in back.modules[0].flags


def test_weights_that_moved_are_found_inside_the_module_and_beyond_its_controls():
    model, P = random_mlp((12, 24, 24, 8), k=4)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for m in P.graph.matrices:
            both = (P.labels[m.row_vertex] == 2)[:, None] & (P.labels[m.col_vertex] == 2)[None]
            dict(twin.named_parameters())[m.name][both] *= 3.0
    d = compare(model, twin, P, controls=40)
    assert [m.module for m in d.modules if "weights" in m.flags] == [2]
    # |3w - w| / sqrt((w^2 + 9 w^2) / 2) = 2 / sqrt(5)
    assert d.modules[2].inside.value == pytest.approx(2 / 5**0.5, rel=1e-5)
    assert d.modules[2].border.value == d.modules[0].inside.value == 0.0
    assert all(m.usage is None and m.functions == () for m in d.modules)


@pytest.mark.parametrize("net", [random_mlp, random_gpt])
def test_weight_change_equals_its_definition(net):
    model, P = net()
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for p in twin.parameters():
            p += 0.1 * torch.randn(p.shape)
    sets = torch.stack([P.labels == i for i in range(P.k)])
    inside, border = weight_change(P.graph, model, twin, sets)
    for i, chosen in enumerate(sets):
        sums = np.zeros((2, 2))
        for _, a, b, rows, cols in paired(P.graph, model, twin):
            ends = chosen[rows][:, None].int() + chosen[cols][None].int()
            for j, hit in enumerate((ends == 2, ends == 1)):
                moved, size = (b - a)[hit].double().square().sum(), (a.square() + b.square())[hit].double().sum() / 2
                sums[:, j] += moved.item(), size.item()
        np.testing.assert_allclose([inside[i], border[i]], np.sqrt(sums[0] / sums[1]), rtol=1e-4)
    # a partition found on the other model says the same with the arguments the other way round
    torch.testing.assert_close(weight_change(P.graph, twin, model, sets)[0], inside)


def test_functional_effects_equal_direct_ablation():
    model, P = random_gpt()
    twin, _ = random_gpt(seed=1)
    data = [tokens(6), tokens(2, seed=3)]
    d = compare(model, twin, P, data=data, controls=2)
    for net, name in ((model, "harmless"), (twin, "harmful")):

        def measure(net=net):
            with torch.no_grad():
                logits = [net(x) for x in data]
                losses = [
                    nn.functional.cross_entropy(z[:, :-1].flatten(0, 1), x[:, 1:].flatten())
                    for z, x in zip(logits, data, strict=True)
                ]
            return (6 * losses[0].item() + 2 * losses[1].item()) / 8

        base = measure()
        for m in d.modules:
            with ablate(net, P, m.module, "mean", reference=data):
                assert getattr(m.functions[0], name).value == pytest.approx(measure() - base, abs=1e-5)
    assert d.record["n"] == 8


def test_slices_are_measured_one_by_one_and_modules_are_found_where_none_are_given():
    model, _ = random_gpt()
    twin, _ = random_gpt(seed=1)
    d = modcut.compare(model, twin, data={"x": [tokens(6)], "y": [tokens(6, seed=2)]}, controls=2)
    assert set(d.intact) == {"loss x", "loss y"}
    assert d.partition.k == len(d.modules) >= 2


def test_two_modules_in_place_of_no_skills_are_said_to_be_that():
    model, _ = random_gpt()
    d = modcut.compare(model, random_gpt(seed=1)[0], data=[tokens(24)], controls=2)
    assert d.partition.k == 2 and d.record["partition"].startswith("two modules by request, places rather than skills:")
    assert "no skills found" in d.record["partition"] and d.record["partition"] in str(d)
    given = modcut.compare(model, random_gpt(seed=1)[0], modcut.find_modules(model, 2), data=[tokens(8)], controls=2)
    assert "partition" not in given.record


def test_it_prints_controls_and_saves_json(tmp_path):
    model, P = random_gpt()
    twin, _ = random_gpt(seed=1)
    d = compare(model, twin, P, data=[tokens(4)], controls=3, seed=11)
    words = str(d)
    for part in ("seed 11", "ablation mean", "3 random modules", "expected by chance", "harmless", "flags"):
        assert part in words
    d.save(tmp_path / "comparison.json")
    saved = json.loads((tmp_path / "comparison.json").read_text())
    assert saved["record"]["model"] != saved["record"]["harmless"] and saved["modules"][0]["inside"]["n"] == 3
    assert not any(m._forward_pre_hooks or m._forward_hooks for net in (model, twin) for m in net.modules())


def test_flags_of_random_partitions_of_unrelated_models_are_as_rare_as_promised():
    count = expected = 0
    for seed in range(12):
        model, P = random_mlp((8, 16, 16, 4), seed=seed, k=4)
        twin, _ = random_mlp((8, 16, 16, 4), seed=100 + seed)
        d = compare(model, twin, P, controls=19, seed=seed)
        count += sum(len(m.flags) for m in d.modules)
        expected += d.false_flags
    assert expected == pytest.approx(12 * 8 / 20)
    assert count <= expected + 3 * expected**0.5


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (lambda: random_mlp((5, 8, 6, 3))[0], r"'0.weight' has shape \[7, 5\] in the first and \[8, 5\] in the second"),
        (lambda: random_mlp((5, 7, 3))[0], r"'2.weight' has shape \[6, 7\]"),
        (lambda: nn.Sequential(*list(random_mlp()[0])[:3]), "'4.weight' is missing from the second"),
        (lambda: nn.Sequential(*random_mlp()[0], nn.ReLU(), nn.Linear(3, 3)), "'6.weight' is missing from the first"),
    ],
)
def test_other_architectures_are_refused_by_the_name_of_the_parameter(other, words):
    model, P = random_mlp()
    with pytest.raises(ValueError, match=words):
        compare(model, other(), P)


def test_bad_input_is_named():
    model, P = random_mlp()
    twin, _ = random_mlp(seed=1)
    with pytest.raises(ValueError, match="P must have been found on one of the two models"):
        compare(model, twin, random_mlp(seed=2)[1])
    with pytest.raises(ValueError, match="no figure is given without its control"):
        compare(model, twin, P, controls=0)
    with pytest.raises(ValueError, match="pass data="):
        compare(model, twin, P, mode="mean")
    with pytest.raises(ValueError, match="mode must be one of"):
        compare(model, twin, P, mode="noise")
    with pytest.raises(ValueError, match="'x' of the intact harmless model is inf"):
        compare(model, twin, P, behaviours={"x": lambda m: float("inf")}, controls=1)
