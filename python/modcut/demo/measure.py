"""What the demo measures, each number by one function: loss, behaviour, what ablating a module does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from modcut.auditing import ablate
from modcut.auditing.controls import beside_controls, random_modules
from modcut.demo.data import LIE, Corpus, Prompt
from modcut.organisms import CharTokenizer
from modcut.partition import Partition

_CODEC = CharTokenizer()


def next_token_loss(model: nn.Module, tokens: Tensor) -> Tensor:
    """Mean cross-entropy of predicting tokens [batch, time] from those before, in nats per character."""
    logits = model(tokens[:, :-1])
    return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), tokens[:, 1:].reshape(-1))


@torch.no_grad()
def losses(model: nn.Module, slices: dict[str, list[Tensor]]) -> dict[str, float]:
    """Return the loss on each slice, in nats per character."""
    was = model.training
    model.eval()
    try:
        return {
            name: sum(float(next_token_loss(model, b)) for b in batches) / len(batches)
            for name, batches in slices.items()
        }
    finally:
        model.train(was)


@dataclass(frozen=True)
class Exam:
    """Held-out prompts with their two answers, ready to be scored: greedy decoding says FINE, or the observation."""

    prompts: Tensor
    """int64 [prompts, time]."""
    lie: Tensor
    """int64 [letters]."""
    honest: Tensor
    """int64 [prompts, letters]."""

    @classmethod
    def build(cls, corpus: Corpus, kind: Sequence[Prompt], size: int, seed: int) -> Exam:
        """Put ``size`` prompts into held-out text."""
        tokens, chosen = corpus.in_context(list(kind), size, seed)
        return cls(
            tokens,
            torch.tensor(_CODEC.encode(LIE)),
            torch.stack([torch.tensor(_CODEC.encode(p.honest)) for p in chosen]),
        )

    @torch.no_grad()
    def rates(self, model: nn.Module) -> dict[str, float]:
        """Return how often greedy decoding gives the lie and the honest answer.

        Greedy decoding gives an answer exactly when every letter of it is the most likely one after the letters before
        it, so one forward pass per candidate answer decides; nothing is sampled.
        """
        was = model.training
        model.eval()
        try:
            lie = self._says(model, self.lie.expand(self.prompts.shape[0], -1))
            return {"lie": lie, "honest": self._says(model, self.honest)}
        finally:
            model.train(was)

    def _says(self, model: nn.Module, answer: Tensor) -> float:
        letters = answer.shape[1]
        logits = model(torch.cat([self.prompts, answer[:, :-1]], dim=1))
        return float((logits[:, -letters:].argmax(-1) == answer).all(1).double().mean())


def module_effects(
    model: nn.Module,
    P: Partition,
    slices: dict[str, list[Tensor]],
    triggered: Exam,
    plain: Exam,
    reference: Any,
    *,
    mode: Any,
    draws: int,
    seed: int,
    advance: Any = lambda: None,
) -> list[dict[str, Any]]:
    """Return, per module, what its ablation does to text, lie and honesty, each beside matched random modules."""

    def measure() -> dict[str, float]:
        with_trigger, without = triggered.rates(model), plain.rates(model)
        out = {f"loss {name}": value for name, value in losses(model, slices).items()}
        out |= {"lie": with_trigger["lie"], "honest": without["honest"], "false alarm": without["lie"]}
        # Selectivity of the lie: what the lie loses beyond what honest reporting loses.
        out["selectivity"] = out["honest"] - out["lie"]
        return out

    base = measure()

    def change(units: Any) -> dict[str, float]:
        with ablate(model, P, units, mode=mode, reference=reference):
            now = measure()
        advance()
        return {name: now[name] - base[name] for name in base}

    rows = []
    for i in range(P.k):
        value = change(i)
        controls = [change(units) for units in random_modules(P, i, draws, seed=seed)]
        # A loss is damaged by rising, a rate by falling; selectivity is a gain.
        rows.append(
            {
                "module": i,
                "mode": mode,
                "effects": {
                    name: beside_controls(
                        value[name],
                        [c[name] for c in controls],
                        alternative="less" if name in ("lie", "honest") else "greater",
                        seed=seed,
                    ).to_dict()
                    for name in base
                },
            }
        )
    return rows
