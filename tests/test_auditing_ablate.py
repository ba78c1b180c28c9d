from __future__ import annotations

import copy
from unittest import mock

import pytest
import torch
from torch import nn

import modcut
from auditing_nets import accuracy, random_gpt, random_mlp, tokens, two_task_data, two_tasks
from modcut.auditing import ablate, random_modules
from modcut.graph import interventions
from modcut.partition import Partition


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules())


def without_readers(model: nn.Module, P: Partition, units: torch.Tensor) -> nn.Module:
    """A copy in which every weight that reads one of ``units`` is zero: what ablation must equal, made another way."""
    twin = copy.deepcopy(model)
    readers = dict(twin.named_parameters())
    with torch.no_grad():
        for m in P.graph.matrices:
            if m.name != "emb.weight":
                readers[m.name][:, torch.isin(m.col_vertex, units)] = 0.0
    return twin


def readable(P: Partition, module: int) -> torch.Tensor:
    """The units of a module that linear maps read: all but tokens, logits and query-key dimensions."""
    units = P.modules[module].units
    keep = [".qk" not in s.name and s.kind != "output" and s.name != "tokens" for s in P.graph.spaces]
    return units[torch.tensor([keep[P.graph.spaces.index(P.graph.space_of(int(u))[0])] for u in units])]


# what it does -------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["zero", "mean", "resample"])
@pytest.mark.parametrize("task", [0, 1])
def test_without_the_module_of_a_task_only_that_task_breaks(mode, task):
    model, P = two_tasks()
    x, y = two_task_data()
    assert accuracy(model, x, y, 0) == accuracy(model, x, y, 1) == 1.0
    with ablate(model, P, task, mode, reference=[two_task_data(seed=1)[0]]):
        assert accuracy(model, x, y, 1 - task) == 1.0
        assert abs(accuracy(model, x, y, task) - 0.5) < 0.1
    assert accuracy(model, x, y, task) == 1.0


def test_random_modules_of_the_same_make_up_do_much_less():
    model, P = two_tasks()
    x, y = two_task_data()
    hidden = P.modules[0].units[(P.modules[0].units >= 4) & (P.modules[0].units < 16)]
    drops = []
    for units in random_modules(P, hidden, 200):
        with ablate(model, P, units):
            drops.append(1.0 - accuracy(model, x, y, 0))
    with ablate(model, P, hidden):
        assert 1.0 - accuracy(model, x, y, 0) == 0.5
    assert sum(drops) / 200 < 0.1


@pytest.mark.parametrize("net", [random_mlp, random_gpt])
def test_zero_equals_zeroing_every_weight_that_reads_the_units(net):
    model, P = net()
    x = tokens() if net is random_gpt else torch.randn(9, 5)
    for module in range(P.k):
        units = readable(P, module)
        with torch.no_grad(), ablate(model, P, units):
            out = model(x)
        torch.testing.assert_close(out, without_readers(model, P, units)(x), rtol=1e-5, atol=1e-6)
        assert not torch.allclose(out, model(x), atol=1e-3)


def test_an_ablation_that_forgets_one_reader_would_be_caught():
    model, P = random_gpt()
    units, x, whole = readable(P, 0), tokens(), interventions.sites
    out = []
    for found in (whole, lambda g, v=None: [s for s in whole(g, v) if s.tap.module != "layers.1.k"]):
        with mock.patch.object(interventions, "sites", found), torch.no_grad(), ablate(model, P, units):
            out.append((model(x) - without_readers(model, P, units)(x)).abs().max().item())
    assert out[0] < 1e-5 < 1e-3 < out[1]


def test_query_key_units_are_replaced_where_they_are_written():
    model, P = random_gpt()
    qk = torch.cat(
        [torch.arange(s.offset, s.offset + s.size) for s in P.graph.spaces if s.name.startswith("layers.0.qk")]
    )
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for p in (*twin.layers[0].q.parameters(), *twin.layers[0].k.parameters()):
            p.zero_()
    with torch.no_grad(), ablate(model, P, qk) as a:
        torch.testing.assert_close(model(tokens()), twin(tokens()), rtol=1e-5, atol=1e-6)
    assert a.not_reached.numel() == 0


def test_mean_puts_the_mean_over_the_reference_in_place():
    model, P = random_mlp()
    reference, x = torch.randn(40, 5), torch.randn(9, 5)
    hidden = [torch.nn.functional.relu(model[0](reference))]
    hidden.append(torch.nn.functional.relu(model[2](hidden[0])))
    units = torch.tensor([6, 9, 12, 15])  # two of each hidden layer: offsets 5 and 12
    with torch.no_grad(), ablate(model, P, units, "mean", reference=[reference[:30], reference[30:]]):
        out = model(x)
        h = torch.nn.functional.relu(nn.functional.linear(x, model[0].weight, model[0].bias))
        h[:, [1, 4]] = hidden[0].mean(0)[[1, 4]]
        h = torch.nn.functional.relu(nn.functional.linear(h, model[2].weight, model[2].bias))
        h[:, [0, 3]] = hidden[1].mean(0)[[0, 3]]
        torch.testing.assert_close(out, nn.functional.linear(h, model[4].weight, model[4].bias))


def test_slices_of_the_reference_take_turns_so_that_the_later_ones_count():
    model, P = random_mlp()
    a, b, x = torch.randn(300, 5), torch.randn(300, 5) + 3, torch.randn(9, 5)
    slices = {"a": a.split(50), "b": b.split(50)}
    mixed = torch.cat([a[:150], b[:150]])
    with torch.no_grad(), ablate(model, P, 0, "mean", reference=slices):
        out = model(x)
    with torch.no_grad(), ablate(model, P, 0, "mean", reference=[mixed]):
        torch.testing.assert_close(model(x), out)


def test_resampling_everything_gives_outputs_of_reference_samples():
    model, P = random_gpt()
    reference, x = tokens(20, seed=1), tokens(6, seed=2)
    with torch.no_grad():
        known = model(reference)
        with ablate(model, P, range(P.k), "resample", reference=[reference]):
            out = model(x)
    for row in out:
        assert (known - row).flatten(1).abs().amax(1).min() < 1e-5


def test_resample_repeats_with_its_seed_changes_with_another_and_ignores_batching():
    model, P = random_gpt()
    x, reference = tokens(6, seed=2), [tokens(20, seed=1)]

    def run(seed, sizes):
        with torch.no_grad(), ablate(model, P, 1, "resample", reference=reference, seed=seed):
            return torch.cat([model(part) for part in x.split(sizes)])

    assert torch.equal(run(0, 6), run(0, 6))
    assert not torch.allclose(run(0, 6), run(1, 6), atol=1e-4)
    torch.testing.assert_close(run(0, 6), run(0, [1, 3, 2]))


@pytest.mark.parametrize("mode", ["zero", "mean"])
def test_the_answer_for_a_sample_does_not_depend_on_its_batch(mode):
    model, P = random_gpt()
    x = tokens(6)
    with torch.no_grad(), ablate(model, P, 2, mode, reference=[tokens(20, seed=1)]):
        torch.testing.assert_close(model(x)[3:4], model(x[3:4]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_scale_one_changes_no_bit_and_scale_zero_is_zero(dtype):
    model, P = random_gpt()
    model, x = model.to(dtype), tokens()
    with torch.no_grad():
        plain = model(x)
        with ablate(model, P, [0, 2], "scale", scale=1.0):
            assert torch.equal(model(x), plain)
        with ablate(model, P, [0, 2], "scale", scale=0.0):
            scaled = model(x)
        with ablate(model, P, [0, 2], "zero"):
            assert torch.equal(model(x), scaled)
        with ablate(model, P, [0, 2], "scale", scale=0.5):
            assert not torch.equal(model(x), plain) and not torch.equal(model(x), scaled)


def test_the_dial_has_a_default_in_each_mode():
    model, P = random_gpt()
    x, reference = tokens(6), [tokens(20, seed=1)]

    def moved(mode, **scale):
        with torch.no_grad(), ablate(model, P, 0, mode, reference=reference, **scale):
            return model(x)

    assert torch.equal(moved("noise"), moved("noise", scale=1.0))
    assert torch.equal(moved("scale"), moved("scale", scale=0.0))


def test_noise_grows_with_its_dial_and_repeats_with_its_seed():
    model, P = random_gpt()
    x, reference = tokens(6), [tokens(20, seed=1)]

    def moved(scale, seed=0):
        with torch.no_grad(), ablate(model, P, 0, "noise", reference=reference, scale=scale, seed=seed):
            return model(x)

    plain = model(x).detach()
    sizes = [(moved(s) - plain).abs().mean().item() for s in (0.01, 0.1, 1.0)]
    assert 0 < sizes[0] < sizes[1] < sizes[2]
    assert torch.equal(moved(0.1), moved(0.1)) and not torch.equal(moved(0.1), moved(0.1, seed=1))


def test_everything_at_once_leaves_only_the_biases():
    model, P = random_mlp()
    with torch.no_grad(), ablate(model, P, range(P.k)):
        torch.testing.assert_close(model(torch.randn(4, 5)), model[4].bias.expand(4, 3))


def test_gradients_flow_through_what_is_left():
    model, P = two_tasks()
    x, _ = two_task_data()
    x.requires_grad_()
    with ablate(model, P, 0):
        model(x).square().sum().backward()
    assert x.grad[:, [0, 2]].abs().max() == 0 and x.grad[:, [1, 3]].abs().max() > 0
    assert model[2].weight.grad[:, ::2].abs().max() == 0 and model[2].weight.grad[:, 1::2].abs().max() > 0


@pytest.mark.parametrize("training", [True, False])
def test_the_training_mode_stays_as_it_is(training):
    model = nn.Sequential(nn.Linear(4, 12), nn.Dropout(0.5), nn.Linear(12, 4))
    _, P = two_tasks()
    P.graph.taps = tuple(t for t in P.graph.taps if t.side == "input")
    model.train(training)
    x = two_task_data()[0]
    with torch.no_grad(), ablate(model, P, 0, "mean", reference=[x]):
        assert model.training is training and model[1].training is training
        assert torch.equal(model(x), model(x)) is not training
    assert model.training is training and model[1].training is training


# what it leaves behind: nothing -------------------------------------------------------------------


@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt, GeneratorExit])
def test_no_hook_and_no_changed_weight_is_left_however_the_block_ends(error):
    model, P = random_gpt()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    plain = model(tokens()).detach()
    try:
        with ablate(model, P, 0, "mean", reference=[tokens(seed=1)]), ablate(model, P, 1):
            assert hooks(model) > 0
            model(tokens())
            if error is not None:
                raise error
    except BaseException as caught:
        assert type(caught) is error
    assert hooks(model) == 0
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.equal(model(tokens()), plain)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_interrupt_inside_the_model_or_the_reference_leaves_no_hook(error):
    model, P = random_gpt()
    with pytest.raises(error), ablate(model, P, 0), mock.patch.object(model.ln, "forward", side_effect=error):
        model(tokens())
    assert hooks(model) == 0

    def broken():
        yield tokens()
        raise error

    model.train()
    with pytest.raises(error), ablate(model, P, 0, "mean", reference=broken()):
        pass
    assert hooks(model) == 0 and model.training


def test_blocks_nest_and_end_in_any_order():
    model, P = random_gpt()
    x = tokens()
    with torch.no_grad():
        plain = model(x)
        with ablate(model, P, [0, 1]):
            both = model(x)
        with ablate(model, P, 0):
            first = model(x)
        with ablate(model, P, 1):
            second = model(x)
        a, b = ablate(model, P, 0), ablate(model, P, 1)
        with a:
            with b:
                assert torch.equal(model(x), both)
            assert torch.equal(model(x), first)
        a.__enter__()
        b.__enter__()
        a.__exit__(None, None, None)
        assert torch.equal(model(x), second)
        b.__exit__(None, None, None)
        with a, a:  # re-entered while active
            assert torch.equal(model(x), first)
        assert torch.equal(model(x), plain) and hooks(model) == 0
        with pytest.raises(RuntimeError, match="not active"):
            a.__exit__(None, None, None)


def test_the_inner_block_sees_what_the_outer_one_left():
    model, P = random_mlp()
    x = torch.randn(4, 5)
    with torch.no_grad(), ablate(model, P, 0), ablate(model, P, 0, "scale", scale=3.0):
        inner = model(x)
    with torch.no_grad(), ablate(model, P, 0):
        assert torch.equal(model(x), inner)


# what it says -------------------------------------------------------------------------------------


def test_it_says_what_was_replaced_and_what_was_not():
    model, P = random_gpt()
    with modcut.ablate(model, P, modules=[0], mode="zero") as a:
        assert set(a.units.tolist()) == set(P.modules[0].units.tolist())
        kinds = {P.graph.space_of(int(v))[0].name for v in a.not_reached}
        assert kinds == {"tokens", "logits"}  # embeddings are looked up, and answers are left alone
        assert a.by_space["residual"].tolist() == P.modules[0].units[4:10].sub(12).tolist()
        assert "not reached" in str(a)
    with ablate(model, P, 0, outputs=True) as a, torch.no_grad():
        assert model(tokens())[..., ::3].abs().max() == 0
        assert {P.graph.space_of(int(v))[0].name for v in a.not_reached} == {"tokens"}
    assert a.to_dict()["mode"] == "zero"


def test_modules_are_named_by_index_by_object_or_by_vertices():
    model, P = random_mlp()
    units = P.modules[1].units
    mask = torch.zeros(P.graph.n, dtype=torch.bool)
    mask[units] = True
    for names in (1, [1], (1,), P.modules[1], [P.modules[1]], units, units.flip(0), mask):
        assert torch.equal(ablate(model, P, names).units, units)
    assert ablate(model, P, slice(5, 8)).units.tolist() == [5, 6, 7]


def test_it_acts_at_the_taps_it_is_told():
    model, P = random_gpt()
    residual = torch.arange(12, 28)
    with torch.no_grad(), ablate(model, P, residual, taps=["head:input"]):
        assert model(tokens()).abs().max() == 0
    with torch.no_grad(), ablate(model, P, residual, taps=["layers.0.up:input"]):
        assert model(tokens()).abs().max() > 0


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"modules": 3}, r"modules must be indices in \[0, 3\), got 3"),
        ({"modules": -1}, r"modules must be indices in \[0, 3\), got -1"),
        ({"modules": []}, "at least one vertex"),
        ({"modules": slice(5, 5)}, "at least one vertex"),
        ({"modules": 0, "mode": "mean"}, 'mode "mean" needs reference data'),
        ({"modules": 0, "mode": "resample"}, 'mode "resample" needs reference data'),
        ({"modules": 0, "mode": "off"}, "mode must be one of zero, mean"),
        ({"modules": 0, "mode": "scale", "scale": float("nan")}, "scale must be finite"),
        ({"modules": 0, "mode": "noise", "scale": 0.0}, "scale must be positive"),
        ({"modules": torch.arange(12)}, "none of the 12 vertices"),
    ],
)
def test_bad_input_is_named(kwargs, words):
    model, P = random_gpt()
    with pytest.raises(ValueError, match=words):
        ablate(model, P, **kwargs)
    assert hooks(model) == 0


def test_an_empty_reference_is_refused_and_leaves_no_hook():
    model, P = random_gpt()
    with pytest.raises(ValueError, match="at least one batch"), ablate(model, P, 0, "mean", reference=[]):
        pass
    assert hooks(model) == 0


def test_a_partition_of_another_architecture_is_refused():
    _, P = random_mlp()
    with pytest.raises(ValueError, match="reads activations at '4'"):
        ablate(two_tasks()[0], P, 0)
    with pytest.raises(ValueError, match=r"'0.weight' of size 7 along axis 0, the model has shape \[8, 5\]"):
        ablate(random_mlp((5, 8, 6, 3))[0], P, 0)
    with pytest.raises(ValueError, match="no taps"):
        ablate(random_mlp()[0], Partition(P.labels, type(P.graph)(P.graph.spaces, P.graph.blocks), P.k), 0)
    other, _ = random_mlp(seed=1)
    ablate(other, P, 0)  # the same architecture with other weights: modules of a fine-tuned copy
