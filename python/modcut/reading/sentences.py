"""A card's text from its evidence alone: every number and word in it is in the evidence, nothing is interpreted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

WORDS = 6
# Below this change of a mean probability there is nothing to say about an output.
SMALL = 1e-4
# Outside the range of n controls lie 2 / (n + 1) of random modules: above this share the words say so.
CHANCE = 0.05


def sentence(e: Mapping[str, Any]) -> str:
    """Return the plain text of one module's evidence (:func:`modcut.reading.evidence.gather`), one line a subject."""
    parts = [_make_up(e["module"], e["make_up"]), _use(e["use"]), _inputs(e["inputs"]), _effect(e["effect"])]
    return "\n".join(p for p in [*parts, _ends(e), _cut(e["cut"])] if p)


def quoted(text: str) -> str:
    """Return a token or a short text in quotes, with line breaks and other unprintable characters visible."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return f"“{shown}”"


def _make_up(i: int, m: Mapping[str, Any]) -> str:
    if not m["units"]:
        return f"Module {i} has no units."
    text = f"Module {i} holds {m['units']} of {m['of']} units ({100 * m['units'] / m['of']:.1f} %)"
    families: dict[str, int] = {}
    for s in m["spaces"]:
        families[s["family"]] = families.get(s["family"], 0) + s["units"]
    top = sorted(families.items(), key=lambda f: -f[1])[:3]
    text += ", in " + ", ".join(f"{name} ({count})" for name, count in top)
    text += f" and {len(families) - 3} more." if len(families) > 3 else "."
    if m["unreachable"]:
        text += f" {m['unreachable']} of them (inputs, outputs and what no hook reaches) are not observed or replaced."
    return text


def _use(u: Mapping[str, Any]) -> str:
    if u["share"] is None:
        return "Nothing in the network is used on the held-out data."
    text = f"It carries {100 * u['share']:.1f} % of the network's use on {u['windows']} held-out samples"
    controls = [c for c in u["controls"] if c is not None]
    if controls:
        text += f" (random modules of the same make-up: {_range([100 * c for c in controls], 1)} %)"
    slices = [s for s in u["slices"] if s["share"] is not None]
    if len(slices) > 1:
        text += "; by slice: " + ", ".join(f"{s['slice']} {100 * s['share']:.1f} %" for s in slices)
    return text + "."


def _inputs(x: Mapping[str, Any]) -> str:
    if x.get("more_on"):
        words = ", ".join(quoted(t["text"]) for t in x["more_on"][:WORDS])
        most = x["more_on"][0]["relative_share"]
        return f"Its share is largest at the tokens {words} (up to {most:.2g} times its mean)."
    if x.get("features"):
        features = ", ".join(f"{f['feature']} ({f['correlation']:+.2f})" for f in x["features"][:WORDS])
        return f"Its share goes with the input features {features} (correlation)."
    return ""


def _effect(f: Mapping[str, Any]) -> str:
    if not f["slices"]:
        return ""
    said = []
    known = [s for s in f["slices"] if s["rise"] is not None and None not in s["controls"]]
    if not known:  # samples of a single token have no next one to lose
        return ""
    for s in sorted(known, key=lambda s: -abs(s["rise"])):
        where = f" on {s['slice']}" if s["slice"] else ""
        inside = min(s["controls"]) <= s["rise"] <= max(s["controls"])
        verdict = "inside the range of" if inside else "outside the range of"
        said.append(
            f"by {s['rise']:+.3f}{where} ({verdict} {len(s['controls'])} matched random modules, "
            f"{_range(s['controls'], 3, signed=True)})"
        )
    text = (
        f"With the module {_ABLATED.get(f['ablation'], f['ablation'])}, {f['objective']} changes "
        + "; ".join(said[:4])
        + "."
        + _by_chance(known)
    )
    lost = [o for o in f["loses"] if o["change"] < -SMALL][:WORDS]
    if lost:
        names = ", ".join(quoted(o["text"]) if "text" in o else f"output {o['output']}" for o in lost)
        text += f" The outputs that lose most probability are {names}."
    return text


def _by_chance(slices: Sequence[Mapping[str, Any]]) -> str:
    """How often one more random module would lie outside too: with few controls that is nearly always."""
    n = len(slices[0]["controls"])
    outside = any(not min(s["controls"]) <= s["rise"] <= max(s["controls"]) for s in slices)
    if not outside or 2 / (n + 1) <= CHANCE:
        return ""
    return f" (Of random modules, {200 / (n + 1):.0f} % would lie outside such a range: no evidence by itself.)"


_ABLATED = {
    "mean": "replaced by its mean",
    "zero": "set to zero",
    "resample": "resampled",
    "scale": "scaled",
    "noise": "noised",
}


def _ends(e: Mapping[str, Any]) -> str:
    said = []
    if e["reads_from"]:
        said.append(
            f"reads most from module {e['reads_from'][0]['module']} ({100 * e['reads_from'][0]['share']:.0f} %)"
        )
    if e["writes_to"]:
        said.append(f"writes most to module {e['writes_to'][0]['module']} ({100 * e['writes_to'][0]['share']:.0f} %)")
    return f"Across modules it {' and '.join(said)}." if said else "No weight connects it to another module."


def _cut(c: Mapping[str, Any]) -> str:
    if c["leaving_share"] is None:
        return ""
    text = f"{100 * c['leaving_share']:.0f} % of its weight strength leaves it (cut value {c['leaving']:.4g})"
    if c["separation"] is not None:
        s = c["separation"]
        text += f"; the cheapest cut to another module, modules taken whole, is {s['value']:.4g} (module {s['from']})"
    return text + "."


def _range(values: Sequence[float], digits: int, *, signed: bool = False) -> str:
    low, high = min(values), max(values)
    form = f"{{:{'+' if signed else ''}.{digits}f}}"
    return form.format(low) if form.format(low) == form.format(high) else f"{form.format(low)} to {form.format(high)}"
