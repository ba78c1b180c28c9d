"""What texts about modules are worth, on nets whose modules are known: evidence-only text, SmolLM2, and their controls.

A net reads words of six themes and predicts the next word; the words of a theme follow each other by a fixed rule. Its
hidden units are tied to one theme each by a mask, so the true partition has six modules with one function each. The
names of the themes are the names of the slices: "which behaviour breaks" has a known answer.

Rows: the evidence-only text and SmolLM2's text ("Words: ... Theme:"), judged by the lexical rule and by SmolLM2 itself;
the same on nets that were never trained. Beside each score: other modules' texts, this text on random modules, random
modules with texts of their own, the evidence-only text; p is of own above shuffled, over the modules of all nets.

    python benchmarks/reading_describer.py --out benchmarks/results/reading_describer.json
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

import modcut
from bench_common import cpu_model
from modcut import provenance
from modcut.graph.trace import weight_graph
from modcut.partition import Partition
from modcut.reading.resampling import sign_flip_p

THEMES = {
    "animals": "dog cat horse cow sheep pig lion tiger",
    "colours": "red green blue yellow purple orange pink brown",
    "food": "bread soup rice cheese butter salad pasta cake",
    "weather": "rain snow wind storm cloud fog hail thunder",
    "music": "song guitar piano drum violin melody singer rhythm",
    "family": "mother father sister brother uncle aunt cousin daughter",
}
WORDS = [w for words in THEMES.values() for w in words.split()]
PER = len(WORDS) // len(THEMES)
UNITS = 8
SCORES = ("text_detection", "text_simulation", "causal")


class ThemeNet(nn.Module):
    """Word -> next word: embedding, one hidden layer, logits; a mask ties units to themes."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        k = len(THEMES)
        torch.manual_seed(seed)
        self.embed = nn.Embedding(len(WORDS), k * UNITS)
        self.up, self.down = nn.Linear(k * UNITS, k * UNITS), nn.Linear(k * UNITS, len(WORDS))

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.relu(self.up(self.embed(x))))


def text(seed: int, windows: int, rules: Tensor) -> dict[str, list[Tensor]]:
    """One slice a theme; each word follows from the one before by the theme's rule, with one word in five at random."""
    g = torch.Generator().manual_seed(seed)
    out = {}
    for i, name in enumerate(THEMES):
        x = torch.empty(windows, 12, dtype=torch.int64)
        x[:, 0] = torch.randint(0, PER, (windows,), generator=g)
        for t in range(1, 12):
            free = torch.rand(windows, generator=g) < 0.2
            x[:, t] = torch.where(free, torch.randint(0, PER, (windows,), generator=g), rules[i][x[:, t - 1]])
        out[name] = [x + i * PER]
    return out


def make(seed: int, trained: bool) -> tuple[ThemeNet, Partition, dict[str, list[Tensor]]]:
    model, g = ThemeNet(seed), torch.Generator().manual_seed(seed)
    rules = torch.stack([torch.randperm(PER, generator=g) for _ in THEMES])
    unit, word = torch.arange(len(THEMES) * UNITS) // UNITS, torch.arange(len(WORDS)) // PER
    if trained:
        masks = {"up.weight": unit[:, None] == unit, "down.weight": word[:, None] == unit}
        masks["embed.weight"] = word[:, None] == unit
        optimizer = torch.optim.Adam(model.parameters(), 0.02)
        for step in range(200):
            with torch.no_grad():
                for name, mask in masks.items():
                    model.get_parameter(name).mul_(mask)
            x = torch.cat([b[0] for b in text(10_000 + 1000 * seed + step, 4, rules).values()])
            loss = F.cross_entropy(model(x)[:, :-1].flatten(0, 1), x[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        with torch.no_grad():
            for name, mask in masks.items():
                model.get_parameter(name).mul_(mask)
    graph = weight_graph(model, torch.zeros(1, 4, dtype=torch.int64))
    labels = torch.cat([word if s.size == len(WORDS) else unit for s in graph.spaces])
    return model, Partition(labels, graph, len(THEMES)), text(seed, 12, rules)


def row(name: str, found: list[modcut.ModuleCards], seconds: float) -> dict[str, Any]:
    out: dict[str, Any] = {"case": name, "nets": len(found), "seconds": round(seconds, 1)}
    for score in SCORES:
        own = [c.scores[score] for cards in found for c in cards if score in c.scores]
        known = [s for s in own if s["value"] is not None]
        pairs = [(s["value"], s["shuffled_mean"]) for s in known if s["shuffled_mean"] is not None]
        values = np.array([s["value"] for s in known])
        rng = np.random.default_rng(0)
        means = [float(rng.choice(values, len(values)).mean()) for _ in range(2000)] if len(values) else [float("nan")]
        controls = ("shuffled_mean", "random_mean", "random_described_mean", "template")
        out[score] = {
            "modules": len(known),
            "failed": len(own) - len(known),
            "value": float(values.mean()) if len(values) else None,
            "ci": [float(q) for q in np.quantile(means, [0.025, 0.975])],
            **{c: float(np.mean([s[c] for s in known if s[c] is not None] or [np.nan])) for c in controls},
            "p_above_shuffled": sign_flip_p([a - b for a, b in pairs]),
        }
    return out


def show(r: dict[str, Any]) -> None:
    print(f"{r['case']} ({r['nets']} nets, {r['seconds']} s)", flush=True)
    for score in SCORES:
        s = r[score]
        print(
            f"  {score:16} {s['value']:+.2f} [{s['ci'][0]:+.2f}, {s['ci'][1]:+.2f}]  "
            f"shuffled {s['shuffled_mean']:+.2f}  "
            f"random {s['random_mean']:+.2f}  random described {s['random_described_mean']:+.2f}  "
            f"evidence only {s['template']:+.2f}  p {s['p_above_shuffled']:.4f}  n {s['modules']}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", type=int, default=4, help="nets judged by the lexical rule")
    parser.add_argument("--judged", type=int, default=2, help="nets judged by SmolLM2, which takes most of the time")
    parser.add_argument("--no-model", action="store_true", help="leave SmolLM2 out")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    start, rows, texts = time.perf_counter(), [], {}
    client = None if args.no_model else modcut.LocalClient()

    def run(name: str, nets: int, trained: bool, **keywords: Any) -> list[modcut.ModuleCards]:
        begin, found = time.perf_counter(), []
        for seed in range(nets):
            model, P, data = make(seed, trained)
            settings = {"tokenizer": lambda ids: " ".join(WORDS[i] for i in ids), "seed": seed, **keywords}
            found.append(modcut.describe(model, P, data, **settings))
        rows.append(row(name, found, time.perf_counter() - begin))
        show(rows[-1])
        return found

    run("evidence-only text, lexical judge", args.nets, True)
    run("evidence-only text, lexical judge, untrained nets", args.nets, False)
    if client is not None:
        found = run("SmolLM2's text, lexical judge", args.nets, True, client=client, random_texts=1)
        texts = {f"net {n}, {t}": c.title for n, cards in enumerate(found) for t, c in zip(THEMES, cards, strict=True)}
        for at, title in texts.items():
            print(f"  {at}: {title}")
        run("SmolLM2's text, lexical judge, untrained nets", args.nets, False, client=client)
        settings = {"client": client, "judge": client, "text_items": 9, "random_texts": 1, "controls": 1}
        run("SmolLM2's text, judged by SmolLM2", args.judged, True, **settings)
    if args.out is not None:
        stamp = provenance.stamp(seed=0, cpu=cpu_model())
        seconds = time.perf_counter() - start
        result = {"command": provenance.command(), "stamp": stamp, "seconds": seconds, "rows": rows, "texts": texts}
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
