"""What a run shows: a line in the terminal, curves as SVG, one HTML file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import modcut
from modcut._files import write_text
from modcut.reporting.draw import caption, colour, figure, frame, standalone, ticks

_CURVE = ("step", "loss", "leak", "interface", "lam", "phase")
_BARS = " ▁▂▃▄▅▆▇█"


def spark(values: Sequence[float], width: int = 24) -> str:
    """Return a curve in one line of text, highest value full height; sampled down to ``width`` characters."""
    if not values:
        return ""
    picked = [values[i * len(values) // min(width, len(values))] for i in range(min(width, len(values)))]
    low, high = min(values), max(values)
    return "".join(_BARS[1 + round(7 * ((v - low) / (high - low) if high > low else 0.0))] for v in picked)


def curves(panels: Sequence[tuple[str, Mapping[str, Sequence[tuple[float, float]]]]], *, title: str) -> str:
    """Draw panels side by side, each with named curves of (x, y) points; returns a bare <svg>."""
    wide, high, gap, left, top = 250.0, 150.0, 58.0, 46.0, 34.0
    parts = []
    for at, (name, lines) in enumerate(panels):
        x0 = left + at * (wide + gap)
        points = [p for line in lines.values() for p in line]
        parts.append(caption(x0, 20, name, 12.5))
        if not points:
            parts.append(caption(x0, top + high / 2, "not measured", 11.5, soft=True))
            continue
        xs, ys = [p[0] for p in points], [p[1] for p in points]
        low, top_value = min(ys), max(ys)
        if top_value == low:
            low, top_value = low - 0.5, top_value + 0.5
        right = max(xs) or 1.0

        scale = (x0, wide / right, low, high / (top_value - low))

        def place(p: tuple[float, float], scale: tuple[float, float, float, float] = scale) -> str:
            x0, per_x, low, per_y = scale
            return f"{x0 + per_x * p[0]:.1f},{top + high - per_y * (p[1] - low):.1f}"

        for tick in ticks(low, top_value, 4):
            y = float(place((0.0, tick)).split(",")[1])
            parts.append(f'<line x1="{x0:.1f}" y1="{y:.1f}" x2="{x0 + wide:.1f}" y2="{y:.1f}" stroke="var(--line)"/>')
            parts.append(caption(x0 - 6, y + 4, figure(tick), 10, "end", soft=True))
        parts.append(caption(x0 + wide, top + high + 16, f"step {int(right)}", 10, "end", soft=True))
        for i, (label, line) in enumerate(lines.items()):
            path = " ".join(place(p) for p in line)
            parts.append(
                f'<polyline points="{path}" fill="none" stroke="{colour(i)}" stroke-width="2"><title>{label}</title>'
                "</polyline>"
            )
            parts.append(caption(x0 + 70 * i, top + high + 32, label, 11, soft=True))
            parts.append(f'<circle cx="{x0 + 70 * i - 7:.1f}" cy="{top + high + 28:.1f}" r="4" fill="{colour(i)}"/>')
    said = "; ".join(f"{name}: {', '.join(lines)}" for name, lines in panels)
    return frame(left + len(panels) * (wide + gap), top + high + 44, title, said, parts)


def frontier(rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Return validation loss, leak and interface of every arm over the steps."""

    def of(key: str) -> dict[str, list[tuple[float, float]]]:
        found = {
            arm: [(float(r["step"]), float(r[key])) for r in curve if r.get(key) is not None]
            for arm, curve in rows.items()
        }
        return {arm: line for arm, line in found.items() if line}

    panels = [
        ("Validation loss (nats)", of("loss")),
        ("Leak", of("leak")),
        ("Interface (share of cross weights)", of("interface")),
    ]
    return curves(panels, title="Training: loss, leak, interface")


def write_page(results: Mapping[str, Any], out: Path) -> None:
    """Write ``curves.svg`` and ``report.html``."""
    write_text(out / "curves.svg", standalone(frontier({a["arm"]: a["curve"] for a in results["arms"]})))
    write_report(results, out / "report.html")


def write_report(results: Mapping[str, Any], path: Path, *, format: Any = None) -> None:
    """Write the report of saved results, as HTML, JSON or Markdown."""
    meta = {
        **{k: v for k, v in results["stamp"].items() if not isinstance(v, dict)},
        "config": results["config"],
        "summary": results["findings"],
        "data": results["data"],
        "seconds": results["seconds"],
    }
    modcut.report(
        path,
        table=[
            {"title": "Arms", "columns": ["measure", *(a["arm"] for a in results["arms"])], "rows": table(results)},
            *(
                {
                    "title": f"Curve of {a['arm']}",
                    "columns": ["step", "validation loss", "leak", "interface", "lam", "phase"],
                    "rows": [
                        [r.get(k) for k in ("step", "loss", "leak", "interface", "lam", "phase")] for r in a["curve"]
                    ],
                }
                for a in results["arms"]
            ),
        ],
        title="modcut train",
        meta=meta,
        format=format,
    )


_MEASURES = (
    ("validation loss (nats)", "loss"),
    ("accuracy", "accuracy"),
    ("Winograd pairs right", "winograd"),
    ("leak", "leak"),
    ("leak, random partitions", "random_leak"),
    ("cross weights that are not zero", "cross_nonzero"),
    ("cross weights", "cross"),
    ("loss after deleting them (zero)", "cut_zero"),
    ("loss after deleting them (mean kept)", "cut_mean"),
    ("loss after deleting as many at random partitions", "random_cut"),
    ("specialisation (TV)", "tv"),
    ("TV of random partitions", "random_tv"),
    ("p", "p"),
)


def table(results: Mapping[str, Any]) -> list[list[Any]]:
    """Return one row per measure, one column per arm."""
    rows = [[name, *(a["measures"].get(key) for a in results["arms"])] for name, key in _MEASURES]
    return [r for r in rows if any(v is not None for v in r[1:])]
