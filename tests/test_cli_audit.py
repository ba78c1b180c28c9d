"""``modcut trace``, ``compare`` and ``audit``: they run, write what they say, and their exit status is the verdict."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from modcut.judging import holds, read_condition
from test_cli import run

TOY = """
from modcut.organisms import GPT, CharTokenizer, GPTConfig
def build():
    return GPT(GPTConfig(width=16, layers=1, heads=2, mlp=32, context=96)), CharTokenizer()
"""
SMALL = ["--k", "2", "--windows", "8", "--length", "32"]


@pytest.fixture
def toy(tmp_path, monkeypatch):
    (tmp_path / "audited_toy.py").write_text(TOY)
    monkeypatch.chdir(tmp_path)
    yield "audited_toy:build"
    sys.modules.pop("audited_toy", None)


def concept(path: Path) -> str:
    body = {
        "name": "rain",
        "positives": [f"rain fell on {w}" for w in "abcdefgh"],
        "negatives": [f"snow fell on {w}" for w in "abcdefgh"],
    }
    path.write_text(json.dumps(body))
    return str(path)


def test_audit_writes_a_report_that_verifies_and_the_exit_status_tells(toy, tmp_path, capsys):
    arguments = ["audit", toy, *SMALL, "--controls", "19", "--concept", concept(tmp_path / "c.json"), "--out", "a.json"]
    code, out, _ = run([*arguments, "--fail-on", "p_harm>=0"], capsys)
    assert code == 1 and "failed: p_harm>=0" in out and "used:rain" in out
    assert json.loads(Path("a.json").read_text())["kind"] == "audit" and Path("a.json.claims.json").is_file()
    code, out, _ = run(["audit", "--verify", "a.json"], capsys)
    assert code == 0 and "holds" in out
    assert run(["audit", "--verify", "a.json", "--fail-on", "p_harm>=0"], capsys)[0] == 1
    changed = json.loads(Path("a.json").read_text()) | {"p_harm": 0.99}
    Path("b.json").write_text(json.dumps(changed))
    code, out, _ = run(["audit", "--verify", "b.json"], capsys)
    assert code == 1 and "digest does not fit" in out


def test_trace_writes_json_and_a_page(toy, tmp_path, capsys):
    arguments = ["trace", toy, "It was", *SMALL, "--controls", "3", "--steps", "2", "--out", "t.json"]
    code, out, _ = run(arguments, capsys)
    assert code == 0 and "random modules" in out
    assert json.loads(Path("t.json").read_text())["kind"] == "trace" and "<html" in Path("t.html").read_text()


def test_compare_of_a_model_with_itself_raises_no_flag(toy, tmp_path, capsys):
    code, out, _ = run(["compare", toy, toy, *SMALL, "--controls", "3", "--out", "d.json"], capsys)
    assert code == 0 and "0 flags" in out and Path("d.html").is_file()


def test_a_condition_is_read_before_the_long_run(capsys):
    code, _, err = run(["audit", "nowhere:build", "--fail-on", "p_harm=1"], capsys)
    assert code == 2 and "'p_harm>0.5'" in err
    assert run(["audit"], capsys)[0] == 2
    assert read_condition(" p_harm >= .25 ") == ("p_harm", ">=", 0.25)
    report = {
        "p_harm": 0.5,
        "findings": [{"id": "used:a", "verdict": "supported"}, {"id": "carried:a", "verdict": "supported"}],
    }
    assert holds("supported>=1", report) and not holds("supported>1", report) and not holds("p_harm>0.5", report)
