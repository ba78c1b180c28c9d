"""Judge modules by what breaks without them, always beside matched random modules."""

from __future__ import annotations

from modcut.auditing.ablate import Ablation, ablate
from modcut.auditing.controls import Effect, beside_controls, random_modules
from modcut.auditing.effects import EffectRow, EffectTable, effect_table

__all__ = [
    "Ablation",
    "Effect",
    "EffectRow",
    "EffectTable",
    "ablate",
    "beside_controls",
    "effect_table",
    "random_modules",
]
