"""Two-task nets, two pictures in and two labels out through one trunk: tier T1.

Nothing tells a net which hidden unit serves which picture. A dial mixes the pictures before the net sees them: at 0
each input belongs to one picture, at 1 every input is the sum or the difference of a pixel of both.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from modcut._together import Parameters, Together, draw_batches, generator_of
from modcut.organisms.backdoors import mlp
from modcut.organisms.cache import Cache, trained
from modcut.organisms.images import Images, digits

TASKS = ("left", "right")
_RECIPE = 1  # part of the cache's key: raise it when training changes
_TRAIN, _REFERENCE, _CLASSES = 1000, 300, 10


def join(left: Tensor, right: Tensor, mix: float) -> Tensor:
    """Turn pictures [..., 64] and [..., 64] into an input [..., 128]: every pair of pixels rotated by ``mix`` * 45°."""
    c, s = math.cos(mix * math.pi / 4), math.sin(mix * math.pi / 4)
    return torch.cat([c * left + s * right, c * right - s * left], -1)


def kappa(predicted: Tensor, truth: Tensor, classes: int = _CLASSES) -> float:
    """Return Cohen's kappa, the accuracy above that of the same answers given blindly: 1 all right, 0 constant answers.

    An ablated task falls to chance, which is a tenth of the answers and no sign of use: accuracies would hide it.
    """
    agree = float((predicted == truth).double().mean())
    counts = [torch.bincount(v.flatten(), minlength=classes).double() / truth.numel() for v in (predicted, truth)]
    chance = float((counts[0] * counts[1]).sum())
    return (agree - chance) / (1 - chance) if chance < 1 else 0.0


@dataclass(frozen=True, eq=False)
class TwoTask:
    """A population of two-task nets; see :func:`two_task`. Row i of every field belongs to net i."""

    together: Together
    """The nets, stacked; ``models()`` for ordinary modules. Outputs 0-9 are the left label, 10-19 the right one."""
    mix: float
    order: Tensor
    """int64 [nets, 1797]: rows of ``images``: training (1000), reference (300), test (497)."""
    images: Images
    seeds: tuple[int, ...]
    record: dict[str, Any]

    def __len__(self) -> int:
        return len(self.together)

    def models(self) -> list[nn.Module]:
        """Return copies of all nets as ordinary modules."""
        return self.together.models()

    def reference(self, i: int) -> tuple[Tensor, Tensor]:
        """Return held-out pairs on which modules of net i are found and named: x [300, 128], labels [300, 2]."""
        return self._pairs(self.order[i, _TRAIN : _TRAIN + _REFERENCE])

    def test(self, i: int) -> tuple[Tensor, Tensor]:
        """Return the pairs on which net i is reported: x [497, 128], labels [497, 2]."""
        return self._pairs(self.order[i, _TRAIN + _REFERENCE :])

    def _pairs(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        other = rows.roll(1)  # the order is random, so neighbours are a random pair
        x, y = self.images.x, self.images.y
        return join(x[rows], x[other], self.mix), torch.stack([y[rows], y[other]], 1)

    def measures(self, i: int, split: Literal["reference", "test"] = "test") -> dict[str, Callable[[nn.Module], float]]:
        """Return Cohen's kappa of either task as functions of a model, on one split of net i's pairs."""
        x, y = self.test(i) if split == "test" else self.reference(i)

        def of(task: int) -> Callable[[nn.Module], float]:
            def measure(model: nn.Module) -> float:
                with torch.no_grad():
                    z = model(x)[:, task * _CLASSES : (task + 1) * _CLASSES]
                return kappa(z.argmax(1), y[:, task])

            return measure

        return {name: of(task) for task, name in enumerate(TASKS)}

    def loss(
        self, together: Together, *, steps: int, size: int = 64, draw: int = 0, seeds: Sequence[int] | None = None
    ) -> Callable[[int, Parameters | None], tuple[Tensor, Tensor]]:
        """Return ``(step, parameters) -> losses [nets] of the left task, [nets] of the right one`` on training pairs.

        Args:
            together: the nets to be trained, those of this population or copies of them.
            steps: how many steps will be asked for.
            size: pairs in a batch.
            draw: other draws of batches for another phase of training.
            seeds: of the batches, one per net; the population's by default.
        """
        own = [s + 2 * draw for s in (self.seeds if seeds is None else seeds)]
        first = draw_batches([_TRAIN] * len(together), size, steps, own)
        second = draw_batches([_TRAIN] * len(together), size, steps, [s + 1 for s in own])
        at = torch.arange(len(together))[:, None]
        held: dict[int, tuple[Tensor, Tensor, Tensor]] = {}

        def loss(step: int, parameters: Parameters | None = None) -> tuple[Tensor, Tensor]:
            if step not in held:  # several passes of one step see one batch
                a, b = self.order[at, first(step)], self.order[at, second(step)]
                x = join(self.images.x[a], self.images.x[b], self.mix)
                held.clear()
                held[step] = (x, self.images.y[a], self.images.y[b])
            x, ya, yb = held[step]
            z = together(x, parameters)
            parts = []
            for task, y in enumerate((ya, yb)):
                scores = z[..., task * _CLASSES : (task + 1) * _CLASSES]
                each = F.cross_entropy(scores.flatten(0, 1), y.flatten(), reduction="none")
                parts.append(each.reshape(y.shape).mean(1))
            return parts[0], parts[1]

        return loss


def two_task(
    n: int = 32,
    mix: float = 0.0,
    seed: int = 0,
    *,
    hidden: Sequence[int] = (96, 96),
    steps: int = 800,
    images: Literal["auto", "real", "drawn"] = "auto",
    cache: Cache = True,
    tick: Callable[[], None] | None = None,
) -> TwoTask:
    """Train ``n`` nets at once, each to name both digits of random pairs.

    Net i depends on ``seed`` and i alone, up to rounding: asking for more leaves the first ones as they were.

    Args:
        n: number of nets.
        mix: how the pictures share the inputs, from 0 (apart) to 1 (every input is half of each); see :func:`join`.
        seed: of the population; different seeds share nothing.
        hidden: units of the hidden layers.
        steps: of Adam, 64 pairs each. About 10 s for 32 nets and 800 steps on one core.
        images: see :func:`modcut.organisms.digits`.
        cache: True, a folder, or False to train anew and store nothing.
        tick: called after every step.

    Raises:
        ValueError: an argument out of range.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    if not 0 <= mix <= 1:
        raise ValueError(f"mix must be in [0, 1], got {mix}")
    pictures = digits(images)
    seeds = [int(generator_of(seed, i, 13).initial_seed() >> 1) for i in range(n)]
    order = torch.stack([torch.randperm(len(pictures.y), generator=generator_of(s, 5)) for s in seeds])
    together = Together([mlp(hidden, s, inputs=128, outputs=2 * _CLASSES) for s in seeds])
    recipe = {
        "kind": "two-task", "version": _RECIPE, "n": n, "mix": mix, "seed": seed, "hidden": list(hidden),
        "steps": steps, "images": pictures.origin,
    }  # fmt: skip
    out = TwoTask(together, mix, order, pictures, tuple(seeds), recipe)

    def train() -> None:
        parts = out.loss(together, steps=steps)
        together.fit(lambda step: sum(p.sum() for p in parts(step, None)), steps=steps, tick=tick)  # type: ignore[arg-type,return-value]

    trained(together, recipe, train, cache)
    return out


__all__ = ["TASKS", "TwoTask", "join", "kappa", "two_task"]
