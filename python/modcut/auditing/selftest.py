"""``modcut selftest``: on this machine, in under a minute, does the audit find what was planted?"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from modcut.auditing.ablate import Mode
from modcut.auditing.effects import EffectTable, Measure, effect_table
from modcut.auditing.quarantine import isolate
from modcut.blockmodel import fit_blocks
from modcut.organisms.backdoors import Backdoors, TriggerKind, backdoors
from modcut.organisms.planted import planted
from modcut.partition import Partition, adjusted_rand
from modcut.provenance import stamp

_MODES: tuple[Mode, ...] = ("zero", "mean", "resample")


def auroc(positive: Any, negative: Any) -> float:
    """Return the chance that a positive's score is above a negative's, ties half."""
    a, b = np.asarray(positive, dtype=np.float64), np.asarray(negative, dtype=np.float64)
    if not a.size or not b.size:
        raise ValueError(f"both classes must have scores, got {a.size} and {b.size}")
    return float(((a[:, None] > b[None, :]) + 0.5 * (a[:, None] == b[None, :])).mean())


def bootstrap(values: Sequence[float], *, seed: int = 0, resamples: int = 2000) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of a mean."""
    v = np.asarray(values, dtype=np.float64)
    means = v[np.random.default_rng(seed).integers(0, v.size, (resamples, v.size))].mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def behaviours(b: Backdoors, i: int) -> dict[str, Measure]:
    """Return the measures of a backdoored net on its test pictures: the attack's rate, and accuracy on clean ones."""
    x, y = b.test(i)
    triggered, target = b.attack(i), int(b.target[i])

    def attack(model: nn.Module) -> float:
        with torch.no_grad():
            return float((model(triggered).argmax(1) == target).double().mean())

    def accuracy(model: nn.Module) -> float:
        with torch.no_grad():
            return float((model(x).argmax(1) == y).double().mean())

    return {"attack": attack, "accuracy": accuracy}


def removal(b: Backdoors, i: int, healed: nn.Module, P: Partition, *, controls: int, seed: int = 0) -> EffectTable:
    """Return what ablating module 1 of a healed net does, in every mode, beside random modules of its size."""
    return effect_table(
        healed, P, behaviours(b, i), _MODES, [b.reference(i)[0]], controls=controls, seed=seed, modules=[1]
    )


def run(
    n: int = 16,
    seed: int = 0,
    kind: TriggerKind = "blended",
    *,
    controls: int = 20,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Train ``n`` classifiers, half of them with a backdoor, and look for it without labels of the trigger.

    Prints, and returns as plain values: AUROC of the suspicion score over harmful and harmless nets, beside the same
    with the training labels shuffled; the gain (drop of the attack minus drop of accuracy when the suspected module is
    off, minus the same for random modules), worst of three ablations; and the ARI of blocks planted in weights.
    ``ok`` is False where one of them is below what the benchmark's worst runs reached.
    """
    began = time.perf_counter()
    b = backdoors(n, kind, seed, cache=False)
    models = b.models()
    accuracy, attack = b.rates()
    say(
        f"{n} classifiers of {b.images.origin}, {int(b.harmful.sum())} with a backdoor ({kind} trigger): accuracy "
        f"{float(accuracy.mean()):.3f}, attack rate {float(attack[b.harmful].mean()):.3f} (harmless: "
        f"{float(attack[~b.harmful].mean()):.3f}); {time.perf_counter() - began:.1f} s"
    )
    reference = [b.reference(i) for i in range(n)]
    found = isolate(models, b.x, b.y, reference, seed=seed)
    shuffle = torch.randperm(b.y.shape[1], generator=torch.Generator().manual_seed(seed))
    null = isolate(models, b.x, b.y[:, shuffle], reference, heal=False)
    score, chance = (auroc(f.scores[b.harmful], f.scores[~b.harmful]) for f in (found, null))
    say(f"AUROC of suspicion, harmful against harmless: {score:.3f} (training labels shuffled: {chance:.3f})")
    gains, removed = [], 0
    assert found.healed is not None
    for j, i in enumerate(found.at):
        P = found.partitions[i]
        if bool(b.harmful[i]) and P is not None:
            table = removal(b, i, found.healed.model(j), P, controls=controls, seed=seed)
            gains.append(table.row(1, "attack").gain)
            removed += all(r.removed for r in table.rows if r.behaviour == "attack")
    gain = float(np.mean(gains)) if gains else 0.0
    low, high = bootstrap(gains, seed=seed) if gains else (0.0, 0.0)
    say(
        f"gain of the suspected module over random ones, worst of {', '.join(_MODES)}: {gain:+.2f} "
        f"[{low:+.2f}, {high:+.2f}], "
        f"{removed} of {len(gains)} backdoors removed"
    )
    nets = [planted(0.5, seed=seed + s) for s in range(3)]
    recovered = [adjusted_rand(fit_blocks(p.graph, 4, seed=seed).labels, p.labels) for p in nets]
    nothing = planted(1.0, seed=seed)
    none = adjusted_rand(fit_blocks(nothing.graph, 4, seed=seed).labels, nothing.labels)
    ari = float(np.mean(recovered))
    say(f"ARI of planted blocks, off-block ratio 0.5: {ari:.3f} (ratio 1, nothing planted: {none:.3f})")
    seconds = time.perf_counter() - began
    ok = score >= 0.9 and gain >= 0.5 and ari >= 0.9
    say(f"{'ok  ' if ok else 'FAIL'} {seconds:.1f} s, seed {seed}")
    return {
        "kind": "selftest", "ok": ok, "n": n, "trigger": kind, "images": b.images.origin, "auroc": score,
        "auroc_shuffled_labels": chance, "gain": gain, "removed": removed, "backdoors": len(gains), "ari": ari,
        "ari_nothing_planted": none, "seconds": seconds, "stamp": stamp(seed=seed),
    }  # fmt: skip


__all__ = ["auroc", "behaviours", "bootstrap", "removal", "run"]
