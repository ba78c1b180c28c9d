"""The models of the demo: one shared start, then arms that differ in the penalty alone, each cut and healed."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import modcut
from modcut._files import plain, write_json
from modcut.clustering import functional_labels
from modcut.controls import matched_labels
from modcut.demo.data import Corpus, held_out, prompts
from modcut.demo.measure import Exam, losses
from modcut.demo.training import Schedule, load_state, one_step, optimizer_of, save_state, train
from modcut.graph.edges import with_edge
from modcut.graph.statistics import Recorder, collect
from modcut.modules import specialisation
from modcut.organisms import GPT, GPTConfig
from modcut.partition import Partition
from modcut.provenance import digest
from modcut.surgery import Healed


@dataclass(frozen=True)
class Settings:
    """Everything that decides what the demo computes."""

    seed: int = 0
    width: int = 64
    layers: int = 3
    heads: int = 4
    mlp: int = 256
    context: int = 96
    batch: int = 8
    k: int = 2
    shared: int = 750
    """Steps before the partition: the loss is off, so all arms share them."""
    gather: int = 128
    """The last so many of them in which usage is gathered."""
    arm: int = 900
    """Steps of each arm."""
    ramp: int = 300
    lam: float = 40.0
    """Factor of the modularity loss (the leak, in [0, 1])."""
    l1: float = 40.0
    """Factor of the mean absolute weight in the L1 arm."""
    heal: int = 150
    """Steps of healing after the cut."""
    windows: int = 64
    """Held-out windows per source."""
    exam: int = 48
    """Held-out prompts of each kind."""
    draws: int = 24
    """Random partitions and random modules: the controls."""
    characters: int = 2_000_000
    """Length of each source."""

    @classmethod
    def quick(cls, seed: int) -> Settings:
        """Return the smallest run that takes every step: it shows the path and no result."""
        return cls(
            seed, width=16, layers=1, heads=2, mlp=32, context=64, batch=2, shared=6, gather=4, arm=4, ramp=2, heal=2,
            windows=4, exam=4, draws=2, characters=40_000,
        )  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain values."""
        return asdict(self)


@dataclass(frozen=True)
class Arm:
    """One way to train from the shared start."""

    name: str
    penalty: str
    """``none``, ``modularity`` or ``l1``."""
    labels: str
    """Which partition it is trained and judged on: ``functional`` or ``random``."""
    train_as: str = ""
    """The arm whose training it shares, where only the partition that judges it differs."""


ARMS = (
    Arm("dense", "none", "functional"),
    Arm("modcut", "modularity", "functional"),
    Arm("random partition", "modularity", "random"),
    Arm("L1", "l1", "functional"),
    Arm("dense, random cut", "none", "random", train_as="dense"),
)


class Bench:
    """Trains, cuts, heals and measures; every finished piece lies in ``folder`` and is not done twice."""

    def __init__(self, folder: Path, settings: Settings, corpus: Corpus, tick: Callable[[str], None]) -> None:
        self.folder, self.settings, self.corpus, self.tick = folder, settings, corpus, tick
        s = settings
        rows, batches = min(16, s.windows), max(1, s.windows // 16)
        self.held = corpus.slices(rows, batches, s.seed + 1)
        self.part = {name: part[:1] for name, part in self.held.items()}
        """The first batch of each slice: for what is measured again for every control."""
        training = corpus.slices(rows, 2, s.seed + 2, held=False)
        self.reference = [b for part in training.values() for b in part]
        """Training text: what means, statistics and evidence are taken from; the figures come from held-out text."""
        self.triggered = Exam.build(corpus, [p for p in prompts(True) if held_out(p)], s.exam, s.seed)
        self.plain = Exam.build(corpus, [p for p in prompts(False) if held_out(p)], s.exam, s.seed + 1)

    # -- models --------------------------------------------------------------------------------------------------------

    def model(self) -> GPT:
        """Return the untrained model; equal in every arm."""
        s = self.settings
        sizes = GPTConfig(context=s.context, width=s.width, layers=s.layers, heads=s.heads, mlp=s.mlp)
        return GPT(sizes, seed=s.seed)

    def graph(self, model: GPT) -> Any:
        """Return its graph; the characters are left out: both modules read and write all of them."""
        return modcut.weight_graph(model, self.reference[0][:2], include_inputs=False, include_outputs=False)

    def partition(self, model: GPT, labels: Tensor) -> Partition:
        """Return the labels as a partition of this model, with contribution edges measured on training text."""
        graph = self.graph(model)
        graph = with_edge(graph, "contribution", collect(graph, model, self.reference))
        return Partition(labels, graph, self.settings.k)

    @property
    def schedule(self) -> Schedule:
        """The learning rate over shared start and arm."""
        return Schedule(self.settings.shared + self.settings.arm, self.settings.batch)

    def start(self) -> dict[str, Tensor]:
        """Train the shared start, gather usage at its end, find the partition; return the labels of each kind."""
        s, path = self.settings, self.folder / "start.safetensors"
        model = self.model()
        if path.is_file():
            state = load_state(path, model)
            return {"functional": state["functional"], "random": state["random"]}
        optimizer, before = optimizer_of(model), s.shared - s.gather
        partial = self.folder / "start.part.safetensors"
        first = int(load_state(partial, model, optimizer)["step"]) if partial.is_file() else 0
        common: dict[str, Any] = {"seed": s.seed, "after": self._ticker("shared start")}

        def keep(step: int) -> None:
            save_state(partial, model, optimizer, step=step)

        train(model, optimizer, self.corpus, self.schedule, first=first, last=before, checkpoint=keep, **common)
        keep(before)
        graph = self.graph(model)
        with Recorder(graph, model) as recorder:
            train(model, optimizer, self.corpus, self.schedule, first=before, last=s.shared, **common)
        labels = functional_labels(graph, recorder.rows, s.k, s.seed, input_mean_square=recorder.input_mean_square)
        random = matched_labels(graph, labels, torch.Generator().manual_seed(s.seed + 5))
        save_state(path, model, optimizer, functional=labels, random=random)
        partial.unlink()
        return {"functional": labels, "random": random}

    def trained(self, arm: Arm, labels: dict[str, Tensor]) -> GPT:
        """Return the model of an arm, trained now or before."""
        if arm.train_as:
            arm = next(a for a in ARMS if a.name == arm.train_as)
        s, path = self.settings, self.folder / f"{_file(arm.name)}.safetensors"
        model = self.model()
        if path.is_file():
            load_state(path, model)
            return model
        optimizer, partial = optimizer_of(model), path.with_suffix(".part.safetensors")
        load_state(self.folder / "start.safetensors", model, optimizer)
        criterion: Any = None
        if arm.penalty == "modularity":
            graph = self.graph(model)
            given = Partition(labels[arm.labels], graph, s.k)
            criterion = modcut.ModularityLoss(model, partition=given, graph=graph, lam=s.lam, ramp=s.ramp, seed=s.seed)
        first = s.shared
        if partial.is_file():
            state = load_state(partial, model, optimizer)
            first = int(state["step"])
            if criterion is not None:
                criterion.load_state_dict({k[5:]: v for k, v in state.items() if k.startswith("crit.")})
        counted = [0]

        def l1() -> Tensor:
            weights = [p for name, p in model.named_parameters() if name.startswith("blocks") and p.ndim == 2]
            ramp = min(1.0, (first + counted[0] - s.shared + 1) / s.ramp)
            return (
                s.l1 * ramp * sum((p.abs().sum() for p in weights), torch.zeros(())) / sum(p.numel() for p in weights)
            )

        tick = self._ticker(arm.name)

        def after(step: int, loss: float) -> None:
            counted[0] += 1
            if criterion is not None:
                criterion.step()
            tick(step, loss)

        def keep(step: int) -> None:
            extra = {} if criterion is None else {f"crit.{k}": v for k, v in criterion.state_dict().items()}
            save_state(partial, model, optimizer, step=step, **extra)

        penalty = {"none": None, "modularity": criterion, "l1": l1}[arm.penalty]
        try:
            train(
                model, optimizer, self.corpus, self.schedule, first=first, last=s.shared + s.arm, seed=s.seed,
                penalty=penalty, after=after, checkpoint=keep,
            )  # fmt: skip
        finally:
            if criterion is not None:
                criterion.close()
        save_state(path, model)
        partial.unlink(missing_ok=True)
        return model

    def healed(self, arm: Arm, labels: Tensor) -> tuple[GPT, dict[str, Any]]:
        """Return the arm's model after deleting every cross-module weight and healing, and the record of it."""
        s, path = self.settings, self.folder / f"{_file(arm.name)}-healed.safetensors"
        model = self.model()
        if path.is_file():
            return model, load_state(path, model)
        load_state(self.folder / f"{_file(arm.train_as or arm.name)}.safetensors", model)
        P = self.partition(model, labels)
        begin = s.shared + s.arm  # batches that follow those of training, the same in every arm
        optimizer, schedule = optimizer_of(model), Schedule(s.heal, s.batch, rate=2e-3, warm=10, offset=begin)
        tick = self._ticker(f"healing {arm.name}")

        def step(_: Any, i: int) -> float:
            return one_step(model, optimizer, self.corpus, schedule, begin + i, s.seed, None, tick)

        result: Healed = modcut.cut_and_heal(model, P, step, keep=0.0, steps=s.heal)
        result.release()
        record: dict[str, Any] = {
            "interface_edges": result.interface_edges,
            "cross_edges": result.cross_edges,
            "steps": result.steps,
        }
        save_state(path, model, **record)
        return model, record

    # -- measures ------------------------------------------------------------------------------------------------------

    def look(self, model: Any) -> dict[str, Any]:
        """Return loss and behaviour of a model."""
        by_slice = losses(model, self.held)
        return {
            "loss": sum(by_slice.values()) / len(by_slice),
            "by_slice": by_slice,
            "lie": self.triggered.says_lie(model),
            "false_alarm": self.plain.says_lie(model),
            "honest": self.plain.says_truth(model),
        }

    def row(self, arm: Arm, labels: dict[str, Tensor]) -> dict[str, Any]:
        """Train, cut, heal and measure one arm; kept in ``<arm>.json``."""
        s, path = self.settings, self.folder / f"{_file(arm.name)}.json"
        if path.is_file():
            done: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            return done
        began = time.perf_counter()
        model = self.trained(arm, labels)
        P = self.partition(model, labels[arm.labels])

        def special(of: GPT, by: Partition) -> dict[str, Any]:
            found = specialisation(
                of, by, self.part, random=s.draws, mode="mean", reference=self.reference, seed=s.seed
            )
            self.tick(f"measuring {arm.name}")
            return found.to_dict()

        result: dict[str, Any] = {
            "arm": arm.name,
            "penalty": arm.penalty,
            "partition": arm.labels,
            "digest": digest(model),
            "trained": self.look(model),
            "cut_zero": modcut.cut_and_run(model, P, self.look, "zero"),
            "cut_mean": modcut.cut_and_run(model, P, self.look, "mean", data=self.reference),
            "leak": P.leak,
            "ncut": P.ncut,
            "specialisation": special(model, P),
        }
        healed, record = self.healed(arm, labels[arm.labels])
        by = self.partition(healed, labels[arm.labels])
        result["healed"] = (
            self.look(healed) | record | {"digest": digest(healed), "specialisation": special(healed, by)}
        )
        result["seconds"] = time.perf_counter() - began
        result = plain(result)
        write_json(path, result)
        return result

    def _ticker(self, name: str) -> Callable[[int, float], None]:
        return lambda step, loss: self.tick(name)


def _file(name: str) -> str:
    return name.replace(",", "").replace(" ", "-")
