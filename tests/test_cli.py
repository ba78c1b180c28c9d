"""The command line: every command runs, and every mistake is one sentence."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from modcut import cli, info


def run(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    said = capsys.readouterr()
    return int(stopped.value.code or 0), said.out, said.err


def test_info_names_versions_devices_and_passes_its_self_test(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(["info"], capsys)
    assert code == 0
    assert "self-test passed" in out
    for word in ("modcut", "torch", "compiled part", "devices", "Triton", "optional packages"):
        assert word in out


def test_info_as_json_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(["info", "--json"], capsys)
    assert code == 0
    assert json.loads(out)["selftest"]["ok"] is True


def test_python_m_modcut_prints_the_info_page() -> None:
    done = subprocess.run([sys.executable, "-m", "modcut"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0
    assert done.stdout.startswith("modcut ")


def test_info_works_without_the_compiled_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "modcut._native", None)
    monkeypatch.delattr("modcut._native", raising=False)
    text = "\n".join(info.lines(info.info()))
    assert "compiled part is missing" in text
    assert "self-test FAILED" in text


@pytest.mark.parametrize("status", ["no_driver", "driver_too_old", "no_device", "not_compiled", "error"])
def test_info_tells_the_states_of_the_gpu_apart(status: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(info, "_devices", lambda: {"status": status, "message": f"because {status}", "devices": []})
    assert f"because {status}" in "\n".join(info.lines(info.info(selftest=False)))


def test_the_self_test_sees_a_wrong_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    import modcut

    right = modcut.gomory_hu_tree

    def wrong(w: Any) -> Any:
        tree = right(w)
        tree.weight[tree.parent >= 0] += 1.0
        return tree

    monkeypatch.setattr(modcut, "gomory_hu_tree", wrong)
    assert info.run_selftest()["ok"] is False


def test_selftest_command_passes(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(["selftest", "--trees"], capsys)
    assert (code, out.count("ok  ")) == (0, 9)


def test_bench_checks_and_times(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(["bench"], capsys)
    assert code == 0
    assert "n = 400" in out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["cut", "nowhere"], "model must be an existing folder or file"),
        (["report", "nowhere"], "does not exist"),
        (["cut", "nowhere:build"], "no module named 'nowhere'"),
        (["frobnicate"], "No such command"),
        (["cut", "x", "--k", "many"], "valid int"),
    ],
)
def test_a_mistake_is_one_sentence(arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(arguments, capsys)
    assert code == 2
    assert sentence in " ".join(err.replace("│", " ").split())
    assert "Traceback" not in err


def test_ctrl_c_leaves_quietly(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("modcut.demo.run.run", interrupted)
    code, _, err = run(["demo"], capsys)
    assert code == 130
    assert "goes on from its last checkpoint" in err
    assert "Traceback" not in err


TOY = """
from modcut.organisms import GPT, CharTokenizer, GPTConfig
def build():
    return GPT(GPTConfig(width=16, layers=1, heads=2, mlp=32, context=32)), CharTokenizer()
def nothing():
    return 3
"""


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "toy_model_for_cli.py").write_text(TOY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "toy_model_for_cli", raising=False)
    return tmp_path


def test_cut_takes_a_users_model_and_leaves_results(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (toy / "texts.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 40)
    arguments = ["cut", "toy_model_for_cli:build", "--k", "2", "--data", "texts.txt", "--windows", "8"]
    code, out, _ = run([*arguments, "--length", "16", "--out", "cut"], capsys)
    assert code == 0, out
    results = json.loads((toy / "cut" / "results.json").read_text())
    assert results["partition"]["k"] == 2
    assert results["significance"]["leak"]["shuffles"] == 20
    assert len(results["model"]["digest"]) == 64
    assert "<html" in (toy / "cut" / "report.html").read_text()
    assert {p.name for p in (toy / "cut").iterdir()} >= {"partition.safetensors", "cards.json", "results.json"}
    assert "random partitions of the same make-up" in out
    code, out, _ = run(["report", "cut"], capsys)
    assert code == 0


def test_cut_refuses_what_is_no_model(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(["cut", "toy_model_for_cli:nothing"], capsys)
    assert code == 2
    assert "must return an nn.Module" in err
    code, _, err = run(["cut", "toy_model_for_cli:missing"], capsys)
    assert code == 2
    assert "has no attribute 'missing'" in err


def test_cut_refuses_impossible_numbers(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for option, sentence in (("--windows=1", "windows must be at least 4"), ("--edge=soft", "edge must be")):
        code, _, err = run(["cut", "toy_model_for_cli:build", option], capsys)
        assert code == 2
        assert sentence in err


def test_report_writes_the_page_again_from_the_saved_results(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (toy / "texts.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 40)
    arguments = ["cut", "toy_model_for_cli:build", "--k", "2", "--data", "texts.txt", "--windows", "8"]
    assert run([*arguments, "--length", "16", "--out", "cut"], capsys)[0] == 0
    page = (toy / "cut" / "report.html").read_text()
    assert "20 random partitions" in page  # every metric under the title stands beside its control
    (toy / "cut" / "report.html").unlink()
    assert run(["report", "cut"], capsys)[0] == 0
    again = (toy / "cut" / "report.html").read_text()
    assert re.sub("<dt>page date</dt><dd>.*?</dd>", "", again) == re.sub("<dt>page date</dt><dd>.*?</dd>", "", page)


@pytest.mark.parametrize(
    ("content", "words"), [("", "is not JSON"), ("[]", "got kind None"), ('{"kind": "cut"}', "lacks")]
)
def test_report_refuses_other_files(content: str, words: str, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "results.json").write_text(content)
    code, _, err = run(["report", str(tmp_path)], capsys)
    assert code == 2
    assert words in " ".join(err.replace("│", " ").split())


@pytest.mark.parametrize(
    ("content", "words"), [(b"\xff\xfe\x00caf\xe9" * 500, "text in UTF-8"), (b"short", "has 5"), (None, "is a folder")]
)
def test_cut_refuses_data_that_is_no_text(toy: Path, content: bytes | None, words: str, capsys: Any) -> None:
    path = toy / "data"
    path.mkdir() if content is None else path.write_bytes(content)
    code, _, err = run(["cut", "toy_model_for_cli:build", "--data", "data"], capsys)
    assert code == 2
    assert words in err


def test_cut_says_in_a_sentence_that_the_output_is_no_folder(toy: Path, capsys: Any) -> None:
    (toy / "texts.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 40)
    code, _, err = run(["cut", "toy_model_for_cli:build", "--data", "texts.txt", "--out", "texts.txt"], capsys)
    assert code == 2
    assert err.startswith("modcut: ")
    assert "texts.txt" in err


def test_cut_says_when_text_is_read_as_bytes(toy: Path, capsys: Any) -> None:
    (toy / "bytes_model_for_cli.py").write_text(
        "from modcut.organisms import GPT, GPTConfig\n"
        "def build():\n    return GPT(GPTConfig(vocab=256, width=16, layers=1, heads=2, mlp=32, context=32))\n"
    )
    (toy / "texts.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 40)
    arguments = ["cut", "bytes_model_for_cli:build", "--k", "2", "--data", "texts.txt", "--windows", "8"]
    code, out, _ = run([*arguments, "--length", "16", "--out", "cut"], capsys)
    assert code == 0
    assert "came without a tokenizer" in out
    assert "came without a tokenizer" in json.loads((toy / "cut" / "results.json").read_text())["text"]
