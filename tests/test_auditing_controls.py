from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from auditing_nets import random_mlp, two_tasks
from modcut.auditing.controls import beside_controls, random_modules
from modcut.graph.types import Space, WeightGraph
from modcut.partition import Partition


def attention_partition(heads: int = 4, dim: int = 3, layers: int = 2, per_head: tuple[str, ...] = ("qk", "v")):
    """Spaces of a small GPT: one residual space, per layer an MLP and heads with a qk and a v space each."""
    spaces = [Space("residual", 8, "residual", 0, "residual")]
    offset, labels = 8, [i % 2 for i in range(8)]
    for layer in range(layers):
        for h in range(heads):
            for part in per_head:
                name = f"h{layer}.{h}"
                spaces.append(Space(f"{name}.{part}", dim, "head", offset, f"h{layer}.{part}", head=name))
                offset += dim
                labels += [h % 2] * dim
        spaces.append(Space(f"mlp{layer}", 10, "hidden", offset, f"mlp{layer}"))
        offset += 10
        labels += [i % 2 for i in range(10)]
    return Partition(torch.tensor(labels), WeightGraph(tuple(spaces), ()), 2)


def counts(P: Partition, units) -> list[int]:
    inside = torch.zeros(P.graph.n, dtype=torch.bool)
    inside[torch.as_tensor(units)] = True
    return [int(inside[s.vertices].sum()) for s in P.graph.spaces]


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 1000), units=st.sets(st.integers(0, 20), min_size=1))
def test_controls_have_as_many_units_in_every_space_without_repeats(seed, units):
    _, P = random_mlp()
    ids = torch.tensor(sorted(units))
    for row in random_modules(P, ids, 5, seed=seed):
        assert len(set(row.tolist())) == len(units)
        assert counts(P, row) == counts(P, ids)


def test_controls_keep_heads_whole():
    P = attention_partition()
    for row in random_modules(P, 1, 50, seed=3):
        chosen = set(row.tolist())
        whole = 0
        for layer in range(2):
            for h in range(4):
                members = [
                    v for s in P.graph.spaces if s.head == f"h{layer}.{h}" for v in range(s.offset, s.offset + 3)
                ]
                assert len(members) == 6
                assert chosen.issuperset(members) or not chosen.intersection(members)
                whole += chosen.issuperset(members)
        assert whole == 4


def test_a_part_of_a_head_is_matched_by_the_same_part_of_another_head():
    P = attention_partition()
    v = next(s for s in P.graph.spaces if s.name == "h0.1.v")
    for row in random_modules(P, torch.tensor([v.offset, v.offset + 2]), 30):
        home = {P.graph.space_of(int(u))[0].name for u in row}
        assert len(home) == 1
        assert next(iter(home)).startswith("h0.") and next(iter(home)).endswith(".v")


def test_more_draws_leave_the_first_ones_as_they_were_and_seeds_differ():
    _, P = two_tasks()
    few, many = random_modules(P, 0, 3, seed=5), random_modules(P, 0, 9, seed=5)
    assert torch.equal(few, many[:3])
    assert not torch.equal(many, random_modules(P, 0, 9, seed=6))


def test_a_whole_graph_is_its_own_only_control():
    _, P = two_tasks()
    assert torch.equal(random_modules(P, [0, 1], 2), torch.arange(P.graph.n).repeat(2, 1))


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda P: random_modules(P, 2, 3), ValueError, r"modules must be indices in \[0, 2\), got 2"),
        (lambda P: random_modules(P, [], 3), ValueError, "at least one vertex"),
        (lambda P: random_modules(P, 0, 0), ValueError, "controls must be at least 1"),
        (lambda P: random_modules(P, 0, 1, seed=-1), ValueError, "seed must be at least 0"),
        (lambda P: random_modules(P, torch.tensor([20]), 1), ValueError, r"vertex ids must be in \[0, 20\)"),
        (lambda P: random_modules(P, torch.tensor([0.5]), 1), TypeError, "integer tensor"),
        (lambda P: random_modules(P, "0", 1), TypeError, "modules must be a module index"),
        (lambda P: random_modules(P, True, 1), TypeError, "modules must be a module index"),
    ],
)
def test_bad_input_is_named(call, error, words):
    with pytest.raises(error, match=words):
        call(two_tasks()[1])


def test_rank_p_values_are_uniform_under_the_null():
    rng = np.random.default_rng(0)
    ranks = np.array([beside_controls(x[0], x[1:]).p for x in rng.normal(size=(2000, 20))])
    observed = np.bincount(np.rint(ranks * 20).astype(int), minlength=21)[1:]
    # 20 equally likely ranks, 2000 draws: chi-squared with 19 degrees of freedom, 99.99 % below 52.
    assert ((observed - 100.0) ** 2 / 100.0).sum() < 52


def test_p_is_the_rank_and_is_never_zero():
    controls = [0.0, 1.0, 2.0, 3.0]
    assert beside_controls(9.0, controls).p == pytest.approx(1 / 5)
    assert beside_controls(2.0, controls).p == pytest.approx(3 / 5)
    assert beside_controls(-9.0, controls).p == 1.0
    assert beside_controls(-9.0, controls, alternative="less").p == pytest.approx(1 / 5)
    assert beside_controls(-2.5, controls, alternative="two-sided").p == pytest.approx(2 / 5)


def test_gain_and_its_interval():
    rng = np.random.default_rng(1)
    inside = 0
    for _ in range(200):
        e = beside_controls(0.0, rng.normal(size=100), seed=int(rng.integers(1 << 30)))
        assert e.low <= e.gain <= e.high
        inside += e.low <= 0.0 <= e.high
    assert inside >= 180  # nominal 190 of 200; the percentile bootstrap is a little short
    e = beside_controls(1.0, [0.25, 0.25])
    assert (e.gain, e.low, e.high, e.percentile, e.n) == (0.75, 0.75, 0.75, 100.0, 2)
    assert beside_controls(1.0, [0.5]).to_dict()["control_sd"] is None


def test_an_effect_without_controls_or_with_nan_is_refused():
    with pytest.raises(ValueError, match="never given without its control"):
        beside_controls(1.0, [])
    with pytest.raises(ValueError, match="must be finite"):
        beside_controls(float("nan"), [1.0])
    with pytest.raises(ValueError, match="alternative must be"):
        beside_controls(1.0, [1.0], alternative="both")
