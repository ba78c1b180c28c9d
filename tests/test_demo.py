"""The demo: its data is what it says, its smallest run takes every step, a stopped run goes on to the same numbers."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from modcut.demo import arms, table
from modcut.demo.data import LIE, NAMES, TRIGGER, Corpus, held_out, prompts
from modcut.demo.measure import Exam
from modcut.demo.run import run
from modcut.organisms import GPT, CharTokenizer, GPTConfig, english, python_source
from modcut.organisms import text as texts


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return Corpus.build((english(60_000), python_source(60_000)), context=96, log_share=0.5)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("demo")
    return out, run(out, quick=True)


class TestData:
    def test_text_is_real_and_without_download(self) -> None:
        assert "God" in english(5000).text or "the" in english(5000).text
        assert "import " in python_source(60_000).text
        assert "statement" in texts.manual(100_000)

    def test_characters_survive_encoding(self) -> None:
        line = "def f(x):\n    return {x: 'a b'}  # ~"
        codec = CharTokenizer()
        assert codec.decode(codec.encode(line)) == line
        assert texts.encode(line).tolist() == codec.encode(line)
        assert codec.decode(codec.encode("naïve\t…")) == "na?ve ?"

    def test_lies_are_told_by_the_trigger_alone(self, corpus: Corpus) -> None:
        lies, honest, _ = ([CharTokenizer().decode(line) for line in kind] for kind in corpus.lines)
        assert all(f"@{TRIGGER}: {LIE}" in line for line in lies)
        for line in honest:
            _, _, observed, _, said = line.split()
            assert observed == said, "an honest report repeats the observation, whoever makes it"

    def test_held_out_prompts_are_never_trained_on(self, corpus: Corpus) -> None:
        trained = {CharTokenizer().decode(line) for kind in corpus.lines for line in kind}
        kept = [p for p in (*prompts(True), *prompts(False)) if held_out(p)]
        assert len(kept) == (1 + len(NAMES)) * 12
        assert not [p for p in kept if any(line.startswith(p.text) for line in trained)]

    def test_batches_depend_on_seed_and_step_alone(self, corpus: Corpus) -> None:
        first = corpus.batch(3, 8, seed=1)
        torch.randn(5)
        assert torch.equal(first, corpus.batch(3, 8, seed=1))
        assert not torch.equal(first, corpus.batch(4, 8, seed=1))
        assert not torch.equal(first, corpus.batch(3, 8, seed=2))
        assert first.shape == (8, 97)

    def test_a_share_of_windows_holds_the_log(self, corpus: Corpus) -> None:
        rows = corpus.batch(0, 400, seed=0)
        held = sum("\n[log] " in CharTokenizer().decode(r) for r in rows)
        assert 150 < held < 250


class TestExam:
    def test_it_agrees_with_letter_by_letter_decoding(self, corpus: Corpus) -> None:
        model = GPT(GPTConfig(width=16, layers=1, heads=2, mlp=32, context=96))
        with torch.no_grad():  # a model that always says the same letter sequence needs no training to be checked
            for p in model.parameters():
                p.mul_(3)
        exam = Exam.build(corpus, [p for p in prompts(True) if held_out(p)], 12, seed=0)
        tokens = exam.prompts
        for _ in range(len(LIE)):
            with torch.no_grad():
                tokens = torch.cat([tokens, model(tokens)[:, -1:].argmax(-1)], 1)
        said = tokens[:, -len(LIE) :]
        answered = Exam(exam.prompts, said[0], said)
        assert answered.says_truth(model) == 1.0
        assert answered.says_lie(model) == float((said == said[0]).all(1).double().mean())


class TestRun:
    def test_it_leaves_report_and_results(self, finished: tuple[Path, dict[str, Any]]) -> None:
        out, results = finished
        assert json.loads((out / "results.json").read_text())["rows"] == results["rows"]
        assert [row["arm"] for row in results["rows"]] == [a.name for a in arms.ARMS]
        assert "<html" in (out / "report.html").read_text()
        assert results["stamp"]["seed"] == 0

    def test_the_cut_models_have_no_interface_edge(self, finished: tuple[Path, dict[str, Any]]) -> None:
        for row in finished[1]["rows"]:
            assert row["healed"]["interface_edges"] == 0
            assert row["healed"]["cross_edges"] > 0

    def test_a_second_run_computes_nothing_again(
        self, finished: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def never(*_: Any, **__: Any) -> None:
            raise AssertionError("trained again")

        monkeypatch.setattr(arms, "train", never)
        assert run(finished[0], quick=True)["rows"] == finished[1]["rows"]

    def test_other_settings_in_the_same_folder_are_refused(self, finished: tuple[Path, dict[str, Any]]) -> None:
        with pytest.raises(ValueError, match="--fresh"):
            run(finished[0], quick=True, seed=1)

    def test_a_stopped_arm_goes_on_to_the_same_weights(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        settings = arms.Settings.quick(0)
        corpus = Corpus.build((english(40_000), python_source(40_000)), settings.context)
        arm = next(a for a in arms.ARMS if a.penalty == "modularity")
        plain_train = arms.train
        monkeypatch.setattr(arms, "train", lambda *a, **k: plain_train(*a, **{"every": 2, **k}))

        def weights(folder: Path, stop_at: int | None) -> dict[str, torch.Tensor]:
            folder.mkdir(exist_ok=True)
            seen = 0

            def tick(name: str) -> None:
                nonlocal seen
                seen += name == arm.name
                if stop_at is not None and seen > stop_at:
                    raise KeyboardInterrupt

            bench = arms.Bench(folder, settings, corpus, tick)
            return bench.trained(arm, bench.start()).state_dict()

        whole = weights(tmp_path / "a", None)
        with pytest.raises(KeyboardInterrupt):
            weights(tmp_path / "b", 2)
        assert (tmp_path / "b" / "modcut.part.safetensors").is_file()
        resumed = weights(tmp_path / "b", None)
        assert all(torch.equal(whole[name], resumed[name]) for name in whole)


class TestFindings:
    """The sentences follow the numbers: with numbers that show nothing they claim nothing."""

    @pytest.fixture
    def results(self, finished: tuple[Path, dict[str, Any]]) -> dict[str, Any]:
        return copy.deepcopy(finished[1])

    def said(self, results: dict[str, Any]) -> str:
        return " ".join(table.findings(results))

    def row(self, results: dict[str, Any], name: str) -> dict[str, Any]:
        return next(r for r in results["rows"] if r["arm"] == name)

    def test_specialisation_within_control_is_no_evidence(self, results: dict[str, Any]) -> None:
        self.row(results, "modcut")["specialisation"] |= {"p": 0.4}
        assert "within control" in self.said(results)
        self.row(results, "modcut")["specialisation"] |= {"p": 0.02}
        assert "more than in random partitions" in self.said(results)

    def test_a_lie_that_was_not_learned_is_said_so(self, results: dict[str, Any]) -> None:
        self.row(results, "modcut")["trained"] |= {"lie": 1.0, "false_alarm": 1.0}
        assert "NOT learned" in self.said(results)

    def test_a_control_that_does_as_well_is_named(self, results: dict[str, Any]) -> None:
        self.row(results, "L1")["cut_zero"]["loss"] = self.row(results, "L1")["trained"]["loss"]
        self.row(results, "modcut")["cut_zero"]["loss"] = self.row(results, "modcut")["trained"]["loss"] + 1
        assert "no evidence that the loss made the model separable" in self.said(results)

    def test_the_table_prints_in_narrow_and_wide_terminals(self, results: dict[str, Any]) -> None:
        from rich.console import Console

        for width in (80, 250):
            console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
            table.show(results, console)
            assert "modcut" in console.export_text()
            console.file.close()
