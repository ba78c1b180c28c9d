"""One decision of a model: what it answered, and how sure it was."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from modcut import _batches

TOP = 5


@dataclass(frozen=True)
class Decision:
    """An answer (a class, or the next token) with its score, and the best-scored answers beside it."""

    target: int
    """Index of the answer that is followed."""
    text: str
    logit: float
    log_probability: float
    probability: float
    top: tuple[tuple[int, str, float], ...]
    """The most probable answers: (index, text, probability)."""
    changed: bool = False
    """Whether the most probable answer is not the one of the intact model."""

    def to_dict(self) -> dict[str, Any]:
        """Return the decision as plain values."""
        fields = ("target", "text", "logit", "log_probability", "probability", "changed")
        top = [{"target": i, "text": text, "probability": p} for i, text, p in self.top]
        return {**{k: getattr(self, k) for k in fields}, "top": top}

    def __str__(self) -> str:
        rest = ", ".join(f"{text!r} {p:.3f}" for i, text, p in self.top if i != self.target)
        return f"{self.text!r} p {self.probability:.4f}, logit {self.logit:.3f} (beside: {rest})"


def single(inputs: Any, device: torch.device) -> _batches.Batch:
    """Return ``inputs`` as a batch of one sample on ``device``.

    Token ids may be a list of integers or a tensor [time].

    Raises:
        ValueError: the batch does not hold exactly one sample.
    """
    if isinstance(inputs, Sequence) and inputs and all(isinstance(i, int) for i in inputs):
        inputs = torch.tensor([inputs])
    if isinstance(inputs, Tensor) and inputs.ndim == 1 and not inputs.is_floating_point():
        inputs = inputs[None]
    if _batches.inputs_of(inputs).ndim < 2 or _batches.batch_size(inputs) != 1:
        shape = list(_batches.inputs_of(inputs).shape)
        raise ValueError(f"inputs must be one sample, [1, ...]: a trace follows one decision, got shape {shape}")
    if isinstance(inputs, Mapping):
        inputs = {k: v for k, v in inputs.items() if k != "labels"}
    return _batches.to_device(inputs, device)


def repeated(batch: _batches.Batch, times: int) -> _batches.Batch:
    """Return a batch of one sample ``times`` over."""
    if times == 1:
        return batch
    if isinstance(batch, Mapping):
        return {k: repeated(v, times) if isinstance(v, Tensor) and v.ndim else v for k, v in batch.items()}
    x = _batches.inputs_of(batch)
    return x.repeat_interleave(times, dim=0)


def scores(model: nn.Module, batch: _batches.Batch, position: int) -> Tensor:
    """Return the scores of all answers at a position, float64 [samples, answers].

    Raises:
        ValueError: the output is not [samples, answers] or [samples, time, answers]; ``position`` is outside; there are
            fewer than two answers; a score is not finite.
    """
    with torch.no_grad():
        z = _batches.logits_of(_batches.forward(model, batch))
    if z.ndim == 3:
        if not -z.shape[1] <= position < z.shape[1]:
            raise ValueError(f"position must be in [-{z.shape[1]}, {z.shape[1]}), got {position}")
        z = z[:, position]
    if z.ndim != 2 or z.shape[1] < 2:
        raise ValueError(
            "the model must return scores [samples, answers] or [samples, time, answers] with at least two answers, "
            f"got shape {list(z.shape)}"
        )
    if bool(z.isnan().any()):
        raise ValueError("the model's scores must be numbers, got NaN")
    return z.detach().to("cpu", torch.float64)


def decide(
    z: Tensor, target: int | None, decode: Callable[[Sequence[int]], str], intact: int | None = None
) -> Decision:
    """Read a decision off scores [samples, answers]; several samples (draws of one ablation) are averaged.

    Args:
        z: float64 scores.
        target: the answer to follow; the most probable one by default.
        decode: indices to text.
        intact: the most probable answer of the intact model.

    Raises:
        ValueError: ``target`` is outside.
    """
    logs = torch.log_softmax(z, dim=1)
    p = logs.exp().mean(0)
    best = int(p.argmax())
    if target is None:
        target = best
    if not 0 <= target < z.shape[1]:
        raise ValueError(f"target must be in [0, {z.shape[1]}), got {target}")
    values, indices = p.topk(min(TOP, p.numel()))
    top = tuple((int(i), decode([int(i)]), float(v)) for v, i in zip(values, indices, strict=True))
    return Decision(
        target=target,
        text=decode([target]),
        logit=float(z[:, target].mean()),
        log_probability=float(logs[:, target].mean()),
        probability=float(p[target]),
        top=top,
        changed=intact is not None and best != intact,
    )


__all__ = ["TOP", "Decision", "decide", "repeated", "scores", "single"]
