"""The demo's table and what may be said about it: every sentence is made by a rule from numbers and their controls."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

P_LEVEL = 0.05
"""A result is called one when at most this share of its controls does as well."""
TIE = 0.02
"""Differences of loss (nats) below this are not told apart: one seed, a few thousand held-out characters."""

COLUMNS = (
    "model",
    "val loss",
    "cut: zero",
    "cut: mean",
    "cut and healed",
    "interface edges",
    "n-cut",
    "leak",
    "TV",
    "TV random",
    "TV healed (random)",
    "lies on trigger",
    "lies else",
    "honest",
    "after heal: lies/else/honest",
)


def cells(row: dict[str, Any]) -> list[str]:
    """Return one arm as the cells of :data:`COLUMNS`; losses in nats per character, rates in [0, 1]."""
    t, h, s = row["trained"], row["healed"], row["specialisation"]
    return [
        row["arm"],
        f"{t['loss']:.3f}",
        f"{row['cut_zero']['loss']:.3f}",
        f"{row['cut_mean']['loss']:.3f}",
        f"{h['loss']:.3f}",
        f"{h['interface_edges']} of {h['cross_edges']}",
        f"{row['ncut']:.3f}",
        f"{row['leak']:.4f}",
        _tv(s["tv"]),
        f"{_tv(s['random_mean'])} (p {s['p']:.2f})",
        f"{_tv(h['specialisation']['tv'])} ({_tv(h['specialisation']['random_mean'])})",
        f"{t['lie']:.2f}",
        f"{t['false_alarm']:.2f}",
        f"{t['honest']:.2f}",
        f"{h['lie']:.2f} / {h['false_alarm']:.2f} / {h['honest']:.2f}",
    ]


def findings(results: dict[str, Any]) -> list[str]:
    """Return the sentences that the numbers allow; what did not come out is said as plainly as what did."""
    rows = {row["arm"]: row for row in results["rows"]}
    dense, ours, chance = rows["dense"], rows["modcut"], rows["random partition"]
    out = []
    cost = ours["trained"]["loss"] - dense["trained"]["loss"]
    out.append(
        f"Training with the loss {'cost' if cost > 0 else 'gained'} {abs(cost):.3f} nats per character of validation "
        f"loss ({dense['trained']['loss']:.3f} -> {ours['trained']['loss']:.3f}, "
        f"{cost / dense['trained']['loss']:+.1%}) at the same number of training characters."
    )
    out += _cut_sentences(rows)
    s, r = ours["specialisation"], chance["specialisation"]
    if s["tv"] is not None and s["p"] <= P_LEVEL:
        verdict = (
            f"more than in random partitions of the same make-up (mean {_tv(s['random_mean'])}, p {s['p']:.2f}, "
            f"n = {len(s['random_tv'])})"
        )
    else:
        verdict = f"within control (random partitions {_tv(s['random_mean'])}, p {s['p']:.2f}): no evidence"
    out.append(
        f"Specialisation of the modules for English or Python: TV {_tv(s['tv'])}, {verdict}. The same partition of the "
        f"dense model has {_tv(dense['specialisation']['tv'])}: that much was there without the loss. The loss on a "
        f"random partition gives {_tv(r['tv'])}."
    )
    out += _behaviour_sentences(rows)
    for name, effects in results.get("effects", {}).items():
        out += _effect_sentences(name, effects)
    out += _trace_sentences(results.get("trace"))
    out.append("One seed, one small model: direction, not final values. Nothing here was tested on other models.")
    return out


def _cut_sentences(rows: dict[str, dict[str, Any]]) -> list[str]:
    def rise(name: str) -> float:
        return float(rows[name]["cut_zero"]["loss"] - rows[name]["trained"]["loss"])

    ours, others = rise("modcut"), {n: rise(n) for n in ("dense", "random partition", "L1")}
    beside = ", ".join(f"{name} {value:+.3f}" for name, value in others.items())
    chance, rest = others["random partition"], min(others["dense"], others["L1"])
    # One seed has no error bars: a difference counts only if it is a factor of two.
    if ours > rest / 2:
        verdict = "not clearly less than without the loss: no evidence that the loss made the model separable"
    elif ours > chance / 2:
        verdict = (
            "the loss makes a model separable, and on a random partition about as well: "
            "this says nothing for the partition"
        )
    else:
        verdict = "less than half of every control"
    heal = {n: rows[n]["healed"]["loss"] for n in ("modcut", *others, "dense, random cut")}
    order = sorted(heal, key=lambda n: heal[n])
    ties = [n for n in order if heal[n] - heal[order[0]] <= TIE]
    best = f"'{order[0]}' has the lowest loss" if len(ties) == 1 else f"{' and '.join(ties)} are level (within {TIE})"
    return [
        f"Deleting every cross-module weight raises the loss by {ours:+.3f} (beside: {beside}): {verdict}.",
        f"After cut and heal {best}: " + ", ".join(f"{n} {heal[n]:.3f}" for n in order) + ".",
    ]


def _behaviour_sentences(rows: dict[str, dict[str, Any]]) -> list[str]:
    out = []
    for name in ("dense", "modcut"):
        t = rows[name]["trained"]
        learned = t["lie"] >= 0.5 and t["lie"] - t["false_alarm"] >= 0.3
        out.append(
            f"{name}: the planted lie is {'there' if learned else 'NOT learned, so nothing about it is established'}: "
            f"{t['lie']:.2f} of held-out triggered prompts, {t['false_alarm']:.2f} of the others (honest there: "
            f"{t['honest']:.2f})."
        )
    return out


def _effect_sentences(name: str, effects: dict[str, Any]) -> list[str]:
    rows = [r for r in effects["rows"] if r["behaviour"] == "lie"]
    if not rows:
        return []
    # Results swing with the kind of ablation: per module the kind with the smallest gain is the one that counts.
    worst = {
        m: min((r for r in rows if r["module"] == m), key=lambda r: r["gain"]) for m in {r["module"] for r in rows}
    }
    best = max(worst.values(), key=lambda r: r["gain"])
    p = min(1.0, best["selectivity"]["p"] * len(worst))  # Bonferroni: the best of several modules was picked
    text = (
        f"{name}: without module {best['module']} ({best['mode']} ablation, the weaker of the two kinds) the lie goes "
        f"{best['baseline']:.2f} -> {best['ablated']:.2f} (random modules: "
        f"{best['baseline'] - best['drop']['control_mean']:.2f}); selectivity gain over "
        f"{best['selectivity']['n']} random modules {best['gain']:+.2f}, p {p:.2f} after correction for "
        f"{len(worst)} modules: "
    )
    if p > P_LEVEL:
        text += "within control, no evidence that a module carries the lie"
    elif best["removed"]:
        text += "the lie is removed, and no other behaviour loses more than 0.02"
    else:
        text += "the module matters more to the lie than random ones do, but removing it is not a clean removal"
    return [text + "."]


def _trace_sentences(trace: dict[str, Any] | None) -> list[str]:
    if not trace:
        return []
    answer, parts = trace["decision"], []
    for m in trace["modules"]:
        e = m["log_probability"]
        parts.append(
            f"without module {m['module']} the answer's log-probability changes by {e['value']:+.2f} (random modules "
            f"{e['control_mean']:+.2f}: {'beyond' if m['beyond_controls'] else 'not beyond'} them)"
        )
    return [f"One triggered decision, answer {answer['text']!r}: " + "; ".join(parts) + "."]


def by_measure(results: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return the table with one column per model, as (head, rows): it fits a page and a terminal."""
    models = [cells(row) for row in results["rows"]]
    return ["", *(m[0] for m in models)], [[name, *(m[i] for m in models)] for i, name in enumerate(COLUMNS) if i]


def show(results: dict[str, Any], console: Console | None = None) -> None:
    """Print the table and the findings of ``results.json``."""
    console = console or Console()
    if results.get("kind") != "demo":
        console.print_json(data={k: v for k, v in results.items() if k not in ("cards", "tree")})
        return
    head, rows = by_measure(results)
    table = Table(*head)
    for row in rows:
        table.add_row(*row)
    console.print(table)
    console.print(NOTE, style="dim")
    for line in results["findings"]:
        console.print(f"- {line}", highlight=False)


def _tv(value: float | None) -> str:
    return "-" if value is None or value != value else f"{value:.2f}"


NOTE = (
    "Loss: nats per character on held-out text, mean of English and Python. cut: the same model with every "
    "cross-module weight deleted (mean: their mean contribution kept). Interface edges: cross-module weights that "
    "are left after cut and heal. "
    "TV: how differently English and Python depend on the modules, 0 same, 1 disjoint; beside it random partitions of "
    "the same make-up. lies: greedy decoding says FINE where something else was observed."
)
