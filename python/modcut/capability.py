"""What a language model can do, by likelihood: sentence pairs that differ in one word, one of them sensible."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from modcut import _batches, provenance
from modcut._files import write_text
from modcut.graph.interventions import evaluation


@dataclass(frozen=True)
class Pair:
    """One schema: ``text`` with ``_`` for the gap, the two fillers, and which of them makes sense."""

    text: str
    options: tuple[str, str]
    answer: int
    topic: str

    def sentence(self, option: int) -> str:
        """Return the sentence with the gap filled."""
        return self.text.replace("_", self.options[option])


@dataclass(frozen=True)
class WinogradScore:
    """How many pairs a model gets right; chance is one half by construction."""

    accuracy: float
    """By the likelihood of what follows the gap (partial scoring, arXiv 1806.02847)."""
    full_accuracy: float
    """By the likelihood of the whole sentence."""
    right: tuple[bool, ...]
    n: int
    low: float
    """95 % interval (Wilson)."""
    high: float
    model: str

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, with the stamp."""
        return {
            "accuracy": self.accuracy, "full_accuracy": self.full_accuracy, "n": self.n, "low": self.low,
            "high": self.high, "right": list(self.right), "control": "chance is 0.5: options and answers are balanced",
            "model": self.model, "stamp": provenance.stamp(),
        }  # fmt: skip


def pairs() -> tuple[Pair, ...]:
    """Return the sentence pairs that come with the package (written for it; public domain, CC0)."""
    raw = json.loads((resources.files("modcut") / "data" / "winograd.json").read_text(encoding="utf-8"))
    return tuple(Pair(p["text"], (p["options"][0], p["options"][1]), p["answer"], p["topic"]) for p in raw["pairs"])


def winograd(model: nn.Module, tokenizer: Any, items: Sequence[Pair] | None = None) -> WinogradScore:
    """Score every pair by likelihood; ties count as wrong.

    Args:
        model: tokens int64 [1, time] -> logits [1, time, vocabulary] (or an output that holds them).
        tokenizer: with ``encode(text)``.
        items: default :func:`pairs`.

    Raises:
        ValueError: there are no pairs, or a likelihood is not finite.
    """
    items = pairs() if items is None else items
    if not items:
        raise ValueError("items must hold at least one pair, got none")
    partial, full = [], []
    with torch.no_grad(), evaluation(model):
        for p in items:
            scores = [_likelihoods(model, tokenizer, p, i) for i in (0, 1)]
            partial.append(scores[p.answer][0] > scores[1 - p.answer][0])
            full.append(scores[p.answer][1] > scores[1 - p.answer][1])
    n, hit = len(items), sum(partial)
    low, high = _wilson(hit, n)
    return WinogradScore(hit / n, sum(full) / n, tuple(partial), n, low, high, provenance.digest(model))


def _likelihoods(model: nn.Module, tokenizer: Any, pair: Pair, option: int) -> tuple[float, float]:
    """Log likelihood of what follows the gap (the same text for both options), and of the whole sentence."""
    whole = pair.sentence(option)
    start = len(pair.text.split("_")[0]) + len(pair.options[option])
    ids, head = list(tokenizer.encode(whole)), list(tokenizer.encode(whole[:start]))
    shared = next((i for i, (a, b) in enumerate(zip(ids, head, strict=False)) if a != b), min(len(ids), len(head)))
    # A model with a short context reads the end of the sentence: what follows the gap stays in view.
    room = getattr(getattr(model, "config", None), "context", len(ids))
    cut = max(0, len(ids) - room)
    tokens = torch.tensor([ids[cut:]], device=_batches.device_of(model))
    logits: Tensor = _batches.logits_of(model(tokens))[0, :-1].double().log_softmax(-1)
    each = logits.gather(1, tokens[0, 1:, None])[:, 0]
    if not bool(torch.isfinite(each).all()):
        raise ValueError(f"likelihoods must be finite, the model gives none to {whole!r}")
    after = each[max(shared - cut - 1, 0) :]
    return float(after.sum()), float(each.sum())


def _wilson(hits: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    share, spread = hits / n, z * z / n
    middle = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * (share * (1 - share) / n + spread / (4 * n)) ** 0.5
    return middle - half, middle + half


def write_lm_eval_task(folder: str | Path) -> Path:
    """Write the same pairs as a local task of lm-eval: ``lm_eval --include_path FOLDER --tasks modcut_winograd``.

    Returns:
        The YAML file. The data lies beside it, as JSON lines; nothing is fetched.
    """
    folder = Path(folder).resolve()
    rows = [
        {
            "prefixes": [p.sentence(i)[: len(p.text.split("_")[0]) + len(p.options[i])] for i in (0, 1)],
            "suffix": p.text.split("_")[1].strip(),
            "label": p.answer,
        }
        for p in pairs()
    ]
    data = write_text(folder / "modcut_winograd.jsonl", "".join(json.dumps(r) + "\n" for r in rows))
    # lm-eval's own Winogrande does the same: the contexts differ, the scored continuation is shared.
    text = f"""task: modcut_winograd
dataset_path: json
dataset_kwargs:
  data_files:
    test: {json.dumps(str(data))}
test_split: test
output_type: multiple_choice
doc_to_text: label
doc_to_target: suffix
doc_to_choice: prefixes
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
metadata:
  version: 1.0
"""
    return write_text(folder / "modcut_winograd.yaml", text)
