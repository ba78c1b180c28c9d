"""Synthetic module cards of any size, with everything a page can show: for the report's browser and size tests."""

from __future__ import annotations

import random
from typing import Any

WORDS = ("the", " lion", " and", " lamb", "(", "self", ")", " =", " return", "\n", " of", " Israel", ",", " import")


def example(rng: random.Random, length: int, word: str = "") -> dict[str, Any]:
    tokens = [word or rng.choice(WORDS) for _ in range(length)]
    activity = [rng.random() ** 3 for _ in tokens]
    peak = max(range(length), key=activity.__getitem__)
    return {
        "window": rng.randrange(1000), "slice": rng.choice(("English", "Python")), "position": peak, "peak": peak,
        "tokens": tokens, "activity": activity, "times_mean": 4 * activity[peak], "share": activity[peak] / 4,
        "before": "".join(tokens[:peak]), "token": tokens[peak], "after": "".join(tokens[peak + 1 :]),
    }  # fmt: skip


def score(rng: random.Random, measure: str, value: float) -> dict[str, Any]:
    random_ = [rng.uniform(0.4, 0.6) for _ in range(5)]
    return {
        "measure": measure, "value": value, "low": value - 0.05, "high": value + 0.05, "random": random_,
        "shuffled": [0.5, 0.45], "p": 0.05, "n": 512, "windows": 32,
    }  # fmt: skip


def deck(k: int = 6, examples: int = 20, *, length: int = 28, seed: int = 0, text: str = "") -> dict[str, Any]:
    """Cards of ``k`` modules with ``examples`` example texts each; every text is ``text`` where it is given."""
    rng = random.Random(seed)
    cards = []
    for i in range(k):
        others = [j for j in range(k) if j != i]
        ends = [{"module": j, "strength": rng.uniform(1, 30), "share": 1 / k} for j in others]
        shown = [example(rng, length, text) for _ in range(examples)]
        cards.append(
            {
                "index": i, "title": text or f"skill number {i}",
                "text": text or f"Reads {WORDS[i % len(WORDS)]!r}.\nAnd.",
                "origin": text or "a test", "confidence": 0.5, "error": text or None,
                "evidence": {
                    "module": i,
                    "make_up": {"units": rng.randrange(80, 400), "of": 400 * k, "unreachable": 0, "spaces": []},
                    "use": {"share": 0.2, "controls": [0.1, 0.3], "windows": 9, "slices": []},
                    "inputs": {
                        "windows": 9, "contexts": shown[:8], "examples": shown[8:], "typical": shown[:3],
                        "contrast": shown[-3:], "activity_measure": "use relative to its mean",
                        "more_on": [{"token": 3, "text": text or " lion", "relative_share": 2.0, "count": 4}],
                    },
                    "effect": {
                        "ablation": "mean", "controls": 2, "windows": 9, "objective": "the loss",
                        "loses": [], "gains": [],
                        "slices": [{"slice": text or "English", "loss": 2.0, "rise": 0.5, "controls": [0.1, 0.2],
                                    "windows": 9, "control_mean": 0.15, "control_sd": 0.07}],
                        "behaviours": [{"behaviour": text or "closes brackets", "kind": "class", "rise": 0.4,
                                        "controls": [0.1, 0.2], "p": 0.33, "n": 9}],
                    },
                    "direct": {"gains": [{"output": 1, "text": text or " lamb", "z": 3.0}], "loses": []},
                    "reads_from": ends, "writes_to": ends,
                    "cut": {"leaving": 20.0, "inside": 50.0, "leaving_share": 0.2, "separation": None},
                    "code": text or None,
                },
                "scores": {
                    "detection": score(rng, text or "AUROC", 0.8), "simulation": score(rng, "correlation", 0.3),
                },
                "interfaces": [
                    {"module": j, "direction": "reads", "strength": ends[at]["strength"], "share": 0.5,
                     "places": [{"into": text or "b", "from": text or "a", "strength": 1.0}],
                     "text": text or f"{i} reads {j}.",
                     "origin": "evidence only", "scores": {"interface": score(rng, "correlation", 0.6)}}
                    for at, j in enumerate(others[:4])
                ],
            }
        )  # fmt: skip
    groups = [
        {"id": k + at, "children": list(range(2 * at, min(2 * at + 2, k))), "title": text or f"pair {at}"}
        for at in range(k // 2)
    ]
    meta = {"n": 48, "held_out": 24, "seed": 0, "ablation": "mean", "control": text or "2 random modules",
            "digest": "d" * 64,
            "client": text or "a test", "edge": text or "abs", "objective": "the loss"}  # fmt: skip
    return {"format": "modcut cards", "version": 1, "meta": meta, "cards": cards, "groups": groups}
