"""Skills: kinds of input, the modules they use, and the evidence that the pairs are real (docs/skills.md)."""

from __future__ import annotations

from modcut.skills.evidence import Evidence, judge
from modcut.skills.hierarchy import Skill, hierarchy
from modcut.skills.kinds import Kinds, window_kinds
from modcut.skills.separate import cores, without_others
from modcut.skills.window_tree import WindowTree, window_tree

__all__ = [
    "Evidence",
    "Kinds",
    "Skill",
    "WindowTree",
    "cores",
    "hierarchy",
    "judge",
    "window_kinds",
    "window_tree",
    "without_others",
]
