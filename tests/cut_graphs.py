"""What the tests of cuts draw from: every family of modcut.testing in every disguise, and what may be asked of it."""

from __future__ import annotations

import os

import torch
from hypothesis import settings
from hypothesis import strategies as st

import modcut
from modcut import testing

seeds = st.integers(0, 10_000)


def examples(count: int) -> settings:
    """So many graphs; a hundred times as many with HYPOTHESIS_PROFILE=long (test_cuts.py then draws over 30,000)."""
    return settings(max_examples=count * (100 if os.environ.get("HYPOTHESIS_PROFILE") == "long" else 1))


@st.composite
def graphs(draw: st.DrawFn, max_n: int = 12) -> torch.Tensor:
    """A graph of any family, with any mixture of ties, integers, decimals, scales, dead and disconnected vertices."""
    w = testing.FAMILIES[draw(st.sampled_from(sorted(testing.FAMILIES)))](draw(st.integers(1, max_n)), draw(seeds))
    return testing.disguised(w, draw(st.sampled_from(testing.DISGUISES)), draw(seeds))


def tolerance(w: torch.Tensor, *trees: modcut.CutTree) -> float:
    """What values of the same cut may differ by, relatively: the contract, and what a tree admits beyond it."""
    contract = {torch.int64: 0.0, torch.float64: 1e-12, torch.float32: 2e-6}[w.dtype]
    return max(contract, *(2 * t.stats.gap for t in trees), 0.0)


def moderate(w: torch.Tensor) -> bool:
    """Weights that span less than fifteen decades: there every tree must be exact."""
    positive = w[w > 0].double()
    return not len(positive) or bool(positive.max() < 1e15 * positive.min())
