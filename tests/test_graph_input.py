"""Models and inputs of every kind: guessed examples, clear refusals, a model that is left as it was; matrices."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import graph_zoo as zoo
import modcut
from modcut.graph.views import block_view, pattern, regular_pieces


@pytest.mark.parametrize("name", [n for n in zoo.CASES if n not in ("mixer", "in-place writes", "stacked experts")])
def test_example_inputs_are_guessed(name):
    model, inputs = zoo.build(name)
    if name == "residual cnn":
        model.fc1 = nn.Linear(12 * 8 * 8, 10).double()
        inputs = zoo.floats(2, 3, 32, 32)
    guessed, given_ = modcut.weight_graph(model), modcut.weight_graph(model, inputs)
    assert [(s.name, s.size, s.kind, bool(s.fixed)) for s in guessed.spaces] == [
        (s.name, s.size, s.kind, bool(s.fixed)) for s in given_.spaces
    ]


class Picky(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(3, 2)

    def forward(self, x):
        if x.shape[0] != 77:
            raise RuntimeError("I want 77 rows")
        return self.a(x)


def test_a_model_that_no_guess_fits_asks_for_inputs():
    with pytest.raises(ValueError, match=r"example_inputs must be given.*I want 77 rows"):
        modcut.weight_graph(Picky())
    assert modcut.weight_graph(Picky(), torch.randn(77, 3)).n == 5


def test_refusals_are_sentences():
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, got Tensor"):
        modcut.weight_graph(torch.ones(2, 2))
    with pytest.raises(ValueError, match="at least one parameter"):
        modcut.weight_graph(nn.ReLU(), torch.ones(2, 2))
    with pytest.raises(ValueError, match="meta device"):
        modcut.weight_graph(nn.Linear(2, 2, device="meta"))
    with pytest.raises(ValueError, match="not initialised"):
        modcut.weight_graph(nn.LazyLinear(2))
    with pytest.raises(ValueError, match="I want 77 rows"):
        modcut.weight_graph(Picky(), torch.randn(2, 3))
    with pytest.raises(TypeError, match="example_inputs must be a tensor"):
        modcut.weight_graph(nn.Linear(2, 2), "text")
    with pytest.raises(ValueError, match="include_inputs must be"):
        modcut.weight_graph(nn.Linear(2, 2), include_inputs="some")
    with pytest.raises(ValueError, match="data must be given"):
        modcut.weight_graph(nn.Linear(2, 2), edge="contribution")


def test_fake_tensors_are_refused():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(), pytest.raises(ValueError, match="FakeTensor"):
        modcut.weight_graph(nn.Linear(2, 2))


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_left_exactly_as_it_was(fails):
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.bn, self.b = nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 2)
            self.register_buffer("calls", torch.zeros(1))

        def forward(self, x):
            self.calls += 1
            if fails and self.calls > 1:
                raise RuntimeError("no more")
            return self.b(nn.functional.dropout(self.bn(self.a(x)).relu(), training=self.training))

    model = Counting().train()
    model.bn.eval()
    model.a.weight.grad = torch.ones_like(model.a.weight)
    model.b.weight.requires_grad_(False)
    seen = []
    model.a.register_forward_hook(lambda *_: seen.append(1))
    state = {k: v.clone() for k, v in model.state_dict().items()}
    identity = {k: id(v) for k, v in model.state_dict(keep_vars=True).items()}
    rng = torch.get_rng_state()
    mkldnn, fast = torch._C._get_mkldnn_enabled(), torch.backends.mha.get_fastpath_enabled()
    if fails:
        with pytest.raises((ValueError, RuntimeError), match="no more"):
            modcut.weight_graph(model, torch.randn(3, 4, generator=torch.Generator().manual_seed(0)))
    else:
        modcut.weight_graph(model, torch.randn(3, 4, generator=torch.Generator().manual_seed(0)))
    assert model.training and not model.bn.training and model.a.training
    assert torch.equal(torch.get_rng_state(), rng)
    assert {k: id(v) for k, v in model.state_dict(keep_vars=True).items()} == identity
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert torch.equal(model.a.weight.grad, torch.ones_like(model.a.weight)) and model.b.bias.grad is None
    assert model.a.weight.requires_grad and not model.b.weight.requires_grad
    assert len(model.a._forward_hooks) == 1 and not model.b._forward_hooks and not model._forward_pre_hooks
    assert not nn.modules.module._global_forward_hooks and not nn.modules.module._global_forward_pre_hooks
    assert torch._C._get_mkldnn_enabled() == mkldnn and torch.backends.mha.get_fastpath_enabled() == fast
    assert torch.is_grad_enabled()


def test_bad_permutations_are_refused():
    model, inputs = zoo.build("mlp")
    graph = modcut.weight_graph(model, inputs)
    hidden = graph.spaces[1]
    for bad in ([0, 1], [0] * 7, list(range(1, 8))):
        with pytest.raises(ValueError, match=r"perm must hold each of 0 .. 6 once"):
            graph.permute_(hidden, bad)
    with pytest.raises(ValueError, match="space must be one of"):
        graph.permute_("nothing", [0])
    graph.permute_(hidden.name, np.random.default_rng(0).permutation(7))


def test_unused_parameters_are_listed():
    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.spare = nn.Linear(3, 2), nn.Linear(3, 3)

        def forward(self, x):
            return self.a(x)

    uncovered = dict(modcut.weight_graph(Unused()).not_covered)
    assert "not used" in uncovered["spare.weight"]


@pytest.mark.parametrize("kind", ["torch", "numpy", "scipy", "list"])
def test_a_symmetric_matrix_is_one_space(kind):
    w = np.array([[0.0, 2, -1], [2, 0, 0], [-1, 0, 0]])
    given_ = {"torch": torch.tensor(w), "numpy": w, "scipy": sp.csr_array(w), "list": w.tolist()}[kind]
    graph = modcut.WeightGraph.from_matrix(given_)
    assert graph.n == 3 and graph.num_edges == 2 and graph.blocks[0].symmetric
    assert torch.equal(graph.to_dense(), torch.tensor(abs(w)))
    assert graph.degree().tolist() == [3.0, 2.0, 1.0]


def test_a_rectangular_matrix_is_bipartite_and_live():
    w = torch.randn(3, 5)
    graph = modcut.WeightGraph.from_matrix(w)
    assert [s.size for s in graph.spaces] == [3, 5] and graph.num_edges == 15
    graph.blocks[0].weight.zero_()
    assert not w.any()
    assert torch.equal(graph.to_dense(), torch.zeros(8, 8, dtype=torch.float64))
    with pytest.raises(ValueError, match="no parameters to permute"):
        graph.permute_("rows", [1, 0, 2])


@pytest.mark.parametrize("bad", [torch.ones(3), torch.tensor([[float("nan")]])])
def test_bad_matrices_are_refused(bad):
    with pytest.raises(ValueError, match="weights must be"):
        modcut.WeightGraph.from_matrix(bad)
    with pytest.raises(TypeError, match="array of numbers"):
        modcut.WeightGraph.from_matrix("weights")


@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 3), st.integers(0, 3), st.randoms())
def test_regular_positions_become_views(n, inner, outer, start, random):
    """Mixed-radix positions, as heads, groups and pairs give them, in any nesting."""
    step = random.choice([1, inner * outer])
    jumps = (n, n * inner) if step == 1 else (1, inner)
    index = torch.tensor(
        [[start + i * step + a * jumps[0] + b * jumps[1] for b in range(outer) for a in range(inner)] for i in range(n)]
    )
    w = torch.arange(float((int(index.max()) + 2) * 4)).reshape(-1, 4)
    cols = torch.arange(4)[:, None]
    view = block_view(w, index, cols)
    assert torch.equal(view.reshape(n, 4, -1), w[index].transpose(1, 2))
    view.zero_()
    assert not w[index].any() and w[-1].any()


@given(st.lists(st.lists(st.integers(0, 40), min_size=1, max_size=6, unique=True), min_size=1, max_size=1))
def test_any_positions_of_one_neuron_are_cut_into_regular_pieces(rows):
    index = torch.tensor([sorted(rows[0])])
    pieces = regular_pieces(index)
    assert torch.equal(torch.cat(pieces, 1), index)
    assert all(pattern(p) is not None for p in pieces)


def test_matrices_of_every_layout_make_graphs():
    w = np.array([[0.0, 2, 1], [2, 0, 3], [1, 3, 0]])
    read_only = w.copy()
    read_only.flags.writeable = False
    for given_ in (read_only, w[::-1, ::-1], np.asfortranarray(w), w.astype(np.float32), w.astype(np.uint16)):
        assert modcut.WeightGraph.from_matrix(given_).degree().tolist() in ([3.0, 5.0, 4.0], [4.0, 5.0, 3.0])
    with pytest.raises(TypeError, match="bool"):
        modcut.WeightGraph.from_matrix(w > 1)


def test_a_matrix_that_is_symmetric_up_to_rounding_is_one_space():
    w = np.array([[0.0, 0.1 + 0.2, 1], [0.3, 0, 3], [1, 3, 0]])
    assert w[0, 1] != w[1, 0]
    graph = modcut.WeightGraph.from_matrix(w)
    assert graph.n == 3 and modcut.global_min_cut(graph).value == pytest.approx(1.3)


def test_a_map_of_irregular_order_is_listed(monkeypatch):
    def irregular(index):
        raise ValueError("neurons of one space lie in an irregular order on an axis")

    monkeypatch.setattr("modcut.graph.assemble.regular_pieces", irregular)
    graph = modcut.weight_graph(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)))
    assert not graph.blocks
    assert [reason for _, reason in graph.not_covered] == [
        "neurons of one space lie in an irregular order on an axis"
    ] * 2
