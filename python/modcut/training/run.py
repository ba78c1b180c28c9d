"""``modcut train``: the control and the modular arm, measured alike, written with their origin."""

from __future__ import annotations

import itertools
import os
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from torch import nn

import modcut
from modcut import capability, provenance
from modcut._files import plain, write_json, write_text
from modcut.controls import matched_labels
from modcut.graph.edges import with_edge
from modcut.graph.statistics import collect
from modcut.graph.types import WeightGraph
from modcut.loading import load_model
from modcut.organisms import GPT, GPTConfig
from modcut.partition import Partition, cross_masks
from modcut.reporting.draw import standalone
from modcut.specialise import specialisation
from modcut.training import checkpoint, lowrank
from modcut.training.config import Config
from modcut.training.data import Task, make_task
from modcut.training.loop import Arm, Stop
from modcut.training.page import frontier, spark, table, write_page

_RANDOM_CUTS = 5  # random partitions that are cut too: an evaluation each


def train(config: Config, out: Path, *, fresh: bool = False, console: Console | None = None) -> dict[str, Any]:
    """Train, measure and write ``results.json``, ``report.html``, ``curves.svg`` and the checkpoints into ``out``.

    The arm without the loss is trained first and judged on the other's partition: same start, batches, steps. A run
    that was stopped goes on from its checkpoints, to the bit.

    Raises:
        ValueError: ``out`` holds a run of another config; a model that cannot be partitioned as asked.
        KeyboardInterrupt: stopped by the user; the state is saved.
    """
    first = os.environ.get("RANK", "0") == "0"
    console, began = console or Console(quiet=not first), time.perf_counter()
    if fresh and first and out.exists():
        for name in ("checkpoints", "results.json", "report.html", "curves.svg"):
            path = out / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    names = (["control"] if config.report.control or config.loss.form == "none" else []) + (
        ["modular"] if config.loss.form != "none" else []
    )
    arms: dict[str, Arm] = {}
    stop = Stop()
    with stop.listening(), _progress(console) as bar:
        for name in names:
            model, tokenizer, facts = build(config)
            task = make_task(
                config.data, tokenizer, config.training.evaluate_batches, config.training.batch, config.seed
            )
            graph = graph_of(model, task)
            modular = name == "modular"
            baseline = arms["control"].curve if modular and "control" in arms else None
            path = out / "checkpoints" / f"{name}.safetensors"
            arm = Arm(config, task, model, graph, modular=modular, path=path, baseline=baseline)
            arms[name] = arm
            line = bar.add_task(name, total=config.training.steps, completed=arm.step, loss="", leak="")

            def tick(arm: Arm, loss: float, line: Any = line) -> None:
                found = [r["leak"] for r in arm.curve if r.get("leak") is not None]
                shown = f"leak {found[-1]:.3f} {spark(found)}" if found else ""
                losses = [r["loss"] for r in arm.curve]
                bar.update(line, completed=arm.step, loss=f"loss {losses[-1]:.3f} {spark(losses)}", leak=shown)
                if first and arm.step % config.training.evaluate_every == 1:  # the live picture
                    write_text(out / "curves.svg", standalone(frontier({n: a.curve for n, a in arms.items()})))

            arm.train(stop, tick)
            if config.model.low_rank:
                lowrank.merge(model)
    crit = arms[names[-1]].crit
    labels = None if crit is None or crit.partition is None else crit.labels.cpu().clone()
    origin = None if crit is None else crit.partition_origin
    if crit is not None:
        crit.close()
    rows = []
    for name, arm in arms.items():
        console.print(f"measuring {name}", highlight=False)
        rows.append(
            {
                "arm": name,
                "digest": provenance.digest(arm.model),
                "steps": arm.step,
                "measures": measure(config, arm.task, arm.model, arm.graph, labels),
                "curve": arm.curve,
                "lam": None if arm.crit is None else arm.crit.lam,
                "budget": [] if arm.budget is None else [list(h) for h in arm.budget.history],
            }
        )
        if first:
            checkpoint.save(out / f"{name}.safetensors", arm.model, digest=rows[-1]["digest"])
    results = plain(
        {
            "kind": "train",
            "config": config.to_dict(),
            "model": facts,
            "data": arms[names[-1]].task.facts,
            "partition": origin,
            "arms": rows,
            "seconds": round(time.perf_counter() - began, 1),
            "stamp": provenance.stamp(seed=config.seed, command=provenance.command()),
        }
    )
    results["findings"] = findings(results)
    if not first:
        return results  # type: ignore[no-any-return]
    if labels is not None:
        Partition(labels, arms[names[-1]].graph, config.loss.k, {"method": origin}).save(out / "partition.safetensors")
    write_json(out / "results.json", results)
    write_page(results, out)
    show(results, console)
    return results  # type: ignore[no-any-return]


def build(config: Config) -> tuple[nn.Module, Any, dict[str, Any]]:
    """Return the untrained (or pretrained) model, its tokenizer, and facts about it; the same for every arm."""
    m = config.model
    torch.manual_seed(config.seed)
    if m.kind == "pretrained":
        loaded = load_model(m.source)
        return loaded.model, loaded.tokenizer, loaded.facts
    if m.kind == "mlp":
        sizes = [64, *[m.width] * m.layers, 10]
        pairs = itertools.pairwise(sizes)
        layers = [nn.Sequential(nn.Linear(a, b), nn.ReLU()) for a, b in pairs]
        parts = [x for layer in layers for x in layer][:-1]
        return nn.Sequential(*parts), None, {"class": "MLP", "sizes": sizes}
    shape = GPTConfig(context=config.data.length, width=m.width, layers=m.layers, heads=m.heads, mlp=m.mlp)
    return GPT(shape, seed=config.seed), None, {"class": "GPT", **shape.to_dict()}


def graph_of(model: nn.Module, task: Task) -> WeightGraph:
    """Return the model's graph; large vocabularies are left out."""
    example = task.reference[0]
    example = example[:1] if isinstance(example, torch.Tensor) else example[0][:2]
    ends: dict[str, Any] = {} if task.sizes else {"include_inputs": False, "include_outputs": False}
    graph: WeightGraph = modcut.weight_graph(model, example, **ends)
    if not graph.matrices:
        raise ValueError(f"model must have a weight matrix to be partitioned, {type(model).__name__} has none")
    return graph


def measure(
    config: Config, task: Task, model: nn.Module, graph: WeightGraph, labels: torch.Tensor | None
) -> dict[str, Any]:
    """Measure one trained model, beside its controls; ``labels`` judge both arms."""
    found: dict[str, Any] = {"loss": task.loss(model), "accuracy": task.accuracy(model)}
    if config.report.winograd and task.tokenizer is not None:
        found["winograd"] = capability.winograd(model, task.tokenizer).accuracy
    if labels is None:
        return found
    k, seed, random = config.loss.k, config.seed, config.report.random
    strong = with_edge(graph, "contribution", collect(graph, model, task.reference))
    P = Partition(labels, strong, k)
    g = torch.Generator().manual_seed(seed + 11)
    others = [Partition(matched_labels(graph, labels, g), strong, k) for _ in range(random)]
    masks = cross_masks(graph, labels)
    weights = {m.name: m.weight.detach() for m in graph.matrices}
    found["leak"] = P.leak
    found["random_leak"] = sum(o.leak for o in others) / random
    found["cross"] = sum(int(m.sum()) for m in masks.values())
    found["cross_nonzero"] = sum(int((weights[n][m] != 0).sum()) for n, m in masks.items())
    found["cut_zero"] = modcut.cut_and_run(model, P, task.loss, "zero")
    found["cut_mean"] = modcut.cut_and_run(model, P, task.loss, "mean", data=task.reference)
    some = others[:_RANDOM_CUTS]
    found["random_cut"] = sum(modcut.cut_and_run(model, o, task.loss, "zero") for o in some) / len(some)
    if len(task.held) > 1:
        held = {name: part[:1] for name, part in task.held.items()}
        special = specialisation(model, P, held, random=random, mode="mean", reference=task.reference, seed=seed)
        found |= {"tv": special.tv, "random_tv": special.random_mean, "p": special.p, "random_tvs": special.random_tv}
    return found


def findings(results: dict[str, Any]) -> list[str]:
    """Return what the figures say in sentences, each with its control."""
    arms = {a["arm"]: a["measures"] for a in results["arms"]}
    if "modular" not in arms:
        return ["No loss was on: this run is a control."]
    m, c = arms["modular"], arms.get("control")
    said = []
    if c is not None:
        said.append(f"Validation loss {m['loss']:.3f} with the loss, {c['loss']:.3f} without it, after equal steps.")
    if m.get("leak") is None:
        return [*said, "Training ended before a partition was found: nothing is said about modules."]
    beside = "" if c is None else f" (without the loss, same partition: {c['leak']:.3f})"
    said.append(f"Leak {m['leak']:.3f}{beside}; random partitions of the same network: {m['random_leak']:.3f}.")
    said.append(
        f"With every cross-module weight deleted the loss is {m['cut_zero']:.3f}"
        + ("" if c is None else f"; the control's {c['cut_zero']:.3f}")
        + f"; cut at random partitions {m['random_cut']:.3f}."
    )
    if m.get("tv") is not None and m.get("p") is not None:
        verdict = "above" if m["p"] < 0.05 else "not above: no evidence of specialisation"
        said.append(f"Specialisation TV {m['tv']:.2f} beside {m['random_tv']:.2f}, p = {m['p']:.3f}: {verdict}.")
    return said


def show(results: dict[str, Any], console: Console | None = None) -> None:
    """Print the table and the findings."""
    console = console or Console()
    grid = Table("measure", *(a["arm"] for a in results["arms"]))
    for row in table(results):
        grid.add_row(*(f"{v:.4g}" if isinstance(v, float) else "" if v is None else str(v) for v in row))
    console.print(grid)
    for sentence in results["findings"]:
        console.print(sentence, highlight=False)


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        TextColumn("{task.completed}/{task.total}"),
        TextColumn("{task.fields[loss]}"),
        TextColumn("{task.fields[leak]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    )
