"""The arms of the frontier table: one way to train each, with the settings that are tried on the choosing seeds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import baselines as b
import modcut
from frontier_tasks import Task
from modcut.optim import Proximal


@dataclass
class Run:
    """What an arm leaves behind."""

    model: nn.Module
    labels: Tensor | None
    """int64 [n]; None: found by function afterwards, like a user would."""
    extra: dict[str, Any] = field(default_factory=dict)


def graph_of(task: Task, model: nn.Module) -> modcut.WeightGraph:
    """The graph whose vertices are divided: hidden neurons and outputs; inputs are shared."""
    return modcut.weight_graph(model, task.splits["train"][0][:2], include_inputs=False)


def batches(task: Task, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The same batches in the same order for every arm of a seed."""
    x, y = task.splits["train"]
    g = torch.Generator().manual_seed(seed + 1000)
    for _ in range(task.steps):
        i = torch.randint(0, len(x), (task.batch,), generator=g)
        yield x[i], y[i]


def train(
    task: Task,
    model: nn.Module,
    seed: int,
    *,
    penalty: Callable[[int], Tensor | None] = lambda i: None,
    after: Callable[[int], None] = lambda i: None,
    optimizer: torch.optim.Optimizer | None = None,
    parameters: list[Tensor] | None = None,
    decay: float = 0.0,
) -> None:
    """Adam with linear decay to a tenth; ``penalty(i)`` is added, ``after(i)`` runs after each step."""
    plain = torch.optim.AdamW([*model.parameters(), *(parameters or [])], lr=task.rate, weight_decay=decay)
    optimizer = plain if optimizer is None else optimizer
    model.train()
    for i, batch in enumerate(batches(task, seed)):
        for group in optimizer.param_groups:
            group["lr"] = task.rate * (1 - 0.9 * i / task.steps)
        loss, extra = task.loss(model, batch), penalty(i)
        optimizer.zero_grad()
        (loss if extra is None else loss + extra).backward()
        optimizer.step()
        after(i)
    model.eval()


def weights_of(task: Task, model: nn.Module) -> list[Tensor]:
    return [model.get_parameter(name) for name in task.hidden]


def index_pairs(weights: list[Tensor], k: int) -> list[tuple[Tensor, Tensor]]:
    return [(b.index_labels(w.shape[0], k), b.index_labels(w.shape[1], k)) for w in weights]


def vertex_labels(task: Task, model: nn.Module, layers: list[Tensor]) -> Tensor:
    """Labels of the graph's vertices from labels of every layer's neurons (columns of the first hidden matrix on)."""
    graph = graph_of(task, model)
    labels = torch.zeros(graph.n, dtype=torch.int64)
    matrices = {m.name: m for m in graph.matrices}
    for i, name in enumerate(task.hidden):
        labels[matrices[name].col_vertex] = layers[i]
        labels[matrices[name].row_vertex] = layers[i + 1]
    return labels


def index_layers(task: Task, model: nn.Module) -> list[Tensor]:
    ws = weights_of(task, model)
    return [b.index_labels(n, task.k) for n in (ws[0].shape[1], *(w.shape[0] for w in ws))]


# ---- arms ------------------------------------------------------------------------------------------------------------
def dense(task: Task, seed: int, model: nn.Module, width: float = 1.0) -> Run:
    train(task, model, seed)
    return Run(model, None)


def narrower(task: Task, seed: int, model: nn.Module) -> Run:
    torch.manual_seed(seed)
    return dense(task, seed, task.model(task.narrow))


def sparse(task: Task, seed: int, model: nn.Module, lam: float) -> Run:
    ws = weights_of(task, model)
    train(task, model, seed, penalty=lambda i: lam * b.l1(ws))
    return Run(model, None)


def weight_decay(task: Task, seed: int, model: nn.Module, decay: float) -> Run:
    train(task, model, seed, decay=decay)
    return Run(model, None)


def top_k(task: Task, seed: int, model: nn.Module, keep: float) -> Run:
    ws, ramp = weights_of(task, model), 0.5 * task.steps

    def after(i: int) -> None:
        b.top_k_([w.data for w in ws], max(keep, 1 - (1 - keep) * i / ramp))

    train(task, model, seed, after=after)
    return Run(model, None)


def block_diagonal(task: Task, seed: int, model: nn.Module) -> Run:
    ws = weights_of(task, model)
    pairs = index_pairs(ws, task.k)
    b.block_diagonal_([w.data for w in ws], pairs)
    train(task, model, seed, after=lambda i: b.block_diagonal_([w.data for w in ws], pairs))
    return Run(model, vertex_labels(task, model, index_layers(task, model)))


def modular_init(task: Task, seed: int, model: nn.Module) -> Run:
    ws = weights_of(task, model)
    b.modular_initialisation_([w.data for w in ws], index_pairs(ws, task.k), task.k)
    train(task, model, seed)
    return Run(model, vertex_labels(task, model, index_layers(task, model)))


def filan(task: Task, seed: int, model: nn.Module, lam: float) -> Run:
    ws, every = weights_of(task, model), 5

    def penalty(i: int) -> Tensor | None:  # every fifth step with five times the factor: eigenvalues take milliseconds
        return None if i % every else every * lam * b.eigenvalue_regulariser(ws, task.k)

    train(task, model, seed, penalty=penalty)
    return Run(model, None)


def bimt(task: Task, seed: int, model: nn.Module, lam: float) -> Run:
    geometry = b.Bimt(weights_of(task, model))
    train(
        task, model, seed, penalty=lambda i: lam * geometry.loss(),
        after=lambda i: geometry.swap() if i % 200 == 199 else None,
    )  # fmt: skip
    return Run(model, vertex_labels(task, model, geometry.labels(task.k)))


def golechha(task: Task, seed: int, model: nn.Module, lam: float, matrices: str) -> Run:
    ws = weights_of(task, model)
    chosen = slice(0, 1) if matrices == "first" else slice(None)
    pairs = index_pairs(ws, task.k)
    train(task, model, seed, penalty=lambda i: -lam * b.clusterability(ws[chosen], pairs[chosen]))
    return Run(model, vertex_labels(task, model, index_layers(task, model)))


def pooled(task: Task, seed: int, model: nn.Module, lam: float, which: str) -> Run:
    ws = weights_of(task, model)
    sizes = [ws[0].shape[1], *(w.shape[0] for w in ws)]
    logits = torch.nn.Parameter(0.1 * torch.randn(sum(sizes), task.k))
    losses = b.min_cut_pool if which == "mincut" else b.dmon

    def penalty(i: int) -> Tensor:
        first, second = losses(b.layered_adjacency(ws), torch.softmax(logits, 1))
        return lam * (first + second)

    train(task, model, seed, penalty=penalty, parameters=[logits])
    return Run(model, vertex_labels(task, model, list(torch.split(logits.argmax(1), sizes))))


def post_hoc(task: Task, seed: int, model: nn.Module, interface: float, labels: str = "functional") -> Run:
    """Dense training, then at 78 % of the steps: find modules by function, keep the strongest edges, fine-tune."""
    at = int(0.78 * task.steps)
    given = vertex_labels(task, model, index_layers(task, model)) if labels == "index" else None
    crit = modcut.ModularityLoss(
        model, task.k, graph=graph_of(task, model), partition=given, lam=0.0, warmup=0 if given is not None else at,
        ramp=0, commit=at + 1, interface=interface, inputs=0.0, outputs=1.0, seed=seed,
    )  # fmt: skip
    train(task, model, seed, after=lambda i: crit.step())
    crit.close()
    return Run(model, crit.labels.clone(), {"origin": crit.partition_origin})


def ours(
    task: Task, seed: int, model: nn.Module, lam: float, interface: float | None, form: str, labels: str = "functional"
) -> Run:
    given = vertex_labels(task, model, index_layers(task, model)) if labels == "index" else None
    crit = modcut.ModularityLoss(
        model, task.k, graph=graph_of(task, model), partition=given, lam=lam, total_steps=task.steps,
        interface=interface, inputs=0.0, outputs=1.0, seed=seed,
    )  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=task.rate, weight_decay=0.0)
    if form == "proximal":
        train(task, model, seed, optimizer=Proximal(optimizer, crit), after=lambda i: crit.step())
    else:
        train(task, model, seed, optimizer=optimizer, penalty=lambda i: crit(), after=lambda i: crit.step())
    crit.close()
    return Run(model, crit.labels.clone(), {"origin": crit.partition_origin, "kept": crit.interface_edges})


BUDGETS = (0.0, 0.01, 0.03, 0.1)

ARMS: dict[str, tuple[Callable[..., Run], list[dict[str, Any]]]] = {
    "dense": (dense, [{}]),
    "narrower dense": (narrower, [{}]),
    "L1": (sparse, [{"lam": x} for x in (1e-5, 1e-4, 3e-4, 1e-3)]),
    "weight decay": (weight_decay, [{"decay": x} for x in (0.01, 0.1, 1.0)]),
    "weight-sparse (top k)": (top_k, [{"keep": x} for x in (0.25, 0.1)]),
    "block-diagonal from scratch": (block_diagonal, [{}]),
    "modular initialisation": (modular_init, [{}]),
    "Filan eigenvalues": (filan, [{"lam": x} for x in (0.1, 1.0)]),
    "BIMT": (bimt, [{"lam": x} for x in (1e-4, 1e-3)]),
    "Golechha, first matrix": (golechha, [{"lam": x, "matrices": "first"} for x in (0.7, 20.0)]),
    "Golechha, all matrices": (golechha, [{"lam": x, "matrices": "all"} for x in (0.7, 20.0)]),
    "MinCutPool labels": (pooled, [{"lam": x, "which": "mincut"} for x in (0.1, 1.0)]),
    "DMoN labels": (pooled, [{"lam": x, "which": "dmon"} for x in (0.1, 1.0)]),
    **{f"post-hoc, {100 * x:g} %": (post_hoc, [{"interface": x}]) for x in BUDGETS},
    "post-hoc, index labels, 0 %": (post_hoc, [{"interface": 0.0, "labels": "index"}]),
    "modcut, no commit": (ours, [{"lam": x, "interface": None, "form": "loss"} for x in (1.0, 3.0)]),
    **{
        f"modcut, {100 * x:g} %": (ours, [{"lam": lam, "interface": x, "form": "loss"} for lam in (1.0, 3.0)])
        for x in BUDGETS
    },
    "modcut, index labels, 0 %": (
        ours, [{"lam": lam, "interface": 0.0, "form": "loss", "labels": "index"} for lam in (1.0, 3.0)]
    ),
    **{
        f"modcut proximal, {100 * x:g} %": (
            ours, [{"lam": lam, "interface": x, "form": "proximal"} for lam in (0.1, 0.3, 1.0)]
        )
        for x in BUDGETS
    },
}  # fmt: skip
