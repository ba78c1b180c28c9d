"""What the modularity loss costs in training, answers compared before anything is timed.

    python benchmarks/bench_loss.py [--out benchmarks/results/loss.json]

A training step of a GPT on random tokens (AdamW), plain and with the loss in each of its forms; the runs take turns and
times are processor time, so that a busy machine slows all alike. ``share`` is the mean time added, divided by the plain
step's mean. Input norms are measured in every training pass of the first 128 steps and in every 8th after that:
``early`` is the cost of the hooks alone in the former, all other forms are timed in the latter, in whole rounds of 8.
``read_write`` is one pass that reads and writes every weight of the loss once.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

import modcut
from bench_common import arguments, show, write
from modcut.ops import reference
from modcut.optim import Proximal
from modcut.organisms import GPT, GPTConfig

# name: (sizes, batch, tokens per sequence, in the default run)
CASES: dict[str, tuple[GPTConfig, int, int, bool]] = {
    "gpt 2 x 64": (GPTConfig(context=96, width=64, layers=2, heads=4, mlp=256), 16, 96, True),
    "gpt 4 x 128": (GPTConfig(context=128, width=128, layers=4, heads=4, mlp=512), 16, 128, True),
    "gpt 12 x 768": (GPTConfig(context=64, width=768, layers=12, heads=12, mlp=3072), 2, 64, False),
}
FORMS = ("plain", "hooks early", "hooks", "autograd", "closed form", "proximal")
SETTLED, ROUND = 128, 8


def loss_of(model: nn.Module, graph: modcut.WeightGraph | None, k: int = 4) -> modcut.ModularityLoss:
    return modcut.ModularityLoss(model, k, graph=graph, warmup=0, seed=0)


def check(model: nn.Module, tokens: Tensor) -> None:
    """The gradient of the whole loss is that of the reference, autograd and closed form alike."""
    crit = loss_of(model, None)
    model(tokens)
    terms = crit._terms
    weights = [w.get() for w in terms.weights]
    scales, row, col, _ = crit._arguments(weights)
    leak, strength = reference.share_rows(weights, scales, row, col)
    want = torch.autograd.grad((leak * crit._row_weights(strength)).sum(), weights)
    for got, w in zip(torch.autograd.grad(crit(), weights), want, strict=True):
        torch.testing.assert_close(got, w, rtol=1e-4, atol=1e-7)
    model.zero_grad()
    crit.backward_()
    for live, w in zip(terms.weights, want, strict=True):
        torch.testing.assert_close(live.view(live.parameter().grad), w, rtol=1e-4, atol=1e-7)
    model.zero_grad()
    crit.close()


def stepper(form: str, model: nn.Module, tokens: Tensor) -> Callable[[], None]:
    optimizer: Any = torch.optim.AdamW(model.parameters(), lr=1e-4)
    crit = None if form == "plain" else loss_of(model, None)
    if form == "proximal":
        assert crit is not None
        optimizer = Proximal(optimizer, crit)

    if crit is not None and form != "hooks early":
        for _ in range(SETTLED):
            crit.step()

    def step() -> None:
        logits = model(tokens)
        loss = F.cross_entropy(logits[:, :-1].reshape(-1, logits.shape[-1]), tokens[:, 1:].reshape(-1))
        if form == "autograd":
            assert crit is not None
            loss = loss + crit()
        loss.backward()
        if form == "closed form":
            assert crit is not None
            crit.backward_()
        optimizer.step()
        optimizer.zero_grad()
        if crit is not None and form != "hooks early":
            crit.step()

    return step


def clock(call: Callable[[], Any]) -> float:
    # Time of this process, not of the clock on the wall: another process on the core must not count.
    start = time.process_time()
    call()
    return time.process_time() - start


def run(name: str, repeat: int, seed: int) -> dict[str, Any]:
    config, batch, length, _ = CASES[name]
    torch.manual_seed(seed)
    model = GPT(config)
    tokens = torch.randint(config.vocab, (batch, length))
    check(model, tokens)
    steps = {form: stepper(form, copy.deepcopy(model), tokens) for form in FORMS}
    crit = loss_of(model, None)
    model(tokens)
    weights = [w.get().detach() for w in crit._terms.weights]
    copies = [torch.empty_like(w) for w in weights]
    extra: dict[str, Callable[[], Any]] = {
        "value_gradient": lambda: crit().backward(),
        "closed": lambda: crit.backward_(),
        "read_write": lambda: [torch.mul(w, 2.0, out=c) for w, c in zip(weights, copies, strict=True)],
    }
    times: dict[str, list[float]] = {key: [] for key in (*steps, *extra)}
    for i in range(ROUND * (repeat + 1)):
        for key, call in (*steps.items(), *extra.items()):
            seconds = clock(call)
            if i >= ROUND:  # the first round warms up
                times[key].append(seconds)
    ms = {key: 1e3 * statistics.fmean(values) for key, values in times.items()}
    row: dict[str, Any] = {
        "case": name,
        "matrices": len(weights),
        "weights": sum(w.numel() for w in weights),
        "parameters": sum(p.numel() for p in model.parameters()),
        "tokens": tokens.numel(),
        "step_ms": ms["plain"],
    }
    for form in FORMS[1:]:
        row[f"share {form}"] = ms[form] / ms["plain"] - 1
    row |= {f"{key}_ms": ms[key] for key in extra}
    row["value_gradient_per_read_write"] = ms["value_gradient"] / ms["read_write"]
    row["closed_per_read_write"] = ms["closed"] / ms["read_write"]
    row["kernel"] = crit._fusible(weights)
    return row


def main() -> None:
    args = arguments(__doc__, list(CASES))
    torch.set_num_threads(args.threads)
    rows = []
    for name in args.cases or [n for n, case in CASES.items() if case[3] or args.long]:
        rows.append(run(name, max(args.repeat, 1), args.seed))
        show(rows[-1])
    write(args, rows)


if __name__ == "__main__":
    main()
