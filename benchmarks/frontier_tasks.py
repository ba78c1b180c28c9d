"""The tasks of the frontier table: data, a model, and what is measured on held-out data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812


@dataclass
class Task:
    """One task. ``graph`` keyword arguments say which ends of the network have vertices (are divided into modules)."""

    name: str
    k: int
    steps: int
    batch: int
    rate: float
    model: Callable[[float], nn.Module]
    """Takes a factor on the width, returns a fresh model (seeded by the caller)."""
    splits: dict[str, tuple[Tensor, Tensor]]
    """train, validation (chooses hyper-parameters) and test (is reported)."""
    slices: Callable[[tuple[Tensor, Tensor]], dict[str, list[tuple[Tensor, Tensor]]]]
    """Parts of held-out data whose dependence on modules is compared."""
    loss: Callable[[nn.Module, tuple[Tensor, Tensor]], Tensor]
    accuracy: Callable[[nn.Module, tuple[Tensor, Tensor]], float]
    narrow: float
    """Width of the dense network with as many parameters as k blocks."""
    hidden: list[str]
    """The parameters that are divided, in order: rows of one are columns of the next."""
    truth: Tensor | None = None
    """int64 [outputs]: the true module of each output, shown to no arm."""


def digits(seed: int) -> Task:
    """8 x 8 digits, MLP 64-64-64-64-10: the first layer is shared, hidden neurons and classes are divided by four."""
    from sklearn.datasets import load_digits

    data = load_digits()
    x = torch.tensor(data.data, dtype=torch.float32) / 16
    y = torch.tensor(data.target, dtype=torch.int64)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    parts = {"train": order[:1097], "validation": order[1097:1447], "test": order[1447:]}

    def model(width: float) -> nn.Module:
        h = round(64 * width)
        layers: list[nn.Module] = [nn.Linear(64, h), nn.ReLU(), nn.Linear(h, h), nn.ReLU(), nn.Linear(h, h), nn.ReLU()]
        return nn.Sequential(*layers, nn.Linear(h, 10))

    return Task(
        name="digits",
        k=4,
        steps=2000,
        batch=128,
        rate=2e-3,
        model=model,
        splits={name: (x[i], y[i]) for name, i in parts.items()},
        slices=lambda d: {str(c): [(d[0][d[1] == c], d[1][d[1] == c])] for c in range(10)},
        loss=lambda m, b: F.cross_entropy(m(b[0]), b[1]),
        accuracy=lambda m, b: (m(b[0]).argmax(1) == b[1]).float().mean().item(),
        narrow=40 / 64,
        hidden=["2.weight", "4.weight", "6.weight"],
    )


def two_digits(seed: int) -> Task:
    """Two digits in, two labels out, half the network each: the ground truth is known (never shown to any arm)."""
    one = digits(seed)
    generator = torch.Generator().manual_seed(seed + 100)

    def pairs(part: tuple[Tensor, Tensor], count: int) -> tuple[Tensor, Tensor]:
        i, j = (torch.randint(0, len(part[0]), (count,), generator=generator) for _ in range(2))
        return torch.cat([part[0][i], part[0][j]], 1), torch.stack([part[1][i], part[1][j]], 1)

    def model(width: float) -> nn.Module:
        h = round(64 * width)
        layers: list[nn.Module] = [nn.Linear(128, h), nn.ReLU(), nn.Linear(h, h), nn.ReLU(), nn.Linear(h, h), nn.ReLU()]
        return nn.Sequential(*layers, nn.Linear(h, 20))

    def loss(m: nn.Module, b: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(m(b[0]).view(-1, 10), b[1].flatten())  # of the labels that are not -100

    def halves(part: tuple[Tensor, Tensor]) -> dict[str, list[tuple[Tensor, Tensor]]]:
        """The same inputs, each time with one of the two labels unasked."""
        return {
            name: [(part[0], part[1].masked_fill(torch.tensor([i != 0, i != 1]), -100))]
            for i, name in enumerate(("first", "second"))
        }

    def accuracy(m: nn.Module, b: tuple[Tensor, Tensor]) -> float:
        return (m(b[0]).view(-1, 2, 10).argmax(2) == b[1]).float().mean().item()

    return Task(
        name="two_digits",
        k=2,
        steps=3000,
        batch=128,
        rate=2e-3,
        model=model,
        splits={"train": pairs(one.splits["train"], 8000), "validation": pairs(one.splits["validation"], 1000),
                "test": pairs(one.splits["test"], 1000)},
        slices=halves,
        loss=loss,
        accuracy=accuracy,
        narrow=48 / 64,
        hidden=["2.weight", "4.weight", "6.weight"],
        truth=torch.arange(20) // 10,
    )  # fmt: skip


TASKS: dict[str, Callable[[int], Task]] = {"digits": digits, "two_digits": two_digits}
