"""One arm of a run: a training loop that can be stopped at any step and goes on to the bit."""

from __future__ import annotations

import json
import math
import os
import signal
import threading
from bisect import bisect_left
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

import modcut
from modcut import _batches
from modcut.graph.types import WeightGraph
from modcut.integrations import distributed
from modcut.loss import ModularityLoss
from modcut.training import checkpoint, lowrank
from modcut.training.config import Config
from modcut.training.data import Task

Curve = list[dict[str, Any]]


class Stop:
    """Ctrl-C and SIGTERM as a wish: the step in progress is finished, the state saved, then the process ends."""

    def __init__(self) -> None:
        self.wanted = False

    @contextmanager
    def listening(self) -> Iterator[Stop]:
        """Take over the signals inside the block (in the main thread; elsewhere nothing is changed)."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}

        def wish(number: int, frame: Any) -> None:
            if self.wanted:  # asked twice: now
                raise KeyboardInterrupt
            self.wanted = True

        try:
            for s in before:
                signal.signal(s, wish)
            yield self
        finally:
            for s, handler in before.items():
                signal.signal(s, handler)


class Arm:
    """A model in training, with or without the loss.

    Args:
        config: of the run.
        task: the data.
        model: trained in place.
        graph: its graph.
        modular: whether the loss is on.
        path: the checkpoint.
        baseline: the control's curve, where lam is to hold a budget above it.
    """

    def __init__(
        self,
        config: Config,
        task: Task,
        model: nn.Module,
        graph: WeightGraph,
        *,
        modular: bool,
        path: Path,
        baseline: Curve | None = None,
    ) -> None:
        self.config, self.task, self.model, self.graph, self.path = config, task, model, graph, path
        t, s = config.training, config.loss
        self.crit: ModularityLoss | None = None
        self.budget: modcut.optim.Budget | None = None
        if modular:
            self.crit = make_loss(config, model, graph)
        if config.model.low_rank:
            lowrank.attach(model, graph, config.model.low_rank, config.seed)
        trained = [p for p in model.parameters() if p.requires_grad]
        if not trained:
            raise ValueError("model must have a parameter that can be trained, all are frozen")
        inner = torch.optim.AdamW(trained, lr=t.lr, betas=(0.9, 0.98), weight_decay=t.weight_decay)
        self.inner = inner
        self.optimizer: torch.optim.Optimizer = inner
        if self.crit is not None and s.form == "proximal":
            self.optimizer = modcut.optim.Proximal(inner, self.crit)
        if self.crit is not None and s.budget:
            reference = None if not baseline else _interpolated(baseline)
            self.budget = modcut.optim.Budget(
                self.crit, task.loss, s.budget, baseline=reference, every=max(1, t.evaluate_every // 2)
            )
        # Under torchrun every process takes its share of each batch; what is written is written by the first.
        self.rank, self.world = _processes()
        self.run = model
        if self.world > 1:
            self.run = nn.parallel.DistributedDataParallel(model)
        if t.compile:
            self.run = torch.compile(self.run)  # type: ignore[assignment]
        self.step = 0
        self.curve: Curve = []
        self.done = False
        if path.is_file():
            self._resume()

    # -- steps ---------------------------------------------------------------------------------------------------------

    def train(self, stop: Stop, tick: Callable[[Arm, float], None] = lambda arm, loss: None) -> None:
        """Train to the end, with checkpoints on the way.

        Raises:
            KeyboardInterrupt: ``stop`` was asked for; the state is saved.
            RuntimeError: the loss became NaN or infinite; the last checkpoint is from before.
        """
        t = self.config.training
        if not self.curve and not self.done:
            self._evaluate()
        while self.step < t.steps:
            loss = self._one()
            tick(self, loss)
            if self.step % t.evaluate_every == 0 or self.step == t.steps:
                self._evaluate()
            if stop.wanted or (self.step % t.checkpoint_every == 0 and self.step < t.steps):
                self.save()
            if stop.wanted:
                raise KeyboardInterrupt
        if not self.done:
            self.done = True
            self.save()

    def _one(self) -> float:
        t, crit = self.config.training, self.crit
        for group in self.inner.param_groups:
            group["lr"] = self._rate()
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for i in range(t.accumulate):
            number = (self.step * t.accumulate + i) * self.world + self.rank
            batch = self.task.batch(number, t.batch, self.config.seed)
            batch = _batches.to_device(batch, _batches.device_of(self.model))
            with torch.autocast(_batches.device_of(self.model).type, torch.bfloat16, enabled=t.amp == "bfloat16"):
                loss = _batches.loss_of(self.run, batch)
            (loss / t.accumulate).backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach()) / t.accumulate
        if not math.isfinite(total):
            kept = (
                f"the state of step {self._kept()} is in {self.path.name}" if self.path.is_file() else "none is saved"
            )
            raise RuntimeError(f"the task loss must stay finite, it is {total} at step {self.step}; {kept}")
        if crit is not None and self.config.loss.form == "gradient":
            distributed.backward_(crit)
        if t.clip:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), t.clip)
        if crit is not None:
            distributed.synchronise(crit)
        self.optimizer.step()
        if crit is not None:
            distributed.step(crit)
        if self.budget is not None:
            self.budget.step()
        self.step += 1
        return total

    def _rate(self) -> float:
        """Linear warm-up, then linear decay to a twentieth."""
        t = self.config.training
        return t.lr * min(1.0, (self.step + 1) / max(1, t.warm)) * (0.05 + 0.95 * (1 - self.step / t.steps))

    def _evaluate(self) -> None:
        by_slice = self.task.losses(self.model)
        row: dict[str, Any] = {"step": self.step, "loss": sum(by_slice.values()) / len(by_slice), "slices": by_slice}
        crit = self.crit
        if crit is not None:
            row |= {"phase": crit.phase, "lam": crit.lam, "weight": crit.weight}
            if crit.partition is not None:
                with torch.no_grad():
                    row["leak"] = float(crit.leak())
                row["interface"] = None if crit.interface_edges is None else crit.interface_edges / crit.cross_edges
        self.curve.append(row)

    # -- state ---------------------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Write the checkpoint."""
        parts = {} if self.crit is None else {"crit": self.crit.state_dict()}
        plain: dict[str, Any] = {"step": self.step, "curve": self.curve, "done": self.done}
        plain["config"] = _identity(self.config)
        if self.budget is not None:
            plain["budget"] = self.budget.state_dict()
        if self.rank == 0:
            checkpoint.save(self.path, self.model, self.inner, parts, **plain)
        if self.world > 1:
            torch.distributed.barrier()

    def _kept(self) -> int:
        return int(checkpoint.read(self.path)[0]["step"])

    def _resume(self) -> None:
        plain, tensors = checkpoint.read(self.path)
        was, now = plain["config"], _identity(self.config)
        if was != now:
            key = next(k for k in sorted({*was, *now}) if was.get(k) != now.get(k))
            raise ValueError(
                f"{self.path} was made with {key} = {was.get(key)!r}, the config now says {now.get(key)!r}: "
                "use another --out, or --fresh to delete it"
            )
        checkpoint.restore((plain, tensors), self.model, self.inner)
        if self.crit is not None:
            self.crit.load_state_dict(checkpoint.part(tensors, "crit"))
        if self.budget is not None:
            self.budget.load_state_dict(plain["budget"])
        self.step, self.curve, self.done = plain["step"], plain["curve"], plain["done"]
        torch.set_rng_state(tensors["random"])  # loading the loss may have drawn


def make_loss(config: Config, model: nn.Module, graph: WeightGraph) -> ModularityLoss:
    """Return the loss that the config says; -1 stands for its own defaults."""
    s = config.loss
    return ModularityLoss(
        model,
        s.k,
        graph=graph,
        method=s.method,
        seed=config.seed,
        lam=s.lam,
        total_steps=config.training.steps,
        warmup=None if s.warmup < 0 else s.warmup,
        ramp=None if s.ramp < 0 else s.ramp,
        commit=None if s.commit < 1 else s.commit,
        interface=None if s.interface < 0 else s.interface,
        inputs=None if s.inputs < 0 else s.inputs,
    )


def _identity(config: Config) -> dict[str, Any]:
    """What must be the same for a checkpoint to be continued, flat."""
    plain = json.loads(json.dumps(config.to_dict()))
    return {f"{a}.{b}": v for a in ("model", "data", "training", "loss") for b, v in plain[a].items()} | {
        "seed": plain["seed"],
        "processes": _processes()[1],
    }


def _processes() -> tuple[int, int]:
    """Return this process's number and how many there are; joins the group that torchrun announces."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world > 1 and not torch.distributed.is_initialized():
        torch.distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    return (torch.distributed.get_rank(), world) if world > 1 else (0, 1)


def _interpolated(curve: Curve) -> Callable[[int], float]:
    steps, values = [int(r["step"]) for r in curve], [float(r["loss"]) for r in curve]

    def at(step: int) -> float:
        i = bisect_left(steps, step)
        if i == 0 or i == len(steps):
            return values[min(i, len(steps) - 1)]
        share = (step - steps[i - 1]) / (steps[i] - steps[i - 1])
        return values[i - 1] + share * (values[i] - values[i - 1])

    return at
