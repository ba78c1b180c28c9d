"""Pictures of a partition: the graph of modules, and layers against modules."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from modcut.reporting.draw import caption, colour, escape, figure, frame, halo, shorten

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
