"""What is trained on: a batch is a function of the seed and its number, so the data's position is one integer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from modcut import _batches
from modcut._require import require
from modcut.graph.interventions import evaluation
from modcut.organisms import CharTokenizer, text
from modcut.training.config import DataConfig

Batch = Any


@dataclass
class Task:
    """Batches to train on and held-out slices to judge by."""

    batch: Callable[[int, int, int], Batch]
    """``batch(number, size, seed)``."""
    held: dict[str, list[Batch]]
    reference: list[Batch]
    """A little training data, for means and statistics."""
    facts: dict[str, Any]
    tokenizer: Any = None
    sizes: tuple[int, ...] = field(default=())
    """Of digits: inputs and classes."""
    tokens: int = 1
    """Tokens per sample."""

    @torch.no_grad()
    def losses(self, model: nn.Module) -> dict[str, float]:
        """Return the loss on each held-out slice, in nats (per token)."""
        with evaluation(model):
            return {
                name: sum(float(_batches.loss_of(model, b)) for b in part) / len(part)
                for name, part in self.held.items()
            }

    def loss(self, model: nn.Module) -> float:
        """Return the mean over the slices."""
        by_slice = self.losses(model)
        return sum(by_slice.values()) / len(by_slice)

    @torch.no_grad()
    def accuracy(self, model: nn.Module) -> float:
        """Return how often the most probable class (or next token) is the right one."""
        hits = []
        with evaluation(model):
            for b in (b for part in self.held.values() for b in part):
                guess = _batches.logits_of(_batches.forward(model, b)).argmax(-1)
                want = _batches.targets_of(b)
                hits.append(((guess == want) if want is not None else (guess[:, :-1] == b[:, 1:])).double().mean())
        return float(torch.stack(hits).mean())


def make_task(config: DataConfig, tokenizer: Any, batches: int, batch: int, seed: int) -> Task:
    """Read the data.

    Raises:
        FileNotFoundError: a text file does not exist.
        ValueError: too little data, or not UTF-8.
        MissingDependencyError: digits without scikit-learn, a data set without the package datasets.
    """
    if config.kind == "digits":
        return _digits(config, seed)
    return _text(config, tokenizer or CharTokenizer(), batches, batch, seed)


def _generator(seed: int, number: int) -> torch.Generator:
    return torch.Generator().manual_seed((seed * 1_000_003 + number) % 2**63)


def _text(config: DataConfig, tokenizer: Any, batches: int, size: int, seed: int) -> Task:
    sources = _sources(config)
    chars = isinstance(tokenizer, CharTokenizer)
    streams = {
        s.name: text.encode(s.text).long() if chars else torch.tensor(list(tokenizer.encode(s.text))) for s in sources
    }
    training, held = {}, {}
    for name, ids in streams.items():
        cut = int(len(ids) * (1 - config.held_out))
        training[name], held[name] = ids[:cut], ids[cut:]
        if min(len(training[name]), len(held[name])) <= config.length:
            raise ValueError(
                f"data must hold more than {config.length} tokens (data.length) on both sides of data.held_out, "
                f"{name} has {len(training[name])} and {len(held[name])}"
            )

    def windows(stream: Tensor, count: int, g: torch.Generator) -> Tensor:
        starts = torch.randint(len(stream) - config.length, (count,), generator=g)
        return stream[starts[:, None] + torch.arange(config.length)]

    names = list(streams)

    def batch(number: int, count: int, seed: int) -> Tensor:
        g = _generator(seed, number)
        return torch.cat([windows(training[names[(number + i) % len(names)]], 1, g) for i in range(count)])

    g = _generator(seed, -1 % 2**31)
    slices: dict[str, list[Batch]] = {
        name: [windows(ids, size, g) for _ in range(max(1, batches // len(names)))] for name, ids in held.items()
    }
    reference: list[Batch] = [windows(ids, size, g) for ids in training.values() for _ in range(2)]
    facts = {
        "kind": config.kind,
        "sources": [{"name": s.name, "origin": s.origin, "characters": len(s.text)} for s in sources],
        "tokens": {name: len(ids) for name, ids in streams.items()},
    }
    return Task(batch, slices, reference, facts, tokenizer, tokens=config.length)


def _sources(config: DataConfig) -> list[text.Source]:
    if config.kind == "dataset":
        datasets = require("datasets", extra="data", why="data.kind dataset")
        rows = datasets.load_dataset(config.dataset, split="train")
        if config.column not in rows.column_names:
            raise ValueError(f"data.column must be a column of {config.dataset}, got {config.column!r}")
        joined, size = [], 0
        for row in rows:
            joined.append(row[config.column])
            size += len(joined[-1])
            if size >= config.characters:
                break
        return [text.Source(config.dataset, f"datasets: {config.dataset}", "\n\n".join(joined)[: config.characters])]
    if not config.files:
        return [text.english(config.characters), text.python_source(config.characters)]
    found = []
    for name in config.files:
        path = Path(name)
        if not path.is_file():
            raise FileNotFoundError(f"data.files must name existing text files, {name} does not exist")
        try:
            content = path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise ValueError(f"data.files must be text in UTF-8, {name} is not: {error.reason}") from error
        found.append(text.Source(path.stem, path.name, content[: config.characters]))
    if len({s.name for s in found}) < len(found):
        raise ValueError(f"data.files must have different names, got {[s.name for s in found]}")
    return found


def _digits(config: DataConfig, seed: int) -> Task:
    datasets = require("sklearn.datasets", extra="bench", why="data.kind digits")
    x, y = datasets.load_digits(return_X_y=True)
    x, y = torch.tensor(x, dtype=torch.float32) / 16, torch.tensor(y)
    order = torch.randperm(len(x), generator=_generator(seed, 0))
    cut = int(len(x) * (1 - config.held_out))
    train, test = order[:cut], order[cut:]

    def batch(number: int, size: int, seed: int) -> tuple[Tensor, Tensor]:
        i = train[torch.randint(len(train), (size,), generator=_generator(seed, number))]
        return x[i], y[i]

    low, high = test[y[test] < 5], test[y[test] >= 5]
    held = {"digits 0-4": [(x[low], y[low])], "digits 5-9": [(x[high], y[high])]}
    facts = {"kind": "digits", "sources": [{"name": "digits", "origin": "scikit-learn", "images": len(x)}]}
    return Task(batch, held, [(x[train[:256]], y[train[:256]])], facts, sizes=(64, 10))
