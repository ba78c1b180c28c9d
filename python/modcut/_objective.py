"""What the modularity loss minimises, in each of its forms; the schedule around it is the loss."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from modcut import _forms, _soft
from modcut._coarse import SUPERNODES, CoarseTree, coarse_tree
from modcut._labels import largest_layer
from modcut._leak import Leak
from modcut.graph.types import WeightGraph
from modcut.ops import block_sums

METHODS = ("share", "ncut", "tree", "spectral")
ASSIGNMENTS = ("hard", "soft")


class Objective(Leak):
    """The leak of a model, and the forms of the loss built on the same strengths and labels.

    Args:
        model, graph, k, edge, inputs, outputs: as :class:`modcut._leak.Leak`.
        method: ``share`` (the leak), ``ncut``, ``tree`` or ``spectral``.
        assignment: ``hard`` or ``soft`` labels; soft ones exist for ``share`` and ``ncut``.
    """

    def __init__(
        self,
        model: nn.Module,
        graph: WeightGraph,
        k: int,
        edge: str,
        inputs: float | None,
        outputs: float | None = None,
        *,
        method: str = "share",
        assignment: str = "hard",
    ) -> None:
        if assignment == "soft" and method not in ("share", "ncut"):
            raise ValueError(f'assignment "soft" exists for methods "share" and "ncut", got method {method!r}')
        super().__init__(model, graph, k, edge, inputs, outputs)
        self.method, self.assignment = method, assignment
        self._soft: Tensor | None = None
        self._tree: CoarseTree | None = None

    @property
    def soft_labels(self) -> Tensor | None:
        """The soft labels in use, [n, k], rows sum to 1; ``None`` where labels are hard (by now)."""
        return self._soft

    def objective(self) -> Tensor:
        """Return the value of the form without schedule and factor; differentiable.

        ``share`` in [0, 1], ``ncut`` in [0, k], ``tree`` (mean conductance of the tree's k - 1 cuts) in [0, 1],
        ``spectral`` (mean of the 2nd to k-th eigenvalue) in [0, 2]: each 0 when no weight crosses modules.

        Raises:
            RuntimeError: there is no partition yet.
            ValueError: a weight is NaN or infinite.
        """
        if self.method == "share" and self._soft is None:
            return self.leak()
        if not self.labelled:
            raise RuntimeError("the objective needs a partition, there is none before the warm-up is over")
        weights = [w.get() for w in self._terms.weights]
        if self.method == "spectral":
            w = self._adjacency(weights)
            self._must_be_finite(w.detach().sum())
            return _forms.eigenvalues(w, self.k)
        if self.method == "tree":
            table = self._mixing(weights, self._one_hot(self._coarse().node, self._coarse().size))
            value = _forms.conductances(table, self._coarse().sides.to(table.device)).mean()
        else:
            label = self._one_hot(self.labels, self.k) if self._soft is None else self._soft
            if self.method == "ncut":
                value = _forms.ncut(self._mixing(weights, label))
            else:
                sums, rows, row_weight = self._sums(weights, label)
                value = _forms.share(sums, rows, row_weight) + self._row_parts(sums.detach().sum(1))[1]
        self._must_be_finite(value.detach())
        return value

    # -- structure that is held fixed between updates ------------------------------------------------------------------

    @torch.no_grad()
    def update_soft(self, temperature: float) -> None:
        """Let the soft labels follow the weights once; from the hard ones where there were none."""
        label = self._one_hot(self.labels, self.k) if self._soft is None else self._soft
        new = _soft.mean_field(self.graph, label.cpu(), temperature, self.measured_inputs())
        self._soft = new.to(self.labels.device)

    def harden(self) -> None:
        """Make soft labels hard: the most probable ones, balanced in every layer."""
        if self._soft is not None:
            from modcut.clustering import refined_labels

            # One exact, balanced assignment from the soft labels' own rounding.
            self.set_labels(refined_labels(self.graph, self._soft.argmax(1), self.k, sweeps=1))
            self._soft = None

    @torch.no_grad()
    def update_tree(self) -> None:
        """Cut the super-nodes anew; the new cuts are taken where their conductance is 2 % lower on average."""
        old = self._coarse()
        table = self._mixing([w.get() for w in self._terms.weights], self._one_hot(old.node, old.size))
        new = coarse_tree(old.node, table, self.k)
        before, after = (float(_forms.conductances(table, t.sides.to(table.device)).mean()) for t in (old, new))
        if after < 0.98 * before:
            self._set_tree(new)

    def supernodes(self) -> int:
        """How many super-nodes a tree is cut from."""
        return max(self.k, min(SUPERNODES, largest_layer(self.graph)))

    @torch.no_grad()
    def grow_tree(self, node: Tensor) -> CoarseTree:
        """Return the tree on these super-nodes, int64 [n]."""
        size = max(int(node.max()) + 1, self.k)
        weights = [w.get() for w in self._terms.weights]
        self._prepare_labels(node)
        return coarse_tree(node, self._mixing(weights, self._one_hot(node.to(self.labels.device), size)), self.k)

    def _set_tree(self, tree: CoarseTree) -> None:
        self._tree = tree
        self.set_labels(tree.labels())

    def _prepare_labels(self, node: Tensor) -> None:
        """Row weights look at labels only for whether there is one."""
        if not self.labelled:
            self.set_labels(node % self.k)
            self.labelled = False

    def _coarse(self) -> CoarseTree:
        if self._tree is None:
            self._tree = self.grow_tree(self.labels.cpu())  # given labels: the tree of the modules themselves
        return self._tree

    def measured_inputs(self) -> dict[str, Tensor] | None:
        """Return the running mean squares of the inputs of the matrices that were measured, by name, [cols]."""
        if self.edge != "contribution":
            return None
        readers = (*self._terms.matrices, *self._terms.witnesses)
        widths = torch.tensor([m.col_vertex.numel() for m in readers])
        owner = self.norms.owner.repeat_interleave(widths).to(self.norms.mass.device)
        square, _ = self.norms.read(self.norms.place.to(owner.device), owner)
        parts, missing = torch.split(square, widths.tolist()), set(self.norms.missing())
        return {
            m.name: part for i, (m, part) in enumerate(zip(readers, parts, strict=True)) if i not in missing
        } or None

    # -- block sums ----------------------------------------------------------------------------------------------------

    def _one_hot(self, labels: Tensor, k: int) -> Tensor:
        hot = torch.nn.functional.one_hot(labels.clamp_min(0), k) * (labels >= 0)[:, None]
        return hot.to(self.norms.mass.dtype)

    def _sums(self, weights: list[Tensor], label: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Block sums [R, k] under labels [n, k], the labels of the rows [R, k], and how much each row counts [R]."""
        scales = self._arguments(weights)[0]
        dtype = torch.promote_types(scales.dtype, torch.float64 if weights[0].dtype == torch.float64 else scales.dtype)
        extended = torch.cat(
            [label.to(scales.device, dtype), label.new_zeros(1, label.shape[1]).to(scales.device, dtype)]
        )
        cols = self._index["col_vertex"]
        sums = block_sums(weights, scales.to(dtype)[:, None] * extended[cols], power=self._power)
        rows = extended[self._index["row_vertex"]]
        return sums, rows, self._row_weights(sums.detach().sum(1)).to(sums.dtype)

    def _mixing(self, weights: list[Tensor], label: Tensor) -> Tensor:
        sums, rows, row_weight = self._sums(weights, label)
        return _forms.mixing(sums, rows, row_weight if self.edge == "contribution" else None)

    def _adjacency(self, weights: list[Tensor]) -> Tensor:
        scales, _, _, _ = self._arguments(weights)
        heights, widths = list(self._terms.heights), list(self._terms.widths)
        rows = torch.split(self._index["row_vertex"], heights)
        cols = torch.split(self._index["col_vertex"], widths)
        strengths = []
        for w, s in zip(weights, torch.split(scales, widths), strict=True):
            a = w.abs() if self._power == 1 else w.square()
            strengths.append((a.flatten(2).sum(2) if a.ndim > 2 else a).to(s.dtype) * s)
        row_weight = None
        if self.edge == "contribution":
            seen = [(a.detach() * (c >= 0)).sum(1) for a, c in zip(strengths, cols, strict=True)]
            row_weight = list(torch.split(self._row_weights(torch.cat(seen)), heights))
        return _forms.adjacency(list(zip(strengths, rows, cols, strict=True)), row_weight, self.graph.n)[0]

    def _must_be_finite(self, value: Tensor) -> None:
        if not torch.compiler.is_compiling() and value.device.type == "cpu" and not bool(torch.isfinite(value)):
            self._check_weights()
