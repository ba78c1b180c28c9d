"""trace_passage: every token beside its controls, equal to plain ablation, on the terminal and as a page."""

from __future__ import annotations

import json

import pytest
import torch

import modcut
from auditing_nets import random_gpt, tokens, wide
from modcut.auditing import ablate, random_modules, trace_passage
from modcut.cli import main


def logs(model, x):
    with torch.no_grad():
        return model(x)[0, :-1].double().log_softmax(-1).gather(1, x[0, 1:, None])[:, 0]


@pytest.mark.parametrize("mode", ["zero", "mean"])
def test_every_token_changes_as_plain_ablation_says(mode):
    model, P = random_gpt()
    x, reference = tokens(1), [tokens(12, seed=1)]
    t = trace_passage(model, x, P, mode=mode, reference=reference, controls=3, seed=2)
    base = logs(model, x)
    assert t.log_probability == pytest.approx(base.tolist(), abs=1e-6) and t.prompt == 8
    for e in t.modules:
        own = ablate(model, P, e.module).reached
        got = []
        for units in (own, *random_modules(P, own, 3, seed=2)):
            with ablate(model, P, units, mode, reference):
                got.append(logs(model, x) - base)
        assert e.change == pytest.approx(got[0].tolist(), abs=1e-6)
        assert e.control_mean == pytest.approx(torch.stack(got[1:]).mean(0).tolist(), abs=1e-6)
        low = torch.stack(got[1:]).min(0).values
        assert e.beyond == tuple((torch.nonzero(got[0] < low).flatten() + 1).tolist())


def test_a_generation_is_followed_and_shown(tmp_path):
    model, P = random_gpt()
    t = trace_passage(model, [1, 2, 3], P, generate=4, controls=2, tokenizer=lambda ids: f"<{ids[0]}>")
    assert t.prompt == 3 and len(t.tokens) == 7
    x = torch.tensor([[1, 2, 3]])
    for _ in range(4):
        x = torch.cat([x, model(x)[:, -1].argmax(-1, keepdim=True)], dim=1)
    assert t.tokens == tuple(f"<{i}>" for i in x[0].tolist())
    assert "random modules" in str(t) and t.record["model"][:12] in str(t)
    t.save(tmp_path / "p.json")
    page = modcut.report(tmp_path / "p.html", trace=t).read_text()
    assert "&lt;1&gt;" in page and "<1>" not in page and 'class="heat"' in page
    with pytest.raises(SystemExit) as stop:
        main(["report", str(tmp_path / "p.json"), "--out", str(tmp_path / "q.html")])
    assert not stop.value.code and "Every token" in (tmp_path / "q.html").read_text()
    assert json.loads((tmp_path / "p.json").read_text())["kind"] == "passage"


@pytest.mark.parametrize(
    ("inputs", "kwargs", "words"),
    [
        ([1], {}, "at least two tokens"),
        (tokens(2), {}, "one sample"),
        (tokens(1), {"controls": 0}, "controls at least 1"),
        (tokens(1), {"mode": "noise"}, "mode must be zero or mean"),
    ],
)
def test_bad_input_is_named(inputs, kwargs, words):
    model, P = random_gpt()
    with pytest.raises(ValueError, match=words):
        trace_passage(model, inputs, P, **kwargs)


def test_a_model_without_time_is_refused():
    model, P = wide()
    with pytest.raises(ValueError, match="token ids"):
        trace_passage(model, torch.zeros(1, 16), P)
