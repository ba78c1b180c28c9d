"""Low-rank fine-tuning as a parametrisation: W + B A stands where W stood, so the loss reads what the model uses.

Adapters that wrap layers (peft) leave ``layer.weight`` at its frozen value: a loss on the weights would not see them.
Hu et al., LoRA, arXiv 2106.09685; B starts at zero, so the model's function starts unchanged.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from modcut.graph.types import WeightGraph


class LowRank(nn.Module):
    """W [rows, cols] -> W + B A, B [rows, rank], A [rank, cols]."""

    def __init__(self, weight: Tensor, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        rows, cols = weight.shape
        rank = min(rank, rows, cols)
        a = torch.randn(rank, cols, generator=generator) * cols**-0.5
        self.a = nn.Parameter(a.to(weight.device, weight.dtype))
        self.b = nn.Parameter(weight.new_zeros(rows, rank))

    def forward(self, weight: Tensor) -> Tensor:
        """weight [rows, cols] -> [rows, cols]."""
        return weight + self.b @ self.a


def attach(model: nn.Module, graph: WeightGraph, rank: int, seed: int) -> int:
    """Freeze the model and give every linear map of the graph a low-rank update; return how many numbers train.

    Embeddings and tied weights stay frozen. Build the loss before: it finds weights by their storage.

    Raises:
        ValueError: no weight can take an update.
    """
    for p in model.parameters():
        p.requires_grad_(False)
    owners: dict[int, list[nn.Module]] = {}
    for module in model.modules():
        weight = module._parameters.get("weight")
        if weight is not None and weight.ndim == 2 and not isinstance(module, nn.Embedding):
            owners.setdefault(id(weight), []).append(module)
    embedded = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    inside = {m.weight.untyped_storage().data_ptr() for m in graph.matrices}
    g = torch.Generator().manual_seed(seed)
    for key, modules in owners.items():
        weight = modules[0]._parameters["weight"]
        if weight is None or len(modules) > 1 or key in embedded or weight.untyped_storage().data_ptr() not in inside:
            continue
        parametrize.register_parametrization(modules[0], "weight", LowRank(weight, rank, g))
    numbers = sum(p.numel() for p in model.parameters() if p.requires_grad)
    if not numbers:
        raise ValueError("model.low_rank needs a linear map in the model's graph, there is none")
    return numbers


def merge(model: nn.Module) -> None:
    """Write the updates into the weights; the model is an ordinary one again."""
    for module in list(model.modules()):
        if parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
