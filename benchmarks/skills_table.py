"""Write the tables of docs/skills.md from the JSON files in benchmarks/results.

python benchmarks/skills_table.py
"""

# ruff: noqa: E501
from __future__ import annotations

import json
import random
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
START, END = "<!-- table -->", "<!-- end of table -->"


def rows(name: str) -> list[dict[str, Any]]:
    path = ROOT / "benchmarks" / "results" / f"{name}.json"
    return json.loads(path.read_text())["rows"] if path.is_file() else []


def mean(values: Iterable[Any], digits: int = 2) -> str:
    """Mean and 95 % interval by bootstrap over networks."""
    known = [v for v in values if v is not None]
    if not known:
        return "-"
    if len(known) == 1:
        return f"{known[0]:.{digits}f}"
    draw = random.Random(0)
    means = sorted(statistics.mean(draw.choices(known, k=len(known))) for _ in range(2000))
    return f"{statistics.mean(known):.{digits}f} [{means[50]:.{digits}f}, {means[1949]:.{digits}f}]"


def table(head: list[str], body: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *body)] + [""]


def grouped(found: list[dict[str, Any]]) -> list[tuple[str, int, list[dict[str, Any]]]]:
    keys = sorted({(r["skills"], r["vocabulary"]) for r in found})
    return [(f"{k}, {v}", k, [r for r in found if (r["skills"], r["vocabulary"]) == (k, v)]) for k, v in keys]


def counts() -> list[str]:
    body = []
    for name, k, group in grouped([r for r in rows("skills") if r["case"].startswith("count")]):
        found = [r for r in group if r["k"] > 1]
        kinds = [max([int(j) for j, s in r["strength"].items() if s >= 0.87], default=1) for r in group]
        body.append(
            [name, str(len(group)), str(sum(x == k for x in kinds)), str(sum(r["k"] == k for r in group))]
            + [mean(r.get(key) for r in found) for key in ("windows_ari", "ari")]
            + [mean(r.get(key) for r in group) for key in ("ari_spectral", "ari_tree", "own", "tv", "random_mean")]
            + [mean(r.get(key) for r in group) for key in ("tv_oracle", "whole_tv", "whole_random_mean")]
        )
    head = ["skills", "n", "right number of kinds", "right k, each with its own core", "windows ARI", "ARI"]
    head += ["spectral ARI", "tree of units ARI", "own share", "core TV", "random", "oracle", "whole TV", "random"]
    return table(head, body)


def trees() -> list[str]:
    body = []
    for name, k, group in grouped(rows("skill_trees")):
        body.append(
            [name, str(len(group)), str(sum(r["k"] == k for r in group)), str(sum(r["null_k"] > 1 for r in group))]
            + [mean(r.get(key) for r in group) for key in ("windows_ari_given_k", "ari", "ari_spectral")]
            + [f"{min(r['null'] for r in group):.2f}", mean(r["cpu_s"] for r in group)]
        )
    head = ["skills", "n", "right k", "kinds under shuffled usage", "windows ARI", "ARI", "spectral ARI"]
    return table([*head, "best conductance, shuffled", "CPU s"], body)


def separation() -> list[str]:
    body = []
    found = [r for r in rows("skill_separation") if "control" in r]
    for what in ("disjoint", "shared", "text"):
        group = [r for r in found if r["case"].startswith(what)]
        for arm in ("control", "drop", "index", "cut", "cut index"):
            if not group:
                continue
            cells = [r[arm] for r in group]
            body.append(
                [what, arm, str(len(group))]
                + [mean((sum(c["losses"]) / len(c["losses"]) for c in cells), 4)]
                + [f"{100 * statistics.mean(c[key] for c in cells):+.1f} %" for key in ("over_control", "over_base")]
                + [mean((sum(c["other_off"]) / len(c["other_off"]) for c in cells), 4)]
                + [mean(c[key] for c in cells) for key in ("core_tv", "core_random", "whole_tv", "whole_random")]
                + [str(round(statistics.mean(c["interface_edges"] for c in cells))) if "interface_edges" in cells[0] else "-"]
            )  # fmt: skip
    head = ["network", "arm", "n", "loss (nats)", "over control", "over base", "loss, other off"]
    return table([*head, "core TV", "random", "whole TV", "random", "edges kept"], body)


def others() -> list[str]:
    out = []
    found = rows("skill_others")
    for what in ("cnn", "modular", "registers", "answers"):
        group = [r for r in found if r["case"].startswith(what)]
        if not group:
            continue
        strength = [
            max(s.values())
            for r in group
            if (s := r["kinds"]["prediction_strength"] if "kinds" in r else r["strength"])
        ]
        line = f"- {what}: skills found in {sum(r['k'] > 1 for r in group)} of {len(group)}; "
        line += f"best prediction strength {mean(strength)} (.87 counts)"
        if what in ("cnn", "modular", "answers"):
            flat = [statistics.mean(a) if isinstance(a := r["accuracy"], list) else a for r in group]
            line += f"; accuracy {mean(flat, 3)}"
        if what == "registers":
            line += f"; windows ARI {mean(r['windows_ari'] for r in group)}, ARI with k given {mean(r['ari_two'] for r in group)}"
            line += f", core TV {mean(r.get('tv') for r in group)}, random {mean(r.get('random_mean') for r in group)}"
        if what == "answers":
            for key in (
                "agreement_first_layer",
                "agreement_outputs",
                "found_cut_before",
                "found_accuracy",
                "found_cut",
            ):
                line += f"; {key.replace('_', ' ')} {mean((r[key] for r in group), 3)}"
            line += f"; by index: cut before {mean((r['index_cut_before'] for r in group), 3)}"
            line += f", accuracy {mean((r['index_accuracy'] for r in group), 3)}, cut {mean((r['index_cut'] for r in group), 3)}"
        out.append(line)
    return [*out, ""]


def rest() -> list[str]:
    out = []
    for r in rows("skills"):
        if r["case"].startswith("null"):
            out.append(
                f"- {r['case']}: {r['false_skills']} false skills in {r['draws']} draws; kinds of window alone would "
                f"have said {r['kinds_of_window_alone']}."
            )
        if r["case"].startswith("text"):
            out.append(
                f"- {r['case']}: {r['verdict']}; windows ARI {r['windows_ari']:.2f}, ARI {r['ari']:.2f}; core TV "
                f"{r['tv']:.2f}, random {r['random_mean']:.2f}; whole TV {r['whole_tv']:.2f}, oracle {r['tv_oracle']:.2f}."
            )
    plain = [r for r in rows("skills") if r["case"].startswith("digits")]
    out.append(
        f"- digits, asked both answers at once, untouched, n = {len(plain)}: skills found in "
        f"{sum(r['k'] > 1 for r in plain)}; k = 2 given: first layer {mean(r['agreement_first_layer'] for r in plain)}, "
        f"accuracy after the cut {mean(r['cut_accuracy'] for r in plain)}."
    )
    for r in rows("skill_overhead"):
        out.append(
            f"- gathering usage: {100 * r['overhead_while_recording']:.0f} % of a step while it runs, "
            f"{r['steps_needed']} steps are enough: {100 * r['overhead_of_training']:.2f} % of 1000 steps."
        )
    return [*out, ""]


def smollm2() -> list[str]:
    path = ROOT / "benchmarks" / "results" / "skills_smollm2.json"
    if not path.is_file():
        return []
    r = json.loads(path.read_text())
    out = [
        f"{r['tokens']} tokens, {r['windows']} windows of {r['length']}, {r['vertices']} vertices, {r['threads']} thread: "
        + ", ".join(f"{name} {s:.0f} s" for name, s in r["seconds"].items())
        + f"; peak {r['peak_gb']:.1f} GB. {r['verdict_without_ablation']} (before ablation); windows ARI "
        f"{r['windows_ari']:.2f}; modules of {r['modules_of']}.",
        "",
    ]
    if "specialisation" not in r:
        return [*out, f"Ablation: {r['ablation']}.", ""]
    s = r["specialisation"]
    out += [f"Cores of {100 * r['share']:.0f} % of every module; TV {s['tv']:.2f}, random {s['random_mean']:.2f}, p = {s['p']:.2f} (with {len(s['random_tv'])} random partitions).", ""]  # fmt: skip
    names = ("prose", "code", "German", "arithmetic")
    for c, (name, damage) in enumerate(s["damage"].items()):
        mine = " and ".join(names[i] for i, kind in enumerate(r["sources"]) if kind == c)
        out.append(
            f"- {name} ({mine}): loss {s['base_loss'][name]:.2f}, removing each core adds "
            + ", ".join(f"{d:+.2f}" for d in damage)
        )
    return [
        *out,
        "",
        "Damage to its own kind over the largest to another: " + ", ".join(f"{x:.1f}" for x in r["ratio"]) + ".",
        "",
    ]


def main() -> None:
    page = ROOT / "docs" / "skills.md"
    text = page.read_text()
    parts: list[str] = []
    for title, made in (
        ("How many, and which (`skills.py`, seeds 3 and up)", counts()),
        ("The tree of windows (`skill_trees.py`)", trees()),
        ("Making them separable (`skill_separation.py`)", separation()),
        ("Other networks (`skill_others.py`)", others()),
        ("Nulls, text, cost (`skills.py`, `skill_overhead.py`)", rest()),
        ("SmolLM2-135M, untouched (`skills_smollm2.py`)", smollm2()),
    ):
        if any(made):
            parts += [f"### {title}", "", *made]
    before, after = text.split(START)[0], text.split(END)[1]
    page.write_text(f"{before}{START}\n" + "\n".join(parts).rstrip() + f"\n{END}{after}")


if __name__ == "__main__":
    main()
