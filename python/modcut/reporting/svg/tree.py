"""The picture of a cut tree."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import count

from modcut.reporting.draw import colour, escape, figure, frame, halo, shorten


def cut_tree(
    parent: Sequence[int],
    weight: Sequence[float | None],
    *,
    names: Sequence[str] | None = None,
    title: str = "Cut tree",
) -> str:
    """Draw a Gomory-Hu tree: the lightest edge on the way between two vertices is their minimum cut.

    Args:
        parent: parent of every vertex, -1 for a root, [n].
        weight: weight of the edge to the parent (None or inf for a root), [n].
        names: of the vertices; their numbers by default.
        title: accessible title.
    """
    n = len(parent)
    names = [str(i) for i in range(n)] if names is None else list(names)
    children: list[list[int]] = [[] for _ in range(n)]
    roots: list[int] = []
    for v, p in enumerate(parent):
        (roots if p < 0 else children[p]).append(v)
    place: dict[int, tuple[float, int]] = {}
    slots = count()
    # Leaves take the next free slot, inner vertices stand above the middle of their children; no recursion, since a
    # star or a path of any depth may come.
    stack = [(r, 0, False) for r in reversed(roots)]
    while stack:
        v, depth, done = stack.pop()
        if done or not children[v]:
            own = [place[c][0] for c in children[v]]
            place[v] = ((own[0] + own[-1]) / 2 if own else float(next(slots)), depth)
        else:
            stack.append((v, depth, True))
            stack += [(c, depth + 1, False) for c in reversed(children[v])]
    leaves, deep = max(1, next(slots)), max((d for _, d in place.values()), default=0)
    step_x = min(96.0, max(34.0, 660.0 / leaves))
    step_y = 84.0 if deep < 6 else 60.0
    width, height = max(240.0, step_x * leaves + 40), step_y * deep + 76
    shift = (width - step_x * (leaves - 1)) / 2
    at = {v: (shift + step_x * x, 34 + step_y * d) for v, (x, d) in place.items()}
    finite = [float(w) for w in weight if w is not None and math.isfinite(w)]
    top = max(finite, default=0.0) or 1.0
    parts = []
    for v, p in enumerate(parent):
        w = weight[v]
        if p < 0 or w is None or not math.isfinite(w):
            continue
        (x1, y1), (x2, y2) = at[v], at[p]
        label = f"minimum cut between {names[v]} and {names[p]}: {figure(float(w))}"
        parts.append(
            f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="var(--soft)" '
            f'stroke-linecap="round" stroke-opacity="0.55" stroke-width="{1.2 + 7 * float(w) / top:.2f}">'
            f"<title>{escape(label)}</title></line>"
        )
    if n <= 40:
        for v, p in enumerate(parent):
            w = weight[v]
            if p >= 0 and w is not None and math.isfinite(w):
                (x1, y1), (x2, y2) = at[v], at[p]
                parts.append(halo(x1 + (x2 - x1) * 0.4, y1 + (y2 - y1) * 0.4, figure(float(w)), 10.5))
    for v in range(n):
        x, y = at[v]
        named = names[v] != str(v)
        parts.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="13" fill="{colour(v)}" stroke="var(--paper)" stroke-width="2">'
            f"<title>{escape(names[v])}</title></circle>"
            f'<text x="{x:.1f}" y="{y:.1f}" dy="0.36em" text-anchor="middle" font-size="11" font-weight="650" '
            f'fill="var(--paper)" pointer-events="none">{v}</text>'
        )
        if named and not children[v] and step_x > 60:
            parts.append(halo(x, y + 27, shorten(names[v], int(step_x / 7)), 10.5))
    said = (
        f"A tree over {n} vertices with cut values from {figure(min(finite))} to {figure(max(finite))}."
        if finite
        else ""
    )
    return frame(width, height, title, said, parts)
