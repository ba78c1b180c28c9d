"""Bridges: names of TransformerLens and nnsight, lm-eval with and without a module, latents as vertices.

TransformerLens, nnsight and lm-eval are not test dependencies: the names are checked against the arithmetic of the
model they stand for, the calls against stand-ins.
"""

from __future__ import annotations

import sys
import types

import pytest
import torch
from torch import nn

import modcut
from auditing_nets import random_mlp, tokens
from modcut._require import MissingDependencyError
from modcut.auditing.adapters import lens_hooks, lens_places, lm_eval_without, nnsight_places, with_latents
from modcut.partition import Partition
from test_auditing_hf import net as net


def test_neurons_and_heads_have_lens_names_and_their_positions(net):
    _, P = net
    places, missed = lens_places(P, 1)
    assert {n for n in places if n.endswith("mlp.hook_post")} == {f"blocks.{i}.mlp.hook_post" for i in range(2)}
    assert any(n.endswith("attn.hook_z") for n in places) and missed  # residual channels are said to be missing
    labels = {s.name: P.labels[s.vertices] for s in P.graph.spaces}
    neurons = [x for n, x in labels.items() if "mlp" in n]
    wanted = {tuple(torch.nonzero(x == 1).flatten().tolist()) for x in neurons}
    assert {tuple(places[f"blocks.{i}.mlp.hook_post"].tolist()) for i in range(2)} <= wanted
    name, hook = lens_hooks(P, 1)[0]
    value = torch.ones(2, 3, max(places[name]) + 1)
    out = hook(value, hook=None)
    assert out[..., places[name]].eq(0).all() and value.eq(1).all()


def test_nnsight_paths_are_those_of_the_module(net):
    model, P = net
    for path, (side, where) in nnsight_places(P, 0).items():
        assert model.get_submodule(path) is not None and side in ("input", "output") and len(where)


def test_units_without_a_counterpart_are_refused():
    _, P = random_mlp()
    with pytest.raises(ValueError, match="no unit has a counterpart"):
        lens_hooks(P, 0)


def test_lm_eval_runs_intact_and_without(net, monkeypatch):
    model, P = net
    if "lm_eval" not in sys.modules:
        monkeypatch.setitem(sys.modules, "lm_eval", None)
        with pytest.raises(MissingDependencyError):
            lm_eval_without(model, None, ["t"], P, 0, mode="zero")
    fake, hf = types.ModuleType("lm_eval"), types.ModuleType("lm_eval.models.huggingface")
    hf.HFLM = lambda pretrained, tokenizer: pretrained
    fake.simple_evaluate = lambda model, tasks, limit: {
        "results": {t: {"sum": float(model(tokens(1)).logits.sum().detach()), "limit": limit} for t in tasks}
    }
    for name, module in (("lm_eval", fake), ("lm_eval.models", types.ModuleType("m")), (hf.__name__, hf)):
        monkeypatch.setitem(sys.modules, name, module)
    got = lm_eval_without(model, None, ["t"], P, 0, mode="zero", limit=3)
    with modcut.ablate(model, P, 0):
        want = float(model(tokens(1)).logits.sum().detach())
    assert got["without"]["t"] == {"sum": pytest.approx(want), "limit": 3}
    assert got["intact"]["t"]["sum"] == pytest.approx(float(model(tokens(1)).logits.sum().detach()))


def test_latents_are_vertices_that_change_nothing_until_ablated():
    model, _ = random_mlp((5, 7, 6, 3))
    encoder, decoder = nn.Linear(7, 20), nn.Linear(20, 7)
    spliced = with_latents(model, "0", encoder, decoder)
    x = torch.randn(9, 5)
    torch.testing.assert_close(spliced(x), model(x))
    g = modcut.weight_graph(spliced, x[:1])
    space = next(s for s in g.spaces if s.size == 20)
    labels = torch.zeros(g.n, dtype=torch.int64)
    labels[space.offset + 3] = 1
    with modcut.ablate(spliced, Partition(labels, g, 2), 1):
        got = spliced(x)
    h = model[0](x)
    gone = torch.relu(encoder(h))[:, 3:4] * decoder.weight[:, 3]
    torch.testing.assert_close(got, model[1:](h - gone))
    with pytest.raises(ValueError, match="at must name"):
        with_latents(model, "nowhere", encoder, decoder)
    with pytest.raises(ValueError, match="there and back"):
        with_latents(model, "0", encoder, nn.Linear(4, 7))
