"""What a report shows, as plain dicts: results are read through ``to_dict`` so that saved JSON can be shown again."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from modcut.partition import Partition
from modcut.reading.evidence import block_strengths


def plain(value: Any, name: str) -> dict[str, Any] | None:
    """Return a result as a dict: itself, or what its ``to_dict`` returns.

    Raises:
        TypeError: it is neither.
    """
    if value is None:
        return None
    if isinstance(value, Mapping):
        return dict(value)
    to_dict = getattr(value, "to_dict", None)
    if callable(to_dict):
        return dict(to_dict())
    raise TypeError(f"{name} must be a modcut result or its to_dict(), got {type(value).__name__}")


def plain_effect(value: Any) -> dict[str, Any]:
    """Return one entry of ``Partition.significance`` (a dataclass) or its saved form as a dict."""
    return dict(value) if isinstance(value, Mapping) else asdict(value)


def partition_view(P: Partition) -> dict[str, Any]:
    """Return what a report shows of a partition, ready for JSON: metrics, strengths [k, k], layers, gaps."""
    strength = [[0.0] * P.k for _ in range(P.k)]
    for _, _, part in block_strengths(P):
        for i in range(P.k):
            for j in range(P.k):
                strength[i][j] += float(part[i, j])
    kinds = {s.family or s.name: s.kind for s in P.graph.spaces}
    return {
        "kind": "partition_view",
        **P.summary(),
        "strength": strength,
        "families": [
            {"family": name, "kind": kinds.get(name, "head"), "counts": counts.tolist()}
            for name, counts in P.balance.items()
        ],
        "not_covered": [list(entry) for entry in P.graph.not_covered],
        "meta": dict(P.meta),
    }


def read_partition(value: Any) -> dict[str, Any] | None:
    """Return the view of a partition, of its saved view, or of its ``to_dict`` (which has no layers)."""
    if isinstance(value, Partition):
        return partition_view(value)
    view = plain(value, "partition")
    if view is None:
        return None
    if "strength" not in view and isinstance(view.get("interfaces"), Sequence):
        k = int(view["k"])
        strength = [[0.0] * k for _ in range(k)]
        for f in view["interfaces"]:
            i, j = f["modules"]
            strength[j][i], strength[i][j] = float(f["forward"]), float(f["backward"])
        view["strength"] = strength
    return view


def from_cards(cards: Sequence[Mapping[str, Any]], deck: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return what the cards alone tell of their partition: sizes and strengths between modules; None where they do not.

    A module's evidence lists everything that it reads from, so the sum is whole; layers and metrics are not in it.
    """
    made = [(c["evidence"].get("make_up") or {}) for c in cards]
    if [c["index"] for c in cards] != list(range(len(cards))) or not all("units" in m for m in made):
        return None
    k = len(cards)
    strength = [[0.0] * k for _ in range(k)]
    for i, c in enumerate(cards):
        for end in c["evidence"].get("reads_from") or []:
            if isinstance(end.get("module"), int) and 0 <= end["module"] < k:
                strength[i][end["module"]] = float(end["strength"])
        strength[i][i] = float((c["evidence"].get("cut") or {}).get("inside") or 0.0)
    sizes = [int(m["units"]) for m in made]
    total = int(made[0].get("of", sum(sizes))) if made else 0
    edge = (deck.get("meta") or {}).get("edge", "n/a")
    return {"k": k, "n": total, "edge": edge, "sizes": sizes, "strength": strength, "families": []}


def read_table(value: Any) -> dict[str, Any] | None:
    """Return a table as ``{"title", "columns", "rows", "note"}``.

    Accepts that, or a sequence of dicts (one per row; the columns in order of appearance).

    Raises:
        TypeError: anything else.
        ValueError: a row of another length than the columns.
    """
    if value is None:
        return None
    if hasattr(value, "to_dict"):
        value = value.to_dict()
    if isinstance(value, Mapping):
        table = {"title": "", "note": "", **value}
        columns = [str(c) for c in table.get("columns", [])]
        rows = [list(r.values()) if isinstance(r, Mapping) else list(r) for r in table.get("rows", [])]
    elif isinstance(value, Sequence) and not isinstance(value, str) and all(isinstance(r, Mapping) for r in value):
        columns = list(dict.fromkeys(str(c) for r in value for c in r))
        rows = [[r.get(c) for c in columns] for r in value]
        table = {"title": "", "note": ""}
    else:
        raise TypeError(
            f"table must be a dict with columns and rows or a sequence of dicts, got {type(value).__name__}"
        )
    for row in rows:
        if len(row) != len(columns):
            raise ValueError(f"every row of table must have {len(columns)} cells, got {len(row)}: {row}")
    numeric = [bool(rows) and all(_numeric(r[i], words=i > 0) for r in rows) for i in range(len(columns))]
    return {**table, "columns": columns, "rows": rows, "numeric": numeric}


def _numeric(value: Any, *, words: bool) -> bool:
    """Whether a cell is right-aligned: a figure, or (``words``) text that begins with one, as "0.10 ± 0.02" does."""
    if value is None or (isinstance(value, (int, float)) and not isinstance(value, bool)):
        return True
    return words and isinstance(value, str) and re.match(r"[+\-−]?\d", value) is not None


def read_tables(value: Any) -> list[dict[str, Any]]:
    """Return one or several tables: a list of titled tables is several."""
    if isinstance(value, Sequence) and value and all(isinstance(t, Mapping) and "columns" in t for t in value):
        return [t for t in map(read_table, value) if t is not None]
    one = read_table(value)
    return [] if one is None else [one]


def effect_row(label: str, effect: Mapping[str, Any] | float, module: int | None = None) -> dict[str, Any]:
    """Return a row of :func:`modcut.reporting.svg.effect_bars` from an effect beside its controls.

    The band is the range of the controls where they are listed, else their mean plus and minus two deviations.
    """
    if not isinstance(effect, Mapping):
        return {"label": label, "value": float(effect), "module": module, "low": None, "high": None}
    value, mean, sd = effect.get("value"), effect.get("control_mean"), effect.get("control_sd")
    controls = [c for c in effect.get("controls") or [] if c is not None]
    if controls:
        low, high = min(controls), max(controls)
    elif mean is not None:
        low, high = float(mean) - 2 * float(sd or 0.0), float(mean) + 2 * float(sd or 0.0)
    else:
        low = high = None
    return {"label": label, "value": value, "module": module, "low": low, "high": high}
