"""``modcut describe`` and ``modcut report``: from a model to cards to a page, stopped and gone on with."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

import modcut
from modcut import cli
from reporting_cards import deck
from test_reporting import a_trace, a_tree, effects_table

TOY = """
from modcut.organisms import GPT, CharTokenizer, GPTConfig
def build():
    return GPT(GPTConfig(width=16, layers=1, heads=2, mlp=32, context=32)), CharTokenizer()
"""
SMALL = ["--k", "2", "--tokens", "800", "--length", "16", "--controls", "2", "--samples", "4", "--windows", "16"]


def run(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    try:
        cli.main(arguments)
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    out, err = capsys.readouterr()
    return code, out, " ".join(err.replace("│", " ").split())


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "toy_for_describe.py").write_text(TOY)
    (tmp_path / "fox.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 60)
    (tmp_path / "code.txt").write_text("def f(x):\n    return x + 1\n" * 60)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "toy_for_describe", raising=False)
    return tmp_path


DESCRIBE = ["describe", "toy_for_describe:build", *SMALL, "--data", "fox.txt", "--data", "code.txt"]


def test_a_model_becomes_cards_and_cards_a_page(toy: Path, capsys: Any) -> None:
    code, out, err = run([*DESCRIBE, "--out", "d/cards.json"], capsys)
    assert (code, err) == (0, ""), err
    cards = modcut.ModuleCards.load("d/cards.json")
    assert len(cards) == 2 and "2 cards in d/cards.json" in out
    assert cards.meta["tokens"] >= 800 and cards.meta["slices"] == ["fox.txt", "code.txt"]
    assert [row["stage"] for row in cards.meta["stages"]] == ["graph", "statistics", "partition", "map", "cards"]
    assert json.loads(Path("d/map.json").read_text())["significance"]["leak"]["shuffles"] == 20
    assert run(["report", "d"], capsys)[0] == 0
    page = Path("d/report.html").read_text()
    assert "20 random partitions" in page and 'id="module-1"' in page and "Content-Security-Policy" in page


def test_what_cut_leaves_feeds_describe(toy: Path, capsys: Any) -> None:
    cut = ["cut", "toy_for_describe:build", "--k", "3", "--data", "fox.txt", "--windows", "8", "--length", "16"]
    assert run([*cut, "--out", "cut"], capsys)[0] == 0
    code, _, err = run([*DESCRIBE, "--partition", "cut", "--out", "d/cards.json"], capsys)
    assert code == 0, err
    assert len(modcut.ModuleCards.load("d/cards.json")) == 3
    same = Path("cut/partition.safetensors"), Path("d/partition.safetensors")
    labels = [modcut.Partition.load(p).labels.tolist() for p in same]
    assert labels[0] == labels[1]


def test_a_stopped_run_goes_on_where_it_was(toy: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import modcut.modules

    found: list[int] = []
    real, described = modcut.modules.find_modules, modcut.describe

    def counted(*args: Any, **how: Any) -> Any:
        found.append(1)
        return real(*args, **how)

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(modcut, "find_modules", counted)
    monkeypatch.setattr(modcut, "describe", interrupted)
    code, _, err = run([*DESCRIBE, "--out", "d/cards.json"], capsys)
    assert code == 130 and "with --resume goes on" in err and "Traceback" not in err
    assert not Path("d/cards.json").exists() and Path("d/cards.json.work/partition.safetensors").is_file()
    monkeypatch.setattr(modcut, "describe", described)
    code, _, err = run([*DESCRIBE, "--out", "d/cards.json", "--resume"], capsys)
    assert (code, len(found)) == (0, 1), err
    again = modcut.ModuleCards.load("d/cards.json").to_dict()["cards"]
    assert run([*DESCRIBE, "--out", "whole/cards.json"], capsys)[0] == 0
    assert again == modcut.ModuleCards.load("whole/cards.json").to_dict()["cards"]


def test_a_work_folder_of_another_run_is_not_mixed_in(toy: Path, capsys: Any) -> None:
    assert run([*DESCRIBE, "--out", "d/cards.json"], capsys)[0] == 0
    code, _, err = run([*DESCRIBE, "--seed", "1", "--out", "d/cards.json", "--resume"], capsys)
    assert code == 2 and "holds a run with other seed" in err
    assert run([*DESCRIBE, "--seed", "1", "--out", "d/cards.json"], capsys)[0] == 0  # without --resume: anew


def test_a_folder_that_is_not_ours_is_left_alone(toy: Path, capsys: Any) -> None:
    (toy / "d" / "cards.json.work").mkdir(parents=True)
    (toy / "d" / "cards.json.work" / "precious").write_text("x")
    code, _, err = run([*DESCRIBE, "--out", "d/cards.json"], capsys)
    assert code == 2 and "is no work folder of modcut describe" in err
    assert (toy / "d" / "cards.json.work" / "precious").read_text() == "x"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--tokens", "10"], "tokens must be at least 4 samples"),
        (["--tokens", "900000"], "tokens must be at most what the texts hold"),
        (["--length", "64"], "at most 32 positions"),
        (["--controls", "0"], "controls must be at least 1"),
        (["--client", "oracle"], "client must be 'none', 'local' or 'openai'"),
        (["--client", "openai"], "needs --model"),
        (["--base-url", "http://127.0.0.1:9"], "need --client openai"),
        (["--judge", "client"], "judge 'client' needs a client"),
        (["--judge", "me"], "judge must be"),
        (["--measure", "luck"], "measure must be"),
        (["--edge", "soft"], "edge must be"),
        (["--threads", "0"], "threads must be"),
        (["--partition", "nowhere"], "nowhere is missing"),
        (["--data", "nowhere"], "data must be a text file"),
        (["--data", "fox.txt"], "different names"),
        (["--out", "."], "out must be a file"),
    ],
)
def test_describe_refuses_in_a_sentence(toy: Path, arguments: list[str], words: str, capsys: Any) -> None:
    code, _, err = run([*DESCRIBE, *arguments], capsys)
    assert code == 2 and words in err and "Traceback" not in err
    assert not (toy / "modcut-describe" / "cards.json").exists()


def test_a_partition_of_another_model_is_refused(toy: Path, capsys: Any) -> None:
    (toy / "wider_for_describe.py").write_text(TOY.replace("mlp=32", "mlp=48"))
    assert run([*DESCRIBE, "--out", "d/cards.json"], capsys)[0] == 0
    other = ["describe", "wider_for_describe:build", *SMALL, "--data", "fox.txt", "--partition", "d"]
    code, _, err = run([*other, "--out", "e/cards.json"], capsys)
    assert code == 2 and "belongs to another model" in err


# -- report -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path: Path) -> dict[str, Path]:
    values = {"cards": deck(3, 4), "trace": a_trace(), "effects": effects_table(), "tree": a_tree(3)}
    out = {}
    for name, value in values.items():
        out[name] = tmp_path / f"{name}.json"
        out[name].write_text(json.dumps(value))
    return out


@pytest.mark.parametrize("format", ["html", "json", "md"])
def test_saved_files_of_any_kind_make_one_report(saved: dict[str, Path], format: str, capsys: Any) -> None:
    page = saved["cards"].parent / "out" / f"page.{format}"
    code, out, err = run(["report", *map(str, saved.values()), "--out", str(page), "--title", "All"], capsys)
    assert (code, err) == (0, "") and str(page) in out
    text = page.read_text(encoding="utf-8")
    for words in ("skill number 2", "FINE", "deception", "All"):
        assert words in text


def test_json_reads_back_to_the_same_page(saved: dict[str, Path], tmp_path: Path, capsys: Any) -> None:
    def body(path: Path) -> str:
        return path.read_text(encoding="utf-8").split("<main")[1].split("<dialog")[0]

    direct, through = tmp_path / "a.html", tmp_path / "b.html"
    assert run(["report", *map(str, saved.values()), "--out", str(direct)], capsys)[0] == 0
    assert run(["report", *map(str, saved.values()), "--out", str(tmp_path / "all.json")], capsys)[0] == 0
    assert run(["report", str(tmp_path / "all.json"), "--out", str(through)], capsys)[0] == 0
    assert body(direct) == body(through)


def test_partition_and_tree_files_are_told_apart(tmp_path: Path, capsys: Any) -> None:
    import torch

    tree = modcut.gomory_hu_tree(torch.ones(4, 4, dtype=torch.float64).fill_diagonal_(0))
    tree.save(tmp_path / "tree.safetensors")
    assert run(["report", str(tmp_path / "tree.safetensors"), "--out", str(tmp_path / "t.html")], capsys)[0] == 0
    assert "Cut tree of 4 vertices" in (tmp_path / "t.html").read_text()


@pytest.mark.parametrize(
    ("content", "words"),
    [('{"a": 1}', "got kind None"), ("nonsense", "is not JSON"), ("[1]", "got kind None")],
)
def test_report_says_what_it_cannot_read(tmp_path: Path, content: str, words: str, capsys: Any) -> None:
    (tmp_path / "x.json").write_text(content)
    code, _, err = run(["report", str(tmp_path / "x.json")], capsys)
    assert code == 2 and words in err


def test_report_refuses_two_of_a_kind_and_unknown_formats(saved: dict[str, Path], tmp_path: Path, capsys: Any) -> None:
    cards = str(saved["cards"])
    for arguments, words in (
        ([cards, cards], "a second cards"),
        ([cards, "--format", "pdf"], "format must be html, json or md"),
        ([cards, "--out", str(tmp_path / "page.pdf")], "path must end in"),
        ([cards, "--out", cards], "is one of the files to read"),
        ([str(tmp_path / "nowhere.json")], "does not exist"),
    ):
        code, _, err = run(["report", *arguments], capsys)
        assert code == 2 and words in err
    (tmp_path / "empty").mkdir()
    assert "holds no results" in run(["report", str(tmp_path / "empty")], capsys)[2]


def test_markdown_holds_no_markup_of_what_it_shows(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script> [x](javascript:alert(1)) `code` | cell\n# head"
    path = modcut.report(tmp_path / "x.md", cards=deck(2, 3, text=evil), title=evil, table=[{"a": evil}])
    text = path.read_text(encoding="utf-8")
    assert "<script" not in text and "](javascript" not in text and "\n# head" not in text
    assert text.count("\n# ") == 0 and text.startswith("# ")
