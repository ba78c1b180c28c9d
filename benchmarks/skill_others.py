"""Skills in other networks: two registers of English, a CNN with two tasks, modular addition, two answers at once.

    python benchmarks/skill_others.py --resume --out benchmarks/results/skill_others.json [--cases ...]

- ``registers-SEED``: character GPT on the World English Bible and on Python's manual (both English prose).
- ``cnn-SEED``: digits; a mark in the corner asks for the digit or for whether it is at least five (one head of 12).
- ``modular-SEED``: one-layer transformer on a + b mod 53: one algorithm, so "none found" is the right answer.
- ``answers-SEED``: two images in, two labels out: a *window* is one image pair asked for one of its answers (a
  term of the loss). Then the loss and module drop, beside the same for modules by index.
"""

from __future__ import annotations

import argparse
import copy
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

import modcut
import skills
from bench_common import main
from modcut.clustering import slice_labels
from modcut.modules import find_modules
from modcut.partition import Partition, adjusted_rand
from modcut.skills import without_others
from modcut.skills.evidence import by_index

CASES = [f"{w}-{s}" for w in ("registers", "cnn", "modular", "answers") for s in range(3, 6 if w == "registers" else 8)]


def told(P: Partition, truth: Tensor | None) -> dict[str, Any]:
    """What was found, beside the truth about the windows."""
    e = P.meta["evidence"]
    row: dict[str, Any] = {"k": P.k, "verdict": P.meta["verdict"], "kinds": e["kinds"], "against": e["against"]}
    if truth is not None and "windows" in P.meta:
        kind = torch.tensor(P.meta["windows"])
        row["kinds_ari"] = adjusted_rand(kind, truth)
        row["kinds_by_truth"] = [
            [int(((kind == c) & (truth == t)).sum()) for t in range(int(truth.max()) + 1)]
            for c in range(int(kind.max()) + 1)
        ]
    if e["specialisation"]:
        keys = ("tv", "random_mean", "p", "own", "p_own", "damage")
        row |= {key: e["specialisation"][key] for key in keys} | {"index_tv": e["index_tv"]}
    return row


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from sklearn.datasets import load_digits

    raw = load_digits()
    order = torch.randperm(len(raw.target), generator=torch.Generator().manual_seed(0))
    return torch.tensor(raw.data, dtype=torch.float32) / 16, torch.tensor(raw.target), order[:1400], order[1400:]


def train(model: nn.Module, loss: Any, draw: Any, steps: int, rate: float = 3e-3, decay: float = 0.01) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=decay)
    for i in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1, (i + 1) / 50) * (1 - 0.9 * i / steps)
        value = loss(model, draw())
        optimizer.zero_grad()
        value.backward()
        optimizer.step()


def cnn(seed: int) -> dict[str, Any]:
    images, names, learn, test = digits()
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(32, 32, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(128, 64), nn.ReLU(),
        nn.Linear(64, 12),
    )  # fmt: skip
    generator = torch.Generator().manual_seed(seed)

    def draw(pool: Tensor = learn, n: int = 64) -> tuple[Tensor, Tensor, Tensor]:
        i = pool[torch.randint(len(pool), (n,), generator=generator)]
        task = torch.randint(2, (n,), generator=generator)
        x = images[i].view(n, 1, 8, 8).clone()
        x[:, 0, 0, 0], x[:, 0, 7, 0] = task.float(), 1 - task.float()
        return x, torch.where(task == 0, names[i], 10 + (names[i] >= 5).long()), task

    def loss(m: nn.Module, b: tuple[Tensor, ...]) -> Tensor:
        return F.cross_entropy(m(b[0]), b[1])

    train(model, loss, draw, 1500)
    x, y, task = draw(test, 1024)
    with torch.no_grad():
        right = model(x).argmax(1) == y
    P = find_modules(model, data=list(zip(x.split(64), y.split(64), strict=True)), loss_fn=loss, seed=seed)
    return {"accuracy": [float(right[task == t].double().mean()) for t in range(2)]} | told(P, task)


class Adder(nn.Module):
    """One pre-norm layer on the tokens a, b, =; reads the answer at =."""

    def __init__(self, p: int, d: int = 64, heads: int = 4) -> None:
        super().__init__()
        from skill_nets import Layer

        self.tokens, self.places = nn.Embedding(p + 1, d), nn.Embedding(3, d)
        self.layer, self.head = Layer(d, heads, 4 * d), nn.Linear(d, p, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.layer(self.tokens(tokens) + self.places(torch.arange(3)))[:, -1])


def modular(seed: int, p: int = 53) -> dict[str, Any]:
    torch.manual_seed(seed)
    model = Adder(p)
    a, b = torch.arange(p).repeat_interleave(p), torch.arange(p).repeat(p)
    tokens, y = torch.stack([a, b, torch.full_like(a, p)], 1), (a + b) % p
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(p * p, generator=generator)
    learn, test = order[: int(0.7 * p * p)], order[int(0.7 * p * p) :]

    def draw() -> tuple[Tensor, Tensor]:
        i = learn[torch.randint(len(learn), (512,), generator=generator)]
        return tokens[i], y[i]

    def loss(m: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(m(batch[0]), batch[1])

    train(model, loss, draw, 2500, decay=1.0)
    with torch.no_grad():
        accuracy = float((model(tokens[test]).argmax(1) == y[test]).double().mean())
    data = list(zip(tokens[order[:1024]].split(64), y[order[:1024]].split(64), strict=True))
    P = find_modules(model, data=data, loss_fn=loss, seed=seed)
    return {"accuracy": accuracy} | told(P, None)


def answers(seed: int, steps: int = 1500) -> dict[str, Any]:
    images, names, learn, test = digits()
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 20))
    generator = torch.Generator().manual_seed(seed)

    def draw(pool: Tensor = learn, n: int = 64) -> tuple[Tensor, Tensor]:
        i = pool[torch.randint(len(pool), (2, n), generator=generator)]
        return torch.cat([images[i[0]], images[i[1]]], 1), torch.stack([names[i[0]], names[i[1]]], 1)

    def loss(m: nn.Module, b: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(m(b[0]).view(-1, 2, 10).flatten(0, 1), b[1].flatten(), ignore_index=-100)

    def penalised(m: nn.Module, b: tuple[Tensor, Tensor]) -> Tensor:
        return loss(m, b) + 1e-5 * sum(w.abs().sum() for w in m.parameters())

    train(model, penalised, draw, steps)
    check = draw(test, 1000)

    def accuracy(m: nn.Module) -> float:
        with torch.no_grad():
            return float((m(check[0]).view(-1, 2, 10).argmax(-1) == check[1]).double().mean())

    # Every pair is asked for one of its two answers: a window of usage is (pair, answer).
    x, y = draw(learn, 768)
    asked = torch.randint(2, (768,), generator=generator)
    one = y.clone()
    one[torch.arange(768), 1 - asked] = -100
    P = find_modules(model, data=list(zip(x.split(64), one.split(64), strict=True)), loss_fn=loss, seed=seed)
    row: dict[str, Any] = {"accuracy": accuracy(model)} | told(P, asked)
    # No kinds among windows (which digit it is outweighs which answer is asked): then the answers are given as slices,
    # which is knowledge of the network's outputs, and the row says so.
    labels, of_answer, row["labels"] = P.labels, [0, 1], "found"
    if P.k == 2:
        kind = torch.tensor(P.meta["windows"])
        of_answer = [int(kind[asked == t].double().mean() > 0.5) for t in range(2)]
    else:
        labels = slice_labels(P.graph, P.graph.statistics.profile, asked)
        row["labels"] = "the answers asked, given as slices"
        usage = P.graph.statistics.profile
        more = (usage[asked == 1].mean(0) > usage[asked == 0].mean(0)).long()
        for s in P.graph.spaces:  # inputs and outputs by usage as well: by weight, some outputs go astray
            if s.kind in ("input", "output"):
                labels[s.vertices] = more[s.vertices]
    hidden = [s for s in P.graph.spaces if s.kind == "hidden"]
    outputs = next(s for s in P.graph.spaces if s.kind == "output")
    # A unit serves the image from whose pixels most of its first-layer weight comes.
    first = model[0].weight.detach().abs()
    serves = (first[:, 64:].sum(1) > first[:, :64].sum(1)).long()
    agree = float((labels[hidden[0].vertices] == torch.tensor(of_answer)[serves]).double().mean())
    out = float((labels[outputs.vertices] == torch.tensor(of_answer)[torch.arange(20) // 10]).double().mean())
    row |= {"agreement_first_layer": agree, "agreement_outputs": out}
    for arm in ("found", "index"):
        m = copy.deepcopy(model)
        g = modcut.weight_graph(m, x[:2])
        Q = Partition(labels, g, 2)
        if arm == "index":
            # Units by index; inputs and outputs stay with their image, or every row would fail for that reason alone.
            mixed = by_index(Q).labels
            ends = torch.cat([torch.arange(g.n)[s.vertices] for s in g.spaces if s.kind in ("input", "output")])
            mixed[ends] = labels[ends]
            Q = Partition(mixed, g, 2)
        row[f"{arm}_cut_before"] = modcut.cut_and_run(m, Q, accuracy)

        def both(net: nn.Module, b: tuple[Tensor, Tensor], Q: Partition = Q) -> Tensor:
            total = penalised(net, b)
            for t in range(2):
                only = b[1].clone()
                only[:, 1 - t] = -100
                with without_others(net, Q, of_answer[t]):
                    total = total + loss(net, (b[0], only))
            return total

        crit = modcut.ModularityLoss(m, partition=Q, graph=g, lam=1.0, ramp=300, inputs=1.0, outputs=1.0)
        train(m, lambda net, b, crit=crit, both=both: both(net, b) + crit(), _stepping(draw, crit), steps)
        crit.close()
        row[f"{arm}_accuracy"], row[f"{arm}_cut"] = accuracy(m), modcut.cut_and_run(m, Q, accuracy)
    return row


def _stepping(draw: Any, crit: Any) -> Any:
    def f() -> Any:
        crit.step()
        return draw()

    return f


def registers(seed: int) -> dict[str, Any]:
    return skills.text(seed, name="registers")


def run(name: str, args: argparse.Namespace) -> dict[str, Any]:
    what, seed = name.split("-")
    makers = {"registers": registers, "cnn": cnn, "modular": modular, "answers": answers}
    return {"case": name, "seed": int(seed)} | makers[what](int(seed))


if __name__ == "__main__":
    skills.NETS = Path(os.environ.get("MODCUT_SKILL_NETS", str(skills.NETS)))
    main(__doc__, CASES, set(), run)
