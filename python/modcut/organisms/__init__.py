"""Seeded models with known ground truth, and the real text they are trained on."""

from __future__ import annotations

from modcut.organisms.gpt import GPT, GPTConfig
from modcut.organisms.text import CharTokenizer, english, python_source

__all__ = ["GPT", "CharTokenizer", "GPTConfig", "english", "python_source"]
