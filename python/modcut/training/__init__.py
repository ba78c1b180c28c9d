"""``modcut train``: train from scratch or from a pretrained model, with the loss and beside the same run without it."""

from __future__ import annotations

from modcut.training.config import Config, read_config
from modcut.training.run import train

__all__ = ["Config", "read_config", "train"]
