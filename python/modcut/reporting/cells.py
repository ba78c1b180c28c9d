"""Values as a table of the page shows them."""

from __future__ import annotations

import math
from typing import Any


def cell(value: Any) -> str:
    """Return a value as a table shows it: three or four significant digits, words for truth and absence."""
    if value is None:
        return "n/a"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        if not math.isfinite(value):
            return "n/a" if math.isnan(value) else "∞" if value > 0 else "−∞"
        if value == 0:
            return "0"
        if abs(value) < 1e-3 or abs(value) >= 1e6:
            return f"{value:.2e}"
        return f"{value:,.1f}" if abs(value) >= 1000 else f"{value:.4g}" if abs(value) >= 100 else f"{value:.3g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(cell(v) for v in value)
    return str(value)


def signed(value: Any) -> str:
    """Return a change with its sign."""
    return f"+{cell(value)}" if isinstance(value, (int, float)) and value > 0 else cell(value)


def percent(value: Any) -> str:
    """Return a share in percent."""
    return "n/a" if value is None else f"{100 * float(value):.1f} %"


def spread(values: Any, share: bool = False) -> str:
    """Return the range of a list of controls."""
    known = [float(v) for v in values or [] if v is not None]
    if not known:
        return "n/a"
    form = percent if share else signed
    low, high = form(min(known)), form(max(known))
    return low if low == high else f"{low} to {high}"
