"""Judge modules by what breaks without them, always beside matched random modules."""

from __future__ import annotations

from modcut.auditing.ablate import Ablation, ablate
from modcut.auditing.calibration import Calibration
from modcut.auditing.compare import Comparison, Function, ModuleChange, compare
from modcut.auditing.concepts import ConceptHits, ConceptScore, find_concept
from modcut.auditing.controls import Effect, beside_controls, random_modules
from modcut.auditing.decision import Decision
from modcut.auditing.edit import ablate_interface, bake
from modcut.auditing.effects import EffectRow, EffectTable, effect_table
from modcut.auditing.examples import Concept, concept_sets, load_concept
from modcut.auditing.passage import PassageTrace, TokenEffects, trace_passage
from modcut.auditing.trace import ModuleEffect, Step, Trace, trace
from modcut.auditing.verdict import Finding, Verdict, audit, verify

__all__ = [
    "Ablation",
    "Calibration",
    "Comparison",
    "Concept",
    "ConceptHits",
    "ConceptScore",
    "Decision",
    "Effect",
    "EffectRow",
    "EffectTable",
    "Finding",
    "Function",
    "ModuleChange",
    "ModuleEffect",
    "PassageTrace",
    "Step",
    "TokenEffects",
    "Trace",
    "Verdict",
    "ablate",
    "ablate_interface",
    "audit",
    "bake",
    "beside_controls",
    "compare",
    "concept_sets",
    "effect_table",
    "find_concept",
    "load_concept",
    "random_modules",
    "trace",
    "trace_passage",
    "verify",
]
