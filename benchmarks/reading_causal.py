"""Whether evidence-only texts tell which behaviours break: nets of known functions, random modules, shuffled nets.

    OMP_NUM_THREADS=1 python benchmarks/reading_causal.py --out benchmarks/results/reading_causal.json

The nets ``sums`` (an MLP: modular addition, and a copy) and ``texts`` (a GPT: English and Python) of
``reading_known.py``, eight of each, with the two behaviours as slices. A text is judged by the lexical rule. The two
modules of a net are each other's shuffled text, so they are one draw: p is by sign flips over nets, not over modules.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from torch import Tensor

import modcut
from bench_common import arguments, write
from modcut.controls import matched_labels
from modcut.partition import Partition
from modcut.reading.resampling import sign_flip_p
from reading_known import shuffled, sums, texts

NETS = 8
SCORES = ("detection", "text_detection", "text_simulation", "causal")
Slices = dict[str, list[Any]]


def sums_by_task(seed: int) -> tuple[torch.nn.Module, Partition, Slices, None]:
    model, P, data = sums(seed)
    x, y = torch.cat([x for x, _ in data]), torch.cat([y for _, y in data])
    adds = y < 7
    return model, P, {"addition": [(x[adds], y[adds])], "copying": [(x[~adds], y[~adds])]}, None


def texts_by_language(seed: int) -> tuple[torch.nn.Module, Partition, Slices, Any]:
    model, P, data = texts(seed)
    halves = torch.cat([torch.cat(data)[:, :16], torch.cat(data)[:, 16:]])
    english = halves[:, 0] < 48

    def words(ids: Any) -> str:
        return " ".join(("e" if i < 48 else "p") + str(int(i) % 48) for i in ids)

    return model, P, {"English": [halves[english]], "Python": [halves[~english]]}, words


def first_example(data: Slices) -> Tensor:
    batch = next(iter(data.values()))[0]
    return batch[0][:1] if isinstance(batch, tuple) else batch[:1]


def means(cards: modcut.ModuleCards) -> dict[str, dict[str, float]]:
    """Means over the modules of one net, score by score; NaN where no module has the score."""
    out = {}
    for name in SCORES:
        known = [c.scores[name] for c in cards if name in c.scores and c.scores[name]["value"] is not None]
        fields = {"value": "value", "shuffled": "shuffled_mean", "random": "random_mean"}
        values = {k: [s[f] for s in known if s.get(f) is not None] for k, f in fields.items()}
        out[name] = {k: float(np.mean(v)) if v else float("nan") for k, v in values.items()}
    return out


CASES = {"sums": sums_by_task, "texts": texts_by_language}


def main() -> None:
    args = arguments(__doc__, list(CASES))
    torch.set_num_threads(args.threads)
    start, results = time.perf_counter(), []
    for case in args.cases or CASES:
        found: dict[str, list[dict[str, dict[str, float]]]] = {}
        for seed in range(args.seed, args.seed + NETS):
            model, P, data, words = CASES[case](seed)
            model.eval()
            g = torch.Generator().manual_seed(1000 + seed)
            other = shuffled(model, seed)
            graph = modcut.weight_graph(other, first_example(data))
            for kind, net, Q in (
                ("true modules", model, P),
                ("random modules", model, Partition(matched_labels(P.graph, P.labels, g), P.graph, 2)),
                ("shuffled weights", other, Partition(P.labels, graph, 2)),
            ):
                cards = modcut.describe(net, Q, data, tokenizer=words, controls=5, seed=seed)
                found.setdefault(kind, []).append(means(cards))
        for kind, nets in found.items():
            row: dict[str, Any] = {"case": case, "modules": kind, "nets": len(nets), "each": nets}
            for name in SCORES:
                mean = {k: float(np.nanmean([n[name][k] for n in nets])) for k in ("value", "shuffled", "random")}
                gains = [n[name]["value"] - n[name]["shuffled"] for n in nets]
                row[name] = {**mean, "p_above_shuffled": sign_flip_p(gains)}
            results.append(row)
            print(f"{case}, {kind} ({len(nets)} nets)")
            for name in SCORES:
                s = row[name]
                print(
                    f"  {name:16} {s['value']:+.2f}  shuffled {s['shuffled']:+.2f}  random module {s['random']:+.2f}  "
                    f"p {s['p_above_shuffled']:.4f}",
                    flush=True,
                )
    print(f"{time.perf_counter() - start:.0f} s; smallest p with {NETS} nets: {2.0**-NETS:.4f}")
    write(args, results)


if __name__ == "__main__":
    main()
