"""The frontier: task loss against separation, for modcut and every published baseline.

    python benchmarks/frontier.py --task digits [--arms dense "modcut, 0 %"] [--table]

Settings of each arm are chosen on seeds 0-2 by the validation split (of those within a point of the dense network's
accuracy the one with the best accuracy after the cut; if there is none, the most accurate), and reported on seeds 3-7
by the test split. Every finished run is in the file at once and is not done again. Splits, initial weights and batches
are functions of the seed, equal in all arms. The table is docs/frontier.md (written by ``--table``).

The cut deletes every weight between modules: of hidden neurons and outputs, all of them (inputs are shared).
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import math
import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import baselines as b
import frontier_graph
import modcut
from bench_common import cpu_model
from frontier_arms import ARMS, Run, graph_of, index_pairs, weights_of
from frontier_tasks import TASKS, Task
from modcut import provenance
from modcut._files import plain
from modcut.graph.edges import with_edge
from modcut.graph.statistics import collect
from modcut.modules import specialisation

ROOT = Path(__file__).parents[1]
CHOOSE, REPORT = (0, 1, 2), (3, 4, 5, 6, 7)
DRAWS = 100
WINDOWS = 1100  # training samples in which modules are looked for
# Two-sided 95 % quantiles of Student's t, by the number of seeds.
_T95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}


# ---- measures --------------------------------------------------------------------------------------------------------
def look(task: Task, part: tuple[Tensor, Tensor]) -> Callable[[nn.Module], dict[str, float]]:
    def evaluate(model: nn.Module) -> dict[str, float]:
        with torch.no_grad():
            return {"accuracy": task.accuracy(model, part), "loss": float(task.loss(model, part))}

    return evaluate


@torch.no_grad()
def rescaled(task: Task, model: nn.Module, seed: int) -> nn.Module:
    """The same function with every hidden ReLU neuron scaled by 10^u, u uniform in [-1, 1]."""
    twin = copy.deepcopy(model)
    layers = [m for m in twin if isinstance(m, nn.Linear)]  # type: ignore[union-attr]
    g = torch.Generator().manual_seed(seed)
    for first, second in itertools.pairwise(layers):
        c = 10 ** (2 * torch.rand(first.out_features, generator=g) - 1)
        first.weight.mul_(c[:, None])
        first.bias.mul_(c)
        second.weight.div_(c)
    return twin


def partition(task: Task, model: nn.Module, labels: Tensor | None, part: tuple[Tensor, Tensor], seed: int) -> Any:
    """The arm's labels (else what find_modules finds in training data) on contribution edges over ``part``."""
    graph = graph_of(task, model)
    if labels is None:
        data = [(x[:WINDOWS], y[:WINDOWS]) for x, y in (task.splits["train"],)]
        labels = modcut.find_modules(graph, task.k, seed=seed, statistics=collect(graph, model, data, task.loss)).labels
    graph = with_edge(graph, "contribution", collect(graph, model, [part], task.loss))
    return modcut.Partition(labels, graph, task.k)


def certified(P: Any) -> int:
    """How many modules are exact minimum cuts, proven by the Gomory-Hu tree on all neurons.

    The minimum cuts that separate some neuron inside from some neuron outside are, at most, the heaviest tree edge that
    joins the two sides: where it weighs as much as the module's own cut, that cut is one of them.
    """
    tree = modcut.gomory_hu_tree(P.graph)
    cuts = P.table.sum(1) - P.table.diagonal()
    child = torch.nonzero(tree.parent >= 0).flatten()
    count = 0
    for m in range(P.k):
        inside = P.labels == m
        weight = tree.weight[child][inside[child] != inside[tree.parent[child]]]
        count += bool(weight.numel()) and bool(weight.max() >= cuts[m] * (1 - 1e-6))
    return count


def attack(task: Task, model: nn.Module, P: Any, part: tuple[Tensor, Tensor], seed: int) -> dict[str, float]:
    """Change of each score when neurons are rescaled without changing the function."""
    other = rescaled(task, model, seed)
    ws, twin = ([w.detach().double() for w in weights_of(task, m)] for m in (model, other))
    pairs = index_pairs(ws, task.k)
    Q = partition(task, other, P.labels, part, seed)
    return {
        "leak": Q.leak - P.leak,
        "clusterability": float(b.clusterability(twin, pairs) - b.clusterability(ws, pairs)),
        "eigenvalues": float(eigenvalues(twin, task.k) - eigenvalues(ws, task.k)),
    }


def eigenvalues(ws: list[Tensor], k: int) -> Tensor:
    a = b.layered_adjacency(ws)
    live = a.sum(1) > 0
    return torch.linalg.eigvalsh(b.normalised_laplacian(a[live][:, live]))[1:k].sum()


def measure(task: Task, run: Run, seed: int, split: str) -> dict[str, Any]:
    part, model = task.splits[split], run.model
    model.eval()
    P = partition(task, model, run.labels, part, seed)
    evaluate = look(task, part)
    masks = modcut.partition.cross_masks(P.graph, P.labels)  # type: ignore[attr-defined]
    cross = {m.name: m.weight.detach()[masks[m.name]] for m in P.graph.matrices}
    out: dict[str, Any] = {
        **evaluate(model),
        "cut": modcut.cut_and_run(model, P, evaluate),
        "cut, mean": modcut.cut_and_run(model, P, evaluate, "mean", data=[task.splits["train"]]),
        "edges": sum(int((w != 0).sum()) for w in cross.values()),
        "cross": sum(w.numel() for w in cross.values()),
        "leak": P.leak,
        "ncut": P.ncut,
        "modularity": P.modularity,
        "sizes": torch.bincount(P.labels, minlength=task.k).tolist(),
    }
    if split == "test":
        last = next(s for s in P.graph.spaces if s.kind == "output")
        out |= {
            "certified": certified(P),
            "attack": attack(task, model, P, part, seed),
            "outputs": P.labels[last.vertices].tolist(),
        }
        slices = task.slices(part)
        if slices:
            s = specialisation(
                model, P, slices, task.loss, random=DRAWS, mode="mean", reference=[task.splits["train"]], seed=seed
            )
            out |= {"tv": s.tv, "tv random": s.random_mean, "p": s.p}
    return out


# ---- runs ------------------------------------------------------------------------------------------------------------
def key_of(arm: str, setting: dict[str, Any], seed: int) -> str:
    return json.dumps([arm, setting, seed], sort_keys=True)


class Table:
    """The file of finished runs."""

    def __init__(self, task: str, out: Path) -> None:
        self.task, self.out = task, out
        self.rows: dict[str, dict[str, Any]] = {}
        if out.exists():
            self.rows = {r["key"]: plain(r) for r in json.loads(out.read_text())["rows"]}

    def run(self, arm: str, setting: dict[str, Any], seed: int) -> dict[str, Any]:
        key = key_of(arm, setting, seed)
        if key in self.rows:
            return self.rows[key]
        task = TASKS[self.task](seed)
        torch.manual_seed(seed)
        began = time.process_time()
        result = ARMS[arm][0](task, seed, task.model(1.0), **setting)
        trained = time.process_time() - began
        split = "validation" if seed in CHOOSE else "test"
        row = {"key": key, "arm": arm, "setting": setting, "seed": seed, "split": split, "train_s": trained}
        row |= measure(task, result, seed, split) | {"extra": result.extra, "commit": provenance.stamp()["commit"]}
        self.rows[key] = row = plain(row)  # JSON has no NaN
        self.write()
        print(
            f"{arm}  {setting}  seed {seed}: accuracy {row['accuracy']:.4f}, cut {row['cut']['accuracy']:.4f}, "
            f"edges {row['edges']} of {row['cross']}, leak {row['leak']:.4f}, {trained:.1f} s",
            flush=True,
        )
        return row

    def write(self) -> None:
        stamp = provenance.stamp(cpu=cpu_model(), load=os.getloadavg())
        text = json.dumps({"command": provenance.command(), "stamp": stamp, "rows": list(self.rows.values())}, indent=1)
        part = self.out.with_suffix(".part")
        part.write_text(text + "\n")
        part.replace(self.out)

    def chosen(self, arm: str) -> dict[str, Any] | None:
        """The setting that the choosing seeds prefer; None where their runs are missing."""
        rows = {json.dumps(s): [self.rows.get(key_of(arm, s, x)) for x in CHOOSE] for s in ARMS[arm][1]}
        control = [self.rows.get(key_of("dense", {}, x)) for x in CHOOSE]
        if any(r is None for group in (*rows.values(), control) for r in group):
            return None
        mean = {s: [statistics.fmean(f(r) for r in group if r) for f in (_accuracy, _cut)] for s, group in rows.items()}
        enough = statistics.fmean(_accuracy(r) for r in control if r) - 0.01
        near = {s: m for s, m in mean.items() if m[0] >= enough}
        best = max(near, key=lambda s: near[s][1]) if near else max(mean, key=lambda s: mean[s][0])
        found: dict[str, Any] = json.loads(best)
        return found

    def reported(self, arm: str) -> list[dict[str, Any]]:
        setting = self.chosen(arm)
        if setting is None:
            return []
        rows = [self.rows.get(key_of(arm, setting, x)) for x in REPORT]
        return [r for r in rows if r is not None]


def _accuracy(row: dict[str, Any]) -> float:
    return float(row["accuracy"])


def _cut(row: dict[str, Any]) -> float:
    return float(row["cut"]["accuracy"])


# ---- table -----------------------------------------------------------------------------------------------------------
def interval(values: Sequence[float | None], digits: int = 3) -> str:
    """Mean and half the 95 % confidence interval (Student's t)."""
    known = [v for v in values if v is not None]  # specialisation: a slice that no ablation hurts has no shares
    if not known:
        return "-"
    mean = statistics.fmean(known)
    if len(known) < 2:
        return f"{mean:.{digits}f}"
    half = _T95[len(known)] * statistics.stdev(known) / math.sqrt(len(known))
    return f"{mean:.{digits}f} ± {half:.{digits}f}"


def stability(rows: list[dict[str, Any]]) -> float | None:
    """Mean adjusted Rand index, over pairs of seeds, of which outputs share a module."""
    from modcut.partition import adjusted_rand

    labels = [torch.tensor(r["outputs"]) for r in rows]
    pairs = [adjusted_rand(x, y) for i, x in enumerate(labels) for y in labels[i + 1 :]]
    return statistics.fmean(pairs) if pairs else None


def right(rows: list[dict[str, Any]], truth: Tensor) -> str:
    """Adjusted Rand index of the outputs' modules with the true ones."""
    from modcut.partition import adjusted_rand

    return interval([adjusted_rand(torch.tensor(r["outputs"]), truth) for r in rows], 2)


def markdown(table: Table) -> list[str]:
    truth = TASKS[table.task](0).truth
    head = [
        "method", "setting", "accuracy", "val. loss", "after the cut", "after the cut, means kept", "interface edges",
        "leak", "n-cut", "Q", "attack: leak", "attack: clusterability", "modules certified", "TV", "random TV",
        "p < .01",        "ARI of outputs", "training time / dense",
    ]  # fmt: skip
    head += [] if truth is None else ["ARI with the truth"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    time_of = statistics.fmean(r["train_s"] for r in table.reported("dense")) if table.reported("dense") else None
    for arm in ARMS:
        rows = table.reported(arm)
        if not rows:
            continue
        setting = ", ".join(
            f"{k} {v}" for k, v in rows[0]["setting"].items() if k not in ("interface", "form", "labels")
        )
        ari = stability(rows)
        special = [r for r in rows if "tv" in r]
        cells = [
            arm, setting or "-", interval([r["accuracy"] for r in rows]), interval([r["loss"] for r in rows]),
            interval([r["cut"]["accuracy"] for r in rows]), interval([r["cut, mean"]["accuracy"] for r in rows]),
            f"{statistics.fmean(r['edges'] for r in rows):.0f} of {statistics.fmean(r['cross'] for r in rows):.0f}",
            interval([r["leak"] for r in rows]), interval([r["ncut"] for r in rows], 2),
            interval([r["modularity"] for r in rows], 2),
            f"{max(abs(r['attack']['leak']) for r in rows):.0e}",
            f"{max(abs(r['attack']['clusterability']) for r in rows):.2f}",
            f"{statistics.fmean(r['certified'] for r in rows):.1f} of {len(rows[0]['sizes'])}",
            interval([r["tv"] for r in special], 2) if special else "-",
            interval([r["tv random"] for r in special], 2) if special else "-",
            f"{sum(r['p'] < 0.01 for r in special)} of {len(special)}" if special else "-",
            "-" if ari is None else f"{ari:.2f}",
            "-" if time_of is None else f"{statistics.fmean(r['train_s'] for r in rows) / time_of:.1f}",
        ]  # fmt: skip
        cells += [] if truth is None else [right(rows, truth)]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def into_page(task: str, lines: list[str]) -> None:
    """Put the table between the page's markers of this task."""
    page = ROOT / "docs" / "frontier.md"
    begin, end = f"<!-- {task} -->", f"<!-- /{task} -->"
    before, _, rest = page.read_text(encoding="utf-8").partition(begin)
    after = rest.partition(end)[2]
    page.write_text(before + "\n".join([begin, *lines, end]) + after, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=[*TASKS, *frontier_graph.NETS], default="digits")
    parser.add_argument("--arms", nargs="+", help="only these (dense is always run)")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--table", action="store_true", help="run nothing; write what is there into docs/frontier.md")
    args = parser.parse_args()
    torch.set_num_threads(1)
    out = args.out or ROOT / "benchmarks" / "results" / f"frontier_{args.task}.json"
    known = ARMS if args.task in TASKS else frontier_graph.ARMS
    if unknown := set(args.arms or []) - set(known):
        parser.error(f"--arms must be among {', '.join(known)}, got {', '.join(sorted(unknown))}")
    if args.task in frontier_graph.NETS:
        other = frontier_graph.Table(args.task, out)
        if not args.table:
            frontier_graph.run_all(other, ["dense", *(a for a in args.arms or known if a != "dense")])
        lines = frontier_graph.markdown(other)
        print("\n".join(lines))
        if args.table:
            into_page(args.task, lines)
        return
    table = Table(args.task, out)
    if not args.table:
        arms = ["dense", *(a for a in args.arms or ARMS if a != "dense")]
        for arm in arms:
            for setting in ARMS[arm][1]:
                for seed in CHOOSE:
                    table.run(arm, setting, seed)
            best = table.chosen(arm)
            assert best is not None
            for seed in REPORT:
                table.run(arm, best, seed)
    lines = markdown(table)
    print("\n".join(lines))
    if args.table:
        into_page(args.task, lines)


if __name__ == "__main__":
    main()
