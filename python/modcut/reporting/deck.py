"""Cards as the page shows them; saved cards of other versions may lack any part, so they are read by shape."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from modcut.reporting.heat import heat, packed, top_of

# Heat maps in the page itself; the others are drawn by its script when they are asked for.
SHOWN, BESIDE = 6, 4
# Where a score lies that knows nothing, where it does not say so itself.
_CHANCE = {"detection": 0.5}
_KNOWN = ("measure", "value", "low", "high", "n", "windows", "p", "p_pooled", "chance", "unit", "note")
# Samples of the page's data, over all modules.
EXAMPLES = 10_000


def card_view(card: Mapping[str, Any], room: int) -> dict[str, Any]:
    """Return a module's card with what the template needs beside it; at most ``room`` examples for the script."""
    evidence = dict(card.get("evidence") or {})
    inputs = evidence.get("inputs") or {}
    contexts = inputs.get("contexts") or []
    every = [*contexts, *(inputs.get("examples") or [])]
    top = top_of([*every, *(inputs.get("typical") or []), *(inputs.get("contrast") or [])])
    maps = [m for c in every[: SHOWN + room] if (m := heat(c, top)) is not None]
    use = evidence.get("use") or {}
    slices = [{"slice": "all data", **use}, *use.get("slices", [])] if use.get("share") is not None else []
    return {
        "title": "",
        "error": None,
        "confidence": None,
        "origin": "evidence only",
        **card,
        "evidence": evidence,
        "lines": [line for line in str(card.get("text") or "").split("\n") if line.strip()],
        "heats": maps[:SHOWN],
        "more": [packed(m) for m in maps[SHOWN:]],
        "samples": [c for c in contexts if "token" not in c and "tokens" not in c],
        "typical": _maps(inputs.get("typical"), top),
        "contrast": _maps(inputs.get("contrast"), top),
        "activity": inputs.get("activity_measure") or "activity",
        "score_rows": score_rows(card.get("scores") or {}),
        "scores": card.get("scores") or {},
        "interfaces": card.get("interfaces") or [],
        "use_rows": [{"slice": s["slice"], "share": s["share"], "controls": s.get("controls") or []} for s in slices],
        "sliced": bool(use.get("slices")),
        "direct": evidence.get("direct") or {},
        "behaviours": (evidence.get("effect") or {}).get("behaviours") or [],
        "code": evidence.get("code"),
    }


def cards_of(deck: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Return the views of all module cards, in order; examples are shared out evenly."""
    cards = list((deck or {}).get("cards") or [])
    room = EXAMPLES // max(1, len(cards))
    return [card_view(c, room) for c in cards]


def interfaces_of(deck: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Return one card per pair (reader, source), strongest first: cards of their own, or what module cards say."""
    found: dict[tuple[int, int], dict[str, Any]] = {}
    said = [dict(f) for f in (deck or {}).get("interfaces") or [] if isinstance(f, Mapping)]
    own = bool(said)
    for card in (deck or {}).get("cards") or []:
        for f in card.get("interfaces") or []:
            if not isinstance(f, Mapping) or not isinstance(f.get("module"), int):
                continue
            a, b = card["index"], f["module"]
            beside = {key: v for key, v in f.items() if not own or key in ("strength", "places", "low_rank", "carried")}
            said.append({**beside, "modules": [a, b] if f.get("direction") == "reads" else [b, a]})
    for f in said:
        pair = f.get("modules") or [f.get("reader", f.get("to")), f.get("source", f.get("from"))]
        if len(pair) != 2 or not all(isinstance(x, int) and not isinstance(x, bool) for x in pair):
            continue
        reader, source = pair
        evidence = f.get("evidence") or {}
        old = found.setdefault((reader, source), {"reader": reader, "source": source, "texts": []})
        if f.get("text") and f["text"] not in old["texts"]:
            old["texts"].append(f["text"])
        for key in ("title", "origin", "confidence", "error"):
            if f.get(key) not in (None, ""):
                old.setdefault(key, f[key])
        for key in ("strength", "places", "low_rank", "carried"):
            if f.get(key) or evidence.get(key):
                old.setdefault(key, f.get(key) or evidence.get(key))
        if f.get("scores"):
            old.setdefault("scores", f["scores"])
    out = []
    for f in found.values():
        carried = f.get("carried") or {}
        contexts = carried.get("contexts") or [] if isinstance(carried, Mapping) else []
        more = carried.get("more_on") or [] if isinstance(carried, Mapping) else []
        out.append(
            {
                "title": "",
                "origin": "evidence only",
                "confidence": None,
                "error": None,
                "strength": None,
                "places": [],
                "low_rank": [],
                **f,
                "heats": _maps(contexts, top_of(contexts)),
                "more_on": more,
                "score_rows": score_rows(f.get("scores") or {}),
            }
        )
    return sorted(out, key=lambda f: -(f["strength"] or 0.0))


def score_rows(scores: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the scores as rows of a table: value and interval, and every control that stands beside it."""
    rows = []
    for name, s in scores.items():
        if not isinstance(s, Mapping) or "value" not in s:
            continue
        controls: list[dict[str, Any]] = []
        inner = s.get("controls")
        listed = {**{k: v for k, v in s.items() if k not in _KNOWN and k != "controls"}}
        listed |= inner if isinstance(inner, Mapping) else {"random": inner} if isinstance(inner, Sequence) else {}
        for key, value in listed.items():
            values = _figures(value)
            if values and not (key.endswith("_mean") and key[:-5] in listed):
                controls.append(
                    {
                        "name": key.replace("_", " "),
                        "mean": sum(values) / len(values),
                        "low": min(values),
                        "high": max(values),
                        "n": len(values),
                    }
                )
        rows.append(
            {
                "name": name.replace("_", " "),
                "measure": s.get("measure", ""),
                "value": s.get("value"),
                "low": s.get("low"),
                "high": s.get("high"),
                "p": s.get("p"),
                "n": s.get("n"),
                "chance": s.get("chance", _CHANCE.get(name)),
                "controls": controls,
                "error": s.get("error"),
            }
        )
    return rows


def score_names(cards: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the names of the scores that any card has a value of, in order of appearance."""
    found = [n for c in cards for n, s in c["scores"].items() if isinstance(s, Mapping) and s.get("value") is not None]
    return list(dict.fromkeys(found))


def chart_rows(cards: Sequence[Mapping[str, Any]], name: str) -> list[dict[str, Any]]:
    """Return the rows of :func:`modcut.reporting.svg.dots` for one score of every module."""
    rows = []
    for c in cards:
        s = c["scores"].get(name)
        if isinstance(s, Mapping) and "value" in s:
            lists = {key: _figures(s.get(key)) for key in ("random", "shuffled")}
            rows.append({"label": f"Module {c['index']}", "module": c["index"], **s, **lists})
    return rows


def span(rows: Sequence[Mapping[str, Any]], chance: float) -> tuple[float, float]:
    """Return an axis that holds every figure: [0, 1] for what lies in it, else round ends."""
    ends = [chance]
    for r in rows:
        ends += [float(r[key]) for key in ("value", "low", "high") if r.get(key) is not None]
        ends += [*r["random"], *r["shuffled"]]
    low, high = min(ends), max(ends)
    if low >= 0 and high <= 1:
        return 0.0, 1.0
    reach = max(abs(low), abs(high))
    step = 10.0 ** math.floor(math.log10(reach)) / 2
    return math.floor(low / step) * step, math.ceil(high / step) * step


def _maps(contexts: Any, top: float) -> list[dict[str, Any]]:
    return [m for c in (contexts or [])[:BESIDE] if isinstance(c, Mapping) and (m := heat(c, top)) is not None]


def _figures(value: Any) -> list[float]:
    """Every finite figure of a number, a list, or a dict with a value or values in it."""
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return []
    if isinstance(value, (int, float)):
        return [float(value)] if math.isfinite(value) else []
    if isinstance(value, Mapping):
        return _figures(value.get("values", value.get("value")))
    if isinstance(value, Sequence):
        return [x for v in value for x in _figures(v)]
    return []
