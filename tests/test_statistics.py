"""Claims about what hooks read and replace: profiles, input strengths, edges that look at data, interventions."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.checkpoint import checkpoint

from hand_built import gpt, mlp
from modcut import _batches
from modcut.graph.edges import shuffled, usage, with_edge
from modcut.graph.interventions import collect_reference, replace
from modcut.graph.statistics import Recorder, collect


def tokens(batches: int = 3, size: int = 5, time: int = 9, vocab: int = 12, seed: int = 0) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return [torch.randint(vocab, (size, time), generator=g) for _ in range(batches)]


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def space(graph, name):
    return next(s for s in graph.spaces if s.name == name)


# -- profiles ---------------------------------------------------------------------------------------------------------


def test_a_profile_is_the_absolute_activation_times_gradient():
    model, graph = mlp((6, 8, 4))
    x, y = torch.randn(7, 6), torch.randint(4, (7,))
    h = model[1](model[0](x)).detach().requires_grad_()
    F.cross_entropy(model[2](h), y).backward()
    expected = (h * h.grad).abs()
    s = collect(graph, model, [(x, y)])
    torch.testing.assert_close(s.profile[:, space(graph, "layer1").vertices], expected.detach())
    assert s.profile.shape == (7, graph.n)
    assert s.profile.dtype == torch.float32


def test_positions_are_summed_after_the_absolute_value_and_heads_are_read_before_the_output_projection():
    model, graph = gpt()
    batch = tokens(1)[0]
    seen = {}
    handle = model.layers[1].o.register_forward_pre_hook(lambda _, a: seen.update(x=a[0]))
    loss = _batches.loss_of(model, batch)
    gradient = torch.autograd.grad(loss, seen["x"])[0]
    handle.remove()
    expected = (seen["x"] * gradient).abs().sum(1)
    s = collect(graph, model, [batch])
    v = torch.cat([s.profile[:, space(graph, f"layers.1.v{h}").vertices] for h in range(4)], 1)
    torch.testing.assert_close(v, expected.detach())


def test_a_sum_before_the_absolute_value_would_be_caught(monkeypatch):
    """The claim above distinguishes: positions of opposite sign must not cancel."""
    model, graph = gpt()
    batch = tokens(1)[0]
    right = collect(graph, model, [batch]).profile

    def wrong(self, x, gradient, dim, vertex, where):
        usage = (x * gradient).movedim(dim, -1).reshape(self.rows.shape[0], -1, x.shape[dim]).sum(1).abs()
        self.rows.index_add_(1, vertex[where], usage[:, where])
        self.used = True

    monkeypatch.setattr("modcut.graph.observer.Window.add", wrong)
    bugged = collect(graph, model, [batch]).profile
    hidden = space(graph, "layers.0.mlp").vertices
    assert not torch.allclose(right[:, hidden], bugged[:, hidden], rtol=0.1)


def test_a_residual_channel_counts_each_tensor_once_however_many_weights_read_it():
    model, graph = gpt(layers=1)
    batch = tokens(1)[0]
    expected = torch.zeros(5, 16)
    seen = []
    norms = (model.layers[0].ln1, model.layers[0].ln2, model.ln)
    handles = [m.register_forward_hook(lambda _m, _a, out: seen.append(out)) for m in norms]
    loss = _batches.loss_of(model, batch)
    for x, g in zip(seen, torch.autograd.grad(loss, seen), strict=True):
        expected += (x * g).abs().sum(1).detach()
    for handle in handles:
        handle.remove()
    s = collect(graph, model, [batch])
    torch.testing.assert_close(s.profile[:, space(graph, "residual").vertices], expected)


def test_query_key_and_token_vertices_have_profiles_too():
    model, graph = gpt()
    s = collect(graph, model, tokens())
    assert bool((s.profile[:, space(graph, "layers.0.qk1").vertices] > 0).all())
    present = torch.stack([torch.bincount(row, minlength=12) > 0 for b in tokens() for row in b])
    used = s.profile[:, space(graph, "tokens").vertices] > 0
    assert not bool((used & ~present).any())


def test_recorded_training_steps_give_what_collect_gives_and_change_nothing():
    model, graph = gpt()
    twin = copy.deepcopy(model)
    expected = collect(graph, model, tokens())
    for m, record in ((model, True), (twin, False)):
        optimizer = torch.optim.SGD(m.parameters(), lr=0.0)
        recorder = Recorder(graph, m) if record else None
        if recorder:
            recorder.attach()
        for batch in tokens():
            _batches.loss_of(m, batch).backward()
            optimizer.step()
        if recorder:
            torch.testing.assert_close(recorder.rows, expected.profile)
            recorder.detach()
            assert hooks(m) == 0
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)


@pytest.mark.parametrize("reentrant", [False, True], ids=["saved-tensor hooks", "reentrant"])
def test_the_recorder_survives_gradient_checkpointing(reentrant):
    model, graph = gpt()
    batch = tokens(1)[0]
    expected = collect(graph, model, [batch]).profile

    for i in range(2):
        layer = model.layers[i]
        original = layer.forward
        layer.forward = lambda x, f=original: checkpoint(f, x, use_reentrant=reentrant)
    with Recorder(graph, model) as recorder:
        _batches.loss_of(model, batch).backward()
        torch.testing.assert_close(recorder.rows, expected)


def test_the_recorder_keeps_the_latest_windows_labels_them_and_ignores_evaluation():
    model, graph = gpt()
    batches = tokens(3)
    with Recorder(graph, model, max_windows=8) as recorder:
        for name, batch in zip("aab", batches, strict=True):
            with recorder.slice(name):
                _batches.loss_of(model, batch).backward()
            with torch.no_grad():
                model(batch)
    s = recorder.statistics()
    assert s.windows == 8
    assert s.slice_names == ("a", "b")
    assert s.slice.tolist() == [0] * 3 + [1] * 5


def test_the_recorder_goes_away_when_training_raises():
    model, graph = gpt()
    with pytest.raises(KeyboardInterrupt), Recorder(graph, model):
        model(tokens(1)[0])
        raise KeyboardInterrupt
    assert hooks(model) == 0


def test_collect_leaves_gradients_flags_and_hooks_as_they_were():
    model, graph = gpt()
    model.train()
    model.layers[0].ln1.eval()
    model.head.weight.grad = torch.ones_like(model.head.weight)
    collect(graph, model, tokens())
    assert bool((model.head.weight.grad == 1).all())
    assert model.emb.weight.grad is None
    assert model.training and not model.layers[0].ln1.training
    assert hooks(model) == 0


def test_a_frozen_model_has_the_same_profile():
    model, graph = gpt()
    expected = collect(graph, model, tokens()).profile
    model.requires_grad_(False)
    torch.testing.assert_close(collect(graph, model, tokens()).profile, expected)


def test_slices_of_the_data_label_the_windows():
    model, graph = gpt()
    s = collect(graph, model, {"x": tokens(2), "y": tokens(1, seed=1)})
    assert s.slice_names == ("x", "y")
    assert s.slice.tolist() == [0] * 10 + [1] * 5
    assert s.to_dict()["slices"] == {"x": 10, "y": 5}


def test_input_strengths_are_those_of_the_data():
    model, graph = gpt()
    data = tokens()
    s = collect(graph, model, data, gradients=False)
    frequency = torch.bincount(torch.cat(data).flatten(), minlength=12) / sum(b.numel() for b in data)
    torch.testing.assert_close(s.input_mean_square["emb.weight"], frequency)
    seen = []
    handle = model.layers[1].down.register_forward_pre_hook(lambda _, a: seen.append(a[0].detach()))
    for batch in data:
        model(batch)
    handle.remove()
    x = torch.cat(seen).flatten(0, 1)
    torch.testing.assert_close(s.input_mean_square["layers.1.down.weight"], x.square().mean(0))
    torch.testing.assert_close(s.input_mean["layers.1.down.weight"], x.mean(0))
    torch.testing.assert_close(s.means["layers.1.down:input"], x.mean(0))
    assert s.windows == 0 and s.not_observed == ()


def test_bad_losses_are_errors():
    model, graph = gpt()
    with pytest.raises(ValueError, match="loss must be finite"):
        collect(graph, model, tokens(), lambda m, b: m(b).sum() * float("nan"))
    with pytest.raises(RuntimeError, match="has no gradient"):
        collect(graph, model, tokens(), lambda m, b: m(b).detach().sum())
    with pytest.raises(ValueError, match="at least one batch"):
        collect(graph, model, [])
    with pytest.raises(ValueError, match="graph must have been traced from this model"):
        collect(graph, mlp()[0], [torch.randn(3, 6)])
    assert hooks(model) == 0
    with pytest.raises(ValueError, match="max_windows"):
        Recorder(graph, model, max_windows=0)


# -- edges ------------------------------------------------------------------------------------------------------------


def test_contribution_is_weight_times_root_mean_square_input():
    model, graph = mlp((6, 8, 4))
    x, y = torch.randn(50, 6), torch.randint(4, (50,))
    g = with_edge(graph, "contribution", collect(graph, model, [(x, y)]))
    expected = model[0].weight.detach().abs() * x.square().mean(0).sqrt()
    torch.testing.assert_close(g.blocks[0].capacity(), expected)
    assert g.edge == "contribution" and g.statistics is not None


def test_no_rescaling_of_neurons_moves_contribution_shares():
    model, graph = mlp((6, 8, 8, 4))
    data = [(torch.randn(40, 6), torch.randint(4, (40,)))]

    def shares():
        g = with_edge(graph, "contribution", collect(graph, model, data))
        return [c / c.sum(1, keepdim=True) for _, c in g.capacities()]

    before, plain = shares(), model[2].weight.detach().abs().clone()
    factor = torch.rand(8) * 10 + 0.1
    with torch.no_grad():
        model[0].weight.mul_(factor[:, None])
        model[0].bias.mul_(factor)
        model[2].weight.div_(factor)
    for a, b in zip(before, shares(), strict=True):
        torch.testing.assert_close(a, b)
    changed = model[2].weight.detach().abs()
    assert not torch.allclose(plain / plain.sum(1, keepdim=True), changed / changed.sum(1, keepdim=True), atol=0.05)


def test_cousage_gates_weights_by_the_correlation_of_usage():
    model, graph = mlp((6, 8, 4))
    x, y = torch.randn(30, 6), torch.randint(4, (30,))
    s = collect(graph, model, [(x, y)])
    p = s.profile.double().numpy()
    p = np.sqrt(p / p[:, 6:14].sum(1, keepdims=True))  # the hidden layer is what a window is normalised by
    with np.errstate(invalid="ignore"):
        corr = np.nan_to_num(np.corrcoef(p.T))
    for power in (1, 3.5):
        g = with_edge(graph, "cousage", s, power=power)
        expected = model[2].weight.detach().abs().numpy() * np.clip(corr[14:, 6:14], 0, 1) ** power
        np.testing.assert_allclose(g.blocks[1].capacity().numpy(), expected, atol=2e-5)


def test_all_vertices_of_a_head_share_its_usage():
    model, graph = gpt()
    s = collect(graph, model, tokens())
    z, units = usage(graph, s.profile)
    q, v = space(graph, "layers.0.qk2"), space(graph, "layers.0.v2")
    assert len(set(units.unit[q.vertices].tolist() + units.unit[v.vertices].tolist())) == 1
    column = s.profile[:, v.vertices].sum(1)
    inner = torch.zeros(graph.n, dtype=torch.bool)
    for sp in graph.spaces:
        inner[sp.vertices] = sp.kind in ("hidden", "residual") or ".v" in sp.name
    column = (column / s.profile[:, inner].sum(1)).sqrt()
    column = column - column.mean()
    torch.testing.assert_close(z[:, units.unit[v.offset]], column / column.norm())


def test_the_shuffled_null_keeps_each_distribution_and_destroys_correlation():
    model, graph = gpt()
    s = collect(graph, model, tokens(20))
    null = shuffled(s, seed=3, graph=graph)
    assert torch.equal(shuffled(s, seed=3, graph=graph).profile, null.profile)
    assert not torch.equal(shuffled(s, seed=4, graph=graph).profile, null.profile)
    a, b = usage(graph, s.profile)[0], usage(graph, null.profile)[0]
    c, d = (a.T @ a).abs().mean(), (b.T @ b).abs().mean()
    assert d < 0.1 < c


def test_edges_need_their_statistics():
    _, graph = gpt()
    other, small = mlp()
    foreign = collect(small, other, [(torch.randn(3, 6), torch.randint(4, (3,)))])
    with pytest.raises(ValueError, match="needs statistics"):
        with_edge(graph, "cousage")
    with pytest.raises(ValueError, match="edge must be one of"):
        with_edge(graph, "weight")
    with pytest.raises(ValueError, match="152 vertices, they have 26"):
        with_edge(graph, "cousage", foreign)
    with pytest.raises(ValueError, match="power must be positive"):
        with_edge(small, "cousage", foreign, power=0)


# -- interventions ----------------------------------------------------------------------------------------------------


def test_zeroed_neurons_are_as_if_their_outgoing_weights_were_zero():
    model, graph = gpt()
    batch = tokens(1)[0]
    vertices = torch.arange(space(graph, "layers.0.mlp").offset, space(graph, "layers.0.mlp").offset + 7)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.layers[0].down.weight[:, :7] = 0
    with replace(model, graph, vertices):
        torch.testing.assert_close(model(batch), twin(batch))
    assert hooks(model) == 0


def test_an_ablated_query_key_space_makes_attention_uniform():
    model, graph = gpt(layers=1)
    batch = tokens(1)[0]
    qk = torch.cat([torch.arange(s.offset, s.offset + s.size) for s in graph.spaces if ".qk" in s.name])
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for linear in (twin.layers[0].q, twin.layers[0].k):
            linear.weight.zero_()
            linear.bias.zero_()
    with replace(model, graph, qk):
        torch.testing.assert_close(model(batch), twin(batch))


def test_interventions_nest_and_end_however_the_block_ends():
    model, graph = gpt()
    batch = tokens(1)[0]
    plain = model(batch)
    with replace(model, graph, torch.arange(40, 80), "scale", scale=1.0):
        assert torch.equal(model(batch), plain)
    with replace(model, graph, torch.arange(60, 84)):
        one = model(batch)
        with replace(model, graph, torch.arange(116, 140)):
            two = model(batch)
        assert torch.equal(model(batch), one)
    assert not torch.equal(one, two)
    with pytest.raises(RuntimeError, match="boom"), replace(model, graph, [40]):
        raise RuntimeError("boom")
    assert torch.equal(model(batch), plain) and hooks(model) == 0


def test_mean_resample_and_noise_draw_from_the_reference():
    model, graph = gpt()
    batch, hidden = tokens(1)[0], space(graph, "layers.1.mlp").vertices
    vertices = torch.arange(graph.n)[hidden]
    reference = collect_reference(model, graph, tokens(2), vertices)
    seen = []
    handle = model.layers[1].down.register_forward_hook(lambda _m, a, _o: seen.append(a[0]))
    with replace(model, graph, vertices, "mean", reference=reference):
        model(batch)
    with replace(model, graph, vertices, "resample", reference=reference, seed=1):
        model(batch)
    with replace(model, graph, vertices, "resample", reference=reference, seed=1):
        model(batch)
    with replace(model, graph, vertices, "noise", scale=0.0):
        model(batch)
    handle.remove()
    model.layers[1].down.register_forward_hook(lambda _m, a, _o: seen.append(a[0])).remove()
    mean, drawn, again, quiet = seen
    torch.testing.assert_close(mean, reference.means["layers.1.down:input"].expand_as(mean))
    stored = reference.samples["layers.1.down:input"]
    for row in drawn:
        assert any(torch.equal(row, other) for other in stored)
    assert torch.equal(drawn, again)
    assert not torch.equal(quiet, mean)


def test_bad_interventions_are_errors():
    model, graph = gpt()
    for kwargs, message in (
        ({"mode": "drop"}, "mode must be one of"),
        ({"mode": "mean"}, "needs reference"),
        ({"vertices": [graph.n]}, r"vertices must be in \[0, 152\)"),
        ({"vertices": torch.ones(3, dtype=torch.bool)}, "shape"),
    ):
        with pytest.raises(ValueError, match=message), replace(model, graph, **{"vertices": [0], **kwargs}):
            pass


def test_hidden_states_are_not_taken_for_scores_of_tokens() -> None:
    from types import SimpleNamespace

    tokens = torch.tensor([[1, 2, 3]])

    class Encoder(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> object:
            return SimpleNamespace(last_hidden_state=torch.zeros(1, 3, 8))

    with pytest.raises(ValueError, match="loss_fn must be given"):
        _batches.loss_of(Encoder(), tokens)

    class Narrow(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.zeros(1, 3, 2)

    with pytest.raises(ValueError, match="loss_fn must be given"):
        _batches.loss_of(Narrow(), tokens)
