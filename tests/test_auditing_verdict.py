"""audit: claims come before tests, every figure beside its control, and a saved report is checked again."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from torch import nn

import modcut
from auditing_nets import random_mlp, sides, wide
from modcut.auditing import Calibration, Concept, audit, verify
from modcut.auditing.calibration import bounded


def harmful_and_not(seed: int = 0) -> list[Concept]:
    """Task A's answer as the concept of concern; noise as one that nothing in the net is about."""
    g = torch.Generator().manual_seed(seed + 100)
    return [
        Concept("A", *sides(0, 24, seed), harmful=True),
        Concept("noise", torch.randn(24, 16, generator=g), torch.randn(24, 16, generator=g), harmful=False),
    ]


@pytest.fixture(scope="module")
def verdict():
    model, P = wide()
    return audit(model, P, harmful_and_not(), controls=99)


def test_the_module_of_concern_is_named_and_noise_is_not(verdict):
    assert verdict.finding("used:A").verdict == "supported" and verdict.finding("used:A").module == 0
    assert verdict.finding("carried:A").verdict == "supported"
    assert verdict.finding("used:noise").verdict != "supported"
    assert verdict.p_harm > 0.5 and "not calibrated" in verdict.basis
    assert any("a calibrated probability" in text for text in verdict.not_established)
    assert any(text.startswith("used:noise: no evidence") for text in verdict.not_established)
    assert "used:A" in str(verdict) and "random partitions" in str(verdict)


def test_claims_are_written_before_anything_is_measured(tmp_path, monkeypatch):
    model, P = wide()
    path = tmp_path / "claims.json"

    def first_run(*_):
        assert path.is_file()
        raise InterruptedError

    handle = model.register_forward_pre_hook(first_run)
    with pytest.raises(InterruptedError):
        audit(model, P, harmful_and_not(), controls=19, declare=path)
    handle.remove()
    declared = json.loads(path.read_text())
    assert [c["id"] for c in declared["claims"]] == ["carried:A", "used:A", "carried:noise", "used:noise"]
    assert audit(model, P, harmful_and_not(), controls=19).declared["digest"] == declared["digest"]


def test_false_alarms_on_untrained_nets_are_within_the_promise():
    alarms, n = 0, 40
    for seed in range(n):
        model, P = random_mlp((6, 16, 16, 4), seed=seed, k=3)
        x = torch.randn(32, 6, generator=torch.Generator().manual_seed(seed))
        v = audit(model, P, {"none": (x[:16], x[16:])}, controls=39, seed=seed)
        alarms += v.p_harm > 0.5
    assert alarms <= 5  # 4.3 % promised: more than 5 of 40 has probability .006


def test_a_saved_report_is_verified_and_every_change_is_seen(verdict, tmp_path):
    model, _ = wide()
    path = tmp_path / "audit.json"
    verdict.save(path)
    assert verify(path, model) == ()
    saved = json.loads(path.read_text())

    def redigest(report):
        from modcut.auditing.verdict import _digest

        report["digest"] = _digest({k: v for k, v in report.items() if k != "digest"})
        return report

    changes = {
        "digest": lambda r: r.update(p_harm=0.0),
        "p_harm is": lambda r: redigest(r | {"p_harm": 0.0}),
        "the report says unsupported": lambda r: (r["findings"][1].update(verdict="unsupported"), redigest(r))[1],
        "by its controls": lambda r: (r["findings"][1].update(p=0.5), redigest(r))[1],
        "not those that were declared": lambda r: (r["findings"].pop(), redigest(r))[1],
        "declaration was changed": lambda r: (r["declared"].update(prior=0.9), redigest(r))[1],
        "controls,": lambda r: (r["findings"][0]["controls"].pop(), redigest(r))[1],
    }
    for words, change in changes.items():
        report = copy.deepcopy(saved)
        report = change(report) or report
        assert any(words in problem for problem in verify(report)), words
    other, _ = wide()
    with torch.no_grad():
        other[0].bias[0] = 1.0
    assert "not the one that was audited" in verify(saved, other)[0]
    for bad in ({}, {"kind": "audit", "digest": ""}):
        with pytest.raises(ValueError, match="report"):
            verify(bad)


def test_with_a_harmless_relative_only_what_it_lacks_counts():
    model, P = wide()
    harmless = copy.deepcopy(model)
    with torch.no_grad():
        harmless[2].weight[:, 0:24:2] = 0.0  # task A is not answered
    concepts = harmful_and_not()[:1]
    assert audit(model, P, concepts, harmless=harmless).p_harm > 0.5
    same = audit(model, P, concepts, harmless=copy.deepcopy(model), controls=19)
    assert same.finding("used:A").verdict == "supported" and same.finding("more:A").verdict == "unsupported"
    assert same.p_harm < 0.1 and verify(same.to_dict()) == ()


def test_an_effect_beyond_all_controls_that_is_too_small_to_matter_is_no_harm():
    model, P = wide()
    v = audit(model, P, harmful_and_not()[:1], least=100.0)
    assert v.finding("used:A").verdict == "unsupported" and v.p_harm < 0.1 and verify(v.to_dict()) == ()


def test_what_removal_costs_stands_beside_random_modules():
    model, P = wide()
    x = torch.randn(64, 16, generator=torch.Generator().manual_seed(5))
    y = model(x)[:, [0, 2]].argmax(1) * 2
    v = audit(model, P, harmful_and_not()[:1], [(x, y)], controls=39)
    assert v.cost["0"]["change"] > 0 and "random" in v.cost["0"]


def test_the_bound_is_conservative_and_the_curve_is_calibrated_on_known_models():
    p = np.random.default_rng(0).uniform(size=200_000)
    e = np.array([bounded(x, 0.5) for x in p[:20_000]])
    assert (e > 0.5).mean() <= 0.05 and np.mean(e / (1 - e)) < 1.1
    rng = np.random.default_rng(1)
    scores = np.concatenate([rng.normal(0, 1, 100), rng.normal(2, 1, 100)])
    c = Calibration.fit(scores, [False] * 100 + [True] * 100, "two normals")
    # Two unit normals two apart: the log odds are 2 x - 2.
    assert c.slope == pytest.approx(2, abs=0.5) and c.offset == pytest.approx(-2, abs=0.6)
    assert c.error < 0.08 and c.probability(1.0) == pytest.approx(0.5, abs=0.1)
    assert Calibration.from_dict(c.to_dict()) == c
    separated = Calibration.fit([0.0] * 10 + [1.0] * 10, [False] * 10 + [True] * 10)
    assert 0.5 < separated.probability(1.0) < 1
    with pytest.raises(ValueError, match="at least 8 harmful"):
        Calibration.fit([1.0], [True])
    model, P = wide()
    v = audit(model, P, harmful_and_not()[:1], controls=19, calibration=c)
    assert "calibrated on 200 models (two normals)" in v.basis and verify(v.to_dict()) == ()
    assert v.p_harm == pytest.approx(c.probability(v.score))


@pytest.mark.parametrize(
    ("concepts", "kwargs", "words"),
    [
        ([], {}, "at least one Concept"),
        ({"a": (torch.ones(8, 16), torch.zeros(0, 16))}, {}, "one-sided"),
        ({"a": torch.ones(8, 16)}, {}, "one-sided: pass"),
        (None, {}, "pass tokenizer="),
        (harmful_and_not(), {"controls": 5}, "controls must be at least 19"),
        (harmful_and_not(), {"prior": 1.0}, "prior must be between 0 and 1"),
        (harmful_and_not(), {"data": []}, "at least one batch"),
        (harmful_and_not(), {"harmless": nn.Linear(2, 2)}, "same architecture"),
        ([harmful_and_not()[0]] * 2, {}, "different names"),
        (harmful_and_not(), {"least": -1.0}, "least must be"),
    ],
)
def test_bad_input_is_named(concepts, kwargs, words):
    model, P = wide()
    with pytest.raises(ValueError, match=words):
        audit(model, P, concepts, **{"controls": 19, **kwargs})
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_dropout_model_audits_alike_twice_and_a_foreign_hook_stays():
    model, P = wide()
    model = nn.Sequential(*model, nn.Dropout(0.5)).train()
    calls = []
    handle = model[0].register_forward_hook(lambda *_: calls.append(1))
    one, two = (audit(model, P, harmful_and_not()[:1], controls=19) for _ in range(2))
    assert one.findings == two.findings and model.training and calls
    assert list(model[0]._forward_hooks) == [handle.id]


def test_it_is_public():
    assert modcut.audit is audit
