"""What the page's map is drawn from: modules as circles inside their groups, and the strengths between all of them.

The tree of groups comes from the cards where they have one (named groups along the cut tree); else modules are joined
by the strength between them. Positions are computed here, so that equal results give equal pages; the page's script
only shows, hides and moves them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modcut.reporting.pack import GAP, around, pack

Floats = NDArray[np.float64]
# From this many modules on a group is easier to read than its members.
GROUPED = 5
_SMALL, _LARGE = 15.0, 46.0
_PAD = 16.0
# Width and height of the smallest map.
_LEAST = (560.0, 300.0)
LINKED = (
    "Groups join modules by the strength between them, divided by the root of the product of their volumes (average "
    "linkage); they were not scored."
)


def build(
    sizes: Sequence[int],
    strength: Sequence[Sequence[float]],
    titles: Sequence[str],
    groups: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """Return the map's nodes and strengths, ready for JSON.

    Args:
        sizes: units per module, [k].
        strength: strength from module to module, [k, k]; entry (i, j): ``i`` reads from ``j``.
        titles: per module, may be empty, [k].
        groups: ``{"id" or "group", "children", "title", "text"}``; children are modules or other groups. Empty: from
            the strengths.

    Returns:
        ``nodes`` (id, parent, children, title, units, x, y, r, whole: radius when folded), ``roots``, ``strength``,
        ``width``, ``height``, ``note``.
    """
    k = len(sizes)
    nodes: dict[str, dict[str, Any]] = {
        str(i): {"id": str(i), "module": i, "title": titles[i], "units": int(sizes[i]), "children": []}
        for i in range(k)
    }
    given = _given(groups, nodes)
    note = "" if given or k < GROUPED else LINKED
    for g in given if given or k < GROUPED else _linked(np.asarray(strength, dtype=np.float64).reshape(k, k)):
        nodes[g["id"]] = {**g, "units": 0}
    for node in nodes.values():
        for child in node["children"]:
            nodes[child]["parent"] = node["id"]
    roots = [name for name, node in nodes.items() if "parent" not in node]
    while len(roots) == 1 and nodes[roots[0]]["children"]:  # a group of everything says nothing
        top = nodes.pop(roots[0])
        roots = top["children"]
        for child in roots:
            del nodes[child]["parent"]
    for name in reversed(_order(nodes, roots)):
        node = nodes[name]
        if node["children"]:
            node["units"] = sum(nodes[c]["units"] for c in node["children"])
    most = max([*sizes, 1])

    def radius(units: int) -> float:
        return _SMALL + (_LARGE - _SMALL) * math.sqrt(units / most)

    # A deep tree would be mostly margins.
    deep = _depths(nodes, roots)
    gap, pad = (GAP, _PAD) if max(deep.values(), default=0) <= 3 else (GAP / 2, _PAD / 2)
    for name in reversed(_order(nodes, roots)):
        node = nodes[name]
        node["whole"] = radius(node["units"])
        node["r"] = node["whole"]
        if node["children"]:
            rs = [nodes[c]["r"] for c in node["children"]]
            spots = pack(rs, gap)
            if len(rs) == 2 and deep[name] % 2:  # a tree of pairs would lie on one line
                spots = spots[:, ::-1].copy()
            x, y, r = around(spots, rs)
            node["inner"] = spots - [x, y]
            node["r"], node["whole"] = r + pad, min(node["whole"], r + pad)
    spots = pack([nodes[n]["r"] for n in roots], GAP) if roots else np.zeros((0, 2))
    stack = [(n, spots[at]) for at, n in enumerate(roots)]
    while stack:
        name, here = stack.pop()
        node = nodes[name]
        node["x"], node["y"] = float(here[0]), float(here[1])
        inner = node.pop("inner", None)
        stack += [(c, here + inner[at]) for at, c in enumerate(node["children"])] if inner is not None else []
    left, top_, right, low = _extent(list(nodes.values()))
    for node in nodes.values():
        node |= {"x": round(node["x"] - left, 1), "y": round(node["y"] - top_, 1)}
        node |= {"r": round(node["r"], 1), "whole": round(node["whole"], 1)}
    return {
        "nodes": [nodes[n] for n in _order(nodes, roots)],
        "roots": roots,
        "strength": [[float(f"{float(x):.4g}") for x in row] for row in strength],
        "width": round(right - left, 1),
        "height": round(low - top_, 1),
        "note": note,
    }


def _extent(nodes: Sequence[Mapping[str, Any]]) -> tuple[float, float, float, float]:
    """Left, top, right and bottom, with room for names; two modules alone do not fill the page."""
    if not nodes:
        return 0.0, 0.0, *_LEAST
    left, right = min(n["x"] - n["r"] for n in nodes) - 12, max(n["x"] + n["r"] for n in nodes) + 12
    top, low = min(n["y"] - n["r"] for n in nodes) - 12, max(n["y"] + n["r"] for n in nodes) + 28
    x, y = max(0.0, _LEAST[0] - right + left) / 2, max(0.0, _LEAST[1] - low + top) / 2
    return left - x, top - y, right + x, low + y


def _order(nodes: Mapping[str, Mapping[str, Any]], roots: Sequence[str]) -> list[str]:
    """Every node before its children, as the outline lists them."""
    out: list[str] = []
    stack = list(reversed(roots))
    while stack:
        out.append(name := stack.pop())
        stack += list(reversed(nodes[name]["children"]))
    return out


def _depths(nodes: Mapping[str, Mapping[str, Any]], roots: Sequence[str]) -> dict[str, int]:
    deep = {name: 1 for name in roots}
    for name in _order(nodes, roots):
        deep |= {child: deep[name] + 1 for child in nodes[name]["children"]}
    return deep


def _given(groups: Sequence[Mapping[str, Any]], nodes: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The groups of the cards, if they are a forest over these modules; else none: a wrong tree is not drawn."""
    found: dict[str, dict[str, Any]] = {}
    for g in groups:
        name = str(g.get("id", g.get("group")))
        children = [str(c) for c in g.get("children") or []]
        if len(children) < 2 or name in nodes or name in found:
            return []
        told = {key: str(g[key]) for key in ("title", "text", "origin") if g.get(key)}
        found[name] = {"id": name, "children": children, "title": "", **told}
    taken = [c for g in found.values() for c in g["children"]]
    if len(set(taken)) != len(taken) or not set(taken) <= {*nodes, *found}:
        return []
    reached, stack = set(), [n for n in (*nodes, *found) if n not in set(taken)]
    while stack:
        reached.add(name := stack.pop())
        stack += found[name]["children"] if name in found else []
    return list(found.values()) if len(reached) == len(nodes) + len(found) else []


def _linked(strength: Floats) -> list[dict[str, Any]]:
    """About sqrt(k) groups by average linkage of strength over the root of the volumes' product."""
    k = len(strength)
    both = strength + strength.T
    volume = np.where(both.sum(1) > 0, both.sum(1), 1.0)
    near = both / np.sqrt(volume[:, None] * volume[None])
    parts = [[i] for i in range(k)]
    while len(parts) > max(2, round(math.sqrt(k))):
        best = max(
            ((a, b) for a in range(len(parts)) for b in range(a + 1, len(parts))),
            # Large groups join late: without the root of their sizes one group swallows all.
            key=lambda p: (
                float(near[np.ix_(parts[p[0]], parts[p[1]])].mean()) / math.sqrt(len(parts[p[0]]) * len(parts[p[1]]))
            ),
        )
        parts[best[0]] += parts.pop(best[1])
    return [
        {"id": f"g{at}", "children": [str(i) for i in sorted(part)], "title": ""}
        for at, part in enumerate(sorted(parts, key=min))
        if len(part) > 1
    ]
