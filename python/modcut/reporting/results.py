"""Sections for results whose rows are effects beside controls: effect tables, traces, comparisons.

They are read by shape, not by type: a list of dicts is a table, and a dict with ``value`` and ``control_mean`` in it is
an effect beside its controls. So a result saved by a later version still shows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from modcut.reporting import svg
from modcut.reporting.heat import level, visible
from modcut.reporting.views import effect_row, read_table

# Longer lists (curves, vertex ids) stay in the JSON; a reader of a page wants figures.
ROWS = 200


def is_effect(value: Any) -> bool:
    """Whether a value is an effect with its controls."""
    return isinstance(value, Mapping) and "value" in value and ("control_mean" in value or "controls" in value)


def section(name: str, title: str, result: Mapping[str, Any], *, text: str = "") -> dict[str, Any]:
    """Return what the template shows of one result: bars of its main effects, its tables and its record."""
    tables: list[dict[str, Any]] = []
    bars: list[dict[str, Any]] = []
    facts: list[tuple[str, Any]] = []
    record: Mapping[str, Any] = {}
    for key, value in result.items():
        if key in ("record", "meta", "stamp") and isinstance(value, Mapping):
            record = {**record, **value}
        elif _rows(value):
            tables += _expanded("All figures" if key == "rows" else _words(key), value)
            bars = bars or _bars(value)
        elif isinstance(value, Mapping) and value and all(_flat(v) for v in value.values()):
            tables.append(_titled(_words(key), [{"name": _words(str(k)), **v} for k, v in value.items()]))
        elif isinstance(value, Mapping) and value and all(is_effect(v) for v in value.values()):
            rows = [{_words(key): _words(str(k)), **_cells("effect", v)} for k, v in value.items()]
            tables.append(_titled(_words(key), rows))
            bars = bars or [effect_row(_words(str(k)), v) for k, v in value.items()]
        elif is_effect(value):
            facts.append((_words(key), _told(value)))
        elif isinstance(value, (str, int, float, bool)) and key not in ("kind", "format", "version"):
            facts.append((_words(key), value))
    picture = svg.effect_bars(bars[:60], title=title) if bars else ""
    return {
        "id": name,
        "title": title,
        "text": text,
        "svg": picture,
        "caption": "Bars: the effect of each module. Grey bands: what matched random modules do"
        " (their range, or mean ± 2 standard deviations).",
        "tables": [t for t in tables if t["rows"]],
        "facts": facts,
        "record": [*facts, *record_entries(record)],
    }


def trace_section(name: str, title: str, t: Mapping[str, Any]) -> dict[str, Any]:
    """Return the section of a trace: the decision, every module's effect beside its controls, and the way in depth."""
    if t.get("kind") == "passage":
        return _passage(name, title, t)
    if t.get("kind") != "trace" or not isinstance(t.get("decision"), Mapping):
        return section(name, title, t)
    d, modules = t["decision"], t.get("modules") or []
    bars = [effect_row(f"without module {m['module']}", m["log_probability"], m["module"]) for m in modules]
    rows = [
        {
            "module": f"module {m['module']}",
            "units": m["units"],
            **_cells("change of log-probability", m["log_probability"]),
            "probability then": m["without"]["probability"],
            "answer then": m["without"]["top"][0]["text"] if m["without"].get("top") else m["without"]["text"],
            "beyond all random": m["beyond_controls"],
        }
        for m in modules
    ]
    top = [{"answer": a["text"], "probability": a["probability"]} for a in d.get("top") or []]
    out = {
        "id": name,
        "title": title,
        "decision": d,
        "inputs": "".join(t.get("inputs") or [])[-600:],
        "svg": svg.effect_bars(bars, title=title, unit="change of the answer's log-probability") if bars else "",
        "caption": "Change of the answer's log-probability when a module is ablated: to the left, the answer loses"
        " without it. Grey bands: matched random modules, mean ± 2 standard deviations.",
        "tables": [_titled("Every module", rows)] if rows else [],
        "record": record_entries(t.get("record") or {}),
    }
    if t.get("steps"):
        followed = sorted({e["module"] for s in t["steps"] for e in s["effects"]})
        lines = [
            {"label": f"{s['depth']}. {s['site']}", "effects": [_bubble(e) for e in s["effects"]]} for s in t["steps"]
        ]
        out["steps_svg"] = svg.steps(lines, followed)
        out["steps_caption"] = (
            "The same in the order of the forward pass, each module ablated only there. Area of a disc: size of the "
            "change (filled: the answer loses without the module, hollow: it gains). Dashed ring: matched random "
            "modules (size of their mean plus one deviation). Dot below: larger than under every random module."
        )
    if top:
        out["tables"].append(_titled("Most probable answers of the intact model", top))
    skipped = "; ".join(f"module {m}: {why}" for m, why in (t.get("skipped") or {}).items())
    out["text"] = f"Not measured: {skipped}." if skipped else ""
    return out


def _passage(name: str, title: str, t: Mapping[str, Any]) -> dict[str, Any]:
    """Every token of a passage inked by what it loses without a module, beyond the mean of the random modules."""
    losses = {m["module"]: [0.0, *(max(0.0, -c) for c in m["change"])] for m in t["modules"]}
    top = max((max(x) for x in losses.values()), default=0.0)
    lines = []
    for m in t["modules"]:
        loss = losses[m["module"]]
        worst = max(range(len(loss)), key=lambda i: loss[i])
        random = -m["control_mean"][worst - 1] if worst else 0.0
        lines.append(
            {
                "tokens": [(visible(w), level(a, top), a) for w, a in zip(t["tokens"], loss, strict=True)],
                "at": worst, "times_mean": None, "share": None,
                "slice": f"module {m['module']}: most {loss[worst]:.3g} (random modules {random:.3g})",
            }
        )  # fmt: skip
    rows = [
        {
            "token": visible(w), "log-probability": t["log_probability"][i],
            **{f"module {m['module']}": m["change"][i] for m in t["modules"]},
            "beyond all random": ", ".join(str(m["module"]) for m in t["modules"] if i + 1 in m["beyond"]),
        }
        for i, w in enumerate(t["tokens"][1:])
    ]  # fmt: skip
    return {
        "id": name, "title": title, "heats": lines, "tables": [_titled("Every token", rows[:ROWS])] if rows else [],
        "text": "Ink: what a token's log-probability loses without the module; one scale for all modules.",
        "record": record_entries(t.get("record") or {}),
    }  # fmt: skip


def _bubble(e: Mapping[str, Any]) -> dict[str, Any]:
    c = e["log_probability"]
    control = None if c.get("control_mean") is None else abs(c["control_mean"]) + (c.get("control_sd") or 0.0)
    return {"module": e["module"], "value": c.get("value"), "control": control, "beyond": e.get("beyond_controls")}


def record_entries(record: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Return the plain entries of a record, nested ones with dotted names."""
    out: list[tuple[str, Any]] = []
    for key, value in record.items():
        if isinstance(value, Mapping):
            out += [(f"{_words(key)}: {name}", inner) for name, inner in record_entries(value)]
        elif isinstance(value, (list, tuple)):
            if value and all(isinstance(v, (str, int, float)) for v in value):
                out.append((_words(key), ", ".join(str(v) for v in value[:40])))
        elif value is not None and value != "":
            out.append((_words(key), value))
    return out


def _rows(value: Any) -> bool:
    return (
        isinstance(value, Sequence)
        and not isinstance(value, str)
        and bool(value)
        and all(isinstance(r, Mapping) for r in value)
    )


def _bars(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One bar per row from its first effect; the label is made of the row's words."""
    out: list[dict[str, Any]] = []
    for r in rows:
        effects = [v for v in r.values() if is_effect(v)]
        if not effects:
            continue
        module = r.get("module")
        words = [str(r[k]) for k in ("behaviour", "name", "concept", "slice", "mode") if isinstance(r.get(k), str)]
        number = isinstance(module, int) and not isinstance(module, bool)
        label = " · ".join(([f"module {module}"] if number else []) + words) or str(len(out))
        out.append(effect_row(label, effects[0], module if number else None))
    return out


def _flat(value: Any) -> bool:
    """Whether a value is a dict of plain figures or words (and no effect)."""
    return (
        isinstance(value, Mapping)
        and bool(value)
        and not is_effect(value)
        and all(isinstance(v, (str, int, float, bool)) or v is None for v in value.values())
    )


def _expanded(title: str, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The table of the rows, and one more for every list of dicts inside them (each line with its row's module)."""
    tables = [_table(title, rows)]
    for key in dict.fromkeys(k for r in rows for k, v in r.items() if _rows(v)):
        inner = [{"module": r.get("module"), **line} for r in rows for line in r.get(key) or []]
        tables.append(_table(f"{title}: {_words(key)}", inner))
    return [t for t in tables if t is not None]


def _table(title: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    flat = []
    for r in rows[:ROWS]:
        cells: dict[str, Any] = {}
        for key, value in r.items():
            if is_effect(value):
                cells |= _cells(_words(key), value)
            elif isinstance(value, (str, int, float, bool)) or value is None:
                cells[_words(key)] = value
            elif isinstance(value, (list, tuple)) and all(isinstance(v, (str, int, float)) for v in value):
                cells[_words(key)] = ", ".join(str(v) for v in value)
        flat.append(cells)
    keep = [c for c in dict.fromkeys(c for r in flat for c in r) if any(r.get(c) is not None for r in flat)]
    if not keep:
        return None
    note = f"The first {ROWS} of {len(rows)} rows." if len(rows) > ROWS else ""
    return _titled(title, [{c: r.get(c) for c in keep} for r in flat], note)


def _cells(name: str, effect: Mapping[str, Any]) -> dict[str, Any]:
    cells: dict[str, Any] = {name: effect.get("value"), f"{name}, random": _control(effect)}
    if effect.get("p") is not None:
        cells[f"{name}, p"] = effect["p"]
    return cells


def _control(effect: Mapping[str, Any]) -> str | None:
    mean, sd = effect.get("control_mean"), effect.get("control_sd")
    if mean is None:
        values = [c for c in effect.get("controls") or [] if c is not None]
        return f"{min(values):+.3g} to {max(values):+.3g}" if values else None
    return f"{mean:+.3g}" + (f" ± {sd:.2g}" if sd is not None else "")


def _told(effect: Mapping[str, Any]) -> str:
    return f"{effect.get('value'):+.3g} (random: {_control(effect)})"


def _titled(title: str, rows: list[dict[str, Any]], note: str = "") -> dict[str, Any]:
    table = read_table(rows) or {}
    return {**table, "title": title, "note": note}


def _words(key: str) -> str:
    return str(key).replace("_", " ")
