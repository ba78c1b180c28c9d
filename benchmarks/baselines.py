"""Published ways to make networks modular or sparse, from their formulas: the rows that modcut is compared with.

Each takes the weights as a list of [rows, cols] (targets, sources) and, where it needs modules, labels per row and per
column. None is invariant to rescaling neurons; what each can be fooled by is in tests/test_loss_degenerate.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

Weights = Sequence[Tensor]
Labels = Sequence[tuple[Tensor, Tensor]]
"""(row labels, column labels) of every matrix."""


# ---- sparsity --------------------------------------------------------------------------------------------------------
def l1(weights: Weights) -> Tensor:
    """Sum of |W| over all matrices."""
    return torch.stack([w.abs().sum() for w in weights]).sum()


def l2(weights: Weights) -> Tensor:
    """Half the sum of W^2 (weight decay as a loss)."""
    return torch.stack([w.square().sum() for w in weights]).sum() / 2


@torch.no_grad()
def top_k_(weights: Weights, keep: float) -> int:
    """Keep the largest |W| of every matrix, set the rest to zero, after each optimizer step; return how many stay.

    Weight-sparse training (Gao et al., "Weight-sparse transformers have interpretable circuits", 2025): ``keep`` is
    lowered from 1 to its target during training.
    """
    left = 0
    for w in weights:
        count = round(keep * w.numel())
        mask = torch.zeros(w.numel(), dtype=torch.bool)
        mask[w.abs().flatten().topk(count).indices] = True
        w.masked_fill_(~mask.view_as(w), 0.0)
        left += count
    return left


# ---- blocks ----------------------------------------------------------------------------------------------------------
def index_labels(size: int, k: int) -> Tensor:
    """Contiguous blocks of equal size: module of neuron i is floor(i k / size)."""
    return torch.arange(size) * k // size


def inside(labels: tuple[Tensor, Tensor]) -> Tensor:
    """Which entries stay inside a module, bool [rows, cols]."""
    return labels[0][:, None] == labels[1][None, :]


@torch.no_grad()
def block_diagonal_(weights: Weights, labels: Labels) -> None:
    """Zero everything between modules: from step 0 and after each step, k narrow networks side by side."""
    for w, pair in zip(weights, labels, strict=True):
        w.masked_fill_(~inside(pair), 0.0)


@torch.no_grad()
def modular_initialisation_(weights: Weights, labels: Labels, k: int) -> None:
    """Scale the initial weights: inside blocks by 1 + 0.4 (k - 1), outside by 0.6 (Filan et al. 2021, section 5)."""
    for w, pair in zip(weights, labels, strict=True):
        w.mul_(torch.where(inside(pair), 1 + 0.4 * (k - 1), 0.6).to(w))


def clusterability(weights: Weights, labels: Labels) -> Tensor:
    """Share of squared weight inside modules: sum_in W^2 / sum W^2, over all matrices together.

    Golechha et al., "Training neural networks for modularity aids interpretability" (2409.15747): the task loss minus
    lambda times this. The published runs on transformers take each MLP's first matrix alone, with labels of its own.
    """
    inner = torch.stack([(w.square() * inside(p)).sum() for w, p in zip(weights, labels, strict=True)]).sum()
    return inner / torch.stack([w.square().sum() for w in weights]).sum()


# ---- spectra ---------------------------------------------------------------------------------------------------------
def normalised_laplacian(adjacency: Tensor) -> Tensor:
    """I - D^-1/2 A D^-1/2 of a symmetric non-negative matrix [n, n] without isolated vertices."""
    root = adjacency.sum(1).rsqrt()
    return torch.eye(len(adjacency), dtype=adjacency.dtype) - root[:, None] * adjacency * root


def layered_adjacency(weights: Weights) -> Tensor:
    """|W| of consecutive layers as one symmetric matrix [n, n]: layer l's columns are layer l - 1's rows."""
    sizes = [weights[0].shape[1], *(w.shape[0] for w in weights)]
    total, at = torch.zeros(sum(sizes), sum(sizes), dtype=weights[0].dtype), 0
    for w in weights:
        rows, cols = w.shape
        i, j = torch.arange(at + cols, at + cols + rows), torch.arange(at, at + cols)
        total = total.index_put((i[:, None], j), w.abs())
        at += cols
    return total + total.T


def eigenvalue_regulariser(weights: Weights, k: int) -> Tensor:
    """Sum of the 2nd to k-th smallest eigenvalues of the normalised Laplacian of |W| (Filan et al. 2021, section 5)."""
    return torch.linalg.eigvalsh(normalised_laplacian(layered_adjacency(weights)))[1:k].sum()


# ---- geometry --------------------------------------------------------------------------------------------------------
@dataclass
class Bimt:
    """Brain-inspired modular training (Liu et al., 2305.08746): neurons have places, connections cost their length.

    ``sum |W_ij| (d_ij + layer)``, d the distance of the places in [0, 1] that the two neurons have in their layers, and
    every so often neurons swap places where that lowers the sum. (Swapping places is swapping neurons.)
    """

    weights: Weights
    layer: float = 0.1
    """Length of a connection straight to the next layer."""
    places: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        sizes = [self.weights[0].shape[1], *(w.shape[0] for w in self.weights)]
        self.places = [(torch.arange(n) + 0.5) / n for n in sizes]

    def lengths(self, i: int) -> Tensor:
        """d_ij + layer of one matrix, [rows, cols]."""
        return (self.places[i + 1][:, None] - self.places[i][None, :]).abs() + self.layer

    def loss(self) -> Tensor:
        """The cost of all connections."""
        return torch.stack([(w.abs() * self.lengths(i).to(w)).sum() for i, w in enumerate(self.weights)]).sum()

    @torch.no_grad()
    def swap(self, candidates: int = 20) -> int:
        """Let the strongest neurons of every hidden layer take their best swap; return how many did."""
        done = 0
        for layer in range(1, len(self.weights)):
            into, out = self.weights[layer - 1].abs(), self.weights[layer].abs()
            for i in (into.sum(1) + out.sum(0)).topk(min(candidates, into.shape[0])).indices.tolist():
                at = self.places[layer]
                # price[j, p]: what the connections of neuron j cost at the place of neuron p.
                before = (at[:, None] - self.places[layer - 1][None, :]).abs().to(into)
                after = (at[:, None] - self.places[layer + 1][None, :]).abs().to(into)
                price = into @ before.T + out.T @ after.T
                own = price.diagonal()
                change = price[i] + price[:, i] - own[i] - own
                j = int(change.argmin())
                if float(change[j]) < -1e-9:
                    at[i], at[j] = at[j].clone(), at[i].clone()
                    done += 1
        return done

    def labels(self, k: int) -> list[Tensor]:
        """Modules by place: k strips of equally many neurons, one vector a layer."""
        return [index_labels(len(p), k)[p.argsort().argsort()] for p in self.places]


# ---- learned labels --------------------------------------------------------------------------------------------------
def min_cut_pool(adjacency: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """MinCutPool's losses (Bianchi et al. 2020) for soft labels s [n, k]: ``-tr(S'AS) / tr(S'DS)`` and
    ``|| S'S / ||S'S|| - I / sqrt(k) ||`` (Frobenius norms)."""
    degree = adjacency.sum(1)
    cut = -(s.T @ adjacency @ s).trace() / (s * degree[:, None] * s).sum()
    gram, k = s.T @ s, s.shape[1]
    return cut, (gram / gram.norm() - torch.eye(k, dtype=s.dtype) / math.sqrt(k)).norm()


def dmon(adjacency: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """DMoN's losses (Tsitsulin et al. 2020): ``-tr(S'BS) / 2m``, B = A - dd' / 2m; ``sqrt(k) / n |sum_i S_i| - 1``."""
    degree = adjacency.sum(1)
    twice = degree.sum()
    pull = s.T @ degree
    spectral = -((s.T @ adjacency @ s).trace() - (pull @ pull) / twice) / twice
    return spectral, math.sqrt(s.shape[1]) / s.shape[0] * s.sum(0).norm() - 1
