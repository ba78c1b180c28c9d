"""Where a module is used: its best, typical and contrasting contexts, and the tokens or features that go with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from modcut.reading.observe import Observation
from modcut.reading.scores import Signature, share
from modcut.reading.sketch import AFTER, BEFORE, Spot, Window, key_of

Decode = Callable[[Sequence[int]], str]
CONTEXTS = 8
PER_WINDOW = 2


def inputs(seen: Observation, i: int, signature: Signature, decode: Decode) -> dict[str, Any]:
    """Return what the selection half says about the inputs that module ``i`` answers to."""
    s = seen.sketch
    total, windows, positions = s.use(None, selection=True)
    mean_use, base = float(total[0, i]) / max(positions, 1), float(s.base[0, i])
    # Rank by use beyond what a module of this share would have there: a position where everything is used says nothing.
    spots = []
    for x in s.spots[i]:
        excess = float(x.use[i]) - base * float(x.use.sum(dtype=np.float64))
        if excess > 0:
            spots.append((excess, x))
    spots.sort(key=lambda p: (-p[0], p[1].window, p[1].position))
    sample = [w for w in s.sample if w.selection]
    by_index = {w.index: w for w in sample}
    top = [x for _, x in spots[:CONTEXTS]]
    out: dict[str, Any] = {
        "windows": windows,
        "positions": positions,
        "activity_measure": f"share of {seen.measured}, divided by the module's mean share",
        "contexts": [_context(x, i, mean_use, base, decode, by_index.get(x.window)) for x in top],
    }
    places = _active(sample, i, s.seed)
    out["typical"] = [_context(_at(w, p, i), i, mean_use, base, decode, w) for w, p in places[:CONTEXTS]]
    shown = {(x.window, x.position) for x in top}
    out["contrast"] = [
        _context(_at(w, p, i), i, mean_use, base, decode, w)
        for w, p in _contrast(top, sample, i)
        if (w.index, p) not in shown
    ]
    if seen.tokens:
        listed: list[dict[str, Any]] = [
            {"token": t, "text": decode([t]), "relative_share": x, "count": signature.counts[t]}
            for t, x in signature.tokens.items()
        ]
        out["more_on"] = [e for e in listed if signature.tokens[e["token"]] > 1]
        out["less_on"] = [e for e in listed if signature.tokens[e["token"]] < 1]
    else:
        pairs = sorted(
            zip(signature.features.tolist(), signature.weights.tolist(), strict=True), key=lambda p: -abs(p[1])
        )
        out["features"] = [{"feature": int(f), "correlation": float(x)} for f, x in pairs]
    return out


def _active(sample: Sequence[Window], i: int, seed: int) -> list[tuple[Window, int]]:
    """Positions in the highest tenth of the module's share but not its highest hundredth, in the order of hashes."""
    parts = [share(w.use[:, 0])[:, i] for w in sample]
    if not parts or not np.isfinite(np.concatenate(parts)).any():
        return []
    low, high = np.nanquantile(np.concatenate(parts), [0.9, 0.99])
    found = []
    for w, y in zip(sample, parts, strict=True):
        inside = np.flatnonzero(np.isfinite(y) & (y >= low) & (y <= high) & (y > 0))
        if len(inside):
            found.append((w, int(inside[key_of(seed, "typical", i, w.index) % len(inside)])))
    return sorted(found, key=lambda f: key_of(seed, "typical", i, f[0].index, "order"))


def _contrast(top: Sequence[Spot], sample: Sequence[Window], i: int) -> list[tuple[Window, int]]:
    """For each top context the most similar position where the module's share is below its median.

    Similar: the same token, then as many equal tokens among the four before it as possible (or, for inputs that are not
    tokens, the nearest input).
    """
    parts = [share(w.use[:, 0])[:, i] for w in sample]
    if not top or not parts or not np.isfinite(np.concatenate(parts)).any():
        return []
    middle = float(np.nanmedian(np.concatenate(parts)))
    out: list[tuple[Window, int]] = []
    vectors = {w.index: w.vector for w in sample}
    for x in top:
        best: tuple[float, float, int, int] | None = None
        for n, (w, y) in enumerate(zip(sample, parts, strict=True)):
            if w.tokens is None:
                mine = vectors.get(x.window)
                if mine is not None and w.vector is not None and w.index != x.window and y[0] < middle:
                    entry = (float(np.square(w.vector - mine).sum()), float(y[0]), n, 0)
                    best = entry if best is None or entry < best else best
                continue
            own = x.tokens[x.before]
            for p in np.flatnonzero((w.tokens == own) & (y < middle)):
                if w.index == x.window and int(p) == x.position:
                    continue
                a, b = w.tokens[max(0, p - 4) : p][::-1], x.tokens[max(0, x.before - 4) : x.before][::-1]
                m = min(len(a), len(b))
                entry = (-float((a[:m] == b[:m]).sum()), float(y[p]), n, int(p))
                best = entry if best is None or entry < best else best
        if best is not None and (sample[best[2]], best[3]) not in [(w, p) for w, p in out if w is sample[best[2]]]:
            out.append((sample[best[2]], best[3]))
    return out


def _at(w: Window, p: int, i: int) -> Spot:
    if w.tokens is None:
        return Spot(0.0, w.index, w.slice, p, w.use[p, 0], np.zeros(0, dtype=np.int64), 0)
    start = max(0, p - BEFORE)
    return Spot(0.0, w.index, w.slice, p, w.use[p, 0], w.tokens[start : p + 1 + AFTER], p - start)


def _context(x: Spot, i: int, mean_use: float, base: float, decode: Decode, w: Window | None) -> dict[str, Any]:
    total = float(x.use.sum(dtype=np.float64))
    at = float(x.use[i]) / total if total > 0 else None
    ratio = float(x.use[i]) / mean_use if mean_use > 0 else 0.0
    out: dict[str, Any] = {"window": x.window, "slice": x.slice, "times_mean": ratio, "share": at}
    if len(x.tokens):
        t = x.tokens.tolist()
        out |= {
            "position": x.position,
            "before": decode(t[: x.before]) if x.before else "",
            "token": decode([t[x.before]]),
            "after": decode(t[x.before + 1 :]) if x.before + 1 < len(t) else "",
        }
        if w is not None and base > 0:  # the whole window was kept: its activity, token by token
            y = share(w.use[x.position - x.before : x.position - x.before + len(t), 0])[:, i] / base
            out |= {"tokens": [decode([v]) for v in t], "activity": [round(float(v), 4) for v in np.nan_to_num(y)]}
            out["peak"] = x.before
    return out
