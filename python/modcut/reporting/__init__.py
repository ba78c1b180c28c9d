"""Show results: one self-contained HTML file, and its pictures as SVG."""

from __future__ import annotations

from modcut.reporting.html import render, report
from modcut.reporting.views import partition_view

__all__ = ["partition_view", "render", "report"]
