"""The forms of the loss: each equal to its textbook formula on a dense matrix, with gradients by finite differences."""

from __future__ import annotations

import itertools
import math

import networkx as nx
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

import hand_built
import modcut
from modcut import _coarse, _forms, _soft
from modcut.loss import ModularityLoss
from modcut.ops import block_sums

EDGES = ("contribution", "abs", "square")


def net(seed: int = 0) -> tuple[nn.Sequential, Tensor, Tensor]:
    """A small network in float64, balanced labels of three modules, inputs."""
    model = hand_built.mlp((5, 9, 9, 9, 4), seed)[0].double()
    with torch.no_grad():
        for m in model:
            if isinstance(m, nn.Linear):
                m.bias.add_(0.5)
    labels = torch.arange(modcut.weight_graph(model).n) % 3
    return model, labels, torch.randn(64, 5, dtype=torch.float64)


def loss_of(method: str, edge: str = "contribution", **kwargs: object) -> tuple[nn.Sequential, ModularityLoss]:
    model, labels, x = net()
    crit = ModularityLoss(model, partition=labels, method=method, edge=edge, **kwargs)  # type: ignore[arg-type]
    model(x)
    return model, crit


def capacities(model: nn.Sequential, crit: ModularityLoss) -> Tensor:
    """Dense symmetric capacities of the hidden neurons, written independently; differentiable."""
    w = torch.zeros(crit.graph.n, crit.graph.n, dtype=torch.float64)
    at = 5
    for i in (2, 4):
        p = model[i].weight
        a = (p.abs() if crit.edge != "square" else p.square()) * (
            crit.scales()[f"{i}.weight"].detach() if crit.edge == "contribution" else 1.0
        )
        if crit.edge == "contribution":
            a = a / a.sum(1, keepdim=True) / 18  # two classes of nine neurons, none of them dead
        w = w.index_put((torch.arange(at + 9, at + 18)[:, None], torch.arange(at, at + 9)), a)
        at += 9
    return w + w.T


@pytest.mark.parametrize("edge", EDGES)
def test_ncut_is_cut_over_volume_summed_over_modules(edge: str) -> None:
    model, crit = loss_of("ncut", edge)
    w, want = capacities(model, crit), torch.zeros((), dtype=torch.float64)
    for c in range(3):
        mine = crit.labels == c
        want = want + w[mine][:, ~mine].sum() / w[mine].sum()
    torch.testing.assert_close(crit(), want)
    weights = [model[2].weight, model[4].weight]
    for a, b in zip(torch.autograd.grad(crit(), weights), torch.autograd.grad(want, weights), strict=True):
        torch.testing.assert_close(a, b)


def test_soft_ncut_has_the_closed_form_gradient_of_the_docstring() -> None:
    torch.manual_seed(0)
    a = torch.rand(7, 7, dtype=torch.float64)
    a = (a + a.T).fill_diagonal_(0).requires_grad_()
    s = torch.softmax(torch.randn(7, 3, dtype=torch.float64), 1)
    value = _forms.ncut(s.T @ a @ s)
    got = torch.autograd.grad(value, a)[0]
    inside, volume = torch.diagonal(s.T @ a @ s).detach(), (s.T @ a).sum(1).detach()
    for i, j in itertools.combinations(range(7), 2):
        want = -(2 * s[i] * s[j] / volume - inside * (s[i] + s[j]) / volume**2).sum()
        assert float(got[i, j] + got[j, i]) == pytest.approx(float(want), rel=1e-10)


def test_soft_ncut_of_one_hot_labels_is_the_hard_one() -> None:
    _, crit = loss_of("ncut")
    hard = crit().item()
    crit._soft = torch.nn.functional.one_hot(crit.labels, 3).double()
    assert crit().item() == pytest.approx(hard, rel=1e-12)


def test_soft_share_is_the_formula_and_the_leak_where_labels_are_hard() -> None:
    model, crit = loss_of("share")
    hard = crit().item()
    crit._soft = torch.nn.functional.one_hot(crit.labels, 3).double()
    assert crit().item() == pytest.approx(hard, rel=1e-12)
    s = crit._soft = torch.softmax(torch.randn(crit.graph.n, 3, dtype=torch.float64), 1)
    want = 0.0
    for at, i in ((5, 2), (14, 4)):
        a = model[i].weight.detach().abs() * crit.scales()[f"{i}.weight"]
        p = a / a.sum(1, keepdim=True)
        want += float((1 - (p * (s[at + 9 : at + 18] @ s[at : at + 9].T)).sum(1)).mean()) / 2
    assert crit().item() == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize("edge", EDGES)
def test_eigenvalue_form_is_the_spectrum_of_the_normalised_laplacian(edge: str) -> None:
    model, crit = loss_of("spectral", edge)
    w = capacities(model, crit).detach().numpy()[5:32, 5:32]
    graph = nx.from_numpy_array(w)
    values = np.sort(np.linalg.eigvalsh(nx.normalized_laplacian_matrix(graph).toarray()))
    assert values[0] == pytest.approx(0, abs=1e-12)
    assert crit().item() == pytest.approx(values[1:3].mean(), rel=1e-9)


def test_tree_form_is_the_conductance_of_the_cuts_of_the_exact_tree() -> None:
    model, crit = loss_of("tree")
    w, sides = capacities(model, crit).detach(), []
    table = torch.zeros(3, 3, dtype=torch.float64)
    for a, b in itertools.product(range(3), range(3)):
        table[a, b] = w[crit.labels == a][:, crit.labels == b].sum()
    graph = nx.from_numpy_array(table.fill_diagonal_(0).numpy())
    tree = nx.gomory_hu_tree(graph, capacity="weight")
    for u, v in list(tree.edges):
        data = tree.edges[u, v]
        tree.remove_edge(u, v)
        sides.append(sorted(nx.node_connected_component(tree, u)))
        tree.add_edge(u, v, **data)
    volume = [float(w[crit.labels == c].sum()) for c in range(3)]
    want = []
    for side in sides:
        cut = sum(float(table[a, b]) for a in side for b in range(3) if b not in side)
        inside = sum(volume[c] for c in side)
        want.append(cut / min(inside, sum(volume) - inside))
    assert crit().item() == pytest.approx(sum(want) / 2, rel=1e-9)
    assert crit._tree is not None and crit._tree.size == 3


@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize("method", ["share", "soft", "ncut", "tree", "spectral"])
def test_gradients_by_finite_differences(method: str, edge: str) -> None:
    model, crit = loss_of("share" if method == "soft" else method, edge)
    if method == "soft":
        crit._soft = torch.softmax(torch.randn(crit.graph.n, 3, dtype=torch.float64), 1)
    assert torch.autograd.gradcheck(lambda *_: crit(), [model[2].weight, model[4].weight])


def test_finite_differences_catch_a_gradient_without_the_volumes_part() -> None:
    model, crit = loss_of("ncut")

    def frozen(table: Tensor) -> Tensor:
        volume = table.sum(1).detach()
        return ((table.sum(1) - table.diagonal()) / volume).sum()

    real, _forms.ncut = _forms.ncut, frozen
    try:
        with pytest.raises(RuntimeError, match="Jacobian mismatch"):
            torch.autograd.gradcheck(lambda *_: crit(), [model[2].weight])
    finally:
        _forms.ncut = real


@pytest.mark.parametrize("method", ["share", "ncut", "tree", "spectral"])
def test_in_place_backward_adds_what_autograd_adds(method: str) -> None:
    model, crit = loss_of(method, lam=0.7)
    (0.5 * crit()).backward()
    want = model[2].weight.grad.clone()
    value = crit.backward_(0.5)
    assert value == pytest.approx(crit().item())
    torch.testing.assert_close(model[2].weight.grad, 2 * want)


@pytest.mark.parametrize("method", ["share", "ncut", "tree", "spectral"])
def test_every_form_is_zero_when_nothing_crosses_and_blind_to_rescaling(method: str) -> None:
    model, labels, x = net()
    crit = ModularityLoss(model, partition=labels, method=method)
    model(x)
    before = crit().item()
    with torch.no_grad():
        c = torch.logspace(-2, 2, 9, dtype=torch.float64)
        model[2].weight.mul_(c[:, None])
        model[2].bias.mul_(c)
        model[4].weight.div_(c)
    crit = ModularityLoss(model, partition=labels, method=method)
    model(x)
    assert crit().item() == pytest.approx(before, rel=1e-5) and before > 0.1
    masks = modcut.partition.cross_masks(crit.graph, labels)  # type: ignore[attr-defined]
    with torch.no_grad():
        for name in ("2.weight", "4.weight"):
            model.get_parameter(name)[masks[name]] = 0
    assert crit().item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("method", ["ncut", "tree", "spectral"])
def test_training_with_another_form_lowers_it(method: str) -> None:
    model, _, x = net()
    crit = ModularityLoss(model, k=3, method=method, warmup=0)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    model(x)
    before = crit.objective().item()
    for _ in range(100):
        optimizer.zero_grad()
        crit().backward()
        optimizer.step()
        crit.step()
    assert crit.objective().item() < 0.5 * before


# ---- soft labels -----------------------------------------------------------------------------------------------------
@given(units=st.integers(2, 30), k=st.integers(1, 5), t=st.sampled_from([5.0, 1.0, 0.5]), seed=st.integers(0, 1000))
def test_sinkhorn_has_its_marginals(units: int, k: int, t: float, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    s = _soft.sinkhorn(torch.randn(units, k, generator=g, dtype=torch.float64), t, rounds=2000)
    torch.testing.assert_close(s.sum(1), torch.ones(units, dtype=torch.float64))
    torch.testing.assert_close(s.sum(0), torch.full((k,), units / k, dtype=torch.float64), rtol=1e-2, atol=0)


@pytest.mark.parametrize("t", [1.0, 0.1, 0.02])
def test_cold_sinkhorn_goes_to_the_balanced_assignment_of_largest_score(t: float) -> None:
    scores = torch.randn(12, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    soft = (_soft.sinkhorn(scores, t, rounds=5000) * scores).sum().item()
    rows, cols = linear_sum_assignment(-scores.numpy().repeat(4, axis=1))
    best = scores.numpy()[rows, cols // 4].sum()
    assert best - 12 * t * math.log(3) <= soft <= best + 1e-3, "entropy costs at most its bound"


def test_no_temperature_of_zero() -> None:
    scores = torch.zeros(4, 2)
    with pytest.raises(ValueError, match="temperature must be above 0, got 0"):
        _soft.sinkhorn(scores, 0)


def test_soft_labels_harden_along_the_ramp_and_stay_balanced() -> None:
    model, _, x = net()
    crit = ModularityLoss(model, k=3, assignment="soft", warmup=0, ramp=60, lam=0.1)
    entropy = []
    for _ in range(90):
        model(x)
        crit().backward()
        if crit.soft_labels is not None:
            s = crit.soft_labels[5:14]
            torch.testing.assert_close(s.sum(0), torch.full((3,), 3.0, dtype=s.dtype), rtol=1e-3, atol=0)
            entropy.append(float(-(s * s.clamp_min(1e-30).log()).sum(1).mean()))
        crit.step()
    assert entropy[-1] < 0.5 * entropy[0] and crit.soft_labels is None
    assert torch.bincount(crit.labels[5:14]).tolist() == [3, 3, 3]


def test_soft_labels_exist_for_two_forms() -> None:
    with pytest.raises(
        ValueError, match=r'assignment "soft" exists for methods "share" and "ncut", got method \'tree\''
    ):
        ModularityLoss(net()[0], k=2, method="tree", assignment="soft")


# ---- coarse tree -----------------------------------------------------------------------------------------------------
def test_the_coarse_tree_takes_balanced_cuts_and_not_the_lightest() -> None:
    """Two planted halves of four super-nodes, and one weak super-node whose own cut is the lightest of all."""
    w = torch.ones(9, 9, dtype=torch.float64) * 0.05
    w[:4, :4] = w[4:8, 4:8] = 1.0
    w[8], w[:, 8] = 1e-3, 1e-3
    tree = _coarse.coarse_tree(torch.arange(9), w.fill_diagonal_(1.0), 2)
    side = tree.sides[0].tolist()
    assert side[:4] in ([True] * 4, [False] * 4) and side[4:8] == [not side[0]] * 4
    labels = tree.labels().tolist()
    assert len(set(labels)) == 2 and labels[0] != labels[4]


# ---- operator --------------------------------------------------------------------------------------------------------
def test_block_sums_of_soft_tables_are_the_product_and_pass_the_library_checks() -> None:
    torch.manual_seed(0)
    weights = [torch.randn(5, 4), torch.randn(6, 3).t(), torch.randn(4, 2, 3)]
    table = torch.rand(4 + 6 + 2, 3)
    want = torch.cat([
        weights[0].abs() @ table[:4], weights[1].abs() @ table[4:10], weights[2].abs().sum(2) @ table[10:]
    ])  # fmt: skip
    torch.testing.assert_close(block_sums(weights, table), want)
    learn = [w.detach().requires_grad_() for w in weights]
    torch.library.opcheck(torch.ops.modcut.block_sums.default, (learn, table, 1))
    wide = [w.detach().double().requires_grad_() for w in weights]
    assert torch.autograd.gradcheck(lambda *w: block_sums(list(w), table, power=2), wide)
    with pytest.raises(ValueError, match=r"tables must have shape \[12, k\]"):
        block_sums(weights, table[1:])
