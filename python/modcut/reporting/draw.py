"""What every picture is drawn with: colours that follow the page, escaped text, the frame around it, round figures."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Sequence
from html import escape as _escape_markup

# Hues of the modules: told apart by colour-blind readers for the first eight (after Okabe & Ito 2008); later modules
# go round the colour circle by the golden angle. A module's number always stands beside its colour.
_LIGHT = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56a4d9", "#7b4fb5", "#8c564b")
_DARK = ("#5ab4f0", "#ff9a57", "#3fcfa0", "#f0a6cf", "#e6b84a", "#9fd4ff", "#b99bf2", "#c99a8c")


# What neither HTML nor XML may hold (control characters, lone surrogates), and what turns the text around it (bidi
# controls): a crafted name must not make the words beside it read otherwise.
_UNFIT = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff\ufffe\uffff\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]"
)


def clean(text: str) -> str:
    """Replace the characters that a page may not hold, and those that change the direction of text."""
    return _UNFIT.sub("\N{REPLACEMENT CHARACTER}", text)


def escape(text: str) -> str:
    """Return text that stands for itself in SVG and HTML."""
    return _escape_markup(clean(str(text)))


def colour(module: int) -> str:
    """Return the CSS colour of a module."""
    return f"var(--module-{module})"


def palette(k: int, *, dark: bool) -> str:
    """Return the CSS declarations of the colours of ``k`` modules and of the ink, paper and grid of the pictures."""
    base = _DARK if dark else _LIGHT
    tones = [
        base[i] if i < len(base) else f"hsl({(i * 137.508 + 20) % 360:.0f} 60% {70 if dark else 42}%)" for i in range(k)
    ]
    rest = (
        {"ink": "#e8eaed", "soft": "#a6adb8", "line": "#3a414d", "paper": "#14171c", "panel": "#1c2027"}
        if dark
        else {"ink": "#1d2430", "soft": "#5b6575", "line": "#d9dee6", "paper": "#ffffff", "panel": "#f6f8fa"}
    )
    names = {**rest, **{f"module-{i}": tone for i, tone in enumerate(tones)}}
    return " ".join(f"--{name}: {value};" for name, value in names.items())


def coloured(*pictures: str) -> int:
    """Return how many module colours the pictures need: one more than the largest module in them."""
    return 1 + max((int(m) for p in pictures for m in re.findall(r"--module-(\d+)", p)), default=0)


def standalone(svg: str) -> str:
    """Return a picture as a complete .svg file with its own colours, light and dark."""
    k = coloured(svg)
    start = svg.index(">") + 1
    style = (
        f"<style>svg {{ {palette(k, dark=False)} background: var(--paper); }}"
        f" @media (prefers-color-scheme: dark) {{ svg {{ {palette(k, dark=True)} }} }}</style>"
    )
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + svg[:start] + style + svg[start:] + "\n"


def shorten(text: str, limit: int) -> str:
    """Cut a long name in its middle: the ends of qualified names tell most."""
    if len(text) <= limit:
        return text
    left = (limit - 1) // 3
    return text[:left] + "…" + text[len(text) - (limit - 1 - left) :]


def ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Return round figures that cover the range, about ``wanted`` of them."""
    raw = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def figure(value: float) -> str:
    """Return a number as people write it."""
    value = float(value)
    if value != value:
        return "n/a"
    if value == 0:
        return "0"
    if abs(value) >= 1e6 or abs(value) < 1e-3:
        return f"{value:.2g}"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def signed(value: float) -> str:
    """Return a number with its sign."""
    return figure(value) if value <= 0 else f"+{figure(value)}"


def caption(
    x: float, y: float, text: str, size: float, anchor: str = "start", *, soft: bool = False, full: str = ""
) -> str:
    """Return a line of text; ``full`` is shown when it is pointed at."""
    hint = f"<title>{escape(full)}</title>" if full and full != text else ""
    tone = "var(--soft)" if soft else "var(--ink)"
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text {place} font-size="{size:g}" fill="{tone}">{hint}{escape(text)}</text>'


def halo(x: float, y: float, text: str, size: float, anchor: str = "middle", *, soft: bool = False) -> str:
    """A label that stays readable over lines: its outline is painted first in the colour of the paper."""
    tone = "var(--soft)" if soft else "var(--ink)"
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size:g}" fill="{tone}" '
        f'stroke="var(--paper)" stroke-width="4" stroke-linejoin="round" paint-order="stroke" pointer-events="none">'
        f"{escape(text)}</text>"
    )


def frame(width: float, height: float, title: str, description: str, parts: Sequence[str]) -> str:
    """Return the ``<svg>`` element around the parts, with title and description for screen readers."""
    body = "".join(parts)
    # From the contents, so that equal pictures are equal files.
    name = f"picture-{hashlib.sha256(f'{title}|{description}|{body}'.encode()).hexdigest()[:10]}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" '
        f'height="{height:.0f}" role="img" aria-labelledby="{name}-title {name}-text" '
        'font-family="system-ui, -apple-system, Segoe UI, Roboto, Helvetica, Arial, sans-serif">'
        f'<title id="{name}-title">{escape(title)}</title><desc id="{name}-text">{escape(description)}</desc>'
        + body
        + "</svg>"
    )
