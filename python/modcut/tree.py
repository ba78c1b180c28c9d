"""The Gomory-Hu tree: n - 1 cuts that hold the minimum cut of every pair of vertices.

The minimum cut between u and v is the lightest edge of the tree path between them, and removing that edge splits the
vertices into its two sides (Gomory and Hu, 1961). Vertices are the graph's; edges are named by their lower end.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from modcut import _notebook
from modcut._arrays import vertex
from modcut._problem import problem
from modcut._require import require
from modcut.provenance import stamp

_FORMAT = "modcut.CutTree"
_FORMAT_VERSION = "1"
CERTIFICATES = {
    0: "flow",
    1: "deficiency",
    2: "eigenvalue",
    3: "component",
    4: "exceptions",
    5: "merged",
    6: "module",
    7: "quotient",
    8: "reduction",
}
"""How the cut of a vertex was proven: by a maximum flow; by a bound on its star ("deficiency", also where a few edges
had to be looked at one by one, "exceptions", or where what hangs on it went along, "merged"); because no edge leads
there ("component"); inside its module ("module"), or by the cuts between whole modules ("quotient"); because the graph
falls apart there, into blocks or at vertices with two neighbours ("reduction")."""


@dataclass(frozen=True, eq=False)
class Cut:
    """A minimum cut between ``s`` and ``t``; ``lower <= minimum <= value``, and ``exact`` says that they meet."""

    value: float | int
    """Capacity between the two sides, re-summed from the original weights; int for integer graphs."""
    side: Tensor
    """bool [n], True on the side of ``s``."""
    lower: float | int
    """Proven lower bound on every cut between ``s`` and ``t``: the value of a feasible flow."""
    exact: bool
    """value - lower is 0 (integers), at most 1e-12 * value (float64) or 1e-6 * value (float32)."""
    s: int
    t: int
    stats: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """What the engine did: phases, arcs looked at, seconds."""

    def __repr__(self) -> str:
        rule = "exact" if self.exact else f"at least {self.lower:g}"
        count = int(self.side.sum())
        return f"Cut({self.s} | {self.t}: value={self.value:g}, {rule}, sides {count} + {self.side.numel() - count})"

    def to_dict(self) -> dict[str, Any]:
        """Return the cut in plain types, with the package's stamp."""
        return {
            "kind": "Cut",
            "n": self.side.numel(),
            "s": self.s,
            "t": self.t,
            "value": self.value,
            "lower": self.lower,
            "exact": self.exact,
            "side": torch.nonzero(self.side).flatten().tolist(),
            "stats": dict(self.stats),
            "stamp": stamp(),
        }


@dataclass(frozen=True)
class TreeStats:
    """What building a tree took, and what the tree is like."""

    flows: int = 0
    """Maximum flows run."""
    certified: int = 0
    """Vertices whose cut was proven without a flow."""
    certified_by: Mapping[str, int] = field(default_factory=dict)
    """Tree edges by how they were proven, see :data:`CERTIFICATES`."""
    trivial_fraction: float = 0.0
    """Share of the tree's edges whose cut is a single vertex: 1.0 is a star, which says no more than the strengths."""
    passes: float = 0.0
    """Arcs looked at, in passes over all arcs of the graph, certificates included."""
    seconds: float = 0.0
    gap: float = 0.0
    """Largest (weight - lower) / weight proven by the engine; an exact tree's ``lower`` is then set to its weights."""
    kept: int = 0
    """Edges whose cut :func:`modcut.recertify` took from the tree before."""
    repaired: int = 0
    """Edges that it made anew."""
    recomputed: int = 0
    """Edges of a whole new tree, where a repair would have cost more."""
    native: Mapping[str, Any] = field(default_factory=dict)
    """The rest of the engine's account."""


@dataclass(frozen=True, eq=False)
class CutTree:
    """A Gomory-Hu tree on n vertices, rooted: vertex v's edge leads to ``parent[v]`` and weighs ``weight[v]``.

    Raises:
        ValueError: the arrays do not form one rooted tree with non-negative weights and lower <= weight.
    """

    parent: Tensor
    """int64 [n]; -1 at the root."""
    weight: Tensor
    """float64 [n], the minimum cut between v and parent[v]; inf at the root."""
    lower: Tensor
    """float64 [n], certified lower bound of that cut; equals ``weight`` in an exact tree."""
    certified: Tensor
    """uint8 [n]: how each edge was proven, see :data:`CERTIFICATES`."""
    exact: bool = True
    integer: bool = False
    """The graph's capacities are integers, and so are all values (exact in float64: below 2^53)."""
    seed: int = 0
    eps: float = 0.0
    """Every weight is proven to be within a factor 1 + eps of its minimum cut."""
    stats: TreeStats = field(default_factory=TreeStats)

    def __post_init__(self) -> None:
        n = self.parent.numel()
        for name, dtype in (
            ("parent", torch.int64),
            ("weight", torch.float64),
            ("lower", torch.float64),
            ("certified", torch.uint8),
        ):
            x = getattr(self, name)
            if x.dtype != dtype or tuple(x.shape) != (n,):
                raise ValueError(f"{name} must be {dtype} of shape [{n}], got {x.dtype} of shape {list(x.shape)}")
        if n == 0:
            return
        roots = torch.nonzero(self.parent == -1).flatten().tolist()
        if len(roots) != 1:
            raise ValueError(f"parent must be -1 at exactly one vertex, the root; got {len(roots)} such vertices")
        if int(self.parent.min()) < -1 or int(self.parent.max()) >= n:
            raise ValueError(f"parent must hold vertex ids below {n}, or -1 at the root")
        if lost := _astray(self.parent.numpy(), roots[0]):
            raise ValueError(f"parent must lead to the root from every vertex; {lost} are on cycles or lead to one")
        edges = self.parent >= 0
        w, low = self.weight[edges], self.lower[edges]
        if not bool(((w >= 0) & torch.isfinite(w) & (low >= 0) & (low <= w)).all()):
            raise ValueError("weight must be finite and lower in [0, weight] at every vertex but the root")
        if self.weight[roots[0]] != float("inf") or self.lower[roots[0]] != float("inf"):
            raise ValueError("weight and lower must be inf at the root")

    @classmethod
    def _proven(cls, star: bool, **fields: Any) -> CutTree:
        """A tree that the engine made and that needs no check; ``star``: all edges meet in its root."""
        tree = object.__new__(cls)
        tree.__dict__.update(exact=True, integer=False, eps=0.0, **fields)
        if star:
            tree.__dict__["_star"] = True
        return tree

    # --- shape -------------------------------------------------------------------------------------------------------

    @property
    def n(self) -> int:
        """Number of vertices."""
        return self.parent.numel()

    @property
    def root(self) -> int:
        """The vertex without a parent (-1 in an empty tree)."""
        return int(torch.nonzero(self.parent == -1)[0]) if self.n else -1

    @property
    def edges(self) -> Tensor:
        """The lower ends of all edges, ascending, int64 [n - 1]: edge v joins v and parent[v]."""
        return torch.nonzero(self.parent >= 0).flatten()

    @cached_property
    def _star(self) -> bool:
        """Whether all edges meet in the root, as in the tree of every dense network: most is then one array away."""
        return self.n > 0 and bool((self.parent[self.edges] == self.root).all())

    @cached_property
    def _order(self) -> list[int]:
        """All vertices, parents before children."""
        if self._star:
            return [self.root, *self.edges.tolist()]
        below: list[list[int]] = [[] for _ in range(self.n)]
        order: list[int] = []
        for v, above in enumerate(self.parent.tolist()):
            (below[above] if above >= 0 else order).append(v)
        for v in order:
            order.extend(below[v])
        return order

    @cached_property
    def depth(self) -> list[int]:
        """Number of edges between each vertex and the root."""
        parent, depth = self.parent.tolist(), [0] * self.n
        for v in self._order[1:]:
            depth[v] = depth[parent[v]] + 1
        return depth

    def rooted(self, v: int) -> CutTree:
        """Return the same tree with ``v`` as its root. O(n)."""
        x = vertex(v, "v", self.n)
        if self.parent[x] < 0:
            return self
        parent, weight, lower, code = (x.clone() for x in (self.parent, self.weight, self.lower, self.certified))
        while (above := int(self.parent[x])) >= 0:
            parent[above], weight[above], lower[above], code[above] = (
                x,
                self.weight[x],
                self.lower[x],
                self.certified[x],
            )
            x = above
        parent[v], code[v] = -1, 0
        weight[v] = lower[v] = float("inf")
        return replace(self, parent=parent, weight=weight, lower=lower, certified=code)

    def subtree_sums(self, x: Tensor) -> Tensor:
        """Sum ``x`` [n] over the vertices below and at each vertex, [n]. O(n)."""
        if self._star:
            out = x.clone()
            out[self.root] = x.sum()
            return out
        total, parent = x.tolist(), self.parent.tolist()
        for v in reversed(self._order[1:]):
            total[parent[v]] += total[v]
        return torch.tensor(total, dtype=x.dtype)

    def side(self, v: int) -> Tensor:
        """Return the side of edge ``v`` that holds ``v``: the vertices below it, bool [n]."""
        v = vertex(v, "v", self.n)
        parent, side = self.parent.tolist(), [False] * self.n
        side[v] = True
        for x in self._order[1:]:
            side[x] = side[x] or side[parent[x]]
        return torch.tensor(side, dtype=torch.bool)

    @cached_property
    def trivial_fraction(self) -> float:
        """Share of the edges whose cut is a single vertex; 0.0 where there is no edge."""
        if self.n < 2:
            return 0.0
        parent, root = self.parent.numpy(), self.root
        above = parent[parent >= 0]
        children = np.bincount(above, minlength=self.n)
        alone = np.count_nonzero(children == 0)  # the root has children
        beside = children[root] == 1 and self.n > 2  # the one edge of the root cuts it off
        return float(alone + beside) / (self.n - 1)

    # --- cuts --------------------------------------------------------------------------------------------------------

    def _lightest(self, u: int, v: int) -> int:
        """The lightest edge on the path between two vertices; of equal ones, the smallest id. O(path)."""
        u, v = vertex(u, "u", self.n), vertex(v, "v", self.n)
        if u == v:
            raise ValueError(f"u and v must be different vertices, got {u} twice")
        parent, weight, depth = self.parent, self.weight, self.depth
        best: tuple[float, int] = (float("inf"), self.n)
        while u != v:
            if depth[u] < depth[v]:
                u, v = v, u
            best = min(best, (float(weight[u]), u))
            u = int(parent[u])
        return best[1]

    def _least(self, u: int, v: int) -> float:
        """The smallest lower bound on the path: what is proven of the pair, which may be another edge than its cut."""
        parent, lower, depth, least = self.parent, self.lower, self.depth, float("inf")
        while u != v:
            if depth[u] < depth[v]:
                u, v = v, u
            least = min(least, float(lower[u]))
            u = int(parent[u])
        return least

    def _number(self, x: float) -> float | int:
        return int(x) if self.integer else float(x)

    def min_cut_value(self, u: int, v: int) -> float | int:
        """Return the value of the minimum cut between ``u`` and ``v``. O(length of the tree path).

        Raises:
            TypeError, ValueError: ``u`` or ``v`` is no vertex, or they are equal.
        """
        return self._number(float(self.weight[self._lightest(u, v)]))

    def min_cut(self, u: int, v: int) -> Cut:
        """Return a minimum cut between ``u`` and ``v``, with the side of ``u``. O(n)."""
        e = self._lightest(u, v)
        side = self.side(e)
        if not side[u]:
            side = ~side
        value, lower = self._number(float(self.weight[e])), self._number(self._least(u, v))
        return Cut(value, side, lower, self.exact, int(u), int(v), {"tree_edge": e})

    def all_min_cut_values(self) -> Tensor:
        """Return the minimum cut of every pair, float64 [n, n], inf on the diagonal. O(n^2)."""
        out = np.full((self.n, self.n), np.inf)
        parent, weight = self.parent.numpy(), self.weight.numpy()
        order = np.array(self._order, dtype=np.int64)
        for i, v in enumerate(order[1:], 1):
            seen = order[:i]
            row = np.minimum(out[parent[v], seen], weight[v])
            out[v, seen] = row
            out[seen, v] = row
        return torch.from_numpy(out)

    def partition(self, k: int) -> Tensor:
        """Return labels (int64 [n], 0 .. k-1) of the k parts left when the k - 1 lightest edges are removed.

        Parts are numbered by their smallest vertex; of equal weights the smaller vertex id goes first. O(n log n).
        Beware: where the tree is a star (``stats.trivial_fraction`` near 1, as for every dense network), the parts are
        single neurons and one rest. Then rank edges by :meth:`edges_by_conductance` (cut divided by volume), or cut the
        graph of modules (:func:`modcut.quotient_tree`).

        Raises:
            ValueError: k is not between 1 and n.
        """
        k = vertex(k, "k", 2**63 - 1)
        if not 1 <= k <= max(self.n, 1) or (self.n == 0 and k != 1):
            raise ValueError(f"k must be between 1 and the number of vertices ({self.n}), got {k}")
        edges = self.edges
        removed = set(edges[torch.argsort(self.weight[edges], stable=True)][: k - 1].tolist())
        parent, head = self.parent.tolist(), list(range(self.n))
        for v in self._order[1:]:
            if v not in removed:
                head[v] = head[parent[v]]
        names: dict[int, int] = {}
        return torch.tensor([names.setdefault(h, len(names)) for h in head], dtype=torch.int64)

    def edges_by_conductance(self, g: Any, **how: Any) -> tuple[Tensor, Tensor]:
        """Rank the edges by conductance: cut value / strength of the side with the smaller strength, best first.

        Args:
            g: the graph the tree was made from, in any form :func:`modcut.gomory_hu_tree` takes.
            **how: ``bipartite`` and ``symmetrize``, as there.

        Returns:
            The edges (int64 [n - 1]) and their conductances (float64 [n - 1]), ascending; a single neuron has 1.0, a
            side without any strength (isolated vertices) inf. O(edges of g).
        """
        p = problem(g, **how)
        if p.n != self.n:
            raise ValueError(f"g must have the tree's {self.n} vertices, got {p.n}")
        degree = p.degree().to(torch.float64)
        below = self.subtree_sums(degree)
        edges = self.edges
        volume = torch.minimum(below, (degree.sum() - below).clamp(min=0.0))[edges]
        conductance = torch.where(volume > 0, self.weight[edges] / volume, float("inf"))
        order = torch.argsort(conductance, stable=True)
        return edges[order], conductance[order]

    # --- other forms -------------------------------------------------------------------------------------------------

    def to_networkx(self) -> Any:
        """Return a ``networkx.Graph`` on 0 .. n-1 with edge attributes ``weight`` and ``lower``."""
        nx = require("networkx", extra="test", why="CutTree.to_networkx")
        graph = nx.Graph()
        graph.add_nodes_from(range(self.n))
        for v in self.edges.tolist():
            graph.add_edge(v, int(self.parent[v]), weight=float(self.weight[v]), lower=float(self.lower[v]))
        return graph

    def to_igraph(self) -> Any:
        """Return an undirected ``igraph.Graph`` on 0 .. n-1 with edge attributes ``weight`` and ``lower``."""
        ig = require("igraph", extra="test", why="CutTree.to_igraph")
        edges = self.edges
        ends = list(zip(edges.tolist(), self.parent[edges].tolist(), strict=True))
        graph = ig.Graph(n=self.n, edges=ends)
        graph.es["weight"] = self.weight[edges].tolist()
        graph.es["lower"] = self.lower[edges].tolist()
        return graph

    def to_dict(self) -> dict[str, Any]:
        """Return the tree in plain types (None for the root's infinities), with the package's stamp."""

        def finite(x: Tensor) -> list[float | None]:
            return [None if value == float("inf") else value for value in x.tolist()]

        return {
            "kind": "CutTree",
            "n": self.n,
            "seed": self.seed,
            "eps": self.eps,
            "exact": self.exact,
            "integer": self.integer,
            "parent": self.parent.tolist(),
            "weight": finite(self.weight),
            "lower": finite(self.lower),
            "certified": [CERTIFICATES[c] for c in self.certified.tolist()],
            "stats": asdict(self.stats),
            "stamp": stamp(),
        }

    def save(self, path: str | Path) -> None:
        """Write the tree as a safetensors file; :meth:`load` gives it back bit for bit."""
        from safetensors.torch import save_file

        meta = {key: getattr(self, key) for key in ("exact", "integer", "seed", "eps")} | {"stats": asdict(self.stats)}
        tensors = {name: getattr(self, name).contiguous() for name in ("parent", "weight", "lower", "certified")}
        header = {"format": _FORMAT, "format_version": _FORMAT_VERSION, "meta": json.dumps(meta)}
        save_file(tensors, str(path), metadata=header)

    @classmethod
    def load(cls, path: str | Path) -> CutTree:
        """Read a tree that :meth:`save` wrote. No code in the file is run.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is truncated, foreign, or does not hold a tree.
        """
        from safetensors import SafetensorError, safe_open

        if not Path(path).is_file():
            raise FileNotFoundError(f"path must name a saved tree, there is no file {str(path)!r}")
        try:
            with safe_open(str(path), framework="pt") as file:
                header = dict(file.metadata() or {})
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        except SafetensorError as error:
            raise ValueError(f"{str(path)!r} is truncated or not a safetensors file: {error}") from error
        if header.get("format") != _FORMAT:
            raise ValueError(f"{str(path)!r} is a safetensors file, but not one that CutTree.save wrote")
        if header.get("format_version") != _FORMAT_VERSION:
            raise ValueError(
                f"{str(path)!r} has format version {header.get('format_version')}, this modcut reads {_FORMAT_VERSION}"
            )
        try:
            meta = json.loads(header["meta"])
            stats = TreeStats(**meta.pop("stats"))
            return cls(**tensors, **meta, stats=stats)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{str(path)!r} does not hold a tree: {error}") from error

    def __repr__(self) -> str:
        if self.n < 2:
            return f"CutTree(n={self.n})"
        w = self.weight[self.edges]
        return (
            f"CutTree(n={self.n}, {'exact' if self.exact else f'within 1 + {self.eps:g}'}, "
            f"cuts {float(w.min()):g} .. {float(w.max()):g}, {100 * self.trivial_fraction:.0f} % single vertices, "
            f"{self.stats.flows} flows, {self.stats.certified} certified, {self.stats.seconds:.3g} s)"
        )

    def _repr_html_(self) -> str:
        """Show the tree's edges in a notebook, lightest first: their cuts part the graph most cheaply."""
        edges = self.edges[torch.argsort(self.weight[self.edges], stable=True)].tolist()
        ends: list[list[Any]] = [
            [v, int(self.parent[v]), float(self.weight[v]), float(self.lower[v])] for v in edges[: _notebook.ROWS]
        ]
        rows = ends + [[]] * (len(edges) - len(ends))  # the others are counted, not shown
        return _notebook.table(["vertex", "parent", "minimum cut", "proven at least"], rows, caption=repr(self))


def _astray(parent: np.ndarray[Any, Any], root: int) -> int:
    """How many vertices never reach the root by their parents. O(n log depth)."""
    up = np.where(parent < 0, root, parent)
    for _ in range(len(up).bit_length()):
        lost = int(np.count_nonzero(up != root))
        if lost == 0:
            return 0
        up = up[up]
    return int(np.count_nonzero(up != root))
