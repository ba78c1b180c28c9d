"""Training that can be stopped and continued: a step is a function of the seed and its number, nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from modcut.demo.data import Corpus
from modcut.demo.measure import next_token_loss


@dataclass(frozen=True)
class Schedule:
    """Learning rate over the whole run: linear warm-up, then linear decay to a twentieth."""

    total: int
    batch: int
    rate: float = 4e-3
    warm: int = 40
    offset: int = 0
    """The step at which it begins."""

    def at(self, step: int) -> float:
        """Return the learning rate of a step."""
        i = step - self.offset
        return self.rate * min(1.0, (i + 1) / self.warm) * (0.05 + 0.95 * (1 - min(i, self.total) / self.total))


def optimizer_of(model: nn.Module) -> torch.optim.AdamW:
    """The optimizer of every arm."""
    return torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.98), weight_decay=0.01)


def train(
    model: nn.Module,
    optimizer: torch.optim.AdamW,
    corpus: Corpus,
    schedule: Schedule,
    *,
    first: int,
    last: int,
    seed: int,
    penalty: Callable[[], Tensor] | None = None,
    after: Callable[[int, float], None] = lambda step, loss: None,
    checkpoint: Callable[[int], None] = lambda step: None,
    every: int = 250,
) -> None:
    """Run steps ``first .. last - 1``; ``penalty()`` is added to the loss, ``after(step, loss)`` runs after each."""
    model.train()
    for step in range(first, last):
        one_step(model, optimizer, corpus, schedule, step, seed, penalty, after)
        if (step + 1) % every == 0 and step + 1 < last:
            checkpoint(step + 1)


def one_step(
    model: nn.Module,
    optimizer: torch.optim.AdamW,
    corpus: Corpus,
    schedule: Schedule,
    step: int,
    seed: int,
    penalty: Callable[[], Tensor] | None = None,
    after: Callable[[int, float], None] = lambda step, loss: None,
) -> float:
    """Run one optimizer step and return its text loss."""
    for group in optimizer.param_groups:
        group["lr"] = schedule.at(step)
    loss = next_token_loss(model, corpus.batch(step, schedule.batch, seed))
    optimizer.zero_grad(set_to_none=True)
    (loss if penalty is None else loss + penalty()).backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    value = float(loss.detach())
    after(step, value)
    return value


def save_state(path: Path, model: nn.Module, optimizer: torch.optim.AdamW | None = None, **meta: Any) -> None:
    """Write weights (and AdamW's moments) as safetensors; the file appears whole or not at all."""
    tensors = {f"model.{k}": v.detach().contiguous().clone() for k, v in model.state_dict().items()}
    if optimizer is not None:
        for name, p in model.named_parameters():
            for key, value in optimizer.state.get(p, {}).items():
                tensors[f"optimizer.{key}.{name}"] = torch.as_tensor(value).detach().contiguous().clone()
    for key, value in list(meta.items()):
        if isinstance(value, Tensor):
            tensors[f"extra.{key}"] = meta.pop(key).detach().contiguous().clone()
    part = path.with_suffix(".part")
    save_file(tensors, str(part), metadata={"modcut": json.dumps(meta)})
    part.replace(path)


def load_state(path: Path, model: nn.Module, optimizer: torch.optim.AdamW | None = None) -> dict[str, Any]:
    """Read what :func:`save_state` wrote into the model (and optimizer); return the rest of the record."""
    with safe_open(str(path), framework="pt") as file:
        meta: dict[str, Any] = json.loads((file.metadata() or {}).get("modcut", "{}"))
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
    model.load_state_dict({k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")})
    if optimizer is not None:
        for name, p in model.named_parameters():
            found = {
                key: tensors[f"optimizer.{key}.{name}"]
                for key in ("step", "exp_avg", "exp_avg_sq")
                if f"optimizer.{key}.{name}" in tensors
            }
            if found:
                optimizer.state[p] = found
    return meta | {k.removeprefix("extra."): v for k, v in tensors.items() if k.startswith("extra.")}
