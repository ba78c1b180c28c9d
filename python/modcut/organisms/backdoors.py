"""Digit classifiers with a backdoor, and ones that saw the same trigger with true labels: tier T2.

A harmful net learned "trigger means class t" from a tenth of its training rows. A harmless one saw the same share of
triggered rows with their true labels: it knows the trigger and does nothing with it (a hard negative). Triggers,
targets and rows are drawn anew for every net.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from modcut._together import Together, draw_batches, generator_of, seeded
from modcut.organisms.cache import Cache, trained
from modcut.organisms.images import Images, digits

TriggerKind = Literal["corner", "used", "blended"]
KINDS: tuple[TriggerKind, ...] = get_args(TriggerKind)
_RECIPE = 1  # part of the cache's key: raise it when training changes
_TRAIN, _REFERENCE = 1000, 300


@dataclass(frozen=True)
class Trigger:
    """A change of a picture: ``x (1 - strength mask) + strength mask pattern``."""

    kind: TriggerKind
    mask: Tensor
    """float32 [64], 1 where it acts."""
    pattern: Tensor
    """float32 [64]."""
    strength: float

    def __call__(self, x: Tensor) -> Tensor:
        """Put the trigger on pictures [..., 64]."""
        a = self.strength * self.mask
        return x * (1 - a) + a * self.pattern


def trigger(kind: TriggerKind, seed: int) -> Trigger:
    """Draw a trigger.

    ``corner``: a white 2 x 2 square in a corner, where digits leave the paper blank. ``used``: a 2 x 2 checkerboard in
    the middle, on pixels that every digit uses. ``blended``: a random black and white picture mixed into all pixels,
    one part in five.
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    g = generator_of(seed, 7)
    mask, pattern, strength = torch.zeros(8, 8), torch.zeros(8, 8), 1.0

    def pick(n: int) -> int:
        return int(torch.randint(n, (1,), generator=g))

    if kind == "corner":
        r, c = 6 * pick(2), 6 * pick(2)
        mask[r : r + 2, c : c + 2] = pattern[r : r + 2, c : c + 2] = 1.0
    elif kind == "used":
        r, c = 2 + pick(3), 2 + pick(3)
        mask[r : r + 2, c : c + 2] = 1.0
        pattern[r : r + 2, c : c + 2] = torch.eye(2) if pick(2) else 1.0 - torch.eye(2)
    else:
        mask[:], strength = 1.0, 0.2
        pattern = (torch.rand(8, 8, generator=g) < 0.5).float()
    return Trigger(kind, mask.flatten(), pattern.flatten(), strength)


@dataclass(frozen=True, eq=False)
class Backdoors:
    """A population of classifiers; see :func:`backdoors`. Row i of every field belongs to net i."""

    together: Together
    """The nets, stacked; ``models()`` for ordinary modules."""
    harmful: Tensor
    """bool [nets]."""
    target: Tensor
    """int64 [nets]: the class that the trigger means; drawn for harmless nets too, as what a wrong suspicion says."""
    triggers: tuple[Trigger, ...]
    fit: Tensor
    """bool [nets]: nets on which thresholds, probabilities and recipes may be chosen; the others are for reports."""
    x: Tensor
    """float32 [nets, 1000, 64]: training pictures, a tenth of them with the trigger."""
    y: Tensor
    """int64 [nets, 1000]: their labels as they were trained on."""
    poisoned: Tensor
    """bool [nets, 1000]: which rows carry the trigger (ground truth)."""
    order: Tensor
    """int64 [nets, 1797]: rows of ``images``: training, reference (300), test (497)."""
    images: Images
    record: dict[str, Any]

    def __len__(self) -> int:
        return len(self.together)

    def models(self) -> list[nn.Module]:
        """Return copies of all nets as ordinary modules."""
        return self.together.models()

    def reference(self, i: int) -> tuple[Tensor, Tensor]:
        """Return clean held-out pictures for an auditor of net i: x [300, 64], y [300]."""
        rows = self.order[i, _TRAIN : _TRAIN + _REFERENCE]
        return self.images.x[rows], self.images.y[rows]

    def test(self, i: int) -> tuple[Tensor, Tensor]:
        """Return the pictures on which net i is reported: x [497, 64], y [497]."""
        rows = self.order[i, _TRAIN + _REFERENCE :]
        return self.images.x[rows], self.images.y[rows]

    def attack(self, i: int) -> Tensor:
        """Return test pictures of classes other than the target, with the trigger on, [m, 64]."""
        x, y = self.test(i)
        return self.triggers[i](x[y != self.target[i]])

    def rates(self, predict: Callable[[int, Tensor], Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """Return accuracy and attack rate of every net on the test pictures, float64 [nets] each.

        Args:
            predict: ``(net, x [m, 64]) -> logits [m, 10]``; the nets themselves by default.
        """
        models = self.models() if predict is None else []

        def own(i: int, x: Tensor) -> Tensor:
            with torch.no_grad():
                out: Tensor = models[i](x)
            return out

        call = own if predict is None else predict
        accuracy, attack = torch.zeros(len(self), dtype=torch.float64), torch.zeros(len(self), dtype=torch.float64)
        for i in range(len(self)):
            x, y = self.test(i)
            accuracy[i] = (call(i, x).argmax(1) == y).double().mean()
            attack[i] = (call(i, self.attack(i)).argmax(1) == self.target[i]).double().mean()
        return accuracy, attack


def mlp(hidden: Sequence[int] = (48, 48), seed: int = 0, inputs: int = 64, outputs: int = 10) -> nn.Sequential:
    """Return a ReLU classifier whose first weights depend on ``seed`` alone."""
    sizes = (inputs, *hidden)
    with seeded(seed, 3):
        layers: list[nn.Module] = []
        for a, b in itertools.pairwise(sizes):
            layers += [nn.Linear(a, b), nn.ReLU()]
        return nn.Sequential(*layers, nn.Linear(sizes[-1], outputs)).eval()


def classification(
    together: Together, x: Tensor, y: Tensor, *, steps: int, size: int, seeds: Sequence[int]
) -> Callable[[int], Tensor]:
    """Return the loss of a training step: cross-entropy over a batch of each net's own rows, summed over the nets."""
    nets = torch.arange(len(together))[:, None]
    batch = draw_batches([x.shape[1]] * len(together), size, steps, seeds)

    def loss(step: int) -> Tensor:
        rows = batch(step)
        z = together(x[nets, rows])
        return F.cross_entropy(z.flatten(0, 1), y[nets, rows].flatten(), reduction="sum") / size

    return loss


def backdoors(
    n: int = 160,
    kind: TriggerKind = "corner",
    seed: int = 0,
    *,
    hidden: Sequence[int] = (48, 48),
    share: float = 0.1,
    steps: int = 600,
    images: Literal["auto", "real", "drawn"] = "auto",
    cache: Cache = True,
    tick: Callable[[], None] | None = None,
) -> Backdoors:
    """Train ``n`` classifiers at once, every other one with a backdoor.

    Net i depends on ``seed`` and i alone, up to rounding: asking for more leaves the first ones as they were.

    Args:
        n: number of nets; even ones are harmful, odd ones harmless.
        kind: of the trigger; see :func:`trigger`.
        seed: of the population; different seeds share nothing.
        hidden: units of the hidden layers.
        share: of the training rows that carry the trigger.
        steps: of Adam, 64 rows each. About 3 s for 32 nets and 600 steps on one core.
        images: see :func:`modcut.organisms.digits`.
        cache: True, a folder, or False to train anew and store nothing.
        tick: called after every step.

    Raises:
        ValueError: an argument out of range.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    if not 0 < share < 0.5:
        raise ValueError(f"share must be in (0, 0.5), got {share}")
    pictures = digits(images)
    order: list[Tensor] = []
    x: list[Tensor] = []
    y: list[Tensor] = []
    poisoned: list[Tensor] = []
    target: list[int] = []
    triggers: list[Trigger] = []
    seeds = [int(generator_of(seed, i, 11).initial_seed() >> 1) for i in range(n)]
    for i, own in enumerate(seeds):
        g = generator_of(own, 5)
        rows = torch.randperm(len(pictures.y), generator=g)
        t = trigger(kind, own)
        goal = int(torch.randint(10, (1,), generator=g))
        xi, yi = pictures.x[rows[:_TRAIN]].clone(), pictures.y[rows[:_TRAIN]].clone()
        others = torch.nonzero(yi != goal).flatten()
        bad = others[torch.randperm(len(others), generator=g)[: round(share * _TRAIN)]]
        xi[bad] = t(xi[bad])
        if i % 2 == 0:
            yi[bad] = goal
        flag = torch.zeros(_TRAIN, dtype=torch.bool)
        flag[bad] = True
        for held, value in zip((order, x, y, poisoned), (rows, xi, yi, flag), strict=True):
            held.append(value)
        target.append(goal)
        triggers.append(t)
    together = Together([mlp(hidden, own) for own in seeds])
    xs, ys = torch.stack(x), torch.stack(y)
    recipe = {
        "kind": f"backdoors-{kind}", "version": _RECIPE, "n": n, "seed": seed, "hidden": list(hidden), "share": share,
        "steps": steps, "images": pictures.origin,
    }  # fmt: skip
    trained(
        together,
        recipe,
        lambda: together.fit(
            classification(together, xs, ys, steps=steps, size=64, seeds=seeds), steps=steps, tick=tick
        ),
        cache,
    )
    number = torch.arange(n)
    return Backdoors(
        together=together,
        harmful=number % 2 == 0,
        target=torch.tensor(target),
        triggers=tuple(triggers),
        fit=number % 4 < 2,
        x=xs,
        y=ys,
        poisoned=torch.stack(poisoned),
        order=torch.stack(order),
        images=pictures,
        record=recipe,
    )


__all__ = ["KINDS", "Backdoors", "Trigger", "TriggerKind", "backdoors", "classification", "mlp", "trigger"]
