"""Seeded models with known ground truth, harmful and harmless, and the real text and pictures they are trained on."""

from __future__ import annotations

from modcut.organisms.backdoors import Backdoors, Trigger, backdoors, trigger
from modcut.organisms.gpt import GPT, GPTConfig
from modcut.organisms.images import Images, digits
from modcut.organisms.planted import Planted, planted
from modcut.organisms.text import CharTokenizer, english, python_source
from modcut.organisms.twotask import TwoTask, two_task

__all__ = [
    "GPT",
    "Backdoors",
    "CharTokenizer",
    "GPTConfig",
    "Images",
    "Planted",
    "Trigger",
    "TwoTask",
    "backdoors",
    "digits",
    "english",
    "planted",
    "python_source",
    "trigger",
    "two_task",
]
