"""A whole text, or a whole generation, token by token: which module each token's probability hangs on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from modcut import _batches
from modcut._files import write_json
from modcut.auditing._shared import bar, footer, record, table
from modcut.auditing.ablate import Mode, ablate, check_fits, reachable, reference_of
from modcut.auditing.controls import random_modules
from modcut.auditing.decision import single
from modcut.graph.interventions import evaluation
from modcut.partition import Partition


@dataclass(frozen=True)
class TokenEffects:
    """What every token of a passage loses without one module; lists run over the tokens after the first."""

    module: int
    units: int
    change: tuple[float, ...]
    """Change of the token's log-probability (ablated - intact): negative where the module supports it."""
    control_mean: tuple[float, ...]
    """The same, mean over the random modules."""
    control_low: tuple[float, ...]
    """The most negative change under any random module."""
    flipped: tuple[bool, ...]
    """Whether another token becomes the most probable one."""

    @property
    def beyond(self) -> tuple[int, ...]:
        """Tokens (counted from 0) that lose more than under every random module."""
        return tuple(i + 1 for i, (c, low) in enumerate(zip(self.change, self.control_low, strict=True)) if c < low)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        fields = ("change", "control_mean", "control_low", "flipped", "beyond")
        return {"module": self.module, "units": self.units, **{k: list(getattr(self, k)) for k in fields}}


@dataclass(frozen=True)
class PassageTrace:
    """A passage followed token by token; see :func:`trace_passage`."""

    tokens: tuple[str, ...]
    prompt: int
    """So many of them were given; the rest were generated."""
    log_probability: tuple[float, ...]
    """Of every token after the first, in the intact model."""
    modules: tuple[TokenEffects, ...]
    """Largest mean loss first."""
    record: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "kind": "passage", "tokens": list(self.tokens), "prompt": self.prompt,
            "log_probability": list(self.log_probability), "modules": [m.to_dict() for m in self.modules],
            "record": self.record,
        }  # fmt: skip

    def save(self, path: str | Path) -> None:
        """Write JSON."""
        write_json(path, self.to_dict())

    def __str__(self) -> str:
        rows = []
        for i, token in enumerate(self.tokens[1:]):
            worst = min(self.modules, key=lambda m: m.change[i])
            star = "*" if worst.change[i] < worst.control_low[i] else " "
            rows.append(
                (
                    repr(token),
                    f"{self.log_probability[i]:.3f}",
                    f"module {worst.module}",
                    f"{worst.change[i]:+.3f}{star}",
                    f"{worst.control_mean[i]:+.3f}",
                    "yes" if worst.flipped[i] else "",
                )
            )
        header = ("token", "log p", "loses most without", "change", "random modules", "another answer")
        return f"{table(header, rows)}\n* larger loss than under every random module\n{footer(self.record)}"


def trace_passage(
    model: nn.Module,
    inputs: Any,
    P: Partition,
    *,
    generate: int = 0,
    mode: Mode | None = None,
    reference: Any = None,
    controls: int = 16,
    seed: int = 0,
    tokenizer: Any = None,
    progress: bool = False,
) -> PassageTrace:
    """Follow every token of a passage: how much less probable it is without each module, beside random modules.

    One forward pass of the whole passage per module and control; a module is off at all positions (to bound it, use
    ``modcut.ablate(..., tokens=slice)``), and the tokens are those of the intact model, so that positions compare.

    Args:
        model: tokens [1, time] -> scores [1, time, vocabulary]; evaluation mode, no gradients.
        inputs: one sample of token ids: a list, [time], [1, time], or a dict with ``input_ids``.
        P: the partition.
        generate: so many tokens are appended first, greedily.
        mode: ``zero`` or ``mean``; by default ``mean`` where there is a reference.
        reference: as for :func:`modcut.trace`.
        controls: random modules per module, at least 1.
        seed: of the random modules.
        tokenizer: as for :func:`modcut.trace`.
        progress: show progress on standard error.

    Raises:
        ValueError: a passage of one token, scores without time or not finite, another mode, no control.
    """
    from modcut.reading.evidence import decoder  # heavy: scipy.stats

    mode = ("zero" if reference is None else "mean") if mode is None else mode
    if mode not in ("zero", "mean"):
        raise ValueError(f"mode must be zero or mean, got {mode!r}")
    if generate < 0 or controls < 1:
        raise ValueError(f"generate must be at least 0 and controls at least 1, got {generate} and {controls}")
    model = _batches.unwrap(model)
    check_fits(model, P.graph)
    batch = single(inputs, _batches.device_of(model))
    ids = _batches.inputs_of(batch)
    if ids.is_floating_point() or ids.ndim != 2:
        raise ValueError(f"inputs must be token ids [1, time], got {ids.dtype} {list(ids.shape)}")
    given = ids.shape[1]
    named = isinstance(batch, Mapping)

    def logs(tokens: Tensor) -> Tensor:
        with torch.no_grad(), evaluation(model):
            z = _batches.logits_of(_batches.forward(model, {"input_ids": tokens} if named else tokens))
        if z.ndim != 3 or z.shape[:2] != tokens.shape:
            raise ValueError(f"the model must return [1, time, vocabulary], got {list(z.shape)}")
        if bool(z.isnan().any()):
            raise ValueError("the model's scores must be numbers, got NaN")
        return z[0].double().log_softmax(-1)

    for _ in range(generate):
        ids = torch.cat([ids, logs(ids)[-1].argmax()[None, None].to(ids.dtype)], dim=1)
    if ids.shape[1] < 2:
        raise ValueError("a passage must have at least two tokens: the first has no probability")
    at = torch.arange(ids.shape[1] - 1, device=ids.device)
    intact = logs(ids)[:-1]
    base, best = intact[at, ids[0, 1:]], intact.argmax(1)
    reference = None if mode == "zero" else reference_of(model, P.graph, reference, resample=False)
    sets = {m: u for m in range(P.k) if len(u := reachable(P.graph, torch.nonzero(P.labels == m).flatten()))}
    if not sets:
        raise ValueError("no module of P has a unit that a tap carries")
    found = []
    with bar("passage", len(sets) * (1 + controls), progress) as tick:
        for m, units in sets.items():
            changes, flipped = [], torch.zeros(0)
            for j, each in enumerate((units, *random_modules(P, units, controls, seed=seed))):
                with ablate(model, P, each, mode, reference, seed=seed):
                    z = logs(ids)[:-1]
                changes.append((z[at, ids[0, 1:]] - base).cpu())
                if j == 0:
                    flipped = (z.argmax(1) != best).cpu()
                tick()
            others = torch.stack(changes[1:])
            lists = [x.tolist() for x in (changes[0], others.mean(0), others.min(0).values, flipped)]
            found.append(TokenEffects(m, len(units), *(tuple(x) for x in lists)))
    decode = decoder(tokenizer)
    made = record(model, n=ids.shape[1] - 1, controls=controls, seed=seed, ablation=mode)
    order = sorted(found, key=lambda e: (sum(e.change), e.module))
    words = tuple(decode([int(i)]) for i in ids[0])
    return PassageTrace(words, given, tuple(base.tolist()), tuple(order), made)


__all__ = ["PassageTrace", "TokenEffects", "trace_passage"]
