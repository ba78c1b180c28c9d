"""Figures beside their controls: bars with bands, dots with rings, and the way of one decision."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from modcut.reporting.draw import caption, colour, escape, figure, frame, shorten, signed, ticks


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
