"""modcut: graph cuts of neural networks. Names load when they are first used, so importing is quick and never fails."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

# One row per public name: where it lives. Nothing is imported until a name is asked for.
_HOME = {
    "weight_graph": "modcut.graph.trace",
    "WeightGraph": "modcut.graph.types",
    "max_flow": "modcut.cuts",
    "min_cut": "modcut.cuts",
    "gomory_hu_tree": "modcut.cuts",
    "gomory_hu_trees": "modcut.cuts",
    "global_min_cut": "modcut.cuts",
    "isolating_cuts": "modcut.cuts",
    "quotient_matrix": "modcut.cuts",
    "quotient_tree": "modcut.cuts",
    "recertify": "modcut.cuts",
    "Cut": "modcut.tree",
    "CutTree": "modcut.tree",
    "CutTrees": "modcut.cuts",
    "modularity_loss": "modcut.loss",
    "ModularityLoss": "modcut.loss",
    "sever": "modcut._sever",
    "Partition": "modcut.partition",
    "improve_partition": "modcut.improve",
    "find_modules": "modcut.modules",
    "cut_and_run": "modcut.modules",
    "cut_and_heal": "modcut.modules",
    "describe": "modcut.reading",
    "OpenAIClient": "modcut.reading",
    "LocalClient": "modcut.reading",
    "ModuleCards": "modcut.reading",
    "ablate": "modcut.auditing",
    "trace": "modcut.auditing",
    "compare": "modcut.auditing",
    "find_concept": "modcut.auditing",
    "audit": "modcut.auditing",
    "report": "modcut.reporting",
    "reading": "modcut.reading",
    "organisms": "modcut.organisms",
    "testing": "modcut.testing",
    "optim": "modcut.optim",
}

__all__ = ["__version__", *sorted(_HOME)]


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'modcut' has no attribute {name!r}")
    module = importlib.import_module(home)
    value = module if home == f"modcut.{name}" else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
