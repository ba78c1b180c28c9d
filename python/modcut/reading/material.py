"""What a describer is shown of one module or interface: the selection half only.

Texts are judged on the held-out half, so nothing measured there may be in what they are written from: not the effect of
an ablation either, which a text could otherwise just repeat.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from modcut.reading.scores import share, signature
from modcut.reading.sentences import quoted

if TYPE_CHECKING:
    from modcut.reading.sketch import Window

CONTEXTS = 8
LISTED = 10
# A slice is worth a word where the module is used this much more, or less, than on average.
NOTABLE = 1.15


def material(
    windows: Sequence[Window], draw: int, column: int, decode: Callable[[Sequence[int]], str]
) -> dict[str, Any]:
    """Return what stands out where a module is used, chosen on the selection windows.

    Args:
        windows: with use [positions, draws, columns].
        draw: 0 for the partition, r for random control r.
        column: the module (or the interface, where the columns are interfaces).
        decode: from token ids to text.
    """
    chosen = [w for w in windows if w.selection]
    shares = [share(w.use[:, draw])[:, column] for w in chosen]
    known = [s[np.isfinite(s)] for s in shares]
    every = np.concatenate(known) if known else np.empty(0)
    base = float(every.mean()) if len(every) else 0.0
    out: dict[str, Any] = {"mean_share": base, "slices": [], "windows": len(chosen)}
    if base <= 0:
        return out
    for name in dict.fromkeys(w.slice for w in chosen):
        part = np.concatenate([s for w, s in zip(chosen, known, strict=True) if w.slice == name])
        if name and len(part):
            out["slices"].append({"slice": name, "times": float(part.mean() / base)})
    found = signature(windows, draw, column)
    if chosen[0].tokens is not None:
        listed = sorted(found.tokens.items(), key=lambda t: -t[1])
        out["more_on"] = [{"text": decode([t]), "times": x} for t, x in listed if x > 1][:LISTED]
        out["less_on"] = [{"text": decode([t]), "times": x} for t, x in reversed(listed) if x < 1][:LISTED]
        out["contexts"] = _contexts(chosen, shares, base, draw, decode)
    else:
        order = np.argsort(-np.abs(found.weights), kind="stable")[:LISTED]
        out["features"] = [{"feature": int(found.features[f]), "correlation": float(found.weights[f])} for f in order]
    return out


def template(m: Mapping[str, Any]) -> str:
    """Return the evidence-only text of a material: what a description has to beat."""
    said = []
    if m.get("more_on"):
        said.append(f"Active most at {_list(m['more_on'])}.")
    if m.get("less_on"):
        said.append(f"Active least at {_list(m['less_on'])}.")
    if m.get("features"):
        more = [f for f in m["features"] if f["correlation"] > 0]
        less = [f for f in m["features"] if f["correlation"] < 0]
        said += [f"Active most where {_features(more)} are high."] if more else []
        said += [f"Active least where {_features(less)} are high."] if less else []
    more = [s for s in m["slices"] if s["times"] >= NOTABLE]
    less = [s for s in m["slices"] if s["times"] <= 1 / NOTABLE]
    said += [f"Used more on {_slices(more)}."] if more else []
    said += [f"Used less on {_slices(less)}."] if less else []
    return " ".join(said) or "No input stands out."


def _contexts(chosen: Any, shares: Any, base: float, draw: int, decode: Callable[[Sequence[int]], str]) -> list[str]:
    spots = []
    for w, s in zip(chosen, shares, strict=True):
        # By use beyond what a module of this share would have: a position where everything is used says nothing.
        excess = np.where(np.isfinite(s), (s - base) * w.use[:, draw].sum(-1, dtype=np.float64), -np.inf)
        if len(excess) and excess.max() > 0:
            spots.append((float(excess.max()), int(excess.argmax()), w))
    spots.sort(key=lambda p: -p[0])
    out = []
    for _, p, w in spots[:CONTEXTS]:
        before, after = w.tokens[max(0, p - 12) : p].tolist(), w.tokens[p + 1 : p + 7].tolist()
        at = decode([int(w.tokens[p])])
        out.append(f"{decode(before) if before else ''}>>>{at}<<<{decode(after) if after else ''}")
    return out


def _list(tokens: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(quoted(t["text"]) for t in tokens)


def _features(features: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(quoted(feature_name(f["feature"])) for f in features)


def _slices(slices: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(f"{quoted(s['slice'])} ({s['times']:.2g} times its mean share)" for s in slices)


def feature_name(index: int) -> str:
    """Return how input feature ``index`` is called in texts and in what judges are shown."""
    return f"feature {index}"
