"""The demo's pictures: the weights before and after, and specialisation beside its controls."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from modcut.demo.arms import ARMS, Bench
from modcut.graph.units import strength
from modcut.reporting.draw import standalone
from modcut.reporting.svg import effect_bars
from modcut.reporting.weights import Panel, weight_maps

# Dense, with the loss, and with the loss on a random partition: the control belongs beside the result.
_SHOWN = ("dense", "modcut", "random partition")


def specialisation(results: dict[str, Any]) -> str:
    """Return the specialisation of every arm beside its random partitions, as a complete SVG file."""
    rows = []
    for row in results["rows"]:
        s = row["specialisation"]
        controls = [c for c in s["random_tv"] if c is not None]
        ends = {"low": min(controls), "high": max(controls)} if controls else {"low": None, "high": None}
        rows.append({"label": row["arm"], "value": s["tv"], **ends})
    title = "Specialisation for English or Python (bar) beside random partitions (band: lowest to highest)"
    return standalone(effect_bars(rows, title=title, unit="TV: 0 same modules, 1 different ones"))


def weights(bench: Bench, labels: dict[str, Tensor], results: dict[str, Any]) -> str:
    """Return one MLP matrix of three arms before any cut, sorted by module, as a complete SVG file."""
    name = f"blocks.{bench.settings.layers // 2}.mlp.up.weight"
    found = {row["arm"]: row for row in results["rows"]}
    panels = []
    for arm in (a for a in ARMS if a.name in _SHOWN):
        P = bench.partition(bench.trained(arm, labels), labels[arm.labels])
        matrix = next(m for m in P.graph.matrices if m.name == name)
        row = found[arm.name]
        random_tv = row["specialisation"]["random_mean"]
        notes = [
            f"loss {row['trained']['loss']:.2f}; cross deleted: {row['cut_zero']['loss']:.2f}",
            f"specialisation {row['specialisation']['tv']:.2f} (random: {random_tv:.2f})",
        ]
        panels.append(
            Panel(arm.name, strength(matrix), P.labels[matrix.row_vertex], P.labels[matrix.col_vertex], notes)
        )
    return standalone(weight_maps(panels, title=f"Weights |W| of {name}, sorted by module"))
