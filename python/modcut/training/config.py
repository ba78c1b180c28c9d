"""The config file of ``modcut train``: TOML or JSON, checked before anything is built."""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from modcut._require import require

_T = TypeVar("_T")


@dataclass(frozen=True)
class ModelConfig:
    """``[model]``: what is trained."""

    kind: str = "gpt"
    """``gpt`` (text), ``mlp`` (digits), or ``pretrained``."""
    source: str = ""
    """Of a pretrained model: what `modcut cut` takes (a folder, ``package.module:build``, ``smollm2``)."""
    width: int = 64
    layers: int = 3
    heads: int = 4
    mlp: int = 256
    low_rank: int = 0
    """Train W + B A of this rank instead of W; 0: the full weights."""


@dataclass(frozen=True)
class DataConfig:
    """``[data]``: what it is trained on."""

    kind: str = "text"
    """``text``, ``digits`` (scikit-learn's), or ``dataset`` (the package datasets)."""
    files: tuple[str, ...] = ()
    """Text files, one slice each; none: English and Python source that are on every machine."""
    dataset: str = ""
    """Name or local folder for ``datasets.load_dataset``."""
    column: str = "text"
    length: int = 96
    """Tokens per sample."""
    characters: int = 2_000_000
    """Read at most so many of each file."""
    held_out: float = 0.1
    """Share at the end of each file that is never trained on."""


@dataclass(frozen=True)
class TrainingConfig:
    """``[training]``: how."""

    steps: int = 1000
    batch: int = 8
    accumulate: int = 1
    """Micro-batches per step."""
    lr: float = 4e-3
    warm: int = 40
    weight_decay: float = 0.01
    clip: float = 1.0
    """Largest gradient norm; 0: none."""
    amp: str = "none"
    """``bfloat16``: forward passes under autocast."""
    compile: bool = False
    evaluate_every: int = 100
    evaluate_batches: int = 8
    checkpoint_every: int = 250


@dataclass(frozen=True)
class LossConfig:
    """``[loss]``: the modularity loss; see :class:`modcut.ModularityLoss`."""

    form: str = "gradient"
    """``gradient`` (added to the loss), ``proximal`` (after the optimizer step), or ``none``."""
    k: int = 4
    lam: float = 1.0
    method: str = "share"
    warmup: int = -1
    """-1: the loss's own default."""
    ramp: int = -1
    commit: int = -1
    interface: float = -1.0
    """Share of cross-module weights that stay at the commit; -1: no commit."""
    inputs: float = -1.0
    budget: float = 0.0
    """Hold the validation loss within so many nats of the control's curve by changing lam; 0: lam is constant."""


@dataclass(frozen=True)
class ReportConfig:
    """``[report]``: what is measured at the end."""

    control: bool = True
    """Train the same run without the loss first."""
    random: int = 24
    """Random partitions of the same make-up."""
    winograd: bool = True
    """Score the sentence pairs, where the model reads text."""


@dataclass(frozen=True)
class Config:
    """The whole config."""

    seed: int = 0
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    report: ReportConfig = field(default_factory=ReportConfig)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return dataclasses.asdict(self)


# key: (rule in words, test). Everything a number can be wrong in is said here, once.
_RULES: dict[str, tuple[str, Any]] = {
    "model.kind": ("one of gpt, mlp, pretrained", lambda v: v in ("gpt", "mlp", "pretrained")),
    "data.kind": ("one of text, digits, dataset", lambda v: v in ("text", "digits", "dataset")),
    "training.amp": ("none or bfloat16", lambda v: v in ("none", "bfloat16")),
    "loss.form": ("one of gradient, proximal, none", lambda v: v in ("gradient", "proximal", "none")),
    "loss.method": ("one of share, ncut, tree, spectral", lambda v: v in ("share", "ncut", "tree", "spectral")),
    "data.held_out": ("above 0 and below 0.5", lambda v: 0 < v < 0.5),
    "loss.interface": ("in [0, 1], or -1 for no commit", lambda v: v == -1 or 0 <= v <= 1),
    "loss.inputs": ("in [0, 1], or -1 for the default", lambda v: v == -1 or 0 <= v <= 1),
    **{f"loss.{n}": ("at least 0, or -1 for the default", lambda v: v >= -1) for n in ("warmup", "ramp", "commit")},
    **{
        name: ("at least 1", lambda v: v >= 1)
        for name in (
            *(f"model.{n}" for n in ("width", "layers", "heads", "mlp")),
            *(f"training.{n}" for n in ("steps", "batch", "accumulate", "evaluate_every", "evaluate_batches")),
            "training.checkpoint_every",
            "report.random",
        )
    },
    **{name: ("at least 2", lambda v: v >= 2) for name in ("loss.k", "data.length")},
    "data.characters": ("at least 1000", lambda v: v >= 1000),
    "training.lr": ("above 0", lambda v: v > 0),
    **{
        name: ("at least 0", lambda v: v >= 0)
        for name in (
            "seed", "model.low_rank", "training.warm", "training.weight_decay", "training.clip", "loss.lam",
            "loss.budget",
        )
    },
}  # fmt: skip


def read_config(path: str | Path, *, source: str | None = None) -> Config:
    """Read and check a ``.toml`` or ``.json`` config; ``source`` names a pretrained model in its place.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read, or a key is unknown, of the wrong type or out of range: the sentence names it.
        MissingDependencyError: TOML on Python 3.10 without the package tomli.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"config must be an existing .toml or .json file, {path} is not")
    text = path.read_text(encoding="utf-8")
    try:
        if path.suffix == ".json":
            raw = json.loads(text)
        else:
            raw = _toml().loads(text)
    except ValueError as error:
        raise ValueError(f"config {path} must be valid {path.suffix[1:] or 'toml'}: {error}") from error
    if source is not None and isinstance(raw, dict):
        raw["model"] = {**raw.get("model", {}), "kind": "pretrained", "source": source}
    return parse_config(raw)


def parse_config(raw: Any) -> Config:
    """Return the config that plain values say; see :func:`read_config`."""
    config = _build(Config, raw, "")
    m, d, t, s = config.model, config.data, config.training, config.loss
    if m.width % m.heads:
        raise ValueError(f"model.width must be a multiple of model.heads ({m.heads}), got {m.width}")
    if (d.kind == "digits") != (m.kind == "mlp"):
        raise ValueError(f"model.kind mlp goes with data.kind digits, and only with it, got {m.kind} with {d.kind}")
    if m.kind == "pretrained" and not m.source:
        raise ValueError("model.source must name the pretrained model (or pass --from), it is empty")
    if d.kind == "dataset" and not d.dataset:
        raise ValueError('data.dataset must name a data set where data.kind is "dataset", it is empty')
    if m.low_rank and (s.form == "proximal" or s.interface >= 0 or s.commit > 0):
        raise ValueError(
            f"model.low_rank ({m.low_rank}) must be 0 with a proximal loss or an interface: both set single weights to "
            "zero, which a low-rank update cannot"
        )
    for name, value in (("warmup", s.warmup), ("ramp", s.ramp), ("commit", s.commit)):
        if value > t.steps:
            raise ValueError(f"loss.{name} must fit into training.steps ({t.steps}), got {value}")
    return config


def _toml() -> Any:
    try:
        import tomllib
    except ImportError:  # Python 3.10
        return require("tomli", extra="train", why="reading a TOML config on Python 3.10")
    return tomllib


def _build(kind: type[_T], raw: Any, prefix: str) -> _T:
    if not isinstance(raw, Mapping):
        raise ValueError(f"{prefix.rstrip('.') or 'config'} must be a table, got {type(raw).__name__}")
    hints = typing.get_type_hints(kind)
    unknown = sorted(set(raw) - set(hints))
    if unknown:
        known = ", ".join(sorted(hints))
        raise ValueError(f"{prefix}{unknown[0]} is not a key of the config, known here are: {known}")
    values = {}
    for name, value in raw.items():
        key, wanted = prefix + name, hints[name]
        if dataclasses.is_dataclass(wanted):
            values[name] = _build(typing.cast(Any, wanted), value, key + ".")
        else:
            values[name] = _checked(key, wanted, value)
    return kind(**values)


def _checked(key: str, wanted: Any, value: Any) -> Any:
    if isinstance(wanted, types.GenericAlias):
        if not isinstance(value, (list, tuple)) or not all(isinstance(v, str) for v in value):
            raise ValueError(f"{key} must be a list of texts, got {value!r}")
        return tuple(value)
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    fits = {
        int: number and isinstance(value, int),
        float: number and math.isfinite(value),
        bool: isinstance(value, bool),
        str: isinstance(value, str),
    }[wanted]
    if not fits:
        name = {int: "a whole number", float: "a finite number", bool: "true or false", str: "a text"}[wanted]
        raise ValueError(f"{key} must be {name}, got {value!r}")
    rule = _RULES.get(key)
    if rule is not None and not rule[1](value):
        raise ValueError(f"{key} must be {rule[0]}, got {value!r}")
    return float(value) if wanted is float else value
