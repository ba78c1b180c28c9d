"""Networks for the tests of auditing: one whose modules are known because we wrote its weights, and random ones."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import hand_built
from modcut.partition import Partition


def two_tasks() -> tuple[nn.Sequential, Partition]:
    """A net of two tasks that share nothing, units shuffled by hand so that no module is a range of ids.

    Task A reads the even inputs and answers "is x0 > x2" in logits 0 and 2; task B reads the odd ones and answers
    "is x1 > x3" in logits 1 and 3. Each answer is carried by three redundant hidden units, interleaved A, B, A, B...
    """
    model, graph = hand_built.mlp((4, 12, 4))
    w1, w2 = torch.zeros(12, 4), torch.zeros(4, 12)
    for unit in range(12):
        task, answer = unit % 2, (unit // 2) % 2
        sign = 1.0 if answer else -1.0
        w1[unit, task], w1[unit, task + 2] = sign, -sign
        w2[task + 2 * answer, unit] = 1.0
    with torch.no_grad():
        model[0].weight.copy_(w1)
        model[0].bias.zero_()
        model[2].weight.copy_(w2)
        model[2].bias.zero_()
    labels = torch.cat([torch.arange(4) % 2, torch.arange(12) % 2, torch.arange(4) % 2])
    return model.eval(), Partition(labels, graph, 2)


def two_task_data(n: int = 256, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Inputs [n, 4] and the answers [n, 2] of both tasks."""
    x = torch.randn(n, 4, generator=torch.Generator().manual_seed(seed))
    return x, torch.stack([x[:, 0] > x[:, 2], x[:, 1] > x[:, 3]], dim=1).long()


def wide() -> tuple[nn.Sequential, Partition]:
    """Two tasks over 16 inputs: the even ones sum to task A's answer (logits 0 and 2), the odd ones to task B's."""
    model, graph = hand_built.mlp((16, 24, 4))
    w1, w2 = torch.zeros(24, 16), torch.zeros(4, 24)
    for unit in range(24):
        task, answer = unit % 2, (unit // 2) % 2
        w1[unit, task::2] = 1.0 if answer else -1.0
        w2[task + 2 * answer, unit] = 0.2
    with torch.no_grad():
        model[0].weight.copy_(w1)
        model[0].bias.zero_()
        model[2].weight.copy_(w2)
        model[2].bias.zero_()
    return model.eval(), Partition(torch.cat([torch.arange(n) % 2 for n in (16, 24, 4)]), graph, 2)


def sides(task: int, n: int = 40, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Inputs of the wide net where the task's inputs sum above zero, and where below, alike in all else."""
    x = torch.randn(4 * n, 16, generator=torch.Generator().manual_seed(seed))
    yes = x[:, task::2].sum(1) > 0
    return x[yes][:n], x[~yes][:n]


def accuracy(model: nn.Module, x: Tensor, y: Tensor, task: int) -> float:
    """Share of right answers of one task; a tie of the two logits is half an answer."""
    with torch.no_grad():
        z = model(x)[:, [task, task + 2]]
    right, wrong = z.gather(1, y[:, task : task + 1])[:, 0], z.gather(1, 1 - y[:, task : task + 1])[:, 0]
    return float(((right > wrong).double() + 0.5 * (right == wrong).double()).mean())


def random_mlp(sizes: tuple[int, ...] = (5, 7, 6, 3), seed: int = 0, k: int = 3) -> tuple[nn.Sequential, Partition]:
    """A random MLP with a random partition."""
    model, graph = hand_built.mlp(sizes, seed)
    labels = torch.randperm(graph.n, generator=torch.Generator().manual_seed(seed)) % k
    return model.eval(), Partition(labels, graph, k)


def random_gpt(seed: int = 0, k: int = 3) -> tuple[hand_built.GPT, Partition]:
    """A random two-layer GPT; heads and units are dealt to the modules in turn."""
    model, graph = hand_built.gpt(seed)
    labels = torch.empty(graph.n, dtype=torch.int64)
    for s in graph.spaces:
        labels[s.vertices] = int(s.head[-1]) % k if s.head else torch.arange(s.size) % k
    return model.eval(), Partition(labels, graph, k)


def tokens(n: int = 4, time: int = 8, vocab: int = 12, seed: int = 0) -> Tensor:
    """Random tokens [n, time]."""
    return torch.randint(vocab, (n, time), generator=torch.Generator().manual_seed(seed))
