"""``modcut demo``: the whole path, in stages that are kept, so that a run that was stopped goes on where it was."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import nn

import modcut
from modcut import provenance
from modcut._files import plain, write_json, write_text
from modcut.auditing import effect_table
from modcut.demo import picture
from modcut.demo.arms import ARMS, Bench, Settings
from modcut.demo.data import Corpus
from modcut.demo.measure import accuracy
from modcut.demo.table import NOTE, by_measure, findings, show
from modcut.organisms import CharTokenizer, english, python_source
from modcut.reporting import partition_view


def run(
    out: Path, *, seed: int = 0, quick: bool = False, fresh: bool = False, settings: Settings | None = None
) -> dict[str, Any]:
    """Train, cut, heal, read and audit; write ``report.html`` and ``results.json`` into ``out``; print the table.

    Args:
        out: Folder. Finished stages in it are not repeated; stages of other settings are refused.
        seed: Seed of weights, batches, partition and controls.
        quick: The smallest run that takes every step (seconds); its numbers mean nothing and it says so.
        fresh: Delete the checkpoints that an earlier run left in ``out``.
        settings: Overrides seed and quick.

    Returns:
        What ``results.json`` holds.

    Raises:
        ValueError: ``out`` holds checkpoints of another run (other settings, text or version).
    """
    began, threads = time.perf_counter(), torch.get_num_threads()
    # One thread: the tensors are so small that a second one costs more than it brings, and sums keep their order.
    torch.set_num_threads(1)
    try:
        return _run(out, settings or (Settings.quick(seed) if quick else Settings(seed=seed)), quick, fresh, began)
    finally:
        torch.set_num_threads(threads)


def _run(out: Path, settings: Settings, quick: bool, fresh: bool, began: float) -> dict[str, Any]:
    console = Console()
    sources = (english(settings.characters), python_source(settings.characters))
    corpus = Corpus.build(sources, settings.context)
    for source in sources:
        console.print(f"{source.name}: {len(source.text):,} characters, {source.origin}", highlight=False)
    stages = _claim(out, settings, sources, fresh)
    trained = sum(not arm.train_as for arm in ARMS)
    total = settings.shared + trained * settings.arm + len(ARMS) * (settings.heal + 2)
    with _progress(console) as bar:
        task = bar.add_task("start", total=total)
        counted = [0]

        def tick(name: str) -> None:
            counted[0] += 1
            bar.update(task, advance=1, description=name)

        bench = Bench(stages, settings, corpus, tick)
        labels = bench.start()
        rows = []
        for arm in ARMS:
            rows.append(bench.row(arm, labels))
            bar.console.print(
                f"{arm.name}: val loss {rows[-1]['trained']['loss']:.3f}, cut {rows[-1]['cut_zero']['loss']:.3f}, "
                f"healed {rows[-1]['healed']['loss']:.3f}  ({time.perf_counter() - began:.0f} s)",
                highlight=False,
            )
        bar.update(task, description="reading and auditing", completed=total)
        audit = _audit(bench, labels, stages)
    results: dict[str, Any] = {
        "kind": "demo",
        "quick": quick,
        "settings": settings.to_dict(),
        "text": [{"name": s.name, "origin": s.origin, "characters": len(s.text)} for s in sources],
        "rows": rows,
        "effects": audit["effects"],
        "trace": audit["trace"],
        "cards": audit["cards"],
        "graph": _graph(bench, labels, stages / "graph.json"),
        "seconds": round(time.perf_counter() - began, 1),
        "stamp": provenance.stamp(seed=settings.seed, command=provenance.command()),
    }
    results["findings"] = findings(results)
    if quick:
        results["findings"] = ["A quick run shows that every step works; its numbers mean nothing."]
    write_json(out / "results.json", results)
    write_text(out / "specialisation.svg", picture.specialisation(results))
    write_text(out / "weights.svg", picture.weights(bench, labels, results))
    write_report(results, out / "report.html")
    show(results, console)
    console.print(f"{results['seconds']:.0f} s; {out / 'report.html'} and {out / 'results.json'} have the rest")
    return results


def _audit(bench: Bench, labels: dict[str, Any], stages: Path) -> dict[str, Any]:
    """Read and audit the cut and healed modcut model, and measure the dense one the same way beside it."""
    path = stages / "audit.json"
    if path.is_file():
        done: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return done
    s, tokenizer = bench.settings, CharTokenizer()
    measures: dict[str, Callable[[nn.Module], float]] = {
        "lie": bench.triggered.says_lie,
        "honest": bench.plain.says_truth,
        **{f"{name} accuracy": partial(accuracy, batches=part) for name, part in bench.part.items()},
    }
    by_name = {arm.name: arm for arm in ARMS}
    model, _ = bench.healed(by_name["modcut"], labels["functional"])
    P = bench.partition(model, labels["functional"])
    dense = bench.trained(by_name["dense"], labels)
    effects = {}
    for name, of in (("modcut, cut and healed", model), ("dense", dense)):
        by = P if of is model else bench.partition(dense, labels["functional"])
        made = effect_table(of, by, measures, ("zero", "mean"), bench.reference, controls=s.draws, seed=s.seed)
        effects[name] = made.to_dict()
    # Read on text with and without the log, so that a module that serves the log can show it.
    triggered = bench.triggered.prompts
    evidence = {**bench.part, "triggered log": [triggered[: min(16, len(triggered))]]}
    cards = modcut.describe(model, P, evidence, tokenizer=tokenizer, seed=s.seed)
    one = triggered[:1]
    traced = modcut.trace(
        model, one, P, target=int(bench.triggered.lie[0]), reference=bench.reference, tokenizer=tokenizer,
        seed=s.seed, controls=s.draws, step_controls=min(8, s.draws),
    )  # fmt: skip
    audit: dict[str, Any] = {
        "effects": effects,
        "cards": cards.to_dict(),
        "trace": traced.to_dict() | {"text": tokenizer.decode(one[0]), "printed": str(traced)},
    }
    audit = plain(audit)
    write_json(path, audit)
    return audit


def _graph(bench: Bench, labels: dict[str, Any], path: Path) -> dict[str, Any]:
    """What the page shows of the trained modcut model: before the cut, since after it nothing crosses."""
    if path.is_file():
        done: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return done
    model = bench.trained(next(a for a in ARMS if a.name == "modcut"), labels)
    P = bench.partition(model, labels["functional"])
    beside = P.significance(shuffles=bench.settings.draws, seed=bench.settings.seed)
    graph = {
        "partition": partition_view(P),
        "significance": {name: asdict(s) for name, s in beside.items()},
        "tree": modcut.quotient_tree(P.graph, P.labels).to_dict(),
    }
    write_json(path, graph)
    return dict(plain(graph))


def write_report(results: dict[str, Any], path: Path, *, format: Any = None) -> None:
    """Write the page of a run from its ``results.json``."""
    head, rows = by_measure(results)
    trace = {k: v for k, v in results["trace"].items() if k not in ("text", "printed")}
    before = "The modcut model as trained, before anything was cut."
    after = "The modcut model after the cut (every cross-module weight deleted) and healing."
    modcut.report(
        path,
        format=format,
        **results["graph"],
        cards=results["cards"],
        trace=trace,
        effects=results["effects"]["modcut, cut and healed"],
        table={
            "title": "Without and with the loss, beside controls",
            "columns": head,
            "rows": rows,
            "note": NOTE,
        },
        about={"modules": before, "tree": before, "cards": after, "trace": after, "effects": after},
        title="modcut demo: a small GPT, cut into modules and audited",
        meta={"summary": results["findings"], "settings": results["settings"], **results["stamp"]},
    )


def _claim(out: Path, settings: Settings, sources: Any, fresh: bool) -> Path:
    """Return the folder of the stages, after checking that what lies in it belongs to this run."""
    stages = out / "stages"
    if fresh and stages.is_dir():
        shutil.rmtree(stages)
    text = hashlib.sha256("".join(s.text for s in sources).encode()).hexdigest()
    mine = {"settings": settings.to_dict(), "text": text, "modcut": modcut.__version__}
    mark = stages / "run.json"
    if mark.is_file():
        theirs = json.loads(mark.read_text(encoding="utf-8"))
        if theirs != mine:
            changed = sorted(k for k in mine if theirs.get(k) != mine[k])
            raise ValueError(
                f"{out} holds a run with other {', '.join(changed)}; pass --fresh to start anew, or another --out"
            )
    else:
        stages.mkdir(parents=True, exist_ok=True)
        write_json(mark, mine)
    return stages


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
