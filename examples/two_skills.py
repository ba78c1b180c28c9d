"""The skills of an ordinary trained GPT, found without labels: the first example of the documentation.

A two-layer GPT learns two skills, marked by the first token: writing a sequence backwards, and writing its running sum
modulo 12. Nothing in training asks for modules. Then, without telling anything about the skills:

- the exact Gomory-Hu tree on co-usage capacities: is its best edge by cut / volume the cut between the skills?
  Beside it: |W| capacities, other exponents, and the null with every unit's usage shuffled over windows.
- the functional partition: is damage by ablation specialised (TV), beside random partitions of equal sizes?
  Beside it: the partition found in the weights alone.

Everything is printed as it comes out, and --docs writes it into docs/first_example.md. About two minutes on one core:

    python examples/two_skills.py --seeds 0 1 2 --docs docs/first_example.md
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

import modcut
from modcut.graph.contract import contract
from modcut.graph.edges import shuffled, usage, with_edge
from modcut.graph.statistics import Statistics, collect
from modcut.graph.units import units_of
from modcut.modules import find_modules, specialisation, tree_cut
from modcut.partition import Partition, adjusted_rand, cross_masks
from modcut.provenance import stamp

SYMBOLS, LENGTH = 12, 6
SKILLS = ("reverse", "running sum")
VOCABULARY = SYMBOLS + len(SKILLS) + 1
# A unit counts as selective where the correlation of its usage with the skill of the window exceeds this.
SELECTIVE = 0.5
# Nats per answer token; both skills must be below, or their specialisation would be noise. Chance is log 12 = 2.48.
LEARNED = 0.1


class Layer(nn.Module):
    def __init__(self, d: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.qkv, self.out = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.up, self.down = nn.Linear(d, hidden), nn.Linear(hidden, d)

    def forward(self, x: Tensor) -> Tensor:
        """x [batch, time, d] -> [batch, time, d]."""
        b, t, d = x.shape
        q, k, v = (y.view(b, t, self.heads, -1).transpose(1, 2) for y in self.qkv(self.norm1(x)).split(d, -1))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(b, t, d))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class GPT(nn.Module):
    """Tokens [batch, time] -> logits [batch, time, vocabulary]."""

    def __init__(self, d: int = 64, heads: int = 4, layers: int = 2, hidden: int = 256) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(VOCABULARY, d), nn.Embedding(2 * LENGTH + 2, d)
        self.layers = nn.ModuleList(Layer(d, heads, hidden) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(d), nn.Linear(d, VOCABULARY, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens) + self.places(torch.arange(tokens.shape[1], device=tokens.device))
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))


def batch(skill: int, n: int, generator: torch.Generator) -> Tensor:
    """Sequences [n, 14]: skill mark, six symbols, separator, six answers."""
    x = torch.randint(SYMBOLS, (n, LENGTH), generator=generator)
    y = x.flip(1) if skill == 0 else x.cumsum(1) % SYMBOLS
    return torch.cat([torch.full((n, 1), SYMBOLS + skill), x, torch.full((n, 1), VOCABULARY - 1), y], 1)


def loss_fn(model: nn.Module, tokens: Tensor) -> Tensor:
    """Cross-entropy of the six answers."""
    logits = model(tokens[:, :-1])[:, LENGTH + 1 :]
    return F.cross_entropy(logits.flatten(0, 1), tokens[:, LENGTH + 2 :].flatten())


def train(seed: int, steps: int, say: bool = True) -> GPT:
    """Train until both skills are learned (at most ``steps``); an ordinary optimizer and an ordinary loss."""
    torch.manual_seed(seed)
    model = GPT()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: min(1, s / 50) * (1 - 0.9 * s / steps))
    generator = torch.Generator().manual_seed(1000 + seed)
    for step in range(steps):
        loss = loss_fn(model, torch.cat([batch(s, 24, generator) for s in range(2)]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if say and (step % 500 == 0 or step == steps - 1):
            print(f"  seed {seed} step {step:5d}  loss {loss.item():.4f}", flush=True)
    return model


def base_losses(model: nn.Module, generator: torch.Generator) -> dict[str, float]:
    with torch.no_grad():
        return {name: loss_fn(model, batch(i, 256, generator)).item() for i, name in enumerate(SKILLS)}


def skill_correlation(graph: modcut.WeightGraph, statistics: Statistics, skill: Tensor) -> Tensor:
    """Correlation of every vertex's usage with the skill of the window, [n]; labels are used here and only here."""
    z, units = usage(graph, statistics.profile)
    label = skill.float() - skill.float().mean()
    return ((label / label.norm()) @ z)[units.unit]


def study(
    seed: int, steps: int = 2500, random: int = 20, powers: tuple[float, ...] = (1, 3, 4, 8), say: bool = True
) -> dict[str, object]:
    """Train one network and measure everything on it."""
    start = time.perf_counter()
    model = train(seed, steps, say)
    trained = time.perf_counter() - start
    generator = torch.Generator().manual_seed(2000 + seed)
    losses = base_losses(model, generator)
    result: dict[str, object] = {"seed": seed, "losses": losses, "seconds_training": trained}
    if max(losses.values()) > LEARNED:
        result["refused"] = "not learned: " + ", ".join(f"{k} {v:.2f}" for k, v in losses.items())
        return result

    # Windows in a random mixture, no labels; the skills are kept aside to judge the result.
    skill = torch.randint(2, (512,), generator=generator)
    pool = [batch(s, 512, generator) for s in range(2)]
    windows = torch.where(skill[:, None] == 0, pool[0], pool[1])
    graph = modcut.weight_graph(model, windows[:2])
    statistics = collect(graph, model, list(windows.split(64)), loss_fn)
    # Inner units, one vertex each (of a head the first): inputs and outputs belong to both skills by construction.
    unit = units_of(graph).unit
    first = torch.zeros(graph.n, dtype=torch.bool)
    first[[int((unit == u).nonzero()[0]) for u in unit.unique()]] = True
    inner, clustered = torch.zeros_like(first), torch.zeros_like(first)
    for s in graph.spaces:
        inner[s.vertices] = s.kind in ("hidden", "head", "residual")
        clustered[s.vertices] = s.kind in ("hidden", "head")
    inner, clustered = inner & first, clustered & first
    corr = skill_correlation(graph, statistics, skill)
    selective = inner & (corr.abs() > SELECTIVE)
    result |= {"n": graph.n, "selective": int(selective.sum()), "inner": int(inner.sum())}

    def readout(side: Tensor) -> dict[str, object]:
        agree = (side[selective] == (corr[selective] > 0)).double().mean()
        return {
            "ari": adjusted_rand(side[inner], corr[inner] > 0),
            "ari_selective": adjusted_rand(side[selective], corr[selective] > 0),
            "agreement_selective": float(max(agree, 1 - agree)),
        }

    trees: dict[str, dict[str, object]] = {}
    for power in powers:
        for name, s in (("real", statistics), ("shuffled", shuffled(statistics, seed, graph))):
            began = time.perf_counter()
            cut = tree_cut(graph, s, power=power)
            row = {"conductance": cut.conductance[:3], "side": cut.smaller(), "seconds": time.perf_counter() - began}
            row |= readout(cut.side())
            trees[f"co-usage, p = {power:g}, {name}"] = row
    plain = contract(graph)
    tree = modcut.gomory_hu_tree(plain.graph)
    edges, conductance = tree.edges_by_conductance(plain.graph)
    best = tree.side(int(edges[0]))
    row = {"conductance": conductance[:3].tolist(), "side": int(min(best.sum(), (~best).sum()))}
    trees["weights alone"] = {**row, **readout(plain.expand(best, False))}
    result["trees"] = trees

    slices = {name: [batch(i, 256, generator)] for i, name in enumerate(SKILLS)}
    partitions = {
        "functional": find_modules(graph, "auto", statistics=statistics, loss_fn=loss_fn),
        "weights (spectral)": find_modules(graph, 2, method="spectral"),
    }
    found: dict[str, dict[str, object]] = {}
    for name, P in partitions.items():
        P = Partition(P.labels, with_edge(graph, "contribution", statistics), P.k, P.meta)
        s = specialisation(model, P, slices, loss_fn, random=random, max_loss=LEARNED, seed=seed)
        strong = clustered & selective
        found[name] = {
            "k": P.k,
            "tv": s.tv,
            "random_tv": s.random_mean,
            "p": s.p,
            "damage": s.damage,
            "ncut": P.ncut,
            "leak": P.leak,
            "ari_selective": adjusted_rand(P.labels[strong], corr[strong] > 0),
            "cut_and_run": modcut.cut_and_run(model, P, lambda m: base_losses(m, generator)),
            "cross_weights": sum(int(m.sum()) for m in cross_masks(graph, P.labels).values()),
        }
        if name == "functional":
            result["eigenvalues"] = P.meta["spectrum"][:4]
            result["null_eigenvalue"] = P.meta["null_spectrum"][0]
    result["partitions"] = found
    result["seconds"] = time.perf_counter() - start
    return result


def table(rows: list[list[str]]) -> str:
    """Return rows as a Markdown table; the first row is the head."""
    return "\n".join(
        "| " + " | ".join(row) + " |" + ("\n" + "|---" * len(row) + "|" if i == 0 else "") for i, row in enumerate(rows)
    )


def report(results: list[dict[str, object]]) -> str:
    """Return the measured tables, in the order of the text that surrounds them."""
    out = []
    for r in results:
        losses = ", ".join(f"{k} {v:.4f}" for k, v in r["losses"].items())  # type: ignore[attr-defined]
        out.append(f"### Seed {r['seed']}\n\nLoss after training (nats per answer; chance 2.48): {losses}.")
        if "refused" in r:
            out.append(f"Not reported: {r['refused']}.")
            continue
        out[-1] += (
            f" {r['n']} vertices; {r['inner']} inner units (neurons, heads, residual channels), of which "
            f"{r['selective']} selective (|correlation of usage with the skill| > {SELECTIVE}). "
            f"{r['seconds']:.0f} s in all."
        )
        rows = [
            ["tree on", "cut / volume of the three best edges", "smaller side", "ARI, all", "ARI, selective", "agree"]
        ]
        for name, t in r["trees"].items():  # type: ignore[attr-defined]
            rows.append(
                [
                    name,
                    ", ".join(f"{c:.3f}" for c in t["conductance"]),
                    str(t["side"]),
                    f"{t['ari']:.2f}",
                    f"{t['ari_selective']:.2f}",
                    f"{t['agreement_selective']:.2f}",
                ]
            )
        out.append(table(rows))
        eigen = ", ".join(f"{v:.3f}" for v in r["eigenvalues"])  # type: ignore[attr-defined]
        out.append(f"Spectrum of usage: {eigen}; largest with profiles shuffled: {r['null_eigenvalue']:.3f}.")
        rows = [["partition", "k", "TV", "TV, random", "p", "ARI, selective", "n-cut", "loss after cut-and-run"]]
        for name, p in r["partitions"].items():  # type: ignore[attr-defined]
            run = ", ".join(f"{k} {v:.2f}" for k, v in p["cut_and_run"].items())
            rows.append(
                [
                    name,
                    str(p["k"]),
                    f"{p['tv']:.2f}",
                    f"{p['random_tv']:.2f}",
                    f"{p['p']:.3f}",
                    f"{p['ari_selective']:.2f}",
                    f"{p['ncut']:.2f}",
                    run,
                ]
            )
        out.append(table(rows))
    return "\n\n".join(out)


def main() -> None:
    """Run the study and print (and write) what came out."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--random", type=int, default=20, help="random partitions beside every specialisation")
    parser.add_argument("--docs", type=Path, help="write the tables between the markers of this Markdown file")
    parser.add_argument("--json", type=Path, help="write every figure to this file")
    parser.add_argument("--render", type=Path, help="show a file written by --json instead of measuring")
    args = parser.parse_args()
    if args.render:
        measured = json.loads(args.render.read_text())
        origin, results = measured["stamp"], measured["results"]
    else:
        results = [study(seed, args.steps, random=args.random) for seed in args.seeds]
        origin = stamp(seeds=args.seeds, steps=args.steps)
    text = report(results)
    print(text)
    if args.json:
        args.json.write_text(json.dumps({"stamp": origin, "results": results}, indent=1))
    if args.docs:
        head, mark, rest = args.docs.read_text().partition("<!-- measured -->\n")
        tail = rest.partition("<!-- end of measured -->\n")[2]
        if not mark:
            sys.exit(f"{args.docs} has no line <!-- measured -->")
        command = (
            f"python examples/two_skills.py --seeds {' '.join(map(str, origin['seeds']))} --steps {origin['steps']}"
        )
        line = (
            f"Measured by `{command}` with modcut {origin['modcut']}, torch {origin['torch']}, "
            f"Python {origin['python']}, {origin['threads']} thread(s), {origin['date'][:10]}.\n"
        )
        args.docs.write_text(f"{head}{mark}\n{line}\n{text}\n\n<!-- end of measured -->\n{tail}")


if __name__ == "__main__":
    main()
