"""Auditing of transformers models through the real tracer: what the hand-built graphs of the other files stand for."""

from __future__ import annotations

import copy

import pytest
import torch

import modcut
from auditing_nets import tokens

transformers = pytest.importorskip("transformers")


def gpt2():
    config = transformers.GPT2Config(
        vocab_size=12, n_positions=16, n_embd=16, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0
    )
    return transformers.GPT2LMHeadModel(config)


def llama():
    config = transformers.LlamaConfig(
        vocab_size=12,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        bos_token_id=0,
        eos_token_id=0,
    )
    return transformers.LlamaForCausalLM(config)


@pytest.fixture(params=[gpt2, llama], ids=["gpt2", "llama"], scope="module")
def net(request):
    torch.manual_seed(0)
    model = request.param().eval()
    with torch.no_grad():
        for p in model.parameters():  # the usual small initialisation leaves all answers alike
            p.mul_(5.0 if p.ndim > 1 else 1.0)
    return model, modcut.find_modules(modcut.weight_graph(model, tokens(2)), 2, method="spectral", seed=0)


def test_zero_equals_zeroing_the_weights_that_read_the_units(net):
    """Of the MLP: its units are read by one projection, whose layout differs between the two (Conv1D, Linear)."""
    model, P = net
    hidden = torch.cat([torch.arange(P.n)[s.vertices] for s in P.graph.spaces if s.kind == "hidden"])
    assert len(hidden) in (2 * 64, 2 * 24)
    units = hidden[P.labels[hidden] == 0]
    twin = copy.deepcopy(model)
    tensors = dict(twin.named_parameters())
    with torch.no_grad():
        for axis in P.graph.axes:
            if axis.name.endswith(("mlp.c_proj.weight", "down_proj.weight")) and torch.isin(axis.vertex, hidden).any():
                tensors[axis.name].index_fill_(axis.axis, torch.nonzero(torch.isin(axis.vertex, units)).flatten(), 0.0)
        with modcut.ablate(model, P, units) as a:
            out = model(tokens(3)).logits
        torch.testing.assert_close(out, twin(tokens(3)).logits, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(out, model(tokens(3)).logits, atol=1e-2)
    assert a.not_reached.numel() == 0


@pytest.mark.parametrize("mode", ["zero", "mean", "resample", "scale", "noise"])
def test_every_mode_runs_and_leaves_no_hook(net, mode):
    model, P = net
    plain = model(tokens(3)).logits
    with modcut.ablate(model, P, 1, mode, [{"input_ids": tokens(8, seed=1)}], scale=0.5) as a:
        out = model(input_ids=tokens(3)).logits
    assert out.isfinite().all() and not torch.allclose(out, plain, atol=1e-3)
    assert torch.equal(model(tokens(3)).logits, plain)
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())
    kinds = {P.graph.space_of(int(v))[0].kind for v in a.not_reached}
    assert kinds <= {"input", "output"}
    reached = {P.graph.space_of(int(v))[0].kind for v in a.reached}
    assert {"hidden", "head", "residual"} <= reached


def test_scale_one_is_the_identity(net):
    model, P = net
    with torch.no_grad(), modcut.ablate(model, P, [0, 1], "scale", scale=1.0):
        out = model(tokens(3)).logits
    assert torch.equal(out, model(tokens(3)).logits)


def test_generation_runs_without_a_module(net):
    model, P = net
    with modcut.ablate(model, P, 0):
        cached = model.generate(tokens(2), max_new_tokens=4, do_sample=False, pad_token_id=0)
        plain = model.generate(tokens(2), max_new_tokens=4, do_sample=False, pad_token_id=0, use_cache=False)
    assert cached.shape == (2, 12) and torch.equal(cached, plain)


def test_trace_steps_through_attention_and_mlp_of_every_layer(net):
    model, P = net
    t = modcut.trace(model, {"input_ids": tokens(1)}, P, reference=[tokens(8, seed=1)], controls=2, step_controls=1)
    names = [s.site.name for s in t.steps]
    layers = [n for n in names if ".0." in n or ".1." in n]
    assert [n.rpartition(".")[2] for n in layers] in (["attn", "mlp"] * 2, ["self_attn", "mlp"] * 2)
    with torch.no_grad(), modcut.ablate(model, P, t.modules[0].module, "mean", [tokens(8, seed=1)]):
        z = model(tokens(1)).logits[0, -1].double()
    assert t.modules[0].without.logit == pytest.approx(z[t.decision.target].item(), abs=1e-5)


def test_compare_finds_the_module_that_was_edited(net):
    model, P = net
    twin = copy.deepcopy(model)
    tensors = dict(twin.named_parameters())
    with torch.no_grad():
        for axis in P.graph.axes:
            if "mlp" in axis.name and tensors[axis.name].ndim == 2:
                inside = torch.nonzero((axis.vertex >= 0) & (P.labels[axis.vertex.clamp_min(0)] == 1)).flatten()
                where = [slice(None)] * 2
                where[axis.axis] = inside
                tensors[axis.name][tuple(where)] *= 1.2
    d = modcut.compare(model, twin, P, data=[{"input_ids": tokens(6), "labels": tokens(6)}], controls=19)
    assert d.modules[1].inside.gain > 0 > d.modules[0].inside.gain
    assert "weights" in d.modules[1].flags and "weights" not in d.modules[0].flags
