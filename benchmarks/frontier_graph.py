"""The frontier on any network: arms and measures that know the weight graph only. Started by frontier.py --task.

Settings are chosen on the choosing seeds by validation data (the least loss among settings of an arm that cut to the
same budget; for the penalties without a budget, the least loss after the cut), reported on other seeds by test data.
Every finished run is in the file at once and is not done again. Splits, first weights and batches are functions of the
seed, equal in all arms; differences to dense are paired by seed.
"""

from __future__ import annotations

import copy
import fcntl
import itertools
import json
import math
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import modcut
from bench_common import cpu_model
from frontier_nets import NETS, Batch, Net
from modcut import provenance
from modcut._files import plain
from modcut.graph.edges import with_edge
from modcut.graph.statistics import collect
from modcut.graph.units import units_of
from modcut.modules import specialisation
from modcut.optim import Proximal
from modcut.partition import Partition, adjusted_rand, cross_masks

CHOOSE = {"char_gpt": (0,), "modular_addition": (0,), "cnn": (0, 1)}
REPORT = {"char_gpt": (3, 4, 5), "modular_addition": (3, 4, 5), "cnn": (3, 4, 5, 6, 7)}
DRAWS = 100
CUTS = (0.0, 0.03, 0.1)
_T95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}


@dataclass
class Run:
    """What an arm leaves behind."""

    model: nn.Module
    labels: Tensor | None
    """int64 [n]; None: found by function afterwards, like a user would."""
    extra: dict[str, Any] = field(default_factory=dict)


def graph_of(net: Net, model: nn.Module) -> modcut.WeightGraph:
    return modcut.weight_graph(model, next(net.batches())[0][:2], **net.graph)


def index_labels(net: Net, model: nn.Module) -> Tensor:
    """Contiguous blocks of every class, whole heads."""
    units = units_of(graph_of(net, model))
    label = torch.zeros(units.count, dtype=torch.int64)
    for _, _, ids in units.members():
        label[ids] = torch.arange(len(ids)) * net.k // len(ids)
    return label[units.unit]


def crossing(net: Net, model: nn.Module, labels: Tensor) -> list[tuple[Tensor, Tensor]]:
    """(live weight, bool mask of what crosses) of every matrix that is divided."""
    graph = graph_of(net, model)
    masks = cross_masks(graph, labels)
    return [(m.weight, masks[m.name]) for m in graph.matrices if bool(masks[m.name].any())]


def divided(net: Net, model: nn.Module, only: Callable[[str], bool] = lambda name: True) -> list[nn.Parameter]:
    """The parameters between two vertices."""
    graph = graph_of(net, model)
    names = [m.source or m.name for m in graph.matrices if (m.row_vertex >= 0).any() and (m.col_vertex >= 0).any()]
    return [model.get_parameter(n) for n in dict.fromkeys(names) if only(n)]


def train(
    net: Net,
    model: nn.Module,
    *,
    penalty: Callable[[int], Tensor | None] = lambda i: None,
    after: Callable[[int], None] = lambda i: None,
    wrap: Callable[[torch.optim.Optimizer], Any] = lambda o: o,
) -> None:
    """AdamW, 50 steps of warm-up, linear decay to a tenth."""
    optimizer = wrap(torch.optim.AdamW(model.parameters(), lr=net.rate, weight_decay=net.decay))
    model.train()
    for i, batch in enumerate(itertools.islice(net.batches(), net.steps)):
        for group in optimizer.param_groups:
            group["lr"] = net.rate * min(1, (i + 1) / 50) * (1 - 0.9 * i / net.steps)
        loss, extra = net.loss(model, batch), penalty(i)
        optimizer.zero_grad()
        (loss if extra is None else loss + extra).backward()
        nn.utils.clip_grad_norm_(model.parameters(), net.clip)
        optimizer.step()
        after(i)
    model.eval()


# ---- arms ------------------------------------------------------------------------------------------------------------
def dense(net: Net, model: nn.Module, seed: int) -> Run:
    train(net, model)
    return Run(model, None)


def narrower(net: Net, model: nn.Module, seed: int) -> Run:
    torch.manual_seed(seed)
    return dense(net, net.model(True), seed)


def l1(net: Net, model: nn.Module, seed: int, lam: float) -> Run:
    ws = divided(net, model)
    train(net, model, penalty=lambda i: lam * torch.stack([w.abs().sum() for w in ws]).sum())
    return Run(model, None)


def block_diagonal(net: Net, model: nn.Module, seed: int) -> Run:
    labels = index_labels(net, model)
    parts = crossing(net, model, labels)

    @torch.no_grad()
    def cut(i: int) -> None:
        for w, mask in parts:
            w.detach().masked_fill_(mask, 0.0)

    cut(0)
    train(net, model, after=cut)
    return Run(model, labels)


def modular_init(net: Net, model: nn.Module, seed: int) -> Run:
    labels = index_labels(net, model)
    with torch.no_grad():
        for w, mask in crossing(net, model, labels):
            w.detach().mul_(torch.where(mask, 0.6, 1 + 0.4 * (net.k - 1)).view(*mask.shape, *[1] * (w.ndim - 2)))
    train(net, model)
    return Run(model, labels)


def golechha(net: Net, model: nn.Module, seed: int, lam: float, matrices: str) -> Run:
    """Minus lambda times the share of squared weight inside modules (2409.15747)."""
    labels = index_labels(net, model)
    graph = graph_of(net, model)
    masks = cross_masks(graph, labels)
    chosen = [
        (model.get_parameter(m.source or m.name), masks[m.name])
        for m in graph.matrices
        if bool(masks[m.name].any()) and (matrices == "all" or net.w_in(m.name))
    ]
    train(net, model, penalty=lambda i: lam * outside(chosen))
    return Run(model, labels)


def outside(parts: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Share of squared weight outside modules: 1 - clusterability."""
    out = torch.stack([(w.square().flatten(2).sum(2) if w.ndim > 2 else w.square())[m].sum() for w, m in parts]).sum()
    return out / torch.stack([w.square().sum() for w, _ in parts]).sum()


def post_hoc(net: Net, model: nn.Module, seed: int, interface: float) -> Run:
    """Dense to 78 % of the steps; then find modules by function, keep the strongest edges, fine-tune what is left."""
    at = int(0.78 * net.steps)
    crit = modcut.ModularityLoss(
        model, net.k, graph=graph_of(net, model), lam=0.0, warmup=at, ramp=0, commit=at + 1, interface=interface,
        inputs=0.0, outputs=1.0, seed=seed,
    )  # fmt: skip
    train(net, model, after=lambda i: crit.step())
    crit.close()
    return Run(model, crit.labels.clone(), {"origin": crit.partition_origin})


def ours(
    net: Net, model: nn.Module, seed: int, lam: float, interface: float | None, form: str, labels: str = "functional",
    warmup: float | None = None,
) -> Run:  # fmt: skip
    crit = modcut.ModularityLoss(
        model, net.k, graph=graph_of(net, model), lam=lam, total_steps=net.steps, interface=interface,
        partition=index_labels(net, model) if labels == "index" else None,
        warmup=None if warmup is None else int(warmup * net.steps), inputs=0.0, outputs=1.0, seed=seed,
    )  # fmt: skip
    if form == "proximal":
        train(net, model, wrap=lambda o: Proximal(o, crit), after=lambda i: crit.step())
    else:
        train(net, model, penalty=lambda i: crit(), after=lambda i: crit.step())
    crit.close()
    return Run(model, crit.labels.clone(), {"origin": crit.partition_origin, "kept": crit.interface_edges})


def _ours(interface: float, form: str, lams: tuple[float, ...], **more: Any) -> tuple[Any, list[dict[str, Any]]]:
    return ours, [{"lam": x, "interface": interface, "form": form} | more for x in lams]


ARMS: dict[str, tuple[Callable[..., Run], list[dict[str, Any]]]] = {
    "dense": (dense, [{}]),
    **{f"modcut proximal, {100 * x:g} %": _ours(x, "proximal", (0.3, 1.0)) for x in CUTS},
    "block-diagonal from scratch": (block_diagonal, [{}]),
    **{f"post-hoc + fine-tune, {100 * x:g} %": (post_hoc, [{"interface": x}]) for x in CUTS},
    **{f"modcut, {100 * x:g} %": _ours(x, "loss", (1.0, 4.0)) for x in CUTS},
    "narrower dense": (narrower, [{}]),
    "modular initialisation": (modular_init, [{}]),
    "Golechha, W_in": (golechha, [{"lam": 40.0, "matrices": "first"}]),
    "Golechha, all matrices": (golechha, [{"lam": 20.0, "matrices": "all"}]),
    "L1": (l1, [{"lam": x} for x in (1e-4, 3e-4)]),
    "modcut proximal, index labels, 0 %": _ours(0.0, "proximal", (1.0,), labels="index"),
    "modcut proximal, index labels, 3 %": _ours(0.03, "proximal", (1.0,), labels="index"),
    "modcut proximal, early (5 %), 3 %": _ours(0.03, "proximal", (1.0,), warmup=0.05),
    "modcut proximal, late (30 %), 3 %": _ours(0.03, "proximal", (1.0,), warmup=0.3),
}


# ---- measures --------------------------------------------------------------------------------------------------------
def look(net: Net, part: list[Batch]) -> Callable[[nn.Module], dict[str, float]]:
    def evaluate(model: nn.Module) -> dict[str, float]:
        with torch.no_grad():
            out = {"loss": statistics.fmean(float(net.loss(model, b)) for b in part)}
            if net.accuracy:
                right = [(model(x).argmax(-1) == y).float().mean().item() for x, y in part]
                out["accuracy"] = statistics.fmean(right)
        return out

    return evaluate


def contributions(net: Net, model: nn.Module, labels: Tensor, part: list[Batch]) -> Partition:
    graph = graph_of(net, model)
    return Partition(labels, with_edge(graph, "contribution", collect(graph, model, part[:4], net.loss)), net.k)


def attack(net: Net, model: nn.Module, P: Partition, part: list[Batch], seed: int) -> dict[str, float]:
    """Change of each score, and of the loss, when weights are rescaled without changing the function."""
    twin = copy.deepcopy(model)
    net.rescale(twin, torch.Generator().manual_seed(seed))
    scores = []
    for m in (model, twin):
        graph, masks = graph_of(net, m), cross_masks(P.graph, P.labels)
        parts = [(x.weight.detach().double(), masks[x.name]) for x in graph.matrices if bool(masks[x.name].any())]
        index = crossing(net, m, index_labels(net, m))
        scores.append((float(outside(parts)), float(outside([(w.detach().double(), k) for w, k in index]))))
    evaluate = look(net, part)
    return {
        "leak": contributions(net, twin, P.labels, part).leak - P.leak,
        "clusterability": scores[0][0] - scores[1][0],
        "clusterability, index blocks": scores[0][1] - scores[1][1],
        "loss": evaluate(twin)["loss"] - evaluate(model)["loss"],
    }


def pruned(net: Net, model: nn.Module, labels: Tensor, evaluate: Callable[[nn.Module], Any]) -> dict[str, Any]:
    """Keep the strongest edges of a finished network, with no fine-tuning."""
    out = {}
    for x in CUTS:
        twin = copy.deepcopy(model)
        crit = modcut.ModularityLoss(
            twin, graph=graph_of(net, twin), partition=labels, interface=x, commit=10**6, inputs=0.0, outputs=1.0
        )
        look(net, list(itertools.islice(net.batches(), 4)))(twin)  # norms of the inputs
        crit.commit()
        crit.close()
        out[f"{100 * x:g} %"] = evaluate(twin)
    return out


def measure(net: Net, run: Run, arm: str, seed: int, split: str) -> dict[str, Any]:
    part, model, labels = net.held[split], run.model, run.labels
    model.eval()
    evaluate = look(net, part)
    known = list(itertools.islice(net.batches(), net.find))
    if labels is None:
        graph = graph_of(net, model)
        found = collect(graph, model, known, net.loss)
        labels = modcut.find_modules(graph, net.k, seed=seed, statistics=found).labels
    P = contributions(net, model, labels, part)
    cross = [w.detach()[mask] for w, mask in crossing(net, model, labels)]
    out: dict[str, Any] = {
        **evaluate(model),
        "cut": modcut.cut_and_run(model, P, evaluate),
        "cut, mean": modcut.cut_and_run(model, P, evaluate, "mean", data=known),
        "edges": sum(int((w != 0).sum()) for w in cross),
        "cross": sum(w.numel() for w in cross),
        "leak": P.leak,
        "ncut": P.ncut,
        "sizes": torch.bincount(labels, minlength=net.k).tolist(),
        "labels": labels.tolist(),
        "parameters": sum(p.numel() for p in model.parameters()),
    }
    if arm == "dense":
        out["pruned, no fine-tune"] = pruned(net, model, labels, evaluate)
    if split == "test":
        out["attack"] = attack(net, model, P, part, seed)
        s = specialisation(
            model, P, net.slices(part), net.loss, random=DRAWS, mode="mean", reference=known[:4], seed=seed
        )
        out |= {"tv": s.tv, "tv random": s.random_mean, "p": s.p}
    return out


# ---- runs ------------------------------------------------------------------------------------------------------------
def key_of(arm: str, setting: dict[str, Any], seed: int) -> str:
    return json.dumps([arm, setting, seed], sort_keys=True)


class Table:
    """The file of finished runs; several processes may work on one."""

    def __init__(self, task: str, out: Path) -> None:
        self.task, self.out = task, out
        self.rows: dict[str, dict[str, Any]] = {}
        self.read()

    def read(self) -> None:
        if self.out.exists():
            self.rows |= {r["key"]: plain(r) for r in json.loads(self.out.read_text())["rows"]}

    def run(self, arm: str, setting: dict[str, Any], seed: int) -> dict[str, Any]:
        self.read()
        key = key_of(arm, setting, seed)
        if key in self.rows:
            return self.rows[key]
        net = NETS[self.task](seed)
        torch.manual_seed(seed)
        began = time.process_time()
        result = ARMS[arm][0](net, net.model(False), seed, **setting)
        trained = time.process_time() - began
        split = "validation" if seed in CHOOSE[self.task] else "test"
        row = {"key": key, "arm": arm, "setting": setting, "seed": seed, "split": split, "train_s": trained}
        row |= measure(net, result, arm, seed, split) | {"extra": result.extra}
        row["commit"] = provenance.stamp()["commit"]
        row = plain(row)
        self.write(key, row)
        print(
            f"{arm}  {setting}  seed {seed}: loss {row['loss']:.4f}, acc {row.get('accuracy')}, cut "
            f"{row['cut']['loss']:.3f}, mean {row['cut, mean']['loss']:.3f}, edges {row['edges']} of {row['cross']}, "
            f"leak {row['leak']:.3f}, tv {row.get('tv')} / {row.get('tv random')} p {row.get('p')}, {trained:.0f} s",
            flush=True,
        )
        return row

    def write(self, key: str, row: dict[str, Any]) -> None:
        with Path(f"{self.out}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self.read()
            self.rows[key] = row
            stamp = provenance.stamp(cpu=cpu_model(), load=os.getloadavg())
            command = f"frontier.py --task {self.task}"
            text = json.dumps({"command": command, "stamp": stamp, "rows": list(self.rows.values())}, indent=1)
            part = self.out.with_suffix(".part")
            part.write_text(text + "\n")
            part.replace(self.out)

    def chosen(self, arm: str) -> dict[str, Any] | None:
        """The setting that the choosing seeds prefer; None where their runs are missing."""
        settings = ARMS[arm][1]
        if len(settings) == 1:
            return settings[0]
        score = {}
        for s in settings:
            rows = [self.rows.get(key_of(arm, s, x)) for x in CHOOSE[self.task]]
            if any(r is None for r in rows):
                return None
            budget = s.get("interface") is not None
            score[json.dumps(s)] = statistics.fmean(r["loss"] if budget else r["cut"]["loss"] for r in rows if r)
        found: dict[str, Any] = json.loads(min(score, key=lambda s: score[s]))
        return found

    def reported(self, arm: str) -> list[dict[str, Any]]:
        setting = self.chosen(arm)
        rows = [] if setting is None else [self.rows.get(key_of(arm, setting, x)) for x in REPORT[self.task]]
        return [r for r in rows if r is not None]


# ---- table -----------------------------------------------------------------------------------------------------------
def interval(values: Sequence[float | None], digits: int = 3, sign: str = "") -> str:
    """Mean and half the 95 % confidence interval (Student's t)."""
    known = [v for v in values if v is not None]
    if not known:
        return "-"
    mean = statistics.fmean(known)
    if len(known) < 2:
        return f"{mean:{sign}.{digits}f}"
    half = _T95[len(known)] * statistics.stdev(known) / math.sqrt(len(known))
    return f"{mean:{sign}.{digits}f} ± {half:.{digits}f}"


def paired(rows: list[dict[str, Any]], base: dict[int, dict[str, Any]], of: Callable[[dict[str, Any]], float]) -> str:
    """Difference to the dense network of the same seed."""
    return interval([of(r) - base[r["seed"]]["loss"] for r in rows if r["seed"] in base], sign="+")


def stability(rows: list[dict[str, Any]]) -> str:
    """Mean adjusted Rand index of the labels over pairs of seeds (neurons by index: 0 is what to expect)."""
    labels = [torch.tensor(r["labels"]) for r in rows]
    pairs = [adjusted_rand(x, y) for x, y in itertools.combinations(labels, 2) if len(x) == len(y)]
    return f"{statistics.fmean(pairs):.2f}" if pairs else "-"


def markdown(table: Table) -> list[str]:
    base = {r["seed"]: r for r in table.reported("dense")}
    accuracy = any("accuracy" in r for r in base.values())
    head = [
        "method", "setting", "seeds", *(["accuracy", "accuracy after the cut"] if accuracy else []), "loss",
        "loss - dense", "after the cut - dense", "means kept - dense", "interface edges", "leak", "n-cut",
        "attack: leak", "attack: clusterability", "TV", "random TV", "p < .01", "ARI over seeds", "time / dense",
    ]  # fmt: skip
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for arm in ARMS:
        rows = table.reported(arm)
        if not rows:
            continue
        hidden = ("interface", "form", "labels", "warmup")
        setting = ", ".join(f"{k} {v}" for k, v in rows[0]["setting"].items() if k not in hidden)
        ratio = [r["train_s"] / base[r["seed"]]["train_s"] for r in rows if r["seed"] in base]
        lines.append("| " + " | ".join([
            arm, setting or "-", str(len(rows)),
            *([interval([r["accuracy"] for r in rows]), interval([r["cut"]["accuracy"] for r in rows])]
              if accuracy else []),
            interval([r["loss"] for r in rows]), paired(rows, base, lambda r: r["loss"]),
            paired(rows, base, lambda r: r["cut"]["loss"]), paired(rows, base, lambda r: r["cut, mean"]["loss"]),
            f"{statistics.fmean(r['edges'] for r in rows):.0f} of {statistics.fmean(r['cross'] for r in rows):.0f}",
            interval([r["leak"] for r in rows]), interval([r["ncut"] for r in rows], 2),
            f"{max(abs(r['attack']['leak']) for r in rows):.0e}",
            f"{max(abs(r['attack']['clusterability']) for r in rows):.2f}",
            interval([r["tv"] for r in rows], 2), interval([r["tv random"] for r in rows], 2),
            f"{sum(r['p'] < 0.01 for r in rows)} of {len(rows)}", stability(rows),
            f"{statistics.fmean(ratio):.2f}" if ratio else "-",
        ]) + " |")  # fmt: skip
    rows = list(base.values())
    if rows:
        lines += ["", "Dense, the strongest edges kept afterwards, no fine-tuning (loss - dense): " + "; ".join(
            f"{name} {interval([r['pruned, no fine-tune'][name]['loss'] - r['loss'] for r in rows], sign='+')}"
            for name in rows[0]["pruned, no fine-tune"]
        ) + "."]  # fmt: skip
    return lines


def run_all(table: Table, arms: Sequence[str]) -> None:
    """Run what is missing, arm by arm."""
    for arm in arms:
        if len(ARMS[arm][1]) > 1:
            for setting in ARMS[arm][1]:
                for seed in CHOOSE[table.task]:
                    table.run(arm, setting, seed)
        best = table.chosen(arm)
        assert best is not None
        for seed in REPORT[table.task]:
            table.run(arm, best, seed)
