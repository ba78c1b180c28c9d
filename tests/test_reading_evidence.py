"""Evidence of nets whose modules' functions are known, at chance where there is none, and its single figures."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import hand_built
from modcut.controls import matched_labels
from modcut.partition import Partition
from modcut.reading import collect_evidence
from modcut.reading.effects import KINDS, kind_of, rank_p
from modcut.reading.groups import hierarchy
from modcut.reading.scores import correlation, split
from reading_toys import TwoSkills, Vectors, letters, mixed, partition_of


def vectors(count: int = 96, seed: int = 0) -> list[Any]:
    g = torch.Generator().manual_seed(seed)
    x = torch.rand(count, 8, generator=g) * torch.randint(0, 2, (count, 2), generator=g).repeat_interleave(4, 1)
    return [(x, torch.zeros(count, 2))]


@pytest.mark.parametrize("measure", ["use", "activity"])
@pytest.mark.parametrize("net", [TwoSkills, Vectors])
def test_a_module_with_one_function_is_told_from_its_evidence(net: Any, measure: Any) -> None:
    model = net()
    data = mixed(96) if net is TwoSkills else vectors()
    E = collect_evidence(model, partition_of(model), data, controls=39, ablation_controls=1, measure=measure)
    for scores in E.scores:
        d = scores["detection"]
        assert d["value"] >= 0.9 and d["low"] <= d["value"] <= d["high"]
        assert d["value"] > d["random_mean"] and d["shuffled_mean"] < 0.5
        if net is TwoSkills:  # of the 70 ways to halve the other net's 8 units many are nearly as clean: no small p
            assert min(d["p"], scores["simulation"]["p"]) <= 0.05


def test_random_modules_are_at_the_chance_of_their_controls() -> None:
    # The score of a random module is not 0.5 (any units answer to some tokens): its rank among its like is uniform.
    model = TwoSkills()
    P, g, p = partition_of(model), torch.Generator().manual_seed(5), []
    for draw in range(20):
        R = Partition(matched_labels(P.graph, P.labels, g), P.graph, 2)
        E = collect_evidence(model, R, mixed(48), controls=19, ablation_controls=1, seed=draw)
        p.append(E.scores[0]["simulation"]["p"])
    assert 0.3 < float(np.mean(p)) < 0.7 and sum(x <= 0.05 for x in p) <= 4


def test_direct_effects_are_those_of_the_weights() -> None:
    model = TwoSkills()
    E = collect_evidence(model, partition_of(model), letters(12), controls=2)
    for i, own in enumerate((range(10), range(10, 20))):
        moved = {o["output"] for part in ("gains", "loses") for o in E.modules[i]["direct"][part] if abs(o["z"]) > 0.3}
        assert moved and moved <= set(own)


def test_the_carried_signal_is_what_the_cross_weights_carry() -> None:
    model = TwoSkills()
    with torch.no_grad():
        model.up.weight[4:, :4] = 0.5  # module 1 reads embedding channels of module 0
    P = partition_of(model)
    E = collect_evidence(model, P, letters(8), controls=2)
    w, table = E.carried[0], model.embed.weight.detach()
    chosen = torch.cat([torch.from_numpy(c.tokens) for c in E.carried if c.selection])
    x = table[torch.from_numpy(w.tokens)] - table[chosen].mean(0)
    carried = (x[:, :4] @ model.up.weight.detach()[4:, :4].T).norm(dim=1).numpy()
    ratio = w.use[:, 0, 1 * 2 + 0] / carried
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-4)  # up to the matrix's one norm
    assert not w.use[:, 0, [0, 3]].any() and not w.use[:, 0, 0 * 2 + 1].any()
    entry = next(f for f in E.interfaces[1] if f["direction"] == "reads")
    assert entry["low_rank"][0]["matrix"] == "up.weight" and entry["low_rank"][0]["energy"] == pytest.approx(1.0)
    assert {name for name, _ in entry["low_rank"][0]["reads"]} == {f"in[{n}]" for n in range(4)}
    # The only interface carries all there is at every position: nothing is left to predict, and no score is made up.
    assert entry["carried"]["share"] == pytest.approx(1.0) and entry["scores"]["interface"]["value"] is None


def test_transformers_give_signals_groups_and_direct_effects() -> None:
    model, graph = hand_built.gpt()
    generator = torch.Generator().manual_seed(0)
    start = torch.zeros(graph.n, dtype=torch.int64)
    for s in graph.spaces:
        start[s.vertices] = torch.arange(s.size) * 4 // s.size if not s.head else int(s.name[-1]) % 4
    P = Partition(matched_labels(graph, start, generator), graph, 4)
    data = [torch.randint(0, 12, (8, 10), generator=generator) for _ in range(3)]
    E = collect_evidence(model, P, data, controls=3)
    assert [g["group"] for g in E.groups] == [4, 5] and all(len(g["modules"]) >= 2 for g in E.groups)
    for g in E.groups:  # a group is used as much as its modules together
        shares = [E.modules[i]["use"]["share"] for i in g["modules"]]
        assert g["evidence"]["use"]["share"] == pytest.approx(sum(shares))
    assert all(e["direct"] is not None for e in E.modules)
    assert any(w.use[:, 0].any() for w in E.carried)
    found = [f["scores"]["interface"] for part in E.interfaces for f in part]
    assert found and all(-1 <= f["value"] <= 1 and len(f["random"]) == 2 * 12 and 0 < f["p"] <= 1 for f in found)
    assert all(e["code"] is None and e["code_refused"] for e in E.modules)


def test_behaviours_are_losses_by_class_beside_controls() -> None:
    torch.manual_seed(0)
    model, graph = hand_built.mlp()
    P = Partition(torch.arange(graph.n) % 2, graph, 2)
    x = torch.randn(64, 6)
    y = torch.arange(64) * 7 % 4
    E = collect_evidence(model, P, [(x, y)], controls=5, ablation_controls=5)
    for e in E.modules:
        found = e["effect"]["behaviours"]
        assert {b["behaviour"] for b in found} <= {f"class {c}" for c in range(4)} and len(found) >= 2
        for b in found:
            assert len(b["controls"]) == 5 and b["p"] == rank_p(b["rise"], b["controls"])
        # The mean over classes, weighted by their sizes, is the rise over all.
        total = sum(b["rise"] * b["n"] for b in found) / sum(b["n"] for b in found)
        assert total == pytest.approx(e["effect"]["slices"][0]["rise"], rel=1e-4, abs=1e-6)


def test_the_certificate_of_a_boundary_is_a_proven_bound() -> None:
    _, graph = hand_built.mlp()
    P = Partition(torch.arange(graph.n) % 3, graph, 3)
    data = [torch.randn(32, 6, generator=torch.Generator().manual_seed(1))]
    E = collect_evidence(_, P, data, controls=2)
    for i, e in enumerate(E.modules):
        cut = e["cut"]["separation"]
        assert (
            cut["exact"]
            and cut["lower"] == pytest.approx(cut["value"])
            and cut["value"] <= e["cut"]["leaving"] * (1 + 1e-9)
        )
        side = [v in cut["with"] for v in range(3)]
        assert side[i] and not side[cut["from"]]
        crossing = sum(P.table[a, b] for a in range(3) for b in range(3) if side[a] and not side[b])
        assert float(crossing) == pytest.approx(cut["value"], rel=1e-6)


# -- single figures ---------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(-5, 5), min_size=2, max_size=25))
def test_the_split_has_the_least_variance_inside_its_groups(values: list[int]) -> None:
    y = np.array(values, dtype=np.float64)

    def inside(bar: float) -> float:
        parts = [y[y > bar], y[y <= bar]]
        return sum(float(((p - p.mean()) ** 2).sum()) for p in parts if len(p))

    assert inside(split(y)) <= min(inside(v) for v in y) + 1e-9


def test_a_rank_counts_the_value_itself() -> None:
    assert rank_p(3.0, [1.0, 2.0]) == pytest.approx(1 / 3) and rank_p(0.0, [1.0, 2.0]) == 1.0
    assert rank_p(float("nan"), [1.0]) is None and rank_p(1.0, []) is None


def test_a_constant_has_no_correlation() -> None:
    assert np.isnan(correlation([(np.ones(4), np.arange(4.0))])) and np.isnan(correlation([]))
    assert correlation([(np.arange(4.0), -np.arange(4.0))]) == pytest.approx(-1.0)


@pytest.mark.parametrize(
    ("text", "kind"),
    [("\n", 0), ("  ", 1), (" 42", 2), (",", 3), (" the", 4), ("Tom", 4), ("ing", 5), ("é", 6), ("…", 6)],
)
def test_kinds_of_tokens(text: str, kind: int) -> None:
    assert KINDS[kind_of(text)] == KINDS[kind]


def test_the_strongest_pairs_are_merged_first() -> None:
    m = np.zeros((4, 4))
    m[0, 1], m[2, 3], m[1, 2] = 5.0, 4.0, 0.1
    assert {frozenset(x[:2]) for x in hierarchy(m)[:2]} == {frozenset((0, 1)), frozenset((2, 3))}
    assert hierarchy(m)[2][:2] in {(4, 5), (5, 4)} and len(hierarchy(np.zeros((1, 1)))) == 0
