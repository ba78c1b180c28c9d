"""The peers with Python wheels: every function returns (CPU seconds in the solver without building, its answer)."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

Edges = Any  # int64 [m, 2], each edge of the undirected graph once


def _best(repeat: int, build: Callable[[], Callable[[], Any]]) -> tuple[float, Any]:
    """Build anew for every run (some solvers keep their flow), time the solver, stop after five seconds."""
    best, answer, total = float("inf"), None, 0.0
    for _ in range(repeat):
        solve = build()
        start = time.process_time()
        answer = solve()
        spent = time.process_time() - start
        answer = answer() if callable(answer) else answer  # what only reads the answer is not the solver
        best, total = min(best, spent), total + spent
        if total > 5:
            break
    return best, answer


# --- one s-t cut of integers ------------------------------------------------------------------------------------------


def scipy_flow(n: int, edges: Edges, c: Any, s: int, t: int, repeat: int) -> tuple[float, int]:
    import scipy.sparse as sp
    from scipy.sparse.csgraph import maximum_flow

    i, j = np.concatenate([edges, edges[:, ::-1]]).T
    a = sp.csr_array((np.tile(c, 2).astype(np.int32), (i, j)), shape=(n, n))
    seconds, flow = _best(repeat, lambda: lambda: maximum_flow(a, s, t, method="dinic").flow_value)
    return seconds, int(flow)


def thinhpf_flow(n: int, edges: Edges, c: Any, s: int, t: int, repeat: int) -> tuple[float, int]:
    import thinhpf

    def build() -> Callable[[], Any]:
        solver = thinhpf.hpf(n, 2 * len(edges))
        solver.add_node(n)
        solver.set_source(s)
        solver.set_sink(t)
        for (i, j), x in zip(edges.tolist(), c.tolist(), strict=True):
            solver.add_edge(i, j, int(x))
            solver.add_edge(j, i, int(x))

        def solve() -> Any:
            solver.mincut()
            return solver.compute_maxflow

        return solve

    seconds, flow = _best(repeat, build)
    return seconds, int(flow)


def ortools_flow(n: int, edges: Edges, c: Any, s: int, t: int, repeat: int) -> tuple[float, int]:
    def build() -> Callable[[], Any]:
        solver = _ortools(edges, c)

        def solve() -> Any:
            assert solver.solve(s, t) == solver.OPTIMAL
            return solver.optimal_flow()

        return solve

    seconds, flow = _best(repeat, build)
    return seconds, int(flow)


def pymaxflow_flow(n: int, edges: Edges, c: Any, s: int, t: int, repeat: int) -> tuple[float, int]:
    import maxflow

    def build() -> Callable[[], Any]:
        g = maxflow.GraphInt(n, len(edges))
        g.add_nodes(n)
        # Its terminals are extra vertices: tied to s and t by more than any cut.
        strong = int(c.sum())
        g.add_tedge(s, strong, 0)
        g.add_tedge(t, 0, strong)
        for (i, j), x in zip(edges.tolist(), c.tolist(), strict=True):
            g.add_edge(i, j, int(x), int(x))
        return g.maxflow

    seconds, flow = _best(repeat, build)
    return seconds, int(flow)


def igraph_flow(n: int, edges: Edges, c: Any, s: int, t: int, repeat: int) -> tuple[float, int]:
    import igraph

    g, capacity = igraph.Graph(n=n, edges=edges.tolist()), c.tolist()
    seconds, flow = _best(repeat, lambda: lambda: g.maxflow_value(s, t, capacity=capacity))
    return seconds, round(flow)


def networkx_flow(n: int, edges: Edges, c: Any, s: int, t: int, repeat: int) -> tuple[float, int]:
    import networkx as nx

    g = nx.Graph()
    for (i, j), x in zip(edges.tolist(), c.tolist(), strict=True):
        g.add_edge(i, j, capacity=int(x))
    seconds, flow = _best(1, lambda: lambda: nx.minimum_cut_value(g, s, t))
    return seconds, int(flow)


def lemon_flow(n: int, edges: Edges, c: Any, s: int, t: int, repeat: int) -> tuple[float, int]:
    from peers import lemon

    runs = [lemon.solve(n, edges, c, "flow", str(s), str(t)) for _ in range(repeat)]
    return min(r[0] for r in runs), round(runs[0][1][0])


FLOWS = {
    "SciPy": scipy_flow,
    "thinhpf": thinhpf_flow,
    "OR-tools": ortools_flow,
    "PyMaxflow": pymaxflow_flow,
    "igraph": igraph_flow,
    "LEMON": lemon_flow,
    "NetworkX": networkx_flow,
}


# --- trees ------------------------------------------------------------------------------------------------------------


def _ortools(edges: Edges, c: Any) -> Any:
    from ortools.graph.python import max_flow

    solver, x = max_flow.SimpleMaxFlow(), np.tile(c, 2).astype(np.int64)
    tail, head = np.concatenate([edges, edges[:, ::-1]]).T
    solver.add_arcs_with_capacity(tail, head, x)
    return solver


def gusfield_ortools(n: int, edges: Edges, c: Any, repeat: int) -> tuple[float, list[float]]:
    """Gusfield's method with the swap over OR-tools' max-flow. It takes integers only: floats keep 30 bits."""
    integral = np.issubdtype(c.dtype, np.integer)
    unit = 1.0 if integral else 2.0**30 / c.max()
    solver = _ortools(edges, c if integral else np.round(c * unit))

    def run() -> list[float]:
        parent, flow = np.zeros(n, dtype=np.int64), np.zeros(n)
        for s in range(1, n):
            t = int(parent[s])
            solver.solve(s, t)
            flow[s] = solver.optimal_flow()
            inside = np.zeros(n, dtype=bool)
            inside[solver.get_source_side_min_cut()] = True
            move = inside & (parent == t)
            move[s] = False
            parent[move] = s
            if inside[parent[t]]:
                parent[s], parent[t] = parent[t], s
                flow[s], flow[t] = flow[t], flow[s]
        root = int(np.flatnonzero(parent == np.arange(n))[0])
        return list(np.delete(flow, root) / unit)

    return _best(repeat, lambda: run)


def igraph_tree(n: int, edges: Edges, c: Any, repeat: int) -> tuple[float, list[float]]:
    import igraph

    g, capacity = igraph.Graph(n=n, edges=edges.tolist()), c.tolist()
    return _best(repeat, lambda: lambda: g.gomory_hu_tree(capacity=capacity).es["flow"])


def lemon_tree(n: int, edges: Edges, c: Any, repeat: int) -> tuple[float, list[float]]:
    from peers import lemon

    best, weights = lemon.solve(n, edges, c, "tree")
    for _ in range(repeat - 1):
        if best > 2:
            break
        best = min(best, lemon.solve(n, edges, c, "tree")[0])
    return best, weights


def networkx_tree(n: int, edges: Edges, c: Any, repeat: int) -> tuple[float, list[float]]:
    import networkx as nx

    g = nx.Graph()
    for (i, j), x in zip(edges.tolist(), c.tolist(), strict=True):
        g.add_edge(i, j, capacity=x)
    seconds, tree = _best(1, lambda: lambda: nx.gomory_hu_tree(g))
    return seconds, [x for *_, x in tree.edges(data="weight")]


TREES = {"igraph": igraph_tree, "LEMON": lemon_tree, "OR-tools": gusfield_ortools, "NetworkX": networkx_tree}
