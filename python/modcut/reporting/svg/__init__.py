"""Pictures as SVG text: the graph of modules, layers against modules, cut trees, effects beside their controls.

Every function returns one ``<svg>`` element with a title and a description for screen readers, whose colours are CSS
variables (:func:`~modcut.reporting.draw.palette`): inside a report they follow its light or dark style, and
:func:`~modcut.reporting.draw.standalone` makes a file of its own that does the same. All text is escaped; nothing
refers to another file.
"""

from __future__ import annotations

from modcut.reporting.svg.charts import dots, effect_bars, steps
from modcut.reporting.svg.maps import module_graph, occupancy
from modcut.reporting.svg.tree import cut_tree

__all__ = ["cut_tree", "dots", "effect_bars", "module_graph", "occupancy", "steps"]
