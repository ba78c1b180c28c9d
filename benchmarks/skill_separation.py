"""Do skills that were found become separable, and at what cost? Module drop from the kinds found, beside its controls.

    python benchmarks/skill_separation.py --resume --out benchmarks/results/skill_separation.json [--cases ...]

- ``shared-SEED``, ``disjoint-SEED``: the two-skill GPT of skill_nets.py. ``text-SEED``: the character GPT on English
  prose and Python source.

Kinds of window come from usage (k as found, no labels); new windows are told apart by the same usage. Arms, all from
one trained network, with as many steps, on the same windows: ``control`` trains on; ``drop`` adds the loss of each
kind with the other kind's core switched off; ``index`` does so with cores by index; ``cut`` deletes the weights
between whole modules (of text, all but 10 %) and heals with module drop; ``cut index`` the same by index.
"""

from __future__ import annotations

import argparse
import copy
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import modcut
import skills
from bench_common import main
from modcut.clustering import slice_labels, unit_profiles
from modcut.graph.statistics import collect
from modcut.modules import specialisation
from modcut.partition import Partition, adjusted_rand
from modcut.skills import cores, window_kinds, without_others
from modcut.skills.evidence import by_index
from skill_nets import Tasks, loss_fn, trained

STEPS, POOL = 600, 8192
CASES = [f"{v}-{s}" for s in range(3, 8) for v in ("shared", "disjoint")] + [f"text-{s}" for s in range(3, 6)]
Batch = Any


def setting(what: str, seed: int) -> tuple[nn.Module, Callable[[int, int], tuple[list[Batch], Tensor]], Any, dict, int]:
    """The network, ``draw(n, seed) -> batches of one window each kind mixed, sources``, the loss, test slices, size."""
    if what == "text":
        return skills.text_setting(seed)
    tasks = Tasks(2, what == "shared")

    def draw(n: int, s: int) -> tuple[Batch, Tensor]:
        tokens, targets, skill = tasks.mixed(n, torch.Generator().manual_seed(s))
        return (tokens, targets), skill

    test = {
        n: [tasks.windows(torch.full((256,), i), torch.Generator().manual_seed(99 + i))]
        for i, n in enumerate(tasks.names)
    }
    return trained(tasks, seed, 1000, skills.NETS), draw, loss_fn, test, 64


def take(batch: Batch, rows: Tensor) -> Batch:
    return batch[rows] if isinstance(batch, Tensor) else tuple(x[rows] for x in batch)


def pieces(batch: Batch, size: int = 64) -> list[Batch]:
    n = len(batch if isinstance(batch, Tensor) else batch[0])
    return [take(batch, rows) for rows in torch.arange(n).split(size)]


def losses(model: nn.Module, test: dict[str, list[Batch]], loss: Any) -> list[float]:
    with torch.no_grad():
        return [sum(float(loss(model, b)) for b in part) / len(part) for part in test.values()]


def alone(model: nn.Module, P: Partition, modules: int, test: dict[str, list[Batch]], loss: Any, of: list[int]) -> list:
    """Loss of each slice with the cores of the other kinds removed."""
    out = []
    for (name, part), c in zip(test.items(), of, strict=True):
        with without_others(model, P, c, modules):
            out += losses(model, {name: part}, loss)
    return out


def case(what: str, seed: int) -> dict[str, Any]:
    base, draw, loss, test, size = setting(what, seed)
    learn, source = draw(768, 5000 + seed)
    graph = modcut.weight_graph(base, (learn if isinstance(learn, Tensor) else learn[0])[:2], include_outputs=False)
    statistics = collect(graph, base, pieces(learn), loss)
    z = unit_profiles(graph, statistics.profile)
    kinds = window_kinds(z, seed=seed)
    row: dict[str, Any] = {"k": kinds.k, "windows_ari": adjusted_rand(kinds.label, source), "base": None}
    if kinds.k != 2:
        return row | {"result": f"not run: {kinds.k} kinds found ({kinds.reason})"}
    pool, pool_source = draw(POOL, 6000 + seed)
    pool_kind = kinds.of(unit_profiles(graph, collect(graph, base, pieces(pool), loss).profile))
    row |= {"pool_ari": adjusted_rand(pool_kind, pool_source), "base": losses(base, test, loss), "steps": STEPS}
    of = [int((kinds.label[source == i]).double().mean() > 0.5) for i in range(2)]
    whole = slice_labels(graph, statistics.profile, kinds.label)
    keep = 0.1 if what == "text" else 0.0
    slices = dict(zip(test, test.values(), strict=True))
    paired = {f"kind {c}": slices[list(test)[of.index(c)]] for c in range(2)} if set(of) == {0, 1} else slices
    for arm in ("control", "drop", "index", "cut", "cut index"):
        model = copy.deepcopy(base)
        g = modcut.weight_graph(model, (learn if isinstance(learn, Tensor) else learn[0])[:2], include_outputs=False)
        g = copy.copy(g)
        object.__setattr__(g, "statistics", statistics)
        P = Partition(whole, g, 2)
        core = cores(P, statistics.profile, kinds.label)
        if "index" in arm:
            P, core = by_index(P), by_index(core)
        off, modules = (P, 2) if "cut" in arm else (core, 2)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
        generator = torch.Generator().manual_seed(seed)

        def step(
            i: int,
            model=model,
            optimizer=optimizer,
            generator=generator,
            off=off,
            modules=modules,
            drop=arm != "control",
        ) -> float:
            for group in optimizer.param_groups:
                group["lr"] = 1e-3 * min(1, (i + 1) / 50) * (1 - 0.9 * i / STEPS)
            rows = torch.randint(POOL, (size,), generator=generator)
            total = loss(model, take(pool, rows))
            for c in range(2 if drop else 0):
                own = rows[pool_kind[rows] == c]
                if own.numel():
                    with without_others(model, off, c, modules):
                        total = total + loss(model, take(pool, own)) * own.numel() / size
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
            return float(total.detach())

        if "cut" in arm:
            healed = modcut.cut_and_heal(model, P, lambda _m, i, step=step: step(i), keep=keep, steps=STEPS)
            edges = {"interface_edges": healed.interface_edges, "cross_edges": healed.cross_edges}
            healed.release()
        else:
            edges = {}
            for i in range(STEPS):
                step(i)
        told = losses(model, test, loss)
        ordinary = row["control"]["losses"] if arm != "control" else told
        own = specialisation(model, core, paired, loss, random=19, modules=2, seed=seed)
        full = specialisation(model, P, paired, loss, random=19, seed=seed)
        row[arm] = edges | {
            "losses": told,
            "over_control": sum(told) / sum(ordinary) - 1,
            "over_base": sum(told) / sum(row["base"]) - 1,
            "other_off": alone(model, off, modules, test, loss, of),
            "core_tv": own.tv,
            "core_random": own.random_mean,
            "core_p": own.p,
            "whole_tv": full.tv,
            "whole_random": full.random_mean,
            "whole_p": full.p,
        }
        print(f"    {what} {seed} {arm}: {row[arm]}", flush=True)
    return row


def run(name: str, args: argparse.Namespace) -> dict[str, Any]:
    what, seed = name.split("-")
    return {"case": name, "seed": int(seed)} | case(what, int(seed))


if __name__ == "__main__":
    skills.NETS = Path(os.environ.get("MODCUT_SKILL_NETS", str(skills.NETS)))
    main(__doc__, CASES, set(), run)
