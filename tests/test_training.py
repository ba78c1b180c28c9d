"""``modcut train``: configs, checkpoints, resuming to the bit, stopping, and what a run says of itself."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn

import modcut
from modcut.training import checkpoint, lowrank, read_config, train
from modcut.training.config import parse_config
from modcut.training.data import make_task
from modcut.training.loop import Arm, Stop
from modcut.training.page import curves, spark
from modcut.training.run import build, graph_of

TINY: dict[str, Any] = {
    "model": {"width": 16, "layers": 1, "heads": 2, "mlp": 32},
    "data": {"length": 24, "characters": 20_000},
    "training": {"steps": 24, "batch": 2, "evaluate_every": 8, "evaluate_batches": 2, "checkpoint_every": 5, "warm": 2},
    "loss": {"k": 2, "warmup": 6, "ramp": 4, "interface": 0.2, "lam": 2.0},
    "report": {"random": 2, "winograd": False},
}


def tiny(**changes: dict[str, Any]) -> Any:
    return parse_config({**TINY, **{name: {**TINY.get(name, {}), **part} for name, part in changes.items()}})


def arm(config: Any, path: Path, modular: bool = True) -> Arm:
    model, tokenizer, _ = build(config)
    task = make_task(config.data, tokenizer, 2, 2, config.seed)
    return Arm(config, task, model, graph_of(model, task), modular=modular, path=path)


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in model.state_dict().items()}


# ---- config ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"training": {"stps": 3}}, r"training\.stps is not a key of the config, known here are: .*steps"),
        ({"training": {"steps": 0}}, r"training\.steps must be at least 1, got 0"),
        ({"training": {"steps": "many"}}, r"training\.steps must be a whole number, got 'many'"),
        ({"training": {"compile": 1}}, r"training\.compile must be true or false, got 1"),
        ({"loss": {"lam": float("nan")}}, r"loss\.lam must be a finite number, got nan"),
        ({"loss": {"k": 1}}, r"loss\.k must be at least 2, got 1"),
        ({"loss": {"interface": 2}}, r"loss\.interface must be in \[0, 1\], or -1 for no commit, got 2"),
        ({"loss": {"warmup": 90}}, r"loss\.warmup must fit into training\.steps \(24\), got 90"),
        ({"data": {"files": "a.txt"}}, r"data\.files must be a list of texts, got 'a\.txt'"),
        ({"data": {"kind": "digits"}}, r"model\.kind mlp goes with data\.kind digits"),
        ({"model": {"heads": 3}}, r"model\.width must be a multiple of model\.heads \(3\), got 16"),
        ({"model": {"kind": "pretrained"}}, r"model\.source must name the pretrained model"),
        ({"model": {"low_rank": 2}}, r"model\.low_rank \(2\) must be 0 with a proximal loss or an interface"),
    ],
)
def test_a_wrong_config_is_a_sentence_with_key_rule_and_value(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        tiny(**change)


def test_config_from_toml_and_json_is_the_same(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"seed": 3, "loss": {"k": 5}}))
    (tmp_path / "a.toml").write_text("seed = 3\n[loss]\nk = 5\n")
    config = read_config(tmp_path / "a.toml")
    assert config == read_config(tmp_path / "a.json") and config.loss.k == 5
    assert read_config(tmp_path / "a.toml", source="smollm2").model.source == "smollm2"
    with pytest.raises(FileNotFoundError, match=r"b\.toml is not"):
        read_config(tmp_path / "b.toml")
    (tmp_path / "c.toml").write_text("[loss\n")
    with pytest.raises(ValueError, match="must be valid toml"):
        read_config(tmp_path / "c.toml")


# ---- resuming --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("change", [{}, {"loss": {"form": "proximal"}}, {"loss": {"budget": 0.05}}])
@pytest.mark.parametrize("at", [3, 9, 20])  # while gathering usage, in the ramp, after the commit
def test_resumed_training_is_bit_equal_to_uninterrupted(tmp_path: Path, at: int, change: dict[str, Any]) -> None:
    config = tiny(**change)
    whole = arm(config, tmp_path / "whole.safetensors")
    whole.train(Stop())
    first = arm(config, tmp_path / "part.safetensors")
    stop = Stop()

    def tick(a: Arm, loss: float) -> None:
        stop.wanted = a.step == at

    with pytest.raises(KeyboardInterrupt):
        first.train(stop, tick)
    torch.manual_seed(99)  # another process would have another random state
    second = arm(config, tmp_path / "part.safetensors")
    assert second.step == at
    second.train(Stop())
    assert second.curve == whole.curve
    a, b = weights(whole.model), weights(second.model)
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert whole.crit is not None and second.crit is not None
    assert torch.equal(whole.crit.labels, second.crit.labels) and whole.crit.lam == second.crit.lam


def test_a_killed_run_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    """SIGKILL at a random moment: the last whole checkpoint is there, and the end is that of the run left alone."""
    path = tmp_path / "c.json"
    path.write_text(
        json.dumps(
            {
                **TINY,
                "training": {**TINY["training"], "steps": 60},
                "report": {"control": False, "random": 2, "winograd": False},
            }
        )
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(modcut.__file__).parents[1])}
    command = [sys.executable, "-m", "modcut", "train", str(path), "--out", str(tmp_path / "killed")]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    saved = tmp_path / "killed" / "checkpoints" / "modular.safetensors"
    for _ in range(6000):
        if saved.is_file():
            break
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert checkpoint.read(saved)[0]["step"] >= 5
    done = train(read_config(path), tmp_path / "killed", console=Console(quiet=True))
    other = train(read_config(path), tmp_path / "whole", console=Console(quiet=True))
    assert done["arms"][0]["digest"] == other["arms"][0]["digest"]
    assert done["arms"][0]["curve"] == other["arms"][0]["curve"]


def test_ctrl_c_finishes_the_step_saves_and_says_so(tmp_path: Path) -> None:
    config = tiny()
    a = arm(config, tmp_path / "a.safetensors")
    stop = Stop()
    before = signal.getsignal(signal.SIGINT)

    def tick(a: Arm, loss: float) -> None:
        if a.step == 4:
            signal.raise_signal(signal.SIGINT)

    with stop.listening(), pytest.raises(KeyboardInterrupt):
        a.train(stop, tick)
    assert signal.getsignal(signal.SIGINT) is before
    assert checkpoint.read(tmp_path / "a.safetensors")[0]["step"] == 4


def test_another_config_or_a_broken_checkpoint_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    arm(tiny(), path).save()
    with pytest.raises(ValueError, match=r"made with loss\.k = 2, the config now says 3: use another --out"):
        arm(tiny(loss={"k": 3}), path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="cannot be read"):
        arm(tiny(), path)


def test_saving_leaves_the_old_checkpoint_whole_where_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a = arm(tiny(), tmp_path / "a.safetensors")
    a.save()
    before = (tmp_path / "a.safetensors").read_bytes()

    def full(*_: Any, **__: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    a.step = 7
    with pytest.raises(OSError, match="no space"):
        a.save()
    assert (tmp_path / "a.safetensors").read_bytes() == before


# ---- bad input -------------------------------------------------------------------------------------------------------
def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    a = arm(tiny(), tmp_path / "a.safetensors")

    def tick(a: Arm, loss: float) -> None:
        if a.step == 6:
            with torch.no_grad():
                next(a.model.parameters()).fill_(torch.nan)

    with pytest.raises(RuntimeError, match=r"must stay finite, it is nan at step 6; the state of step 5 is in a\."):
        a.train(Stop(), tick)
    assert arm(tiny(), tmp_path / "a.safetensors").step == 5


def test_a_frozen_model_and_k_beyond_a_layer_are_refused(tmp_path: Path) -> None:
    config = tiny()
    model, tokenizer, _ = build(config)
    task = make_task(config.data, tokenizer, 2, 2, 0)
    graph = graph_of(model, task)
    with pytest.raises(ValueError, match="k"):
        Arm(tiny(loss={"k": 64}), task, model, graph, modular=True, path=tmp_path / "x")
    for p in model.parameters():
        p.requires_grad_(False)
    with pytest.raises(ValueError, match="all are frozen"):
        Arm(config, task, model, graph, modular=True, path=tmp_path / "x")


def test_text_that_is_missing_short_or_not_utf8_is_refused(tmp_path: Path) -> None:
    bad = tmp_path / "bad.txt"
    bad.write_bytes(b"\xff\xfe" * 900)
    short = tmp_path / "short.txt"
    short.write_text("too short")
    for name, error, words in (
        ("none.txt", FileNotFoundError, "does not exist"),
        ("bad.txt", ValueError, "UTF-8"),
        ("short.txt", ValueError, "must hold more than 24 tokens"),
    ):
        with pytest.raises(error, match=words):
            make_task(tiny(data={"files": [str(tmp_path / name)]}).data, None, 2, 2, 0)


# ---- whole runs ------------------------------------------------------------------------------------------------------
def test_a_run_trains_both_arms_alike_and_reports_beside_controls(tmp_path: Path) -> None:
    results = train(tiny(report={"winograd": True}), tmp_path, console=Console(quiet=True))
    control, modular = results["arms"]
    assert [control["arm"], modular["arm"]] == ["control", "modular"]
    assert control["curve"][0]["loss"] == modular["curve"][0]["loss"], "the same start"
    m = modular["measures"]
    assert m["cross_nonzero"] == round(0.2 * m["cross"]) < control["measures"]["cross_nonzero"]
    for key in ("leak", "random_leak", "cut_zero", "cut_mean", "random_cut", "tv", "random_tv", "p", "winograd"):
        assert m[key] is not None and control["measures"][key] is not None
    assert results["stamp"]["seed"] == 0 and results["partition"].startswith("functional")
    page = (tmp_path / "report.html").read_text()
    assert "TV of random partitions" in page and "<script src" not in page
    assert (tmp_path / "curves.svg").read_text().startswith("<?xml")
    P = modcut.Partition.load(tmp_path / "partition.safetensors")
    assert P.k == 2
    again = train(tiny(report={"winograd": True}), tmp_path, console=Console(quiet=True))
    assert again["arms"][1]["digest"] == modular["digest"], "a finished run is not trained again"


def test_digits_from_the_command_line(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    from modcut.cli import main

    (tmp_path / "c.toml").write_text(
        '[model]\nkind = "mlp"\nwidth = 16\nlayers = 2\n[data]\nkind = "digits"\n'
        "[training]\nsteps = 20\nbatch = 16\n[loss]\nk = 2\nwarmup = 5\nramp = 5\n[report]\nrandom = 2\n"
    )
    with pytest.raises(SystemExit) as done:
        main(["train", str(tmp_path / "c.toml"), "--out", str(tmp_path / "o")])
    assert done.value.code == 0
    with pytest.raises(SystemExit) as done:
        main(["report", str(tmp_path / "o"), "--out", str(tmp_path / "again.html")])
    assert done.value.code == 0 and (tmp_path / "again.html").is_file()
    with pytest.raises(SystemExit) as done:
        main(["train", str(tmp_path / "none.toml")])
    assert done.value.code == 2


@pytest.mark.parametrize("change", [{"accumulate": 2}, {"amp": "bfloat16"}, {"clip": 0.0}])
def test_accumulation_autocast_and_no_clipping(tmp_path: Path, change: dict[str, Any]) -> None:
    a = arm(tiny(training={"steps": 10, **change}, loss={"interface": -1}), tmp_path / "a.safetensors")
    a.train(Stop())
    assert a.curve[-1]["loss"] < a.curve[0]["loss"] and a.curve[-1]["leak"] < 1


# ---- low rank --------------------------------------------------------------------------------------------------------
def test_low_rank_starts_at_the_same_function_trains_little_and_merges(tmp_path: Path) -> None:
    config = tiny(model={"low_rank": 2}, loss={"interface": -1, "warmup": 3, "ramp": 1})
    plain, tokenizer, _ = build(config)
    task = make_task(config.data, tokenizer, 2, 2, 0)
    x = task.reference[0]
    a = arm(config, tmp_path / "a.safetensors")
    torch.testing.assert_close(a.model(x), plain(x), rtol=0, atol=0)
    trained = sum(p.numel() for p in a.model.parameters() if p.requires_grad)
    assert trained < 0.5 * sum(p.numel() for p in plain.parameters())
    a.train(Stop())
    assert a.crit is not None and a.crit().requires_grad, "the loss sees W + B A"
    a.model.eval()  # in training mode a pass moves the input norms
    before, leak = a.model(x), a.crit.leak().item()
    lowrank.merge(a.model)
    torch.testing.assert_close(a.model(x), before)
    assert a.crit.leak().item() == pytest.approx(leak, rel=1e-5)
    assert set(a.model.state_dict()) == set(plain.state_dict())


# ---- pictures --------------------------------------------------------------------------------------------------------
def test_spark_and_curves() -> None:
    assert spark([1.0, 2.0, 3.0]) == "▁▅█" or spark([1.0, 2.0, 3.0])[0] == "▁"
    assert spark([]) == "" and spark([2.0, 2.0]) == "▁▁"
    drawn = curves([("a", {"x": [(0.0, 1.0), (5.0, 2.0)]}), ("b", {})], title="t")
    assert drawn.count("<polyline") == 1 and "not measured" in drawn


def test_the_identity_of_a_run_holds_every_key_that_changes_it() -> None:
    from modcut.training.loop import _identity

    keys = set(_identity(tiny()))
    for part in ("model", "data", "training", "loss"):
        fields = {f"{part}.{f.name}" for f in dataclasses.fields(getattr(tiny(), part))}
        assert fields <= keys
