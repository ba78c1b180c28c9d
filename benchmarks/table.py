"""Write docs/benchmarks.md from the JSON files of the benchmarks: nobody copies a figure by hand.

    python benchmarks/table.py [--check]

``--check`` writes nothing and exits with 1 where the page is not what the files say.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "benchmarks.md"
_MACHINE = ("python", "torch", "numpy", "scipy", "igraph", "networkx", "ortools", "thinhpf", "PyMaxflow")


def seconds(x: Any) -> str:
    if x is None:
        return "-"
    if isinstance(x, str):
        return x.split(":")[0]
    return f"{x:.3g} s" if x >= 1 else f"{1e3 * x:.3g} ms" if x >= 1e-3 else f"{1e6 * x:.3g} us"


def number(x: Any) -> str:
    return "-" if x is None else f"{x:,.0f}" if x >= 100 else f"{x:.3g}"


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    return ["| " + " | ".join(r) + " |" for r in (head, ["---"] * len(head), *rows)] + [""]


def origin(data: dict[str, Any]) -> list[str]:
    stamp = data["stamp"]
    versions = ", ".join(f"{name} {stamp[name]}" for name in _MACHINE if stamp.get(name))
    at = sorted({row["measured"]["commit"] or "-" for row in data["rows"]})
    load = max(row["measured"]["load"] for row in data["rows"])
    commits = ", ".join(c[:9] for c in at)
    return [
        f"`{data['command']}`; {stamp.get('cpu')}, {versions}; seed {stamp['seed']}; commit {commits}; "
        f"the machine's load was {load:.1f} at most." + (f" Note: {data['note']}." if "note" in data else ""),
        "",
    ]


def verdicts(row: dict[str, Any]) -> str:
    parts = []
    for t in row["targets"]:
        if t["reached"] is None:
            continue  # a peer that was not run
        parts.append(f"{t['target']}: {number(t['reached'])}, {'met' if t['verdict'] == 'met' else '**missed**'}")
    return "; ".join(parts)


def trees(data: dict[str, Any]) -> list[str]:
    peers, lines = ("igraph", "LEMON", "OR-tools"), []
    head = ["case", "n", "edges", "modcut", "2 threads", "flows only", "one read", *peers, "flows run", "targets"]
    compared = [r for r in data["rows"] if "ratio" in r]
    rows = []
    for r in compared:
        s = r["seconds"]
        both = {p: f"{number(r['ratio'][p])}; {number(r['ratio, flows only'][p])}" for p in r["ratio"]}
        times = [f"{seconds(s.get(p))} ({both[p]})" if p in both else "-" for p in peers]
        ours = [seconds(s.get(k)) for k in ("modcut", "modcut, 2 threads", "flows only", "read")]
        rows.append([r["case"], number(r["n"]), f"{r['edges']:,}", *ours, *times, number(r["flows"]), verdicts(r)])
    lines += ["In brackets: a peer's time over modcut's, proof included; and over modcut's with certificates off.", ""]
    lines += table(head, rows)
    lines += ["Without a peer that could take part:", ""]
    rows = []
    for r in data["rows"]:
        if "ratio" in r or "recertify" in r["seconds"]:
            continue
        ours = [seconds(r["seconds"].get(k)) for k in ("modcut", "modcut, 2 threads", "flows only", "read")]
        beyond = r.get("peak MiB beyond the weights")
        rows.append(
            [r["case"], number(r["n"]), f"{r['edges']:,}", *ours, number(beyond), number(r.get("flows")), verdicts(r)]
        )
    lines += table(
        ["case", "n", "edges", "modcut", "2 threads", "flows only", "one read", "peak MiB", "flows run", "targets"],
        rows,
    )
    rows = [
        [r["case"], number(r["n"]), seconds(r["seconds"]["modcut"]), seconds(r["seconds"]["recertify"]), verdicts(r)]
        for r in data["rows"]
        if "recertify" in r["seconds"]
    ]
    if rows:
        lines += ["After one optimizer step:", ""]
        lines += table(["case", "n", "new tree", "recertify", "targets"], rows)
    return lines


def flows(data: dict[str, Any]) -> list[str]:
    peers = ("SciPy", "thinhpf", "OR-tools", "PyMaxflow", "igraph", "LEMON", "NetworkX")
    rows = []
    for r in data["rows"]:
        s = r["seconds"]
        times = [f"{seconds(s[p])} ({number(r['ratio'][p])})" if p in r["ratio"] else "-" for p in peers]
        ours = [seconds(s.get(k)) for k in ("modcut", "modcut, 2 threads", "modcut, sparse", "read")]
        rows.append([r["case"], number(r["n"]), f"{r['edges']:,}", *ours, *times, verdicts(r)])
    head = ["case", "n", "edges", "modcut", "2 threads", "sparse", "one read", *peers, "targets"]
    return ["In brackets: a peer's time over modcut's in the form that the case has.", "", *table(head, rows)]


def checks(data: dict[str, Any]) -> list[str]:
    return [
        f"`{data['command']}`: {data['graphs']:,} graphs of {len(data['graphs_of_family'])} families, up to "
        f"{data['largest_n']} vertices, {data['tree_edges']:,} tree edges, {len(data['failures'])} failures, "
        f"{data['exact_trees']:,} trees exact; {data['seconds']:.0f} s; commit {str(data['stamp']['commit'])[:9]}.",
        "",
    ]


def page() -> str:
    lines = [
        "# Benchmarks of the cut engine",
        "",
        "<!-- written by benchmarks/table.py from benchmarks/results/*.json: edit neither page nor figures -->",
        "modcut's time is that of the public call: input checks, cut and proof. A peer's is its solver's alone,",
        "without building its graph. One thread: CPU seconds; two: wall seconds. LEMON runs through",
        "`benchmarks/peers/lemon_driver.cpp`; OR-tools' trees are Gusfield's method over its max-flow. All answers are",
        "compared, and all trees validated, before a time counts.",
        "",
    ]
    for name, title, part in (
        ("cut_tree", "Gomory-Hu trees", trees),
        ("max_flow", "One s-t cut", flows),
    ):
        file = RESULTS / f"{name}.json"
        if file.exists():
            data = json.loads(file.read_text())
            lines += [f"## {title}", "", *origin(data), *part(data)]
    file = RESULTS / "long_check.json"
    if file.exists():
        lines += ["## Trees checked in one run", "", *checks(json.loads(file.read_text()))]
    return "\n".join(lines).rstrip() + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    text = page()
    if args.check:
        return int(not PAGE.exists() or PAGE.read_text() != text)
    PAGE.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
