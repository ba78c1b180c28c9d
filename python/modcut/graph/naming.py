"""Kinds, names, families and heads of spaces."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from modcut.graph.ledger import Ledger
from modcut.graph.types import Kind


@dataclass
class Group:
    """A space before it has vertices."""

    classes: np.ndarray
    first: int
    flags: frozenset[str]
    fixed: str
    kind: Kind = "hidden"
    name: str = ""
    family: str = ""
    head: str = ""
    role: str = ""
    order: int = 0


def name_groups(ledger: Ledger, label: np.ndarray, groups: list[Group]) -> None:
    """Fill kinds and names, and sort the groups: inputs, residual streams, then by the order of execution."""
    group_of = np.full(int(label.max()) + 1, -1, np.int64)
    for i, g in enumerate(groups):
        group_of[g.classes] = i
    writers, readers = _writers(ledger, label, group_of)
    heads = _heads(ledger, label, group_of, groups)
    for i, g in enumerate(groups):
        g.order = min([w[0] for w in writers[i]] or [r[0] for r in readers[i]] or [0])
        owner = min(writers[i])[1] if writers[i] else (min(readers[i])[1] if readers[i] else "")
        if i in heads:
            module, head, role = heads[i]
            base = module or owner
            g.kind, g.role = "head", role
            g.head = f"{base}.head{head}" if base else f"head{head}"
            g.family = f"{base}.heads" if base else "heads"
            g.name = f"{g.head}.{role}"
        elif "sum" in g.flags and writers[i] and "tokens" not in g.flags:
            g.kind, g.name = "residual", f"residual.{owner}"
        elif "input" in g.flags or "tokens" in g.flags or ("data" in g.flags and not writers[i]):
            reader = min(readers[i])[1] if readers[i] else owner
            g.kind = "input"
            g.name = f"{reader}.tokens" if "tokens" in g.flags and reader else f"input.{reader}" if reader else "input"
        elif "output" in g.flags:
            g.kind, g.name = "output", f"output.{owner}" if owner else "output"
        else:
            g.name = owner or "hidden"
    _shorten(groups)
    for g in groups:
        g.family = g.family or g.name
    _unique(groups)
    rank = {"input": 0, "residual": 1, "hidden": 2, "head": 2, "output": 3}
    groups.sort(key=lambda g: (rank[g.kind], g.order, g.first))


def _shorten(groups: list[Group]) -> None:
    """A kind with one family needs no owner in its name."""
    for kind in ("input", "residual", "output"):
        names = {g.name for g in groups if g.kind == kind}
        if len(names) == 1:
            for g in groups:
                if g.kind == kind:
                    g.name = "tokens" if "tokens" in g.flags and kind == "input" else kind


def _unique(groups: list[Group]) -> None:
    seen: dict[str, list[Group]] = defaultdict(list)
    for g in sorted(groups, key=lambda g: g.first):
        seen[g.name].append(g)
    for name, same in seen.items():
        if len(same) > 1:
            for i, g in enumerate(same):
                g.name = f"{name}.{i}"
                if g.family == name and g.kind == "hidden":
                    g.family = name


def _owner(name: str) -> str:
    base, _, last = name.partition("[")[0].rpartition(".")
    if last.startswith("original") and ".parametrizations." in f".{base}":
        base, last = base.replace("parametrizations.", ""), ""
        base = base.rpartition(".")[0]
        return base
    return base if last in ("weight", "kernel") and base else name.partition(".weight")[0] if base else name


def _writers(
    ledger: Ledger, label: np.ndarray, group_of: np.ndarray
) -> tuple[dict[int, list[tuple[int, str]]], dict[int, list[tuple[int, str]]]]:
    writers: dict[int, list[tuple[int, str]]] = defaultdict(list)
    readers: dict[int, list[tuple[int, str]]] = defaultdict(list)
    for use in ledger.uses.values():
        part = ledger.parts[use.part]
        entry = (use.order, _owner(part.name))
        for axis, table in ((use.row_axis, writers), (use.col_axis, readers)):
            ids = np.arange(part.starts[axis], part.starts[axis] + part.tensor.shape[axis])
            for g in np.unique(group_of[label[ids]]):
                if g >= 0:
                    table[int(g)].append(entry)
    return writers, readers


def _heads(
    ledger: Ledger, label: np.ndarray, group_of: np.ndarray, groups: list[Group]
) -> dict[int, tuple[str, int, str]]:
    """Return group -> (module, number of the head in it, role): attention's query-key and value spaces."""
    tags = len(ledger.tags) + 1
    used = np.zeros(tags, bool)  # scores that then mixed values: attention, not merely a product of two activations
    for _, t in ledger.links["v"]:
        used[t] = True
    role: dict[int, str] = {}
    edges: set[tuple[int, int]] = set()
    for name in ("v", "qk"):
        for ids, t in ledger.links[name]:
            keep = used[t]
            g = group_of[label[ids[keep]]]
            for a, b in {(int(x), int(y)) for x, y in zip(g, t[keep], strict=True) if x >= 0}:
                if "sum" in groups[a].flags and name == "v":
                    continue
                edges.add((a, b))
                role[a] = name
    ops: dict[int, set[int]] = defaultdict(set)
    modules: dict[int, set[str]] = defaultdict(set)
    for a, b in edges:
        ops[a].add(ledger.tags[b - 1][0])
        modules[a].add(ledger.tags[b - 1][1])
    edges = {(a, b) for a, b in edges if len(ops[a]) == 1 or len(modules[a]) == 1}
    if not edges:
        return {}
    pairs = np.array(sorted(edges))
    n = len(groups)
    graph = coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1] + n)), shape=(n + tags, n + tags))
    component = connected_components(graph, directed=False)[1]
    by_layer: dict[tuple[str, int], dict[int, int]] = defaultdict(dict)
    where: dict[int, tuple[str, int]] = {}
    named: dict[str, dict[int, int]] = defaultdict(dict)
    for a, b in sorted(edges):
        op, module = ledger.tags[b - 1]
        c = int(component[a])
        # One module may run several attentions (hand-written models): number those apart.
        number = named[module].setdefault(op, len(named[module])) if _several(edges, ledger, module, ops) else 0
        layer = where.setdefault(c, (module, number))
        by_layer[layer].setdefault(c, min(groups[a].first, by_layer[layer].get(c, groups[a].first)))
    rank = {c: i for layer, comps in by_layer.items() for i, c in enumerate(sorted(comps, key=lambda c: comps[c]))}
    out = {}
    for a, _ in sorted(edges):
        c = int(component[a])
        module, number = where[c]
        label_ = module if number == 0 else f"{module}.attention{number}" if module else f"attention{number}"
        out[a] = (label_, rank[c], role[a])
    return out


def _several(edges: set[tuple[int, int]], ledger: Ledger, module: str, ops: dict[int, set[int]]) -> bool:
    seen = {frozenset(ops[a]) for a, b in edges if ledger.tags[b - 1][1] == module}
    return len(seen) > 1
