"""What a weight graph holds: live blocks and matrices, taps where the activations really are, gains, coverage."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import graph_zoo as zoo
import modcut

NAMES = list(zoo.CASES)


@pytest.mark.parametrize("name", NAMES)
def test_blocks_cover_every_entry_of_every_matrix_once(name):
    _model, _inputs, graph = zoo.traced(name)
    for m in graph.matrices:
        seen = torch.zeros_like(m.weight)
        for b in (b for b in graph.blocks if b.source == m.name):
            for i in range(b.row_index.shape[1]):
                for j in range(b.col_index.shape[1]):
                    seen[b.row_index[:, i][:, None], b.col_index[:, j][None]] += 1
        assert bool((seen == 1).all()), m.name


@pytest.mark.parametrize("name", NAMES)
def test_blocks_are_live_views_that_agree_with_their_matrix(name):
    model, _inputs, graph = zoo.traced(name)
    matrices = {m.name: m for m in graph.matrices}
    parameters = dict(model.named_parameters())
    for b in graph.blocks:
        m = matrices[b.source]
        assert b.weight.untyped_storage().data_ptr() == parameters[m.source].untyped_storage().data_ptr()
        assert b.weight.shape[:2] == (b.rows.size, b.cols.size)
        entries = m.weight[b.row_index[:, None, :, None], b.col_index[None, :, None, :]]  # [n, m, reps, reps, *kernel]
        assert torch.equal(b.weight.reshape(entries.shape), entries)
        assert torch.equal(
            m.row_vertex[b.row_index], torch.arange(b.rows.size)[:, None] + b.rows.offset + 0 * b.row_index
        )
        assert torch.equal(
            m.col_vertex[b.col_index], torch.arange(b.cols.size)[:, None] + b.cols.offset + 0 * b.col_index
        )
        capacity = b.capacity()
        assert capacity.shape == (b.rows.size, b.cols.size) and bool((capacity >= 0).all())
    for m in graph.matrices:
        assert torch.equal(m.view(parameters[m.source]), m.weight)
        assert m.view(parameters[m.source]).requires_grad


@pytest.mark.parametrize("name", ["mlp", "residual cnn", "nanoGPT", "einsum GPT", "GPT-2", "Llama", "ViT"])
def test_writing_to_any_block_changes_the_model(name):
    model, inputs, graph = zoo.traced(name)
    before = zoo.call(model, inputs)
    for b in graph.blocks:
        keep = b.weight.clone()
        b.weight.mul_(1.5)
        assert zoo.difference(zoo.call(model, inputs), before) > 1e-9, b.source
        b.weight.copy_(keep)
    assert zoo.difference(zoo.call(model, inputs), before) == 0


def captured(model: nn.Module, inputs: object, taps: tuple[modcut.graph.types.Tap, ...]) -> list[torch.Tensor]:
    """What passes each tap, feature dimension last."""
    seen: list[torch.Tensor | None] = [None] * len(taps)
    handles = []

    def keep(i: int, dim: int):
        def hook(_module, args, output=None):
            value = args[0] if output is None else output
            seen[i] = value.detach().clone().movedim(dim, -1)

        return hook

    for i, t in enumerate(taps):
        module = model.get_submodule(t.module)
        register = module.register_forward_pre_hook if t.side == "input" else module.register_forward_hook
        handles.append(register(keep(i, t.dim)))
    zoo.call(model, inputs)
    for h in handles:
        h.remove()
    return seen


@pytest.mark.parametrize("name", NAMES)
def test_taps_show_exactly_their_vertices(name):
    """Permuting a space permutes its positions in every tap that lists it, and nothing else anywhere."""
    model, inputs, graph = zoo.traced(name)
    tolerance = zoo.CASES[name].tolerance
    before = captured(model, inputs, graph.taps)
    for t, value in zip(graph.taps, before, strict=True):
        assert value.shape[-1] == t.vertex.numel(), t
    for space in [s for s in graph.spaces if not s.fixed and s.size > 1][:8]:
        if name == "mixer" and space.kind == "residual":
            continue  # token-mixing layers carry the channels too, along another dimension than their features
        perm = torch.arange(space.size).roll(1)
        graph.permute_(space, perm)
        after = captured(model, inputs, graph.taps)
        graph.permute_(space, torch.argsort(perm))
        for t, old, new in zip(graph.taps, before, after, strict=True):
            at = torch.nonzero((t.vertex >= space.offset) & (t.vertex < space.offset + space.size)).flatten()
            moved = old.clone()
            if at.numel():
                table = at[torch.argsort(t.vertex[at], stable=True)].reshape(space.size, -1)
                moved[..., table.flatten()] = old[..., table[perm].flatten()]
                assert not torch.equal(moved, old) or float(old.std()) == 0, t
            assert float((new - moved).abs().max()) <= tolerance * max(1.0, float(old.abs().max())), (t, space)


@pytest.mark.parametrize("name", NAMES)
def test_every_linear_layer_has_both_taps(name):
    model, inputs, graph = zoo.traced(name)
    taps = {(t.module, t.side): t for t in graph.taps}
    by_source = {m.source: m for m in graph.matrices}
    ran = set()
    handles = [m.register_forward_hook(lambda m, *_: ran.add(m)) for m in model.modules()]
    zoo.call(model, inputs)
    for h in handles:
        h.remove()
    for path, module in model.named_modules():
        m = by_source.get(f"{path}.weight")
        if (
            m is None
            or module not in ran
            or type(module).__name__ not in ("Linear", "Conv1D", "Conv2d")
            or "[" in m.name
        ):
            continue
        rows, cols = taps[(path, "output")], taps[(path, "input")]
        assert torch.equal(cols.vertex, m.col_vertex) and torch.equal(rows.vertex, m.row_vertex)
        dim = -3 if isinstance(module, nn.Conv2d) else -1
        assert (rows.dim, cols.dim) == (dim, dim)


def test_embeddings_have_an_output_tap_only():
    graph = modcut.weight_graph(*zoo.build("nanoGPT"))
    assert [t.side for t in graph.taps if t.module == "wte"] == ["output"]


@pytest.mark.parametrize(("name", "tables"), [("GPT-2", {"transformer.wpe.weight"}), ("Llama", set())])
def test_coverage_of_language_models(name, tables):
    """Every weight of GPT-2 and Llama is in a block, except the table of positions."""
    model, _inputs, graph = zoo.traced(name)
    weights = {n: p.numel() for n, p in model.named_parameters() if p.ndim > 1 and n not in tables}
    covered = sum(b.weight.numel() for b in graph.blocks)
    assert covered == sum(weights.values())
    assert {n for n, _ in graph.not_covered} == tables


def test_gains_are_read_live_and_folded():
    model, inputs = zoo.build("GPT-2")
    graph = modcut.weight_graph(model, inputs)
    m = next(m for m in graph.matrices if m.source == "transformer.h.1.mlp.c_fc.weight")
    norm = model.transformer.h[1].ln_2.weight
    assert m.gain is not None and torch.equal(m.gain(), norm)
    with torch.no_grad():
        norm.mul_(2.0)
    assert torch.equal(m.gain(), norm)
    block = next(b for b in graph.blocks if b.source == m.name)
    expected = (model.transformer.h[1].mlp.c_fc.weight.T * norm).abs()
    torch.testing.assert_close(block.capacity(), expected.detach())
    plain = modcut.weight_graph(model, inputs, fold_norms=False)
    assert all(m.gain is None and m.row_gain is None for m in plain.matrices)


@pytest.mark.parametrize(("name", "offset"), [("Llama", 0.0), ("Gemma", 1.0)])
def test_written_out_rms_norms_are_gains(name, offset):
    model, _inputs, graph = zoo.traced(name)
    for m in graph.matrices:
        if m.source.endswith("gate_proj.weight"):
            norm = model.get_submodule(m.source.rpartition(".mlp")[0]).post_attention_layernorm.weight
            torch.testing.assert_close(m.gain().double(), norm + offset, rtol=1e-6, atol=1e-6)


def test_batch_norm_is_a_gain_of_the_rows():
    model, _inputs, graph = zoo.traced("residual cnn")
    m = next(m for m in graph.matrices if m.source == "stage1.c1.weight")
    bn = model.stage1.b1
    torch.testing.assert_close(m.row_gain(), (bn.weight / (bn.running_var + bn.eps).sqrt()).detach())


def test_large_vocabularies_are_left_out_unless_asked_for():
    model = zoo.NanoGPT(vocabulary=1100).double()
    inputs = zoo.tokens(1100)
    graph = modcut.weight_graph(model, inputs)
    assert not any(s.kind == "input" for s in graph.spaces)
    assert any("1100 entries" in reason for _, reason in graph.not_covered)
    embed = next(m for m in graph.matrices if m.source == "wte.weight")
    assert bool((embed.col_vertex == -1).all()) and bool((embed.row_vertex >= 0).all())
    everything = modcut.weight_graph(model, inputs, include_inputs="all")
    assert everything.n == graph.n + 1100


def test_inputs_and_outputs_can_be_left_out():
    model, inputs = zoo.build("mlp")
    graph = modcut.weight_graph(model, inputs, include_inputs=False, include_outputs=False)
    assert [s.size for s in graph.spaces] == [7, 6] and len(graph.blocks) == 1


def test_strengths_can_be_square_given_or_a_function():
    model, inputs = zoo.build("mlp")
    plain = modcut.weight_graph(model, inputs)
    square = modcut.weight_graph(model, inputs, edge="square")
    torch.testing.assert_close(square.to_dense(), plain.to_dense() ** 2, rtol=1e-5, atol=1e-7)
    table = torch.rand(plain.n, plain.n)
    given = modcut.weight_graph(model, inputs, edge=table)
    b = given.blocks[1]
    assert torch.equal(b.capacity(), table[b.rows.vertices, b.cols.vertices])
    ones = modcut.weight_graph(model, inputs, edge=lambda block: torch.ones(block.rows.size, block.cols.size))
    assert ones.num_edges == 5 * 7 + 7 * 6 + 6 * 3
    with pytest.raises(ValueError, match=r"edge must have shape \[21, 21\]"):
        modcut.weight_graph(model, inputs, edge=torch.ones(3, 3))
    with pytest.raises(ValueError, match="edge must be one of"):
        modcut.weight_graph(model, inputs, edge="cubed")
