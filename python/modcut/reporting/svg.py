"""Pictures as SVG text: the graph of modules, layers against modules, cut trees, effects beside their controls.

Every function returns one ``<svg>`` element with a title and a description for screen readers, whose colours are CSS
variables (:func:`~modcut.reporting.draw.palette`): inside a report they follow its light or dark style, and
:func:`~modcut.reporting.draw.standalone` makes a file of
its own that does the same. All text is escaped; nothing refers to another file.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import count
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modcut.reporting.draw import (
    caption,
    colour,
    escape,
    figure,
    frame,
    halo,
    shorten,
    signed,
    ticks,
)

Points = NDArray[np.float64]

# Edges weaker than this part of the strongest one are counted, not drawn: sixteen modules have 120 pairs.
_FAINT = 0.01


def module_graph(
    sizes: Sequence[int],
    strength: Sequence[Sequence[float]],
    *,
    names: Sequence[str] | None = None,
    title: str = "Modules and interfaces",
) -> str:
    """Draw modules as circles (area = units) and the strength of the weights between them as lines (width = strength).

    Args:
        sizes: units per module, [k].
        strength: strength of the edges from module to module, [k, k]; entry (i, j): ``i`` reads from ``j``.
        names: a short name per module; "Module i" by default.
        title: accessible title.

    Raises:
        ValueError: the shapes do not fit.
    """
    k = len(sizes)
    s = np.asarray(strength, dtype=np.float64).reshape(len(strength), -1) if k else np.zeros((0, 0))
    if s.shape != (k, k):
        raise ValueError(f"strength must have shape [{k}, {k}], got {list(s.shape)}")
    names = [f"Module {i}" for i in range(k)] if names is None else list(names)
    both = s + s.T
    np.fill_diagonal(both, 0.0)
    order = _around(both)
    width, height = (720.0, 220.0) if k <= 2 else (820.0, 480.0)
    room = 46.0 if k <= 6 else max(15.0, 340.0 / k)
    # Outside of the circles there is room for two lines of text.
    ring = 64.0 if k <= 2 else height / 2 - room - 44
    spread = 1.45 if k > 2 else 1.7
    place = np.zeros((k, 2))
    for slot, i in enumerate(order):
        angle = math.pi if k == 1 else math.pi + 2 * math.pi * slot / k
        if k > 2:
            angle += math.pi / 2
        reach = 0.0 if k == 1 else 1.0
        place[i] = width / 2 + reach * spread * ring * math.cos(angle), height / 2 + reach * ring * math.sin(angle)
    biggest = max([*sizes, 1])
    radius = [max(9.0, room * math.sqrt(n / biggest)) for n in sizes]
    if k > 2:  # an odd ring reaches less far down than up: the picture ends below its last label
        low, high = (float(x) for x in (place[:, 1].min(), place[:, 1].max()))
        place[:, 1] += 44 + room - low
        height = high - low + 2 * (44 + room)
    top = float(both.max()) if k else 0.0
    pairs = sorted((float(both[i, j]), i, j) for i in range(k) for j in range(i + 1, k) if both[i, j] > 0)
    drawn = [p for p in pairs if p[0] >= _FAINT * top]
    parts = []
    centre, bow = place.mean(0) if k > 2 else np.array([width / 2, height / 2]), 0.0 if k <= 3 else 0.35
    stroke = 11.0 if k <= 8 else 8.0
    for value, i, j in drawn:
        a, b = place[i], place[j]
        middle = (a + b) / 2
        bend = middle + (centre - middle) * bow
        label = f"{names[i]} and {names[j]}: {figure(value)} ({figure(s[j, i])} one way, {figure(s[i, j])} the other)"
        parts.append(
            f'<path d="M{a[0]:.1f} {a[1]:.1f} Q{bend[0]:.1f} {bend[1]:.1f} {b[0]:.1f} {b[1]:.1f}" fill="none" '
            f'stroke="var(--soft)" stroke-width="{1 + stroke * value / top:.2f}" stroke-linecap="round" '
            f'stroke-opacity="{0.22 + 0.4 * value / top:.2f}"><title>{escape(label)}</title></path>'
        )
    # Figures stand only where they stay apart from each other; all of them are in the hints and in the table.
    strong = [p for p in drawn if p[0] >= 0.3 * top]
    for value, i, j in strong if len(strong) <= 3 and k <= 4 else []:
        # Beside the middle of the curve: a quarter of each end and half of its control point.
        middle, along = (place[i] + place[j]) / 2, place[j] - place[i]
        normal = np.array([along[1], -along[0]]) / float(np.hypot(*along))
        normal = normal if normal[1] < -0.2 or (abs(normal[1]) <= 0.2 and normal[0] > 0) else -normal
        at = middle + (centre - middle) * bow / 2 + normal * (13 + 9 * abs(normal[0]))
        parts.append(halo(at[0], at[1] + 4, figure(value), 12))
    for i in range(k):
        x, y = place[i]
        r = radius[i]
        label = f"{names[i]}: {sizes[i]} units"
        parts.append(
            f'<g><circle cx="{x:.1f}" cy="{y:.1f}" r="{r:.1f}" fill="{colour(i)}" stroke="var(--paper)" '
            f'stroke-width="2.5"><title>{escape(label)}</title></circle>'
            f'<text x="{x:.1f}" y="{y:.1f}" dy="0.36em" text-anchor="middle" font-size="{min(17, r * 1.1):.0f}" '
            f'font-weight="650" fill="var(--paper)" pointer-events="none">{i}</text></g>'
        )
        out = place[i] - centre
        far = float(np.hypot(*out)) or 1.0
        below = k <= 2 or abs(out[0]) / far < 0.35
        limit = 24 if k <= 8 else 16
        default = names[i] == f"Module {i}"
        if below:
            sign = 1 if (k <= 2 or out[1] > 0) else -1
            base_y = y + sign * (r + 16) + (0 if sign > 0 else -12)
            lines = [] if default and k > 8 else [shorten(names[i], limit)]
            parts += [
                halo(x, base_y + 15 * at, text, 12.5 if at == 0 else 11, soft=at == len(lines))
                for at, text in enumerate([*lines, f"{sizes[i]:,} units"])
            ]
        else:
            anchor, dx = ("start", r + 8) if out[0] > 0 else ("end", -r - 8)
            lines = [] if default and k > 8 else [shorten(names[i], limit)]
            start = y - 7.5 * len(lines) + 4
            parts += [
                halo(x + dx, start + 15 * at, text, 12.5 if at < len(lines) else 11, anchor, soft=at == len(lines))
                for at, text in enumerate([*lines, f"{sizes[i]:,} units"])
            ]
    said = f"{k} modules with {sum(sizes)} units and {len(pairs)} interfaces."
    if not pairs:
        parts.append(caption(width / 2, height - 12, "No weight connects two modules.", 12, "middle", soft=True))
    elif len(drawn) < len(pairs):
        missing = f"{len(pairs) - len(drawn)} interfaces weaker than 1 % of the strongest are not drawn"
        parts.append(caption(width / 2, height - 8, missing, 11, "middle", soft=True))
    if pairs:
        said += f" The strongest is between {names[pairs[-1][1]]} and {names[pairs[-1][2]]} ({figure(top)})."
    return frame(width, height, title, said, parts)


def occupancy(
    families: Sequence[str],
    counts: Sequence[Sequence[int]],
    *,
    title: str = "Where each module lies",
) -> str:
    """Draw layers against modules: the darker a cell, the larger the module's part of that layer's units.

    Args:
        families: name of every layer or axis class, top to bottom.
        counts: units of each module in each, [families, k].
        title: accessible title.
    """
    k = max((len(c) for c in counts), default=0)
    # Wide enough for the number of a layer in "model.layers.10.self_attn.heads", which a shorter name would lose.
    limit = min(max((len(f) for f in families), default=0), 36)
    left, top, cell_h = 10 + 6.9 * max(limit, 26), 30.0, 22.0 if len(families) <= 30 else 17.0
    cell_w = min(84.0, max(30.0, 520.0 / max(k, 1)))
    width, height = left + cell_w * max(k, 1) + 74, top + cell_h * len(families) + 8
    parts = []
    for j in range(k):
        x = left + cell_w * (j + 0.5)
        parts.append(
            f'<circle cx="{x:.1f}" cy="14" r="9" fill="{colour(j)}"/><text x="{x:.1f}" y="14" dy="0.36em" '
            f'text-anchor="middle" font-size="10" font-weight="650" fill="var(--paper)">{j}</text>'
        )
    parts.append(caption(left + cell_w * k + 10, 18, "units", 11, soft=True))
    for row, (name, line) in enumerate(zip(families, counts, strict=True)):
        y, total = top + cell_h * row, sum(line)
        parts.append(caption(left - 10, y + cell_h / 2 + 4, shorten(name, max(limit, 26)), 11.5, "end", full=name))
        parts.append(caption(left + cell_w * k + 10, y + cell_h / 2 + 4, f"{total:,}", 11, soft=True))
        for j, units in enumerate(line):
            part = units / total if total else 0.0
            x = left + cell_w * j
            told = f"{name}: module {j} has {units} of {total} units ({100 * part:.0f} %)"
            fill, opacity = (colour(j), 0.12 + 0.78 * part) if units else ("var(--line)", 0.25)
            parts.append(
                f'<rect x="{x + 1:.1f}" y="{y + 1:.1f}" width="{cell_w - 2:.1f}" height="{cell_h - 2:.1f}" rx="3" '
                f'fill="{fill}" fill-opacity="{opacity:.2f}"><title>{escape(told)}</title></rect>'
            )
            if units and cell_h > 18 and len(str(units)) * 7 < cell_w:
                ink = "var(--paper)" if part > 0.55 else "var(--ink)"
                parts.append(
                    f'<text x="{x + cell_w / 2:.1f}" y="{y + cell_h / 2:.1f}" dy="0.36em" text-anchor="middle" '
                    f'font-size="10.5" fill="{ink}" pointer-events="none">{units}</text>'
                )
    said = (
        f"{len(families)} layers, from {families[0]} to {families[-1]}, against {k} modules."
        if families
        else "No layer."
    )
    return frame(width, height, title, said, parts)


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


def effect_bars(rows: Sequence[dict[str, Any]], *, title: str = "Effects beside their controls", unit: str = "") -> str:
    """Draw one bar per row, with its matched random controls as a band (range or mean ± 2 sd) on the same axis.

    Args:
        rows: ``label``, ``value``, and ``low``/``high`` (the controls' range) or None; optional ``module`` for colour.
        title: accessible title.
        unit: written under the axis.
    """
    rows = [r for r in rows if r.get("value") is not None]
    ends = [0.0] + [float(r[key]) for r in rows for key in ("value", "low", "high") if r.get(key) is not None]
    low, high = min(ends), max(ends)
    if high == low:
        high = low + 1.0
    left, right, line = 250.0, 78.0, 26.0
    width, height = 760.0, 26 + line * len(rows) + 30
    span = width - left - right

    def x_of(value: float) -> float:
        return left + span * (value - low) / (high - low)

    parts = []
    for tick in ticks(low, high):
        x = x_of(tick)
        parts.append(f'<line x1="{x:.1f}" y1="14" x2="{x:.1f}" y2="{height - 30:.1f}" stroke="var(--line)"/>')
        parts.append(caption(x, height - 16, figure(tick), 10.5, "middle", soft=True))
    zero = x_of(0.0)
    parts.append(f'<line x1="{zero:.1f}" y1="10" x2="{zero:.1f}" y2="{height - 30:.1f}" stroke="var(--soft)"/>')
    for at, r in enumerate(rows):
        y, value = 20 + line * at, float(r["value"])
        a, b = sorted((zero, x_of(value)))
        tint = colour(int(r["module"])) if r.get("module") is not None else "var(--module-0)"
        controls = ""
        if r.get("low") is not None and r.get("high") is not None:
            c, d = x_of(float(r["low"])), x_of(float(r["high"]))
            controls = f"; matched random: {figure(float(r['low']))} to {figure(float(r['high']))}"
            band = (
                f'<rect x="{c:.1f}" y="{y - 3:.1f}" width="{max(d - c, 2):.1f}" height="22" fill="var(--soft)" '
                f'fill-opacity="0.3" stroke="var(--soft)" stroke-width="1" rx="2"/>'
            )
        else:
            band = ""
        told = f"{r['label']}: {figure(value)}{controls}"
        parts.append(
            f"<g><title>{escape(told)}</title>"
            f'<rect x="{a:.1f}" y="{y + 2:.1f}" width="{max(b - a, 1.5):.1f}" height="12" rx="2" fill="{tint}"/>'
            f"{band}</g>"
        )
        parts.append(caption(left - 12, y + 12, shorten(str(r["label"]), 38), 11.5, "end", full=str(r["label"])))
        parts.append(caption(width - right + 12, y + 12, signed(value), 11.5))
    parts.append(caption(left + span / 2, height - 2, unit, 10.5, "middle", soft=True))
    said = f"{len(rows)} effects; the grey band is what matched random modules do."
    return frame(width, height, title, said, parts)


def dots(
    rows: Sequence[dict[str, Any]], *, title: str, low: float = 0.0, high: float = 1.0, chance: float = 0.5
) -> str:
    """Draw scores as dots with intervals, their controls as rings and ticks, and the line of chance.

    Args:
        rows: ``label``, ``value``, optional ``low``/``high``, ``shuffled`` and ``random`` (lists), ``module``.
        title: accessible title.
        low: left end of the axis.
        high: right end.
        chance: where a useless score lies.
    """
    left, right, line = 150.0, 60.0, 26.0
    width, height = 720.0, 20 + line * len(rows) + 26
    span = width - left - right

    def x_of(value: float) -> float:
        return left + span * (min(max(value, low), high) - low) / (high - low)

    parts = []
    for tick in ticks(low, high):
        parts.append(
            f'<line x1="{x_of(tick):.1f}" y1="8" x2="{x_of(tick):.1f}" y2="{height - 26:.1f}" stroke="var(--line)"/>'
        )
        parts.append(caption(x_of(tick), height - 11, figure(tick), 10.5, "middle", soft=True))
    parts.append(
        f'<line x1="{x_of(chance):.1f}" y1="6" x2="{x_of(chance):.1f}" y2="{height - 26:.1f}" stroke="var(--soft)" '
        'stroke-dasharray="3 3"><title>chance</title></line>'
    )
    for at, r in enumerate(rows):
        y = 22 + line * at
        tint = colour(int(r["module"])) if r.get("module") is not None else "var(--ink)"
        parts.append(caption(left - 12, y + 4, shorten(str(r["label"]), 20), 11.5, "end", full=str(r["label"])))
        for c in r.get("random") or []:
            if c is not None:
                parts.append(
                    f'<circle cx="{x_of(c):.1f}" cy="{y}" r="4.5" fill="none" stroke="var(--soft)" stroke-width="1.5">'
                    f"<title>random module: {figure(c)}</title></circle>"
                )
        for c in r.get("shuffled") or []:
            if c is not None:
                parts.append(
                    f'<line x1="{x_of(c):.1f}" y1="{y - 7}" x2="{x_of(c):.1f}" y2="{y + 7}" stroke="var(--soft)" '
                    f'stroke-width="1.5"><title>another module\'s evidence: {figure(c)}</title></line>'
                )
        if r.get("value") is None:
            parts.append(caption(width - right + 10, y + 4, "n/a", 11.5, soft=True))
            continue
        if r.get("low") is not None and r.get("high") is not None:
            parts.append(
                f'<line x1="{x_of(r["low"]):.1f}" y1="{y}" x2="{x_of(r["high"]):.1f}" y2="{y}" stroke="{tint}" '
                'stroke-width="3" stroke-opacity="0.5"/>'
            )
        label = f"{r['label']}: {figure(r['value'])}"
        parts.append(
            f'<circle cx="{x_of(r["value"]):.1f}" cy="{y}" r="6" fill="{tint}" stroke="var(--paper)" '
            f'stroke-width="1.5"><title>{escape(label)}</title></circle>'
        )
        parts.append(caption(width - right + 10, y + 4, f"{r['value']:.2f}", 11.5))
    said = "Filled dots: the score with its 95 % interval. Rings: random modules. Ticks: evidence of other modules."
    return frame(width, height, title, said, parts)


def steps(
    rows: Sequence[dict[str, Any]], modules: Sequence[int], *, title: str = "Modules used by one decision, in order"
) -> str:
    """Draw a decision's way through the modules: one line per stretch of the forward pass, one column per module.

    A disc's area is the size of the effect of ablating the module there (filled: the answer loses without it, hollow:
    it gains); the dashed ring is what matched random modules do; a dot under the disc: larger than all of them.

    Args:
        rows: ``label`` and ``effects``: dicts with ``module``, ``value``, ``control`` (size) and ``beyond``.
        modules: the columns, in order.
        title: accessible title.
    """
    line, column, left, top = 44.0, 74.0, 250.0, 36.0
    width, height = left + column * max(len(modules), 1) + 20, top + line * len(rows) + 10
    sizes = [
        abs(float(e[key])) for r in rows for e in r["effects"] for key in ("value", "control") if e.get(key) is not None
    ]
    most = max(sizes, default=0.0) or 1.0
    parts = []
    where = {m: left + column * (at + 0.5) for at, m in enumerate(modules)}
    for m, x in where.items():
        parts.append(
            f'<line x1="{x:.1f}" y1="26" x2="{x:.1f}" y2="{height - 10:.1f}" stroke="var(--line)"/>'
            f'<circle cx="{x:.1f}" cy="15" r="11" fill="{colour(m)}"/><text x="{x:.1f}" y="15" dy="0.36em" '
            f'text-anchor="middle" font-size="11" font-weight="650" fill="var(--paper)">{m}</text>'
        )
    for at, r in enumerate(rows):
        y = top + line * (at + 0.5)
        parts.append(f'<line x1="{left:.1f}" y1="{y:.1f}" x2="{width - 10:.1f}" y2="{y:.1f}" stroke="var(--line)"/>')
        parts.append(caption(left - 12, y + 4, shorten(str(r["label"]), 36), 11.5, "end", full=str(r["label"])))
        for e in r["effects"]:
            size = e.get("control")
            if e["module"] not in where or e.get("value") is None:
                continue
            x, value = where[e["module"]], float(e["value"])
            radius = max(1.5, 18 * math.sqrt(abs(value) / most))
            fill = colour(e["module"]) if value <= 0 else "var(--paper)"
            told = f"module {e['module']} at {r['label']}: {signed(value)}"
            ring = ""
            if size is not None:
                told += f"; matched random modules: {figure(size)}"
                reach = max(1.0, 18 * math.sqrt(abs(size) / most))
                ring = (
                    f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{reach:.1f}" fill="none" stroke="var(--ink)" '
                    'stroke-width="1.2" stroke-dasharray="2.5 2.5"/>'
                )
            star = f'<circle cx="{x:.1f}" cy="{y + 20:.1f}" r="1.8" fill="var(--ink)"/>' if e.get("beyond") else ""
            parts.append(
                f'<g><title>{escape(told)}</title><circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}" fill="{fill}" '
                f'stroke="{colour(e["module"])}" stroke-width="2"/>{ring}{star}</g>'
            )
    said = f"{len(rows)} stretches of the forward pass against {len(modules)} modules."
    return frame(width, height, title, said, parts)


def _around(both: Points) -> list[int]:
    """Order modules on the ring so that strong pairs are near: the strongest link of the last one comes next."""
    k = len(both)
    if not k:
        return []
    order = [int(both.sum(1).argmax())]
    while len(order) < k:
        left = [j for j in range(k) if j not in order]
        order.append(max(left, key=lambda j: (both[order[-1], j], -j)))
    return order
