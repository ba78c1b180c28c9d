"""Graphs to test cuts on, slow truths to test them against, and the validator of Gomory-Hu trees.

``graphs`` and ``networks`` make graphs, ``families`` draws from all of them, ``references`` finds cuts by means that
share no code with the engine, ``validate`` judges trees. Everything public is here under its own name.
"""

from __future__ import annotations

from modcut.testing.families import DISGUISES, FAMILIES, disguised
from modcut.testing.graphs import (
    acyclic_dense,
    cycle,
    dense,
    double_cycle,
    from_edges,
    grid,
    heavy_tailed,
    hub,
    known_graph,
    noi,
    path,
    planted,
    rmf,
    sparse,
    tree,
    undirected_equivalent,
    washington,
    washington_long,
    washington_wide,
)
from modcut.testing.networks import DigitsNet, gpt_graph, layer_graph, mlp, mlp_graph, mlp_weights, pruned
from modcut.testing.references import (
    brute_force_min_cut,
    edge_list,
    igraph_tree_weights,
    reference_min_cut,
    reference_tree,
)
from modcut.testing.validate import Validation, validate_cut_tree

__all__ = [
    "DISGUISES",
    "FAMILIES",
    "DigitsNet",
    "Validation",
    "acyclic_dense",
    "brute_force_min_cut",
    "cycle",
    "dense",
    "disguised",
    "double_cycle",
    "edge_list",
    "from_edges",
    "gpt_graph",
    "grid",
    "heavy_tailed",
    "hub",
    "igraph_tree_weights",
    "known_graph",
    "layer_graph",
    "mlp",
    "mlp_graph",
    "mlp_weights",
    "noi",
    "path",
    "planted",
    "pruned",
    "reference_min_cut",
    "reference_tree",
    "rmf",
    "sparse",
    "tree",
    "undirected_equivalent",
    "validate_cut_tree",
    "washington",
    "washington_long",
    "washington_wide",
]
