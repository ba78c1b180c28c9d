"""The defaults, unturned, on a tiny MLP, CNN and GPT: the task is learned, the leak falls, the interface is kept."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

import hand_built
import modcut

STEPS = 240


def mlp_task() -> tuple[nn.Module, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(256, 8, generator=g)
    return hand_built.mlp((8, 32, 32, 32, 4))[0], x, (x[:, :4] + x[:, 4:]).argmax(1)


def cnn_task() -> tuple[nn.Module, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    y = torch.randint(0, 4, (256,), generator=g)
    x = 0.5 * torch.randn(256, 1, 8, 8, generator=g)
    for i in range(4):  # a bright quadrant tells the class
        x[y == i, :, 4 * (i // 2) : 4 * (i // 2) + 4, 4 * (i % 2) : 4 * (i % 2) + 4] += 1.0
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(4),
        nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 4),
    )  # fmt: skip
    return model, x, y


def gpt_task() -> tuple[nn.Module, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    first = torch.randint(12, (256, 1), generator=g)
    x = (first + torch.arange(10) * torch.randint(1, 4, (256, 1), generator=g)) % 12  # counting in steps of 1 to 3
    return hand_built.gpt()[0], x[:, :-1], x[:, 1:]


@pytest.mark.parametrize("task", [mlp_task, cnn_task, gpt_task])
@pytest.mark.parametrize("form", ["term", "proximal"])
def test_defaults_learn_the_task_and_keep_the_interface(task: object, form: str) -> None:
    torch.manual_seed(0)
    model, x, y = task()  # type: ignore[operator]
    crit = modcut.ModularityLoss(model, k=2, total_steps=STEPS, interface=0.1, example_inputs=x[:2])
    optimizer: torch.optim.Optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    optimizer = modcut.optim.Proximal(optimizer, crit) if form == "proximal" else optimizer
    first, leaks = 0.0, []
    for _ in range(STEPS):
        j = torch.randint(0, len(x), (64,))
        out = model(x[j])
        loss = F.cross_entropy(out.reshape(-1, out.shape[-1]), y[j].reshape(-1))
        first = first or loss.item()
        optimizer.zero_grad()
        (loss if form == "proximal" else loss + crit()).backward()
        optimizer.step()
        crit.step()
        if crit.partition is not None and not crit.committed:
            leaks.append(crit.leak().item())
    assert crit.partition_origin.startswith("functional")
    assert loss.item() < 0.5 * first, "the task is learned"
    assert leaks[-1] < 0.8 * leaks[0], "the leak falls"
    assert crit.committed and crit.interface_edges == round(0.1 * crit.cross_edges)
