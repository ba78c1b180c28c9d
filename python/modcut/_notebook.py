"""Results in a notebook: small tables, everything escaped, no scripts, in the notebook's own colours."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

ROWS = 40
_UNFIT = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def told(value: Any) -> str:
    """Return a value as escaped text: figures with three digits, nothing that turns the text around it."""
    if value is None:
        return "n/a"
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return escape(_UNFIT.sub("\N{REPLACEMENT CHARACTER}", str(value)))


def table(head: Sequence[str], rows: Iterable[Sequence[Any]], *, caption: str = "", note: str = "") -> str:
    """Return an HTML table of at most 40 rows; what is left out is counted under it."""
    rows = list(rows)
    left = f"{len(rows) - ROWS:,} more rows" if len(rows) > ROWS else ""
    cells = "".join(f"<tr>{''.join(f'<td>{told(c)}</td>' for c in row)}</tr>" for row in rows[:ROWS])
    ends = "".join(f"<p><small>{told(line)}</small></p>" for line in (left, note) if line)
    named = f"<caption>{told(caption)}</caption>" if caption else ""
    return (
        f"<div><table>{named}<thead><tr>{''.join(f'<th>{told(h)}</th>' for h in head)}</tr></thead>"
        f"<tbody>{cells}</tbody></table>{ends}</div>"
    )


def paragraphs(title: str, lines: Iterable[str], note: str = "") -> str:
    """Return a title and lines of text."""
    body = "".join(f"<p>{told(line)}</p>" for line in lines if line.strip())
    small = f"<p><small>{told(note)}</small></p>" if note else ""
    return f"<div><p><strong>{told(title)}</strong></p>{body}{small}</div>"
