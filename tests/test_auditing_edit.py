"""Interfaces without their modules, spans of layers and tokens, and ablations baked into a copy."""

from __future__ import annotations

import copy

import pytest
import torch

import modcut
from auditing_nets import random_gpt, random_mlp, tokens, wide
from modcut.auditing import ablate_interface, bake
from test_auditing_hf import net as net


def same_weights(model, state):
    return all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


def test_only_the_edges_between_two_modules_are_gone():
    model, P = random_mlp((5, 7, 6, 3), k=3)
    x, before = torch.randn(9, 5), copy.deepcopy(model.state_dict())
    plain = model(x)
    twin = copy.deepcopy(model)
    offsets, count = [0, 5, 12, 18], 0
    with torch.no_grad():
        for layer, at in ((0, 0), (2, 1), (4, 2)):
            w = twin[layer].weight
            for r in range(w.shape[0]):
                for c in range(w.shape[1]):
                    if P.labels[offsets[at + 1] + r] == 2 and P.labels[offsets[at] + c] == 0:
                        w[r, c] = 0.0
                        count += 1
    with ablate_interface(model, P, [(0, 2)]) as removed:
        torch.testing.assert_close(model(x), twin(x))
    assert removed == count > 0 and same_weights(model, before) and torch.equal(model(x), plain)


def test_modules_that_share_nothing_have_an_interface_that_carries_nothing():
    model, P = wide()
    x = torch.randn(9, 16)
    with ablate_interface(model, P, [(0, 1), (1, 0)]):
        inside = model(x)
    torch.testing.assert_close(inside, model(x))


def test_interfaces_nest_end_in_any_order_and_survive_exceptions():
    model, P = random_mlp()
    before = copy.deepcopy(model.state_dict())
    one, two = ablate_interface(model, P, [(0, 1)]), ablate_interface(model, P, [(0, 1), (1, 2)])
    one.__enter__()
    two.__enter__()
    one.__exit__(None, None, None)
    x = torch.randn(4, 5)
    with ablate_interface(copy_ := copy.deepcopy(model), P, [(2, 0)]):
        pass
    assert same_weights(copy_, model.state_dict())
    left = model(x)
    two.__exit__(None, None, None)
    with ablate_interface(model, P, [(0, 1), (1, 2)]):
        torch.testing.assert_close(model(x), left)
    with pytest.raises(KeyboardInterrupt), ablate_interface(model, P, [(0, 1)]):
        raise KeyboardInterrupt
    assert same_weights(model, before)


@pytest.mark.parametrize("pairs", [[], [(0, 0)], [(0, 9)], [(-1, 0)]])
def test_bad_pairs_are_named(pairs):
    model, P = random_mlp()
    with pytest.raises(ValueError, match="pairs must"), ablate_interface(model, P, pairs):
        pass


def test_an_interface_can_be_cut_while_a_transformer_generates_with_its_cache(net):
    model, P = net
    before = copy.deepcopy(model.state_dict())
    with ablate_interface(model, P, [(0, 1), (1, 0)]):
        cached = model.generate(tokens(2), max_new_tokens=4, do_sample=False, pad_token_id=0)
        plain = model.generate(tokens(2), max_new_tokens=4, do_sample=False, pad_token_id=0, use_cache=False)
    assert torch.equal(cached, plain) and same_weights(model, before)


@pytest.mark.parametrize(("mode", "scale"), [("zero", 0.0), ("scale", 0.3)])
def test_a_baked_copy_of_a_transformer_computes_the_ablation_without_hooks(net, mode, scale):
    model, P = net
    before = copy.deepcopy(model.state_dict())
    edited = bake(model, P, 1, mode, scale)
    with torch.no_grad(), modcut.ablate(model, P, 1, mode, scale=scale):
        want = model(tokens(3)).logits
    with torch.no_grad():
        torch.testing.assert_close(edited(tokens(3)).logits, want, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(want, model(tokens(3)).logits, atol=1e-3)
    assert same_weights(model, before) and not any(m._forward_pre_hooks for m in edited.modules())


def test_a_baked_copy_of_an_mlp_computes_the_ablation():
    model, P = random_mlp()
    x = torch.randn(6, 5)
    with modcut.ablate(model, P, [0, 2]):
        want = model(x)
    torch.testing.assert_close(bake(model, P, [0, 2])(x), want)
    with pytest.raises(ValueError, match="mode must be zero or scale"):
        bake(model, P, 0, "mean")


def test_layers_and_tokens_bound_the_ablation():
    model, P = random_gpt()
    x = tokens(2)
    plain = model(x)
    with modcut.ablate(model, P, 0, layers=range(0, 99)) as both:
        everywhere = model(x)
    with modcut.ablate(model, P, 0, layers=range(1, 2)) as late:
        last = model(x)
    assert late.taps < both.taps and not torch.allclose(everywhere, last)
    with modcut.ablate(model, P, 0, tokens=slice(5, None)):
        later = model(x)
    torch.testing.assert_close(later[:, :5], plain[:, :5])  # causal: what came before is untouched
    assert not torch.allclose(later[:, 5:], plain[:, 5:], atol=1e-4)
    with modcut.ablate(model, P, 0), torch.no_grad():
        full = model(x)
    with modcut.ablate(model, P, 0, tokens=slice(None)):
        torch.testing.assert_close(model(x), full)
    with pytest.raises(ValueError, match="layers must name layers"):
        modcut.ablate(model, P, 0, layers=range(50, 60))
    with pytest.raises(TypeError, match="tokens must be a slice"):
        modcut.ablate(model, P, 0, tokens=3)
    net_, Q = wide()
    with pytest.raises(ValueError, match="positions need activations"), modcut.ablate(net_, Q, 0, tokens=slice(1)):
        net_(torch.randn(2, 16))
    assert not any(m._forward_pre_hooks for m in net_.modules())
