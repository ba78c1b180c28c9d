"""Judge modules by what breaks without them, always beside matched random modules."""

from __future__ import annotations

from modcut.auditing.ablate import Ablation, ablate
from modcut.auditing.controls import Effect, beside_controls, random_modules

__all__ = ["Ablation", "Effect", "ablate", "beside_controls", "random_modules"]
