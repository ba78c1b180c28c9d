"""A module as code runs without torch and equals the module's forward pass; what cannot be written says why."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import modcut
from modcut.partition import Partition
from modcut.reading.code import CodeError, module_code

ACTIVATIONS = (nn.ReLU, nn.GELU, lambda: nn.GELU("tanh"), nn.SiLU, nn.Tanh, nn.Sigmoid)


def run(text: str, *arguments: Any) -> dict[str, np.ndarray]:
    scope: dict[str, Any] = {}
    exec(compile(text, "module", "exec"), scope)  # the claim is that the text runs
    return scope["module"](*arguments)


def layers_of(model: nn.Module, x: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """What every linear layer reads and writes, by plain hooks: the reference."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    handles = [
        m.register_forward_hook(lambda _, a, y, n=n: seen.update({n: (a[0].detach(), y.detach())}))
        for n, m in model.named_modules()
        if isinstance(m, nn.Linear)
    ]
    with torch.no_grad():
        model(x)
    for h in handles:
        h.remove()
    return seen


def check(model: nn.Module, P: Partition, x: Tensor) -> None:
    seen, matrices = layers_of(model, x), {m.name: m for m in P.graph.matrices}
    for i in range(P.k):
        incoming, expected = {}, {}
        for name, (read, written) in seen.items():
            m = matrices[f"{name}.weight"]
            r, c = m.row_vertex, m.col_vertex
            rows = (r >= 0) & (P.labels[r.clamp_min(0)] == i)
            foreign = (c >= 0) & (P.labels[c.clamp_min(0)] != i)
            w = m.weight.detach()[rows][:, foreign]
            key = f"_{name}" if name[0].isdigit() else name.replace(".", "_")
            incoming[key] = (read[..., foreign] @ w.T).double().numpy()
            expected[key] = written[..., rows].numpy()
        found = run(module_code(model, P, i), x.numpy(), incoming)
        for key, values in expected.items():
            if values.shape[-1]:
                assert np.abs(found[key] - values).max() < 1e-5


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.integers(1, 7), min_size=2, max_size=5),
    st.lists(st.sampled_from(range(len(ACTIVATIONS))), min_size=4, max_size=4),
    st.booleans(),
    st.integers(1, 3),
    st.integers(0, 10**6),
)
def test_code_equals_the_module_inside_the_whole_network(
    sizes: list[int], kinds: list[int], bias: bool, k: int, seed: int
) -> None:
    torch.manual_seed(seed)
    parts: list[nn.Module] = []
    for n, (a, b) in enumerate(pairwise(sizes)):
        parts += [nn.Linear(a, b, bias=bias), ACTIVATIONS[kinds[n]]()]
    model = nn.Sequential(*parts[:-1])
    x = torch.randn(5, sizes[0])
    graph = modcut.weight_graph(model, x)
    check(model, Partition(torch.randint(0, k, (graph.n,)), graph, k), x)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.up, self.down = nn.Linear(4, 6), nn.Linear(6, 9), nn.Linear(9, 6)
        self.last, self.drop = nn.Linear(6, 3), nn.Dropout()

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(torch.flatten(x, 1))
        return self.last(h + self.down(self.drop(torch.relu(self.up(h)))))


def test_residual_additions_are_written_too() -> None:
    torch.manual_seed(0)
    model, x = Residual().eval(), torch.randn(7, 4)
    graph = modcut.weight_graph(model, x)
    check(model, Partition(torch.randint(0, 2, (graph.n,)), graph, 2), x)


def test_without_incoming_it_is_the_network_whose_cross_weights_are_deleted() -> None:
    torch.manual_seed(1)
    model, x = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)), torch.randn(9, 6)
    graph = modcut.weight_graph(model, x)
    P = Partition(torch.randint(0, 2, (graph.n,)), graph, 2)
    kept: dict[str, Tensor] = {}

    def evaluate(m: nn.Module) -> float:
        kept["y"] = m(x).detach()
        return 0.0

    modcut.cut_and_run(model, P, evaluate, mode="zero")
    last = graph.matrices[-1].row_vertex
    for i in range(2):
        own = P.labels[last] == i
        if bool(own.any()):
            found = run(module_code(model, P, i), x.numpy())["_2"]
            assert np.abs(found - kept["y"][:, own].numpy()).max() < 1e-5


def test_a_changed_weight_changes_the_text() -> None:
    # Planted bug: text made from stale weights would still run.
    torch.manual_seed(2)
    model, x = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2)), torch.rand(4, 3)
    graph = modcut.weight_graph(model, x)
    P = Partition(torch.zeros(graph.n, dtype=torch.int64), graph, 1)
    stale = module_code(model, P, 0)
    with torch.no_grad():
        model[0].weight.add_(1.0)
    assert np.abs(run(stale, x.numpy())["_2"] - model(x).detach().numpy()).max() > 1e-3
    assert np.abs(run(module_code(model, P, 0), x.numpy())["_2"] - model(x).detach().numpy()).max() < 1e-5


def test_large_or_unsupported_modules_are_refused_with_the_reason() -> None:
    model = nn.Sequential(nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 2))
    graph = modcut.weight_graph(model, torch.zeros(1, 40))
    P = Partition(torch.zeros(graph.n, dtype=torch.int64), graph, 1)
    with pytest.raises(CodeError, match="1680 inner weights; modules of at most 100"):
        module_code(model, P, 0, max_weights=100)
    normed = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    graph = modcut.weight_graph(normed, torch.zeros(1, 4))
    with pytest.raises(CodeError, match=r"LayerNorm \(1\) is not supported"):
        module_code(normed, Partition(torch.zeros(graph.n, dtype=torch.int64), graph, 1), 0)
    with pytest.raises(ValueError, match="i must be a module"):
        module_code(model, P, 3)
