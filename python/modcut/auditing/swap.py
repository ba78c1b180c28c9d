"""The causal half of a concept's test: give a module the mean activations of the other side, and see what follows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from modcut import _batches
from modcut.auditing.ablate import ablate
from modcut.auditing.examples import Concept, Samples, samples_of
from modcut.graph.interventions import Reference, evaluation, hook_tap, sites, tap_key
from modcut.partition import Partition

Score = Callable[[Tensor], Tensor]


@dataclass
class SwapLab:
    """A model, a partition and the examples of a concept, seen once intact; ready to be swapped module by module."""

    model: nn.Module
    P: Partition
    samples: Samples
    score: Score | None
    seen: dict[str, Tensor]
    """Per tap the mean activation over positions, float32 [examples, size of the feature dimension]."""
    intact: list[Tensor]
    """Per batch the output of the intact model: log-probabilities, values, or scores [rows]."""
    fold: Tensor
    """int64 [n], 0 or 1: an example is tested with means over examples of the other fold."""

    @classmethod
    def build(
        cls,
        model: nn.Module,
        P: Partition,
        concept: Concept,
        encode: Callable[[str], Sequence[int]] | None,
        score: Score | None = None,
    ) -> SwapLab:
        """Run all examples once.

        Raises:
            ValueError: what :func:`samples_of` refuses; activations or outputs that are not finite.
        """
        samples = samples_of(concept, model, encode)
        places = [s.tap for s in sites(P.graph)]
        seen: dict[str, Tensor] = {}
        rows = torch.zeros(0, dtype=torch.int64)

        def reader(key: str, dim: int) -> Callable[[Tensor], None]:
            def visit(x: Tensor) -> None:
                flat = x.detach().movedim(dim, -1)
                mean = flat.reshape(len(flat), -1, flat.shape[-1]).float().mean(1).cpu()
                seen.setdefault(key, torch.zeros(len(samples), mean.shape[-1]))[rows] = mean

            return visit

        lab = cls(model, P, samples, score, seen, [], torch.zeros(0, dtype=torch.int64))
        with evaluation(model), torch.no_grad(), ExitStack() as stack:
            for tap in places:
                stack.callback(hook_tap(model, tap, reader(tap_key(tap), tap.dim)).remove)
            for batch, rows in zip(samples.batches, samples.at, strict=True):  # noqa: B007 (visit reads rows)
                lab.intact.append(lab._output(batch))
        for key, x in seen.items():
            if not bool(torch.isfinite(x).all()):
                raise ValueError(f"activations must be finite, but the model has NaN or infinity at {key!r}")
        inside = torch.where(samples.positive, 0, int(samples.positive.sum()))
        lab.fold = (torch.arange(len(samples)) - inside) % 2
        return lab

    def _output(self, batch: Tensor) -> Tensor:
        z = _batches.logits_of(_batches.forward(self.model, batch)).detach().float().cpu()
        if not bool(torch.isfinite(z).all()):
            raise ValueError("the model's output must be finite, got NaN or infinity")
        if self.score is not None:
            value = self.score(z)
            if not isinstance(value, Tensor) or value.shape != (len(batch),):
                got = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise ValueError(f"score must return one number per sample, [{len(batch)}], got {got}")
            return value.double()
        if z.ndim < 2:
            raise ValueError(f"the model must return [samples, ..., answers], got shape {list(z.shape)}")
        return z.double().log_softmax(-1) if z.shape[-1] > 1 else z.double()

    def features(self, units: Tensor) -> Tensor:
        """Return the mean activations of units wherever an ablation would replace them, float [n, features]."""
        parts = [
            self.seen[tap_key(s.tap)][:, s.where] for s in sites(self.P.graph, units) if tap_key(s.tap) in self.seen
        ]
        return torch.cat(parts, dim=1) if parts else torch.zeros(len(self.samples), 0)

    def use(self, units: Tensor, on: Tensor | None = None) -> NDArray[np.float64]:
        """Return what the concept in ``units`` is worth to the output, per example, float64 [n].

        Every example is run twice: its units held at their mean over examples *with* the concept, and at their mean
        over examples *without*. Both means come from the other fold and both take everything else from the units, so
        what differs is the concept alone. The value is how much farther the swapped side moves the output (divergence
        from the intact output in nats, mean over positions; squared change for one output); with a ``score``: the score
        with the concept minus the score without it.

        Args:
            units: int64 vertex ids.
            on: bool [n], the examples that are tested, with means over all the others (instead of the two folds).
        """
        folds = [(on, ~on)] if on is not None else [(self.fold == f, self.fold != f) for f in (0, 1)]
        out = np.full(len(self.samples), np.nan)
        with evaluation(self.model), torch.no_grad():
            for tested, source in folds:
                pair = [self._under(units, tested, source & side) for side in self._sides()]
                with_it, without = pair
                value = with_it - without if self.score is not None else without - with_it
                if self.score is None:
                    value = torch.where(self.samples.positive, value, -value)
                out[tested.numpy()] = value[tested].numpy()
        return out

    def _sides(self) -> tuple[Tensor, Tensor]:
        return self.samples.positive, ~self.samples.positive

    def _under(self, units: Tensor, tested: Tensor, source: Tensor) -> Tensor:
        means = Reference(means={key: x[source].mean(0) for key, x in self.seen.items()})
        out = torch.full((len(self.samples),), float("nan"), dtype=torch.float64)
        with ablate(self.model, self.P, units, "mean", means):
            for batch, rows, intact in zip(self.samples.batches, self.samples.at, self.intact, strict=True):
                keep = tested[rows]
                if bool(keep.any()):
                    z = self._output(batch[keep.to(batch.device)])
                    out[rows[keep]] = z if self.score is not None else _moved(intact[keep], z)
        return out


def _moved(intact: Tensor, z: Tensor) -> Tensor:
    """Divergence KL(intact || z) per sample in nats, mean over positions; squared change where there is one output."""
    each = (intact.exp() * (intact - z)).sum(-1) if z.shape[-1] > 1 else (intact - z).square().sum(-1)
    return each.reshape(len(each), -1).mean(1)


__all__ = ["Score", "SwapLab"]
