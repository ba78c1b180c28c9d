"""The matched random control keeps what it must keep, and nothing else."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modcut.controls import matched_labels, matched_permutation, matched_units
from modcut.graph.types import Space, WeightGraph


def graph_of(*spaces: tuple[str, int, str, str]) -> WeightGraph:
    offset, out = 0, []
    for name, size, family, head in spaces:
        out.append(Space(name, size, "head" if head else "hidden", offset, family=family, head=head))
        offset += size
    return WeightGraph(spaces=tuple(out), blocks=())


TRANSFORMER = graph_of(
    ("residual", 12, "residual", ""),
    *[
        (f"l{layer}.h{h}.{part}", 3, f"l{layer}.heads", f"l{layer}.h{h}")
        for layer in (0, 1)
        for h in range(4)
        for part in ("qk", "v")
    ],
    ("l0.mlp.a", 5, "l0.mlp", ""),
    ("l0.mlp.b", 2, "l0.mlp", ""),
)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**31), picks=st.sets(st.integers(0, TRANSFORMER.n - 1), min_size=1))
def test_a_matched_module_has_the_same_number_of_units_in_every_space(seed: int, picks: set[int]) -> None:
    units = torch.tensor(sorted(picks))
    drawn = matched_units(TRANSFORMER, units, torch.Generator().manual_seed(seed))

    def profile(ids: torch.Tensor) -> dict[str, int]:
        counts: dict[str, int] = {}
        for v in ids.tolist():
            space = TRANSFORMER.space_of(v)[0]
            key = space.family if space.head else space.name
            counts[key] = counts.get(key, 0) + 1
        return counts

    assert profile(drawn) == profile(units)
    assert len(set(drawn.tolist())) == len(units)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**31))
def test_whole_heads_stay_whole_heads_of_the_same_layer(seed: int) -> None:
    heads = {s.head for s in TRANSFORMER.spaces if s.head}
    labels = torch.zeros(TRANSFORMER.n, dtype=torch.int64)
    for i, head in enumerate(sorted(heads)):
        for s in TRANSFORMER.spaces:
            if s.head == head:
                labels[s.vertices] = i + 1
    dealt = matched_labels(TRANSFORMER, labels, torch.Generator().manual_seed(seed))
    for head in heads:
        values = {v for s in TRANSFORMER.spaces if s.head == head for v in dealt[s.vertices].tolist()}
        assert len(values) == 1
        layers = {(sorted(heads)[v - 1]).split(".")[0] for v in values}
        assert layers == {head.split(".")[0]}


def test_every_unit_of_a_space_is_drawn_equally_often() -> None:
    generator = torch.Generator().manual_seed(0)
    graph = graph_of(("hidden", 6, "hidden", ""))
    counts = torch.zeros(6)
    for _ in range(1200):
        counts[matched_units(graph, torch.tensor([0, 1]), generator)] += 1
    assert counts.sum() == 2400
    assert (counts - 400).abs().max() < 80  # five standard deviations of a binomial(1200, 1/3)


def test_the_draw_is_a_function_of_the_seed_and_a_permutation() -> None:
    a = matched_permutation(TRANSFORMER, torch.Generator().manual_seed(3))
    b = matched_permutation(TRANSFORMER, torch.Generator().manual_seed(3))
    assert torch.equal(a, b)
    assert a.sort().values.tolist() == list(range(TRANSFORMER.n))


@pytest.mark.parametrize("size", [0, 1])
def test_tiny_graphs_work(size: int) -> None:
    graph = graph_of(*([("only", 1, "", "")] * size))
    assert matched_permutation(graph, torch.Generator()).tolist() == list(range(size))
