"""Flows improve a partition: never a worse conductance, the best of what they promise, heads whole."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import modcut
from modcut import testing

seeds = st.integers(0, 10_000)
families = st.sampled_from(sorted(testing.FAMILIES))


def conductance(w: torch.Tensor, side: torch.Tensor) -> float:
    w = w.double()
    least = min(float(w[side].sum()), float(w[~side].sum()))
    return float(w[side][:, ~side].sum()) / least if least > 0 else 1.0


def quotient(w: torch.Tensor, a: torch.Tensor, s: torch.Tensor) -> float:
    """Andersen and Lang's relative quotient of s to a."""
    d = w.double().sum(1)
    theta = float(d[a].sum() / d[~a].sum())
    gain = float(d[s & a].sum() - theta * d[s & ~a].sum())
    return float(w.double()[s][:, ~s].sum()) / gain if gain > 0 else float("inf")


def subsets(n: int) -> Any:
    return (torch.tensor(bits, dtype=torch.bool) for bits in product([False, True], repeat=n) if 0 < sum(bits) < n)


@given(families, seeds, st.integers(3, 10), st.sampled_from(["flow", "mqi"]), st.booleans(), st.data())
@settings(max_examples=100, deadline=None)
def test_two_modules_reach_at_least_the_best_relative_quotient(
    family: str, seed: int, n: int, method: Any, sparse: bool, data: st.DataObject
) -> None:
    w = testing.FAMILIES[family](n, seed)
    n = w.shape[0]
    a = torch.tensor(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    labels, record = modcut.improve_partition(sp.csr_array(w.numpy()) if sparse else w, a.long(), k=2, method=method)
    after = conductance(w, labels.bool())
    assert after <= conductance(w, a)
    assert record.conductance_after[0] == pytest.approx(after, rel=1e-9)
    assert max(record.conductance_after) <= max(record.conductance_before)
    d = w.double().sum(1)
    if float(d[a].sum()) > 0 and float(d[~a].sum()) > 0:
        small = a if d[a].sum() <= d[~a].sum() else ~a
        allowed = [s for s in subsets(n) if method == "flow" or not (s & ~small).any()]
        assert after <= min(quotient(w, small, s) for s in allowed) * (1 + 1e-6)


@given(families, seeds, st.integers(4, 24), st.integers(2, 4), st.sampled_from([0.0, 0.2, 0.5]))
@settings(max_examples=60, deadline=None)
def test_no_module_gets_worse_than_the_worst(family: str, seed: int, n: int, k: int, balance: float) -> None:
    w = testing.FAMILIES[family](n, seed)
    n = w.shape[0]
    labels = torch.randint(k, (n,), generator=torch.Generator().manual_seed(seed))
    better, record = modcut.improve_partition(w, labels, k=k, balance=balance)
    assert max(record.conductance_after) <= max(record.conductance_before)
    assert sum(record.conductance_after) <= sum(record.conductance_before)
    assert torch.equal(torch.unique(better), torch.unique(labels)), "no module is emptied"
    assert record.moved == int((better != labels).sum())
    assert (record.accepted > 0) == (record.moved > 0)
    again, second = modcut.improve_partition(w, better, k=k, balance=balance)
    assert sum(second.conductance_after) <= sum(record.conductance_after)
    if record.rounds < 10:
        assert torch.equal(again, better)


@pytest.mark.parametrize("modules", [2, 4])
def test_planted_modules_are_found_again_from_spoilt_labels(modules: int) -> None:
    w = testing.planted(48, modules, 0.02, seed=3)
    true = torch.arange(48) * modules // 48
    spoilt = true.clone()
    spoilt[::9] = (spoilt[::9] + 1) % modules
    labels, record = modcut.improve_partition(w, spoilt)
    assert torch.equal(labels, true)
    assert record.flows > 0
    assert max(record.conductance_after) < 0.5 * max(record.conductance_before)


def test_balance_keeps_a_share_of_the_volume() -> None:
    w = testing.planted(40, 2, 0.3, seed=0)
    w[:4, 4:] *= 1e-3  # four nearly loose vertices: the best conductance of all
    w[4:, :4] = w[:4, 4:].T
    labels = torch.arange(40) // 20
    labels[::4] = 1 - labels[::4]
    d = w.sum(1)
    for balance in (0.1, 0.3, 0.45):
        better, record = modcut.improve_partition(w, labels, balance=balance)
        assert float(min(d[better == 0].sum(), d[better == 1].sum()) / d.sum()) >= balance - 1e-9
        assert record.conductance_after[0] <= record.conductance_before[0]
        assert balance > 0.4 or record.conductance_after[0] < 0.9 * record.conductance_before[0]
    free, _ = modcut.improve_partition(w, labels)
    assert sorted(torch.bincount(free).tolist()) == [4, 36]


def test_heads_stay_whole_and_partitions_stay_partitions() -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(n_layer=2, n_embd=16, n_head=4, vocab_size=12, n_positions=8)
    g = modcut.weight_graph(transformers.GPT2LMHeadModel(config).eval(), torch.arange(6)[None])
    from modcut.graph.units import units_of

    units = units_of(g)
    assert int(units.size.max()) > 1
    labels = torch.randint(3, (units.count,), generator=torch.Generator().manual_seed(1))[units.unit]
    P = modcut.Partition(labels, g, 3, {"method": "drawn"})
    better, record = modcut.improve_partition(g, P, balance=0.2)
    assert isinstance(better, modcut.Partition)
    assert better.k == 3
    assert better.meta["method"] == "drawn"
    assert better.meta["improved"]["moved"] == record.moved > 0
    first = torch.zeros(units.count, dtype=torch.int64)
    first[units.unit] = better.labels
    assert torch.equal(first[units.unit], better.labels), "one label per head"
    assert float(better.conductance.max()) <= float(P.conductance.max()) * (1 + 1e-6), "a Partition sums in float32"
    assert torch.equal(P.labels, labels), "the given partition is not changed"
    split = labels.clone()
    wide = int(torch.nonzero(units.size[units.unit] > 1)[0])
    split[wide] = (split[wide] + 1) % 3
    with pytest.raises(ValueError, match=f"equal within an attention head, got two in that of vertex {wide}"):
        modcut.improve_partition(g, split)


def test_a_partition_of_another_graph_is_refused() -> None:
    P = modcut.Partition(torch.arange(9) % 2, testing.mlp_graph((4, 5)), 2)
    with pytest.raises(ValueError, match="labels must be a partition of g"):
        modcut.improve_partition(testing.mlp_graph((5, 4)), P)


@pytest.mark.parametrize(
    ("labels", "how", "error", "message"),
    [
        ([0, 1], {}, ValueError, r"shape \[6\]"),
        ([0, 0, 0, 1, 1, -1], {}, ValueError, "got -1 at vertex 5"),
        ([0.5] * 6, {}, TypeError, "integers"),
        ([0, 1, 2, 0, 1, 2], {"k": 2}, ValueError, r"\[0, 2\)"),
        ([0, 1] * 3, {"method": "magic"}, ValueError, "method must be"),
        ([0, 1] * 3, {"balance": 0.6}, ValueError, r"balance must be a number in \[0, 0.5\], got 0.6"),
        ([0, 1] * 3, {"balance": float("nan")}, ValueError, "balance"),
        ([0, 1] * 3, {"rounds": 0}, ValueError, "rounds must be"),
        ([0, 1] * 3, {"threads": 0}, ValueError, "threads"),
    ],
)
def test_bad_input_is_refused(labels: Any, how: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        modcut.improve_partition(testing.known_graph(), labels, **how)


@pytest.mark.parametrize("labels", [[0] * 5, [0, 0, 1, 1, 1], [0, 2, 0, 2, 2]])
def test_nothing_to_improve(labels: list[int]) -> None:
    better, record = modcut.improve_partition(torch.zeros(5, 5), labels)
    assert better.tolist() == labels
    assert record.flows == 0
    assert modcut.improve_partition(torch.zeros(0, 0), []).labels.shape == (0,)
