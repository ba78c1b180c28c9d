"""Kinds of text in a pretrained model that nothing was done to: SmolLM2-135M, one pass over 100k tokens of mixed text.

    python benchmarks/skills_smollm2.py --out benchmarks/results/skills_smollm2.json

Four kinds of text, shuffled and unlabelled: prose (World English Bible), code (Python's standard library), another
language (German messages of GNU programs, /usr/share/locale/de), arithmetic (sums written out, generated). Kinds of
window are found from usage; of every module the units that its kind uses most exclusively are removed (the share is
chosen on some windows, reported on others), beside random cores of the same make-up.
"""

from __future__ import annotations

import argparse
import gettext
import json
import random
import resource
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import modcut
from modcut import provenance
from modcut.clustering import core_labels, slice_labels
from modcut.graph.statistics import collect
from modcut.loading import load_model
from modcut.modules import find_modules, specialisation
from modcut.organisms.text import english, python_source
from modcut.partition import Partition, adjusted_rand

KINDS = ("prose", "code", "German", "arithmetic")
SHARES = (0.5, 0.1, 0.03)


def german() -> str:
    """Messages of at least 60 characters; raises where the machine has no German locale files."""
    out = []
    for path in sorted(Path("/usr/share/locale/de/LC_MESSAGES").glob("*.mo")):
        with path.open("rb") as f:
            try:
                texts = gettext.GNUTranslations(f)._catalog.values()
            except UnicodeDecodeError:  # an old file in an encoding that it does not name
                continue
        out += [t for t in texts if isinstance(t, str) and len(t) >= 60 and "Content-Type" not in t]
    if not out:
        raise RuntimeError("no German text: /usr/share/locale/de/LC_MESSAGES has no .mo files on this machine")
    random.Random(0).shuffle(out)
    return "\n".join(out)


def arithmetic(lines: int) -> str:
    draw = random.Random(0)
    out = []
    for _ in range(lines):
        a, b = draw.randrange(1000), draw.randrange(1000)
        out.append(draw.choice((f"{a} + {b} = {a + b}", f"{max(a, b)} - {min(a, b)} = {abs(a - b)}")))
    return "\n".join(out)


def windows(tokenizer: Any, per_kind: int, length: int) -> Tensor:
    """int64 [kinds, per_kind, length]: consecutive windows of each kind of text."""
    size = per_kind * length * 8
    texts = (english(size).text, python_source(size).text, german()[:size], arithmetic(per_kind * length // 6))
    rows = []
    for name, text in zip(KINDS, texts, strict=True):
        ids = torch.tensor(tokenizer.encode(text))
        if ids.numel() < per_kind * length:
            raise RuntimeError(f"{name}: {ids.numel()} tokens, {per_kind * length} are needed")
        rows.append(ids[: per_kind * length].reshape(per_kind, length))
    return torch.stack(rows)


def peak_gb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def worst_ratio(damage: dict[str, tuple[float, ...]], kinds: int) -> list[float]:
    """Per module: damage to its own kind over the largest damage to another; 0 where its own is not hurt."""
    d = torch.tensor([damage[f"kind {c}"] for c in range(kinds)])  # [kinds, modules]
    out = []
    for c in range(kinds):
        others = float(torch.cat([d[:c, c], d[c + 1 :, c]]).max())
        own = float(d[c, c])
        out.append(0.0 if own <= 0 else own / max(others, 1e-3))
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--per-kind", type=int, default=200)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--controls", type=int, default=9)
    parser.add_argument("--held", type=int, default=4, help="held-out windows of each kind, for choice and for report")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model, tokenizer, facts = load_model("smollm2")
    model.config.use_cache = False
    every = windows(tokenizer, args.per_kind + 2 * args.held, args.length)
    learn = every[:, : args.per_kind].flatten(0, 1)
    source = torch.arange(len(KINDS)).repeat_interleave(args.per_kind)
    order = torch.randperm(len(learn), generator=torch.Generator().manual_seed(args.seed))
    learn, source = learn[order], source[order]
    data = [{"input_ids": b, "labels": b} for b in learn.split(8)]
    graph = modcut.weight_graph(model, {"input_ids": learn[:2]}, include_inputs=False, include_outputs=False)
    print(f"graph: {graph.n} vertices; {learn.numel()} tokens; peak {peak_gb():.1f} GB", flush=True)
    took: dict[str, float] = {}
    began = time.time()
    statistics = collect(graph, model, data, progress=False)
    took["one pass"] = time.time() - began
    print(f"one pass: {took['one pass']:.0f} s, peak {peak_gb():.1f} GB", flush=True)
    began = time.time()
    P = find_modules(graph, statistics=statistics, seed=args.seed)
    took["find"] = time.time() - began
    kinds = torch.tensor(P.meta["windows"]) if "windows" in P.meta else torch.zeros(len(source), dtype=torch.int64)
    result: dict[str, Any] = {
        "command": provenance.command(),
        "stamp": provenance.stamp(seed=args.seed),
        "model": facts.get("name"),
        "tokens": learn.numel(),
        "windows": len(learn),
        "length": args.length,
        "vertices": graph.n,
        "k": P.k,
        "verdict_without_ablation": P.meta["verdict"],
        "evidence": P.meta["evidence"],
        "windows_ari": adjusted_rand(kinds, source) if P.k > 1 else 0.0,
        "table": [[int(((kinds == c) & (source == s)).sum()) for s in range(len(KINDS))] for c in range(P.k)],
    }
    print(P.meta["verdict"], result["table"], f"ARI {result['windows_ari']:.2f}, {took['find']:.0f} s", flush=True)
    if P.k == 1:  # then the question is asked of the sources themselves, and the row says so
        kinds, k, result["modules_of"] = source, len(KINDS), "sources (labels): no kinds were found without"
        P = Partition(slice_labels(graph, statistics.profile, source), graph, k)
    else:
        k, result["modules_of"] = P.k, "kinds found without labels"
    # A held-out window is of the kind that most windows of its source are.
    counts = [[int(((kinds == c) & (source == s)).sum()) for c in range(k)] for s in range(len(KINDS))]
    of_source = [row.index(max(row)) for row in counts]
    for part, first in (("chosen_on", args.per_kind), ("reported_on", args.per_kind + args.held)):
        slices: dict[str, list[dict[str, Tensor]]] = {f"kind {c}": [] for c in range(k)}
        for s, c in enumerate(of_source):
            ids = every[s, first : first + args.held]
            slices[f"kind {c}"].append({"input_ids": ids, "labels": ids})
        slices = {name: b for name, b in slices.items() if b}
        if len(slices) < k:
            result["ablation"] = "not run: a kind is most of no source"
            break
        began = time.time()
        if part == "chosen_on":
            tried = {}
            for share in SHARES:
                core = Partition(core_labels(graph, statistics.profile, kinds, P.labels, k, share=share), graph, k + 1)
                s = specialisation(model, core, slices, random=1, modules=k, seed=args.seed)
                tried[share] = (min(worst_ratio(s.damage, k)), s.tv, {n: list(d) for n, d in s.damage.items()})
                print(f"share {share}: worst ratio {tried[share][0]:.2f}, TV {s.tv:.2f}", flush=True)
            best = max(tried, key=lambda share: tried[share][0])
            result["chosen_on"] = {str(share): t for share, t in tried.items()}
        else:
            core = Partition(core_labels(graph, statistics.profile, kinds, P.labels, k, share=best), graph, k + 1)
            own = specialisation(model, core, slices, random=args.controls, modules=k, seed=args.seed + 1)
            result["share"] = best
            result["specialisation"] = own.to_dict()
            result["ratio"] = worst_ratio(own.damage, k)
            print(f"share {best}: ratios {result['ratio']}, TV {own.tv:.2f}, random {own.random_mean:.2f}", flush=True)
        took[part] = time.time() - began
    result |= {"seconds": took, "threads": args.threads, "peak_gb": peak_gb(), "sources": of_source}
    result["targets"] = {
        "ablation hurts one kind >= 3 x the others": "met" if min(result.get("ratio", [0])) >= 3 else "missed"
    }
    if args.out is not None:
        args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
