"""What the page says about how its figures came about: method, words for them, limits, provenance."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from modcut.provenance import stamp
from modcut.reporting import results

# What the page's figures mean; a score's own words ("measure") stand with the score.
_GLOSSARY = (
    ("unit", "a neuron, channel or whole attention head: a vertex of the graph, or several with one label."),
    ("interface", "the weights between two modules; its strength is the sum of their edge strengths, its cut value."),
    ("use", "|activation × gradient of the objective|, summed over a module's inner units: where it matters, not how."),
    ("share of use", "a module's part of the whole network's use at a position."),
    ("ink of a token", "the module's activity there in ten steps, full at the largest of its examples; the marked "
     "token is the peak."),
    ("interval", "95 % bootstrap over samples: positions of one sample are not independent."),
    ("random", "modules with as many units in every space, whole heads for whole heads, drawn at random."),
    ("shuffled", "the same module judged by another module's evidence or text."),
    ("p", "share of controls, this module included, that do at least as well."),
    ("evidence only", "written by rule from measured figures; nothing is interpreted and no language model was asked."),
    ("causal", "only what ablation shows. Attribution and detection say where a module is used, not what it is for."),
)  # fmt: skip


def method(
    deck: Mapping[str, Any] | None, cards: Sequence[Mapping[str, Any]], links: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Return what the drawer explains: how the cards were made, and every score in its own words."""
    meta = (deck or {}).get("meta", {})
    names = {
        "model": "model", "digest": "digest of the weights", "n": "samples", "held_out": "held-out samples",
        "positions": "positions", "seed": "seed", "ablation": "ablation", "control": "control",
        "objective": "objective", "edge": "edge strength", "client": "described by", "judge": "judged by",
        "failed": "failed calls",
    }  # fmt: skip
    facts = [(words, meta[key]) for key, words in names.items() if meta.get(key) is not None]
    if deck and meta.get("client") is None:
        facts.append(("described by", "no language model: evidence only"))
    said: dict[str, str] = {}
    for row in [r for c in (*cards, *links) for r in c["score_rows"]]:
        if row["measure"]:
            said.setdefault(row["name"], str(row["measure"]))
    return {"facts": facts, "scores": list(said.items()), "glossary": _GLOSSARY if deck else _GLOSSARY[:2]}


def cards_note(deck: Mapping[str, Any]) -> str:
    """Return who wrote the texts, from what, and how many calls failed."""
    meta = deck.get("meta", {})
    client, failed = meta.get("client"), sum(c.get("error") is not None for c in deck["cards"])
    if client:
        words = f"Texts by {client} from the evidence shown; a language model can be wrong where the evidence is thin."
    else:
        words = (
            "Texts are written by rule from the evidence alone; no language model read them, nothing is interpreted."
        )
    if failed:
        words += f" {failed} of {len(deck['cards'])} calls failed: those cards keep the evidence-only text."
    if meta.get("held_out") is not None:
        chosen = meta.get("n", 0) - meta["held_out"]
        words += (
            f" Evidence was chosen on {chosen} samples; effects and scores were measured on {meta['held_out']} others."
        )
    if meta.get("control"):
        words += f" Control: {meta['control']}."
    return words


def not_covered(view: Mapping[str, Any] | None, deck: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """Return what the graph left out, with the reason, each once."""
    entries = [
        *((view or {}).get("not_covered") or []),
        *((deck or {}).get("meta", {}).get("not_covered") or []),
    ]
    return list(dict.fromkeys((str(a), str(b)) for a, b in entries))


def provenance(meta: Mapping[str, Any], *parts: Mapping[str, Any] | None) -> list[tuple[str, Any]]:
    """Return machine, versions, seed and commit of the results, and of the page where they differ."""
    merged: dict[str, Any] = {}
    for part in parts:
        for key in ("meta", "record", "stamp"):
            inner = (part or {}).get(key)
            if isinstance(inner, Mapping):
                merged |= {k: v for k, v in inner.items() if k != "not_covered"}
    page = {f"page {k}" if k in merged else k: v for k, v in stamp().items() if v != merged.get(k)}
    entries = results.record_entries({**merged, **meta, **page})
    return [(k, json.dumps(v) if isinstance(v, (dict, list)) else v) for k, v in entries]
