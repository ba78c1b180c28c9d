"""The tracer's claim: a space is right if permuting it everywhere leaves the model's function unchanged."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch import nn

import graph_zoo as zoo
import modcut
from modcut.graph.types import Axis, Space, WeightGraph


def shuffled(size: int, seed: int) -> torch.Tensor:
    """A permutation without fixed points (where there is one): nothing moved would prove nothing."""
    order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
    perm = torch.empty(size, dtype=torch.int64)
    perm[order] = order.roll(1)
    return perm


def drift(model: nn.Module, inputs: object, graph: WeightGraph, space: Space) -> float:
    """How much the outputs change when a space is permuted; the model is put back."""
    before, perm = zoo.call(model, inputs), shuffled(space.size, 5)
    graph.permute_(space, perm)
    after = zoo.call(model, inputs)
    graph.permute_(space, torch.argsort(perm))
    return zoo.difference(after, before)


@pytest.mark.parametrize("name", zoo.CASES)
def test_permuting_any_space_leaves_the_outputs_unchanged(name):
    model, inputs = zoo.build(name)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    graph = modcut.weight_graph(model, inputs)
    for space in graph.spaces:
        if space.fixed:
            if space.size > 1:
                with pytest.raises(ValueError, match="cannot be permuted"):
                    graph.permute_(space, shuffled(space.size, 5))
            continue
        assert drift(model, inputs, graph, space) <= zoo.CASES[name].tolerance, space
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key]), key


@pytest.mark.parametrize("name", zoo.CASES)
def test_spaces_are_the_expected_ones(name):
    _model, _inputs, graph = zoo.traced(name)
    found = Counter((s.kind, s.size) for s in graph.spaces)
    assert found == Counter({k: v for k, v in zoo.CASES[name].spaces.items() if v})
    assert sum(bool(s.fixed) for s in graph.spaces) == zoo.CASES[name].fixed
    assert [s.offset for s in graph.spaces] == [sum(t.size for t in graph.spaces[:i]) for i in range(len(graph.spaces))]
    assert len({s.name for s in graph.spaces}) == len(graph.spaces)
    assert all(s.family for s in graph.spaces)
    assert all(bool(s.head) == (s.kind == "head") for s in graph.spaces)


@pytest.mark.parametrize("name", zoo.CASES)
def test_the_space_is_needed_whole(name):
    """Leaving out any one axis of a space changes the outputs: every axis that is listed belongs there."""
    model, inputs, graph = zoo.traced(name)
    space = max((s for s in graph.spaces if not s.fixed), key=lambda s: s.size)
    inside = [
        a for a in graph.axes if bool(((a.vertex >= space.offset) & (a.vertex < space.offset + space.size)).any())
    ]
    assert len(inside) >= 2
    for a in inside[:6]:
        less = replace(graph, axes=tuple(x for x in graph.axes if x is not a))
        assert drift(model, inputs, less, space) > 5e-6, (space.name, a.name, a.axis)


def merged(graph: WeightGraph, first: Space, second: Space) -> tuple[WeightGraph, Space]:
    """A wrong graph in which two spaces are one."""
    both = Space("merged", first.size + second.size, "head", 10**6)

    def move(axis: Axis) -> Axis:
        v = axis.vertex.clone()
        for s, at in ((first, 0), (second, first.size)):
            here = (v >= s.offset) & (v < s.offset + s.size)
            v[here] += both.offset + at - s.offset
        return replace(axis, vertex=v)

    return replace(graph, spaces=(*graph.spaces, both), axes=tuple(move(a) for a in graph.axes)), both


@pytest.mark.parametrize("name", ["nanoGPT", "GPT-2", "Llama", "BERT classifier", "MultiheadAttention"])
def test_a_planted_merge_of_two_heads_is_caught(name):
    model, inputs, graph = zoo.traced(name)
    v = [s for s in graph.spaces if s.name.endswith(".v")][:2]
    assert all(drift(model, inputs, graph, s) <= zoo.CASES[name].tolerance for s in v)
    wrong, space = merged(graph, *v)
    assert drift(model, inputs, wrong, space) > 1e-3


def test_heads_link_their_spaces_and_belong_to_their_layer():
    _model, _inputs, graph = zoo.traced("Llama")
    heads = {}
    for s in graph.spaces:
        if s.head:
            heads.setdefault(s.head, set()).add(s.name.rpartition(".")[2])
    prefix = "model.layers.{}.self_attn.head{}"
    assert heads == {prefix.format(i, j): {"qk", "v"} for i in range(2) for j in range(2)}  # key-value groups
    assert {s.family for s in graph.spaces if s.head} == {f"model.layers.{i}.self_attn.heads" for i in range(2)}


def test_rotary_heads_say_why_they_are_fixed():
    _model, _inputs, graph = zoo.traced("Llama")
    for s in graph.spaces:
        if s.name.endswith("qk"):
            assert "rotary" in s.fixed and s.fixed.count("self_attn") >= 1
            with pytest.raises(ValueError, match="rotary"):
                graph.permute_(s, [1, 0])
            graph.permute_(s, [0, 1])  # the identity is always allowed


def test_partial_rotary_leaves_the_other_dimensions_free():
    model, inputs = zoo.build("GPT-NeoX")
    spaces = {s.name: s for s in modcut.weight_graph(model, inputs).spaces}
    turned, passed = (spaces[f"gpt_neox.layers.0.attention.head1.qk.{i}"] for i in range(2))
    assert (turned.size, passed.size) == (2, 4)  # two pairs, four plain dimensions
    assert turned.fixed and not passed.fixed


def test_names_are_readable():
    model, inputs = zoo.build("GPT-2")
    names = [s.name for s in modcut.weight_graph(model, inputs).spaces]
    assert names[:2] == ["tokens", "residual"]
    assert "transformer.h.1.mlp.c_fc" in names and "transformer.h.0.attn.head3.v" in names


def test_outputs_and_inputs_are_fixed_with_a_reason():
    _model, _inputs, graph = zoo.traced("bare BERT")
    reasons = {s.kind: s.fixed for s in graph.spaces if s.kind in ("input", "residual", "output")}
    assert "given by the data" in reasons["input"]
    assert "model's output" in reasons["residual"] and "model's output" in reasons["output"]


def test_an_operation_without_a_rule_fixes_what_it_touches_and_is_listed():
    torch.manual_seed(0)
    model = zoo.WithUnknown().double()
    graph = modcut.weight_graph(model, zoo.floats(3, 4))
    by_name = {s.name: s for s in graph.spaces}
    assert "no rule" in by_name["a"].fixed and "renorm" in by_name["a"].fixed
    assert not by_name["b"].fixed
    assert any("renorm" in reason for _, reason in graph.not_covered)


def test_the_graph_is_deterministic():
    graphs = [modcut.weight_graph(*zoo.build("Llama")) for _ in range(2)]
    assert graphs[0].spaces == graphs[1].spaces
    assert [m.name for m in graphs[0].matrices] == [m.name for m in graphs[1].matrices]
    assert [(t.module, t.side, t.dim) for t in graphs[0].taps] == [(t.module, t.side, t.dim) for t in graphs[1].taps]


@pytest.mark.parametrize("name", ["LSTM", "GRU"])
def test_recurrent_layers_are_covered_by_the_same_rules(name):
    _model, _inputs, graph = zoo.traced(name)
    assert {m.source for m in graph.matrices} >= {"rnn.weight_ih_l0", "rnn.weight_hh_l0", "rnn.weight_hh_l1"}
    assert not graph.not_covered
