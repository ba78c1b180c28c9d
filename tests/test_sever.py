"""The minimum cut between two sets as a differentiable number: its value, its supergradient, and what it is for."""

from __future__ import annotations

import networkx as nx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import hand_built
import modcut


def symmetric(n: int, seed: int, density: float = 1.0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    w = torch.rand(n, n, generator=g, dtype=torch.float64) * (torch.rand(n, n, generator=g) < density)
    return (w + w.T).fill_diagonal_(0)


def by_networkx(w: Tensor, a: list[int], b: list[int]) -> float:
    graph = nx.Graph()
    graph.add_nodes_from(range(len(w)))
    for i, j in torch.nonzero(w.triu(1)).tolist():
        graph.add_edge(i, j, capacity=float(w[i, j]))
    for v in a:
        graph.add_edge("a", v)  # no capacity: infinite
    for v in b:
        graph.add_edge("b", v)
    return float(nx.minimum_cut_value(graph, "a", "b"))


@given(n=st.integers(4, 14), seed=st.integers(0, 10_000), density=st.sampled_from([0.2, 0.5, 1.0]))
def test_value_is_the_minimum_cut_between_the_sets(n: int, seed: int, density: float) -> None:
    w = symmetric(n, seed, density)
    assert modcut.sever(w, [0, 1], [n - 1]).item() == pytest.approx(
        by_networkx(w, [0, 1], [n - 1]), rel=1e-9, abs=1e-12
    )


def test_gradient_is_the_cuts_indicator_and_agrees_with_finite_differences() -> None:
    for seed in range(5):
        w = symmetric(8, seed, 0.6).requires_grad_()
        modcut.sever(w, [0], [6, 7]).backward()
        assert w.grad is not None
        for i in range(8):
            for j in range(i + 1, 8):
                if w[i, j] == 0:
                    continue
                values = []
                for sign in (1, -1):
                    moved = w.detach().clone()
                    moved[i, j] += sign * 1e-5
                    moved[j, i] += sign * 1e-5
                    values.append(modcut.sever(moved, [0], [6, 7]).item())
                assert float(w.grad[i, j] + w.grad[j, i]) == pytest.approx((values[0] - values[1]) / 2e-5, abs=1e-6)


def test_at_ties_it_is_the_average_of_the_two_outermost_minimisers() -> None:
    """A path 0 - 1 - 2 - 3 of equal edges: the first and the last share the gradient."""
    w = torch.zeros(4, 4, dtype=torch.float64)
    for i in range(3):
        w[i, i + 1] = w[i + 1, i] = 2.0
    w.requires_grad_()
    value = modcut.sever(w, [0], [3])
    value.backward()
    assert value.item() == 2.0 and w.grad is not None
    total = w.grad + w.grad.T
    assert [float(total[i, i + 1]) for i in range(3)] == [0.5, 0.0, 0.5]


def test_it_is_a_supergradient_everywhere() -> None:
    """v is concave: v(u) <= v(w) + <gradient, u - w> for all u."""
    w = symmetric(7, 3, 0.7).round(decimals=1).requires_grad_()  # ties on purpose
    value = modcut.sever(w, [0], [6])
    value.backward()
    assert w.grad is not None
    for seed in range(20):
        u = symmetric(7, 100 + seed, 0.7)
        assert modcut.sever(u, [0], [6]).item() <= value.item() + float((w.grad * (u - w.detach())).sum()) + 1e-9


@pytest.mark.parametrize("edge", ["abs", "square", "contribution"])
def test_gradient_reaches_the_parameters_of_a_model(edge: str) -> None:
    model = hand_built.mlp((4, 6, 6, 3))[0].double()
    data = [(torch.randn(32, 4, dtype=torch.float64), torch.randn(32, 3, dtype=torch.float64))]
    g = modcut.weight_graph(model, edge=edge, data=data if edge == "contribution" else None)
    value = modcut.sever(g, [0], [16, 17, 18], model=model)
    assert value.item() == pytest.approx(modcut.sever(g, [0], [16, 17, 18]).item(), rel=1e-9)
    value.backward()
    p = next(m.weight for m in model if isinstance(m, nn.Linear) and m.weight.grad is not None and m.weight.grad.any())
    assert p.grad is not None
    i, j = torch.nonzero(p.grad)[0].tolist()
    with torch.no_grad():
        p[i, j] += 1e-6
    other = modcut.sever(g, [0], [16, 17, 18], model=model).item()
    assert float(p.grad[i, j]) == pytest.approx((other - value.item()) / 1e-6, rel=1e-3)


def test_descent_on_it_severs_a_input_from_an_output_while_the_task_stays() -> None:
    torch.manual_seed(0)
    model = hand_built.mlp((4, 12, 12, 2))[0]
    x = torch.randn(256, 4)
    y = torch.stack([x[:, :2].prod(1), x[:, 2:].prod(1)], 1)  # output 0 needs inputs 0, 1; output 1 needs 2, 3
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    before = modcut.sever(model, [0, 1], [29]).item()
    g = modcut.weight_graph(model)
    for i in range(300):
        loss = nn.functional.mse_loss(model(x), y)
        if i >= 100:
            loss = loss + 0.05 * modcut.sever(g, [0, 1], [29], model=model).float()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert modcut.sever(model, [0, 1], [29]).item() < 0.4 * before
    assert nn.functional.mse_loss(model(x), y).item() < 0.3


def test_sets_may_be_ids_masks_or_spaces() -> None:
    model = hand_built.mlp((4, 6, 3))[0]
    g = modcut.weight_graph(model)
    mask = torch.zeros(13, dtype=torch.bool)
    mask[:4] = True
    want = modcut.sever(g, range(4), range(10, 13)).item()
    assert modcut.sever(g, mask, [10, 11, 12]).item() == want
    assert modcut.sever(g, g.spaces[0], [g.spaces[2]]).item() == want
    assert modcut.sever(g.to_scipy(), mask, torch.tensor([10, 11, 12])).item() == pytest.approx(want)


def test_errors_are_sentences() -> None:
    w = symmetric(5, 0)
    for a, b, sentence in (
        ([0], [], "B must hold at least one vertex, got none"),
        ([0, 1], [1, 2], "A and B must share no vertex, both hold 1"),
        ([0], [9], r"B\[0\] must be in \[0, 5\)"),
        (torch.ones(4, dtype=torch.bool), [0], r"A must have shape \[5\] as a mask, got \[4\]"),
    ):
        with pytest.raises(ValueError, match=sentence):
            modcut.sever(w, a, b)
    with pytest.raises(ValueError, match="negative"):
        modcut.sever(-w, [0], [1])
    assert modcut.sever(torch.zeros(3, 3), [0], [1]).item() == 0
