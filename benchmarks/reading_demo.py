"""How well cards tell the modules of the demo's GPT, beside a random partition trained alike and the untrained model.

    for s in 0 1 2 3; do modcut demo --seed $s --out modcut-demo/$s; done
    OMP_NUM_THREADS=1 python benchmarks/reading_demo.py modcut-demo/* --out benchmarks/results/reading_demo.json

Reads the stages that the demo leaves: ``modcut`` (found partition, cut and healed), ``random partition`` (the same
training on labels dealt at random) and the start before any step, with the found labels. Held-out text, three slices:
English, Python, and prompts that trigger the planted lie. Evidence-only texts, lexical judge.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import modcut
from bench_common import write
from modcut.demo.arms import ARMS, Bench, Settings
from modcut.demo.data import Corpus
from modcut.organisms import CharTokenizer
from modcut.organisms.text import english, python_source
from modcut.reading.resampling import sign_flip_p

CONTROLS = 39
SCORES = ("detection", "simulation", "text_detection", "text_simulation", "causal")


def read(folder: Path) -> list[dict[str, Any]]:
    """Cards of the three models of one demo."""
    given = json.loads((folder / "stages" / "run.json").read_text())["settings"]
    s = Settings(**given)
    corpus = Corpus.build((english(s.characters), python_source(s.characters)), s.context)
    bench = Bench(folder / "stages", s, corpus, lambda _: None)
    labels = bench.start()
    arms = {arm.name: arm for arm in ARMS}
    rows = []
    for kind, model, by in (
        ("modcut", bench.healed(arms["modcut"], labels["functional"])[0], labels["functional"]),
        ("random partition", bench.healed(arms["random partition"], labels["random"])[0], labels["random"]),
        ("untrained", bench.model(), labels["functional"]),
    ):
        P = bench.partition(model, by)
        data = {**bench.held, "triggered log": [bench.triggered.prompts]}
        cards = modcut.describe(
            model, P, data, tokenizer=CharTokenizer(), controls=CONTROLS, ablation_controls=5, samples=64, seed=s.seed
        )
        for card in cards:
            scores = {
                n: {k: card.scores[n].get(k) for k in ("value", "low", "high", "shuffled_mean", "random_mean", "p")}
                for n in SCORES
                if n in card.scores
            }
            use = {x["slice"]: x["share"] for x in card.evidence["use"]["slices"]}
            rows.append({"seed": s.seed, "kind": kind, "module": card.index, "share": use, "scores": scores})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, help="--out of finished demos")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    args.seed, args.threads = None, 1
    torch.set_num_threads(1)
    began, rows = time.process_time(), []
    for folder in args.folders:
        rows += read(folder)
    for kind in ("modcut", "random partition", "untrained"):
        mine = [r for r in rows if r["kind"] == kind]
        print(f"{kind}, {len(mine)} modules of {len(args.folders)} models")
        for name in SCORES:
            known = [r for r in mine if r["scores"].get(name, {}).get("value") is not None]
            if not known:
                continue
            mean = {
                k: float(np.mean([r["scores"][name][k] for r in known if r["scores"][name][k] is not None] or [np.nan]))
                for k in ("value", "shuffled_mean", "random_mean")
            }
            # The two modules of a model are each other's shuffled text: one draw.
            gains = [
                np.mean(
                    [r["scores"][name]["value"] - r["scores"][name]["shuffled_mean"] for r in known if r["seed"] == s]
                )
                for s in sorted({r["seed"] for r in known})
            ]
            hits = sum((r["scores"][name]["p"] or 1) <= 0.05 for r in known)
            each = " ".join(f"{r['scores'][name]['value']:.2f}" for r in known)
            print(
                f"  {name:16} {mean['value']:+.2f}  shuffled {mean['shuffled_mean']:+.2f}  random module "
                f"{mean['random_mean']:+.2f}  own p <= .05 in {hits} of {len(known)}  p above shuffled "
                f"{sign_flip_p(gains):.3f}  each {each}"
            )
    print(f"{time.process_time() - began:.0f} CPU seconds")
    write(args, rows)


if __name__ == "__main__":
    main()
