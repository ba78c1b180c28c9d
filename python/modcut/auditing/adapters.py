"""Bridges to what others already use: TransformerLens and nnsight names, lm-eval tasks, SAE latents as vertices."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from modcut import _batches
from modcut._require import require
from modcut.auditing._vertices import Which, vertices_of
from modcut.auditing.ablate import ablate
from modcut.graph.interventions import sites
from modcut.partition import Partition

# What a map reads, by the last names of its module in Hugging Face models -> the hook of TransformerLens.
_READS = (
    (r"(mlp\.c_proj|mlp\.down_proj|mlp\.dense_4h_to_h|fc2)", "blocks.{layer}.mlp.hook_post"),
    (r"(attn\.c_proj|attention\.dense|self_attn\.o_proj|self_attn\.out_proj)", "blocks.{layer}.attn.hook_z"),
)


def lens_places(P: Partition, modules: Which) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Return where modules live in TransformerLens: hook name -> positions, int64, in the flattened feature axes.

    MLP neurons are positions of ``hook_post`` [batch, time, neurons], heads of ``hook_z`` [batch, time, head, size]
    flattened. Residual channels have no counterpart: TransformerLens folds and centres the weights that read them.

    Returns:
        The places, and the taps (``module:side``) that have none.
    """
    places: dict[str, Tensor] = {}
    missed = []
    for site in sites(P.graph, vertices_of(P, modules)):
        layer = re.search(r"\.(\d+)\.", f".{site.tap.module}.")
        hook = next((h for p, h in _READS if re.search(rf"(^|\.){p}$", site.tap.module)), None)
        if site.tap.side == "input" and layer and hook:
            places[hook.format(layer=layer[1])] = torch.nonzero(site.where).flatten()
        else:
            missed.append(f"{site.tap.module}:{site.tap.side}")
    return places, tuple(missed)


def lens_hooks(P: Partition, modules: Which) -> list[tuple[str, Callable[..., Tensor]]]:
    """Return ``fwd_hooks`` for ``HookedTransformer.run_with_hooks`` that zero the modules' neurons and heads.

    Raises:
        ValueError: none of the units has a counterpart.
    """
    places, missed = lens_places(P, modules)
    if not places:
        raise ValueError(f"no unit has a counterpart in TransformerLens; without one: {', '.join(missed[:5])}")

    def zero(where: Tensor) -> Callable[..., Tensor]:
        def hook(value: Tensor, hook: Any = None) -> Tensor:
            flat = value.flatten(2).clone()
            flat[..., where.to(value.device)] = 0.0
            return flat.view_as(value)

        return hook

    return [(name, zero(where)) for name, where in places.items()]


def nnsight_places(P: Partition, modules: Which) -> dict[str, tuple[str, Tensor]]:
    """Return where modules live in an nnsight model: envoy path -> (``input`` or ``output``, positions int64).

    nnsight keeps the names of the wrapped module, so every tap has a counterpart: ``get(path).input[..., positions]``.
    """
    found: dict[str, tuple[str, Tensor]] = {}
    for site in sites(P.graph, vertices_of(P, modules)):
        found[site.tap.module] = (site.tap.side, torch.nonzero(site.where).flatten())
    return found


def lm_eval_without(
    model: nn.Module, tokenizer: Any, tasks: Sequence[str], P: Partition, modules: Which, *, mode: Any = "mean",
    reference: Any = None, **settings: Any,
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """Return lm-eval's results of the intact model and without the modules, ``{"intact": ..., "without": ...}``.

    Args:
        model: a Hugging Face causal language model.
        tokenizer: its tokenizer.
        tasks: names that lm-eval knows (``modcut.capability.write_lm_eval_task`` writes a local one).
        P: the partition.
        modules: as for :func:`modcut.ablate`.
        mode: of the ablation.
        reference: for ``mean`` and ``resample``.
        **settings: for ``lm_eval.simple_evaluate`` (``limit``, ``num_fewshot``, ...).

    Raises:
        MissingDependencyError: lm-eval is not installed.
    """
    lm_eval = require("lm_eval", extra="eval", why="running lm-eval tasks")
    wrapper = require("lm_eval.models.huggingface", extra="eval", why="running lm-eval tasks").HFLM
    without = ablate(model, P, modules, mode, reference)

    def run() -> dict[str, Any]:
        wrapped = wrapper(pretrained=model, tokenizer=tokenizer)
        return dict(lm_eval.simple_evaluate(model=wrapped, tasks=list(tasks), **settings)["results"])

    intact = run()
    with without:
        return {"intact": intact, "without": run()}


class Latents(nn.Module):
    """A module whose output passes through a dictionary (a sparse autoencoder), its error kept: a space of latents.

    ``decoder(activation(encoder(h)))`` plus what it fails to rebuild: the intact model computes what it did (to
    rounding), and ablating a latent takes out its contribution alone.
    """

    def __init__(self, inner: nn.Module, encoder: nn.Linear, decoder: nn.Linear) -> None:
        super().__init__()
        if encoder.out_features != decoder.in_features or encoder.in_features != decoder.out_features:
            raise ValueError(
                "encoder and decoder must be maps there and back, got "
                f"{encoder.in_features} -> {encoder.out_features} and {decoder.in_features} -> {decoder.out_features}"
            )
        self.inner, self.encoder, self.decoder = inner, encoder, decoder

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return the inner module's output, rebuilt from latents plus the error."""
        h: Tensor = self.inner(*args, **kwargs)
        if not isinstance(h, Tensor):
            raise TypeError(f"latents need a module that returns one tensor, got {type(h).__name__}")
        latents = torch.relu(self.encoder(h))
        with torch.no_grad():  # functional: an ablation of the latents is a hook on `decoder` and must not reach this
            error = h - nn.functional.linear(latents, self.decoder.weight, self.decoder.bias)
        out: Tensor = self.decoder(latents) + error
        return out


def with_latents(model: nn.Module, at: str, encoder: nn.Linear, decoder: nn.Linear) -> nn.Module:
    """Return a copy of the model in which the submodule ``at`` passes through a dictionary of latents.

    Args:
        model: left as it is.
        at: name of a submodule that returns one tensor [..., d].
        encoder: ``nn.Linear(d, latents)``, before a ReLU.
        decoder: ``nn.Linear(latents, d)``.

    Raises:
        ValueError: no submodule ``at``, or maps that do not fit each other.
    """
    import copy

    edited = copy.deepcopy(_batches.unwrap(model))
    parent, _, name = at.rpartition(".")
    try:
        holder = edited.get_submodule(parent)
        inner = holder.get_submodule(name)
    except AttributeError as error:
        raise ValueError(f"at must name a submodule of the model, got {at!r}") from error
    setattr(holder, name, Latents(inner, encoder, decoder))
    return edited


__all__ = ["Latents", "lens_hooks", "lens_places", "lm_eval_without", "nnsight_places", "with_latents"]
