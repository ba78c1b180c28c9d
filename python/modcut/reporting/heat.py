"""Example texts as heat maps: every token with the activity of the module on it, in ten steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

# Steps of ink; 0 is none. The figure itself stands in the hint of each token.
LEVELS = 9
# Tokens kept on each side of the peak: a page of ten thousand examples stays a few megabytes.
BEFORE, AFTER = 20, 8


def visible(value: Any) -> str:
    """Return text with line breaks, tabs and every character that could hide or turn text around made visible."""
    out = []
    for c in str(value):
        if c.isprintable():
            out.append(c)
        else:
            out.append({"\n": "⏎", "\t": "⇥"}.get(c, c.encode("unicode_escape").decode()))
    return "".join(out)


def top_of(contexts: Sequence[Mapping[str, Any]]) -> float:
    """Return the activity that gets full ink: the largest of a module's examples."""
    known = [float(a) for c in contexts for a in _numbers(c.get("activity"))]
    return max(known, default=0.0)


def heat(context: Mapping[str, Any], top: float) -> dict[str, Any] | None:
    """Return ``{"tokens": [(text, level, activity)], "peak": text, "slice", "times_mean", "share"}`` of one example.

    None where it is not text. Contexts without per-token activity show their one known position.
    """
    tokens, activity = context.get("tokens"), _numbers(context.get("activity"))
    rest = {
        "slice": str(context.get("slice") or ""),
        "times_mean": context.get("times_mean"),
        "share": context.get("share"),
    }
    if isinstance(tokens, Sequence) and not isinstance(tokens, str) and tokens and len(activity) == len(tokens):
        peak = context.get("peak")
        if not isinstance(peak, int) or not 0 <= peak < len(tokens):
            peak = max(range(len(tokens)), key=lambda i: activity[i])
        low, high = max(0, peak - BEFORE), peak + AFTER + 1
        shown = [(visible(t), level(a, top), a) for t, a in zip(tokens[low:high], activity[low:high], strict=True)]
        return {"tokens": shown, "at": peak - low, "peak": visible(tokens[peak]), "known": True, **rest}
    if "token" not in context:
        return None
    before, token, after = (visible(context.get(name, "")) for name in ("before", "token", "after"))
    known = [(text, at, None) for text, at in ((before, 0), (token, LEVELS), (after, 0)) if text or at]
    return {"tokens": known, "at": 1 if before else 0, "peak": token, "known": False, **rest}


def level(activity: float, top: float) -> int:
    """Return the step of ink of an activity, 0 to 9."""
    return min(LEVELS, max(0, round(LEVELS * activity / top))) if top > 0 else 0


def packed(example: Mapping[str, Any]) -> list[Any]:
    """Return an example for the page's data: tokens, levels as digits, peak, slice, times the mean."""
    times = example["times_mean"]
    return [
        [t for t, _, _ in example["tokens"]],
        "".join(str(n) for _, n, _ in example["tokens"]),
        example["at"],
        example["slice"],
        None if times is None else float(f"{float(times):.3g}"),
    ]


def _numbers(value: Any) -> list[float]:
    if not isinstance(value, Sequence) or isinstance(value, str):
        return []
    return [0.0 if a is None or a != a else float(a) for a in value]
