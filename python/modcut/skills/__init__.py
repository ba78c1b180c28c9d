"""Skills: kinds of input, the modules they use, and the evidence that the pairs are real (docs/skills.md)."""

from __future__ import annotations

from modcut.skills.evidence import Evidence, judge
from modcut.skills.hierarchy import Skill, hierarchy
from modcut.skills.kinds import Kinds, window_kinds
from modcut.skills.separate import cores, without_others

__all__ = ["Evidence", "Kinds", "Skill", "cores", "hierarchy", "judge", "window_kinds", "without_others"]
