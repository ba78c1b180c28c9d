"""Suspected rows are found without labels of the trigger, and what they taught moves into one module."""

from __future__ import annotations

import pytest
import torch

from modcut.auditing.ablate import ablate
from modcut.auditing.quarantine import isolate, masks_of, small_module
from modcut.auditing.selftest import auroc, bootstrap, removal, run
from modcut.auditing.suspects import suspects, suspicion_of
from modcut.graph.trace import weight_graph
from modcut.organisms import backdoors


@pytest.fixture(scope="module")
def nets():
    return backdoors(6, "blended", seed=11, images="drawn", cache=False)


@pytest.fixture(scope="module")
def isolated(nets):
    return isolate(nets.models(), nets.x, nets.y, [nets.reference(i) for i in range(len(nets))])


def test_planted_rows_are_found_and_their_sign_flips_harmful_nets_only(nets, isolated):
    for i in range(len(nets)):
        if nets.harmful[i]:
            s = isolated.suspicions[i]
            assert s.label == int(nets.target[i])
            hit = int((s.rows & nets.poisoned[i]).sum())
            assert hit >= 95 and hit / int(s.rows.sum()) > 0.6
    assert auroc(isolated.scores[nets.harmful], isolated.scores[~nets.harmful]) == 1.0


def test_without_the_module_the_attack_fails_and_the_task_does_not(nets, isolated):
    removed = 0
    for j, i in enumerate(isolated.at):
        if nets.harmful[i]:
            table = removal(nets, i, isolated.healed.model(j), isolated.partitions[i], controls=5)
            rows = [r for r in table.rows if r.behaviour == "attack"]
            assert [r.mode for r in rows] == ["zero", "mean", "resample"] and rows[0].baseline > 0.8
            removed += all(r.removed for r in rows)
    assert removed >= 2


def test_no_weight_connects_the_module_with_the_other_units(nets, isolated):
    j, i = 0, isolated.at[0]
    model, P = isolated.healed.model(j), isolated.partitions[i]
    for m in P.graph.matrices:
        w = model.get_parameter(m.name)
        r, c = m.row_vertex, m.col_vertex
        both = (r >= 0)[:, None] & (c >= 0)[None]
        cross = both & (P.labels[r.clamp_min(0)][:, None] != P.labels[c.clamp_min(0)][None])
        assert bool((w[cross] == 0).all())


def test_parameters_without_a_module_compute_its_zero_ablation(nets):
    model, x, y = nets.models()[0], nets.x[0], nets.y[0]
    graph = weight_graph(model, x[:2], include_inputs=False, include_outputs=False)
    P = small_module(model, graph, x, y, nets.poisoned[0])
    assert P.modules[1].size == 12  # an eighth of 48, twice
    masks = masks_of(model, graph, P.labels == 1)
    state = {k: v * masks.without[k] for k, v in model.named_parameters()}
    with torch.no_grad(), ablate(model, P, 1):
        torch.testing.assert_close(torch.func.functional_call(model, state, (x,)), model(x))
    owned = sum(int(v.sum()) for v in masks.own.values())
    assert owned == 6 * 64 + 6 + (6 * 48 + 6 * 48 - 36) + 6 + 6 * 10


def test_random_rows_do_not_move_the_attack(nets):
    g = torch.Generator().manual_seed(0)
    rows = torch.stack([nets.poisoned[0][torch.randperm(1000, generator=g)]])
    out = isolate(nets.models()[:1], nets.x[:1], nets.y[:1], [nets.reference(0)], rows=rows, steps=200)
    table = removal(nets, 0, out.healed.model(0), out.partitions[0], controls=3)
    assert table.row(1, "attack").removed is False


def test_harmless_data_give_no_score_and_no_crash():
    x = torch.randn(60, 5)
    assert suspects(x, torch.zeros(60, dtype=torch.int64)) == ()
    assert suspicion_of(torch.nn.Linear(5, 2), (), x, torch.zeros(60)) == (0.0, None)


@pytest.mark.parametrize(
    ("x", "y", "words"),
    [
        (torch.randn(20, 3), torch.zeros(19, dtype=torch.int64), r"y must be integer labels \[20\]"),
        (torch.randn(20, 3), torch.zeros(20), "y must be integer labels"),
        (torch.randn(5, 3), torch.zeros(5, dtype=torch.int64), "more rows than neighbours"),
    ],
)
def test_bad_rows_are_refused(x, y, words):
    with pytest.raises(ValueError, match=words):
        suspects(x, y)


def test_no_suspected_rows_are_refused(nets):
    model = nets.models()[0]
    graph = weight_graph(model, nets.x[0, :2])
    with pytest.raises(ValueError, match="some rows in and some out"):
        small_module(model, graph, nets.x[0], nets.y[0], torch.zeros(1000, dtype=torch.bool))


def test_the_self_test_says_what_it_found():
    lines: list[str] = []
    result = run(4, seed=1, controls=3, say=lines.append)
    text = "\n".join(lines)
    assert {"AUROC", "gain", "ARI"} <= {w for line in lines for w in line.split()}
    assert result["backdoors"] == 2 and result["auroc"] >= 0.5 and f"seed {1}" in text


def test_auroc_and_bootstrap_are_what_they_say():
    assert auroc([1, 2], [0, 1]) == 0.875
    with pytest.raises(ValueError, match="both classes"):
        auroc([], [1])
    low, high = bootstrap([1.0, 1.0, 1.0])
    assert low == high == 1.0
