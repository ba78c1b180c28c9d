"""The loss on several processes: DDP, FSDP2 (``fully_shard``) and tensor parallelism, on ``torch.distributed``.

Every process keeps labels and norms of the whole network (a few numbers per neuron) and reads its own shard of the
weights. Between processes go, per step: the mean squares of inputs (one number per neuron), the count of live neurons
per axis class and module (classes x k), and the value. Only a matrix whose *columns* are sharded (row-wise tensor
parallelism, or a transposed weight under FSDP) needs more: its block sums, rows x k. Weights and gradients never move.

    graph, labels = ...                                     # found on one process, or in the warm-up under DDP
    crit = modcut.ModularityLoss(model, partition=P)        # before fully_shard / parallelize_module
    fully_shard(model)
    distributed.attach(crit)
    ...
    task_loss.backward()
    distributed.backward_(crit)                             # adds to the sharded gradients, in closed form
    optimizer.step(); distributed.step(crit)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from modcut.loss import ModularityLoss
from modcut.ops import share_shrink_


def active() -> bool:
    """Whether this process is one of several."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def synchronise(crit: ModularityLoss) -> None:
    """Give every process the same input norms: the mean of theirs.

    Running averages are linear, so the mean of the averages is the average over all data: with equal batches, what one
    process that sees everything would have. One number per input neuron and one per matrix.
    """
    if active() and crit.edge == "contribution":
        flat = torch.cat([crit.norms.mean_square, crit.norms.mass])
        dist.all_reduce(flat)
        flat /= dist.get_world_size()
        size = crit.norms.mean_square.numel()
        crit.norms.mean_square.copy_(flat[:size])
        crit.norms.mass.copy_(flat[size:])


@torch.no_grad()
def backward_(crit: ModularityLoss, scale: float = 1.0) -> float:
    """Add the gradient of the loss to every ``.grad``, sharded or not; return the value, the same on every process.

    Call it once per optimizer step, after the backward pass of the task loss (which has reduced its gradients).

    Raises:
        RuntimeError: weights are sharded and the loss has another form than the share with hard labels, or a schedule
            that needs whole weights (a commit, a refresh, or a partition that is still to be found).
    """
    synchronise(crit)
    pieces = _pieces(crit)
    if pieces is None:
        return crit.backward_(scale)
    factor = crit.lam * crit.weight
    if not factor:
        return 0.0
    part = _Sharded(crit, pieces)
    if scale:
        part.add_gradient_(factor * scale)
    return part.value * factor


@torch.no_grad()
def shrink_(crit: ModularityLoss, rate: dict[int, float]) -> None:
    """Do the proximal step on the weights this process holds; ``rate`` by ``id`` of the parameter."""
    synchronise(crit)
    pieces = _pieces(crit)
    if pieces is None:
        crit.shrink_(dict(rate))
        return
    factor = crit.lam * crit.weight
    if factor:
        _Sharded(crit, pieces).shrink_({p: lr * factor for p, lr in rate.items()})


def step(crit: ModularityLoss) -> None:
    """Advance the schedule; where a partition was found, every process takes that of the first one.

    The usage that decides the partition is what the first process saw.
    """
    crit.step()
    if not active() or crit.committed or not crit.labelled:
        return
    found = crit._start == crit.steps
    if found or crit.schedule.refreshes(crit.steps, crit._start, crit.refresh):
        labels = crit.labels.clone()
        dist.broadcast(labels, 0)
        if not torch.equal(labels, crit.labels):
            crit._put(labels)


def attach(crit: ModularityLoss) -> list[Any]:
    """Let norms be measured where inputs are sharded (row-wise tensor parallelism); return the hooks' handles.

    Call it after ``parallelize_module``; elsewhere it does nothing.
    """
    handles: list[Any] = []
    for i, source in enumerate(crit.norms.sources):
        owner = crit.model.get_submodule(source.module)
        weight = cast(Any, getattr(owner, "weight", None))
        if source.tap is None or not _is_sharded(weight) or crit.edge != "contribution":
            continue
        cols = 0 if type(owner).__name__ == "Conv1D" else 1
        piece = _piece(weight, cols_dim=cols)
        if piece.col_shards == 1 or type(weight.placements[0]).__name__ == "_StridedShard":
            continue
        tap_dim, size = source.tap.dim, source.end - source.start

        def hook(
            module: nn.Module,
            args: tuple[Any, ...],
            i: int = i,
            piece: _Piece = piece,
            dim: int = tap_dim,
            n: int = size,
        ) -> None:
            x = next((a for a in args if isinstance(a, Tensor)), None)
            width = piece.cols.stop - piece.cols.start
            norms = crit.norms
            if x is None or not (norms.recording and norms.training and module.training):
                return
            local = x.to_local() if hasattr(x, "to_local") else x
            if local.shape[dim] != width or width == n:
                return
            with torch.no_grad():
                wide = local.detach() if local.dtype == torch.float64 else local.detach().float()
                square = wide.movedim(dim, -1).reshape(-1, width).square().mean(0)
                whole = torch.zeros(n, dtype=square.dtype, device=square.device)
                whole[piece.cols] = square
                dist.all_reduce(whole)
                norms.record(i, whole * piece.col_shards / dist.get_world_size())

        handles.append(owner.register_forward_pre_hook(hook))
    return handles


# ---- shards ----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class _Piece:
    """Which rows and columns of a matrix this process holds."""

    rows: slice
    cols: slice
    row_shards: int
    col_shards: int


def _is_sharded(p: Any) -> bool:
    return hasattr(p, "placements") and hasattr(p, "device_mesh")


def _piece(w: Any, cols_dim: int = 1) -> _Piece:
    from torch.distributed.tensor import Shard
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    shape, offset = compute_local_shape_and_global_offset(w.shape, w.device_mesh, w.placements)
    shards = [1, 1]
    for i, placement in enumerate(w.placements):
        if isinstance(placement, Shard):
            shards[min(placement.dim, 1)] *= w.device_mesh.size(i)
        elif not placement.is_replicate():
            raise RuntimeError(f"weights must be sharded or replicated for the loss, got {placement}")
    parts = [slice(o, o + s) for o, s in zip(offset, shape, strict=True)]
    rows_dim = 1 - cols_dim
    return _Piece(parts[rows_dim], parts[cols_dim], shards[rows_dim], shards[cols_dim])


def _pieces(crit: ModularityLoss) -> list[_Piece] | None:
    """Return the piece of every term, or ``None`` where nothing is sharded."""
    parameters = [w.parameter() for w in crit._terms.weights]
    if not any(_is_sharded(p) for p in parameters):
        return None
    if crit.method != "share" or crit.assignment != "hard":
        raise RuntimeError(f'sharded weights need method "share" with hard labels, got {crit.method!r}')
    if not crit.labelled or crit.schedule.commit is not None or crit.refresh is not None:
        raise RuntimeError(
            "with sharded weights the loss needs a partition from the start and no commit or refresh: those read whole "
            "weights (find the partition on one process, commit after gathering)"
        )
    pieces = []
    for live, p in zip(crit._terms.weights, parameters, strict=True):
        if not (live._whole or live._transposed) or p.ndim != 2:
            raise RuntimeError(
                f"parameter {live.name} must hold one matrix to be sharded, it holds several or a kernel"
            )
        if _is_sharded(p):
            pieces.append(_piece(p, 0 if live._transposed else 1))
        else:
            rows, cols = live.view(p).shape
            pieces.append(_Piece(slice(0, rows), slice(0, cols), 1, 1))
    return pieces


class _Sharded:
    """Leak, row weights and gradients from the shards of this process; the formulas are those of modcut._leak."""

    def __init__(self, crit: ModularityLoss, pieces: list[_Piece]) -> None:
        self.crit, self.pieces, self.k = crit, pieces, crit.k
        parameters = [live.parameter() for live in crit._terms.weights]
        self.parameters = parameters
        self.views = [
            (live.view(p) if not _is_sharded(p) else _local(p) if live._whole else _local(p).t()).detach()
            for live, p in zip(crit._terms.weights, parameters, strict=True)
        ]
        missing = [i for i in crit.norms.missing() if i < len(pieces)] if crit.edge == "contribution" else []
        if missing:
            name = crit._terms.weights[missing[0]].name
            raise RuntimeError(
                f"the inputs of {name} must have been measured before the loss is taken on shards: run a training pass "
                "first (and call attach(crit) after parallelize_module)"
            )
        scales, self.row_label, self.col_label, _ = crit._arguments(parameters)
        self.power = crit._power
        t = crit._terms
        row_at = _starts(t.heights)
        col_at = _starts(t.widths)
        self.rows = [slice(a + p.rows.start, a + p.rows.stop) for a, p in zip(row_at, pieces, strict=True)]
        self.cols = [slice(a + p.cols.start, a + p.cols.stop) for a, p in zip(col_at, pieces, strict=True)]
        self.scales = scales
        modules = torch.arange(self.k, device=scales.device)
        table = torch.where(self.col_label[:, None] == modules, scales[:, None], 0.0)
        self.tables = torch.cat([table[c] for c in self.cols])
        local: Tensor = torch.ops.modcut.block_sums(self.views, self.tables, self.power)
        world = dist.get_world_size()
        sums = local.new_zeros(sum(t.heights), self.k)
        own = local.new_zeros(sum(t.heights))
        at = 0
        for i, piece in enumerate(pieces):
            height = piece.rows.stop - piece.rows.start
            sums[self.rows[i]] = local[at : at + height]
            at += height
            own[self.rows[i]] = piece.row_shards / world
        wide = [i for i, piece in enumerate(pieces) if piece.col_shards > 1]
        if wide:  # rows x k numbers of the matrices whose columns are sharded, in one message
            spans = [slice(row_at[i], row_at[i] + t.heights[i]) for i in wide]
            message = torch.cat([sums[s] for s in spans])
            dist.all_reduce(message)
            for i, s, whole in zip(wide, spans, torch.split(message, [t.heights[i] for i in wide]), strict=True):
                sums[s] = whole * (pieces[i].row_shards * pieces[i].col_shards / world)
                own[s] = 1 / world
        self._finish(sums, own)

    def _finish(self, sums: Tensor, own: Tensor) -> None:
        crit, k = self.crit, self.k
        index = crit._index
        self.strength = sums.sum(1)
        inside = sums.gather(1, self.row_label.clamp(min=0)[:, None])[:, 0]
        some = (self.row_label >= 0) & ~(self.strength <= 0)
        self.leak = torch.where(
            some, (self.strength - inside).clamp_(min=0) / torch.where(some, self.strength, 1.0), 0.0
        )
        group, label = index["row_group"], index["row_label"]
        groups = index["group_weight"].to(sums.dtype)
        cell = group * k + label.clamp(min=0)
        live = crit._live(index) & some
        alive = torch.zeros(groups.numel() * k, dtype=sums.dtype, device=sums.device)
        alive.index_add_(0, cell, live.to(sums.dtype) * own)
        dist.all_reduce(alive)  # classes x k numbers
        dead = (label >= 0) & (alive[cell] < 0.5)
        lives = alive.view(-1, k).sum(1)
        count = lives + torch.zeros_like(groups).index_add_(0, group, dead.to(groups.dtype))
        groups = torch.where(lives > 0.5, groups, 0.0)
        share = groups / (count.clamp(min=1) * groups.sum().clamp(min=torch.finfo(groups.dtype).tiny))
        self.row_weight = torch.where(live, share[group], 0.0)
        total = (self.leak * self.row_weight * own).sum()
        dist.all_reduce(total)
        self.value = float(total + torch.where(dead, share[group], 0.0).sum())

    def add_gradient_(self, scale: float) -> None:
        """Add ``scale`` times the gradient to the shards' gradients."""
        per_row = torch.where(
            self.strength > 0, self.row_weight * scale / torch.where(self.strength > 0, self.strength, 1), 0
        )
        cross = self.row_label[:, None] != torch.arange(self.k, device=self.row_label.device)
        slopes = per_row[:, None] * (cross.to(per_row.dtype) - self.leak[:, None])
        slopes = torch.cat([slopes[r] for r in self.rows])
        grads = torch.ops.modcut.block_sums_grad(slopes, self.views, self.tables, self.power)
        for live, p, grad in zip(self.crit._terms.weights, self.parameters, grads, strict=True):
            if not p.requires_grad:
                continue
            if p.grad is None:
                p.grad = torch.zeros_like(p)
            local = _local(p.grad)
            (local if live._whole else local.t()).add_(grad)

    def shrink_(self, step: dict[int, float]) -> None:
        """Shrink the shards' cross-module weights."""
        dials = self.crit._dials()
        for p, view, r, c in zip(self.parameters, self.views, self.rows, self.cols, strict=True):
            size = step.get(id(p), 0.0)
            if size and p.requires_grad:
                strength = torch.where(dials[r] > 0, self.strength[r] / dials[r], 0.0)
                share_shrink_(view, self.scales[c], self.row_label[r], self.col_label[c], strength, size)


def _local(p: Any) -> Tensor:
    local: Tensor = p.to_local() if _is_sharded(p) else p
    return local


def _starts(sizes: tuple[int, ...]) -> list[int]:
    out, at = [], 0
    for s in sizes:
        out.append(at)
        at += s
    return out
