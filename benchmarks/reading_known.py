"""Evidence-only reading of nets whose modules' functions are known, beside random modules and untrained nets.

    OMP_NUM_THREADS=1 python benchmarks/reading_known.py --out benchmarks/results/reading_known.json

Three nets, trained or written within masks that keep two modules apart, so that each module has one function:
``letters`` (written by hand: two alphabets), ``sums`` (an MLP: a + b mod 7 where the switch is on, else a copy of a),
``texts`` (a GPT: English and Python in alphabets of their own). Each is read three times: with its true modules, with
random modules of the same make-up in their place, and with its weights shuffled inside every matrix.
"""

from __future__ import annotations

import copy
import time
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

import modcut
from bench_common import arguments, write
from modcut import _batches
from modcut.controls import matched_labels
from modcut.organisms import GPT, GPTConfig, text
from modcut.partition import Partition, cross_masks
from modcut.reading import collect_evidence

CONTROLS = 99
DRAWS = 5


class Letters(nn.Module):
    """Two alphabets of ten letters; each is read, transformed and predicted by units of its own."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(seed)
        self.embed, self.up = nn.Embedding(20, 16), nn.Linear(16, 16, bias=False)
        self.down = nn.Linear(16, 20, bias=False)
        for p in self.parameters():
            nn.init.normal_(p, generator=g)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.relu(self.up(self.embed(x))))


def planted(model: nn.Module, example: Any, split: Any) -> Partition:
    """Label every vertex by ``split(space name, index, size)`` and delete what crosses."""
    graph = modcut.weight_graph(model, example)
    labels = torch.cat([torch.tensor([split(s, i) for i in range(s.size)]) for s in graph.spaces])
    heads: dict[str, int] = {}
    for s in graph.spaces:  # whole heads, half of each layer's
        if s.head:
            labels[s.vertices] = heads.setdefault(s.head, len([h for h in heads if h != s.head]) % 2)
    P = Partition(labels, graph, 2)
    delete(P)
    return P


def delete(P: Partition) -> None:
    masks = cross_masks(P.graph, P.labels)
    with torch.no_grad():
        for m in P.graph.matrices:
            m.weight.masked_fill_(masks[m.name], 0.0)


def train(model: nn.Module, P: Partition, batch: Any, steps: int, rate: float) -> float:
    optimizer, loss = torch.optim.AdamW(model.parameters(), rate), torch.zeros(())
    for step in range(steps):
        loss = _batches.loss_of(model, batch(step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        delete(P)
    return float(loss.detach())


def letters(seed: int) -> tuple[nn.Module, Partition, Any]:
    model = Letters(seed)
    P = planted(model, torch.zeros(1, 4, dtype=torch.int64), lambda s, i: int(i >= s.size // 2))
    g = torch.Generator().manual_seed(seed)
    mixed = torch.randint(0, 20, (96, 12), generator=g)
    return model, P, list(mixed.split(16))


def sums(seed: int) -> tuple[nn.Module, Partition, Any]:
    torch.manual_seed(seed)
    p = 7
    a, b, on = (x.flatten() for x in torch.meshgrid(*(torch.arange(n) for n in (p, p, 2)), indexing="ij"))
    one = lambda x, n: F.one_hot(x, n).float()  # noqa: E731
    # Each task reads digits of its own: the digits of the other are blank, as on a form with two fields.
    off = 1 - on
    x = torch.cat(
        [one(a, p) * on[:, None], one(b, p) * on[:, None], one(a, p) * off[:, None], one(b, p) * off[:, None]], 1
    )
    y = torch.where(on == 1, (a + b) % p, p + a)
    model = nn.Sequential(nn.Linear(4 * p, 64), nn.ReLU(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 2 * p))
    P = planted(model, x[:1], lambda s, i: int(i >= s.size // 2))
    train(model, P, lambda _: (x, y), 400, 1e-2)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    return model, P, [(x[i], y[i]) for i in order.split(14)]


def texts(seed: int) -> tuple[nn.Module, Partition, Any]:
    n, length = 48, 32
    english, python = (text.encode(s.text).long() for s in (text.english(300_000), text.python_source(300_000)))
    # Both in the 48 commonest characters of their own, English 0-47 and Python 48-95.
    streams = []
    for offset, t in ((0, english), (n, python)):
        common = torch.bincount(t, minlength=96).argsort(descending=True)[:n]
        place = torch.full((96,), -1)
        place[common] = torch.arange(n)
        streams.append(place[t][place[t] >= 0] + offset)
    model = GPT(GPTConfig(vocab=2 * n, context=length, width=32, layers=2, heads=4, mlp=64), seed=seed)
    P = planted(model, torch.zeros(1, length, dtype=torch.int64), lambda s, i: int(i >= s.size // 2))
    g = torch.Generator().manual_seed(seed)

    def rows(count: int) -> Tensor:
        # Half a window of one language, then half of the other: modules must change inside a window.
        out = []
        for r in range(count):
            halves = []
            for s in streams if r % 2 else streams[::-1]:
                at = int(torch.randint(len(s) - length, (1,), generator=g))
                halves.append(s[at : at + length // 2])
            out.append(torch.cat(halves))
        return torch.stack(out)

    train(model, P, lambda _: rows(16), 150, 3e-3)
    return model, P, [rows(16) for _ in range(6)]


def shuffled(model: nn.Module, seed: int) -> nn.Module:
    """The net without what training or writing put into it: every matrix keeps its entries in another order."""
    out, g = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in out.parameters():
            if p.ndim > 1:
                p.copy_(p.flatten()[torch.randperm(p.numel(), generator=g)].reshape(p.shape))
    return out


def read(model: nn.Module, P: Partition, data: Any, seed: int) -> list[dict[str, Any]]:
    E = collect_evidence(model, P, data, controls=CONTROLS, ablation_controls=20, seed=seed)
    rows = []
    for scores, e in zip(E.scores, E.modules, strict=True):
        d, s = scores["detection"], scores["simulation"]
        behaviours = e["effect"]["behaviours"]
        rows.append(
            {
                "detection": d["value"],
                "low": d["low"],
                "high": d["high"],
                "shuffled": d["shuffled_mean"],
                "random": d["random_mean"],
                "p": d["p"],
                "simulation": s["value"],
                "simulation_random": s["random_mean"],
                "simulation_p": s["p"],
                "effect": scores["effect"]["value"],
                "effect_random": float(np.mean(scores["effect"]["random"])),
                "behaviours": len(behaviours),
            }
        )
    return rows


NETS = {"letters": letters, "sums": sums, "texts": texts}


def main() -> None:
    args = arguments(__doc__, list(NETS))
    torch.set_num_threads(args.threads)
    start, results = time.perf_counter(), []
    for name in args.cases or NETS:
        model, P, data = NETS[name](args.seed)
        model.eval()
        found: dict[str, list[dict[str, Any]]] = {"true modules": read(model, P, data, 0)}
        g = torch.Generator().manual_seed(1)
        found["random modules"] = []
        for draw in range(DRAWS):
            R = Partition(matched_labels(P.graph, P.labels, g), P.graph, 2)
            found["random modules"] += read(model, R, data, 100 + draw)
        found["shuffled weights"] = []
        for draw in range(DRAWS):
            other = shuffled(model, draw)
            example = data[0][0][:1] if isinstance(data[0], tuple) else data[0][:1]
            graph = modcut.weight_graph(other, example)
            found["shuffled weights"] += read(other, Partition(P.labels, graph, 2), data, 200 + draw)
        for kind, rows in found.items():
            mean = {key: float(np.mean([r[key] for r in rows if r[key] is not None])) for key in rows[0]}
            least = min(r["detection"] for r in rows)
            hits = sum(r["p"] <= 0.05 for r in rows)
            results.append(
                {
                    "case": name,
                    "modules": kind,
                    "controls": CONTROLS,
                    "rows": rows,
                    "mean": mean,
                    "p_below_05": [hits, len(rows)],
                }
            )
            print(
                f"{name:<8} {kind:<17} detection {mean['detection']:.3f} (least {least:.3f}), random of its size "
                f"{mean['random']:.3f}, other module's evidence {mean['shuffled']:.3f}, "
                f"p <= .05 in {hits} of {len(rows)}; simulation {mean['simulation']:.3f} "
                f"(random {mean['simulation_random']:.3f})",
                flush=True,
            )
    seconds = time.perf_counter() - start
    print(f"{seconds:.0f} s; p: rank among {CONTROLS} random partitions of the same make-up")
    write(args, results)


if __name__ == "__main__":
    main()
