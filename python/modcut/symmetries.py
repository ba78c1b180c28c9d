"""Symmetries of a pretrained transformer: changes of basis that leave its function alone and may lower its leak.

Labels belong to neurons, and which numbers are neurons is partly a choice: where a basis is not fixed by a
nonlinearity, it can be rotated first. Two such places, for models built as GPT-2 or Llama are:

* the residual stream, once the gains of the normalisations are folded into the weights that read them (RMS norms: any
  rotation; layer norms: only where their centring is folded too, which this module does not do), as in SliceGPT
  (arXiv 2401.15024);
* the value basis of every head: W_V -> R W_V, W_O -> W_O R^T, any invertible R; orthogonal here.

Permutations need no code: labels are free to follow them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def fold_norms_(model: nn.Module) -> int:
    """Move the gains of RMS norms of a Llama-like model into the weights that read them; return how many moved.

    The function is unchanged. A tied head is untied where the final norm is folded into it.

    Raises:
        ValueError: the model is not built as ``model.layers[i].{input_layernorm, self_attn, post_attention_layernorm,
            mlp}`` with RMS norms.
    """
    body, layers = _llama(model)
    with torch.no_grad():
        for layer in layers:
            a, m = layer.self_attn, layer.mlp
            _fold(layer.input_layernorm, [a.q_proj, a.k_proj, a.v_proj])
            _fold(layer.post_attention_layernorm, [m.gate_proj, m.up_proj])
        head: Any = getattr(model, "lm_head", None)
        if head is not None:
            if head.weight is body.embed_tokens.weight:
                head.weight = nn.Parameter(head.weight.detach().clone())
                model.config.tie_word_embeddings = False  # type: ignore[union-attr]
            _fold(body.norm, [head])
    return 2 * len(layers) + (head is not None)


def rotate_residual_(model: nn.Module, rotation: Tensor) -> None:
    """Rotate the residual stream of a Llama-like model: x -> x Q^T, Q orthogonal [width, width]; fold norms first.

    Raises:
        ValueError: Q is not orthogonal, or a norm still has a gain.
    """
    body, layers = _llama(model)
    width = body.embed_tokens.weight.shape[1]
    _check_orthogonal("rotation", rotation, width)
    norms = [body.norm] + [n for x in layers for n in (x.input_layernorm, x.post_attention_layernorm)]
    if any(bool((n.weight != 1).any()) for n in norms):
        raise ValueError("model must have norms without gains to be rotated: call fold_norms_ first")
    with torch.no_grad():
        q = rotation.double()
        head: Any = getattr(model, "lm_head", None)
        embedding = body.embed_tokens.weight
        _set(embedding, embedding.double() @ q.T)
        if head is not None and head.weight is not embedding:
            _set(head.weight, head.weight.double() @ q.T)
        for layer in layers:
            a, m = layer.self_attn, layer.mlp
            for reader in (a.q_proj, a.k_proj, a.v_proj, m.gate_proj, m.up_proj):
                _set(reader.weight, reader.weight.double() @ q.T)
            for writer in (a.o_proj, m.down_proj):
                _set(writer.weight, q @ writer.weight.double())
                if writer.bias is not None:
                    _set(writer.bias, q @ writer.bias.double())


def rotate_values_(model: nn.Module, layer: int, head: int, rotation: Tensor) -> None:
    """Rotate the value basis of one key-value head: V -> R V, and the output weights that read it by R^T.

    Args:
        model: Llama-like, with grouped-query attention or not.
        layer: of the model.
        head: key-value head.
        rotation: orthogonal [head size, head size].

    Raises:
        ValueError: R is not orthogonal or of another size.
    """
    _, layers = _llama(model)
    a, config = layers[layer].self_attn, model.config
    size = a.head_dim
    _check_orthogonal("rotation", rotation, size)
    group = config.num_attention_heads // config.num_key_value_heads  # type: ignore[union-attr, operator]
    with torch.no_grad():
        r = rotation.double()
        rows = slice(head * size, (head + 1) * size)
        a.v_proj.weight[rows] = (r @ a.v_proj.weight[rows].double()).to(a.v_proj.weight.dtype)
        if a.v_proj.bias is not None:
            a.v_proj.bias[rows] = (r @ a.v_proj.bias[rows].double()).to(a.v_proj.bias.dtype)
        for query in range(head * group, (head + 1) * group):
            cols = slice(query * size, (query + 1) * size)
            a.o_proj.weight[:, cols] = (a.o_proj.weight[:, cols].double() @ r.T).to(a.o_proj.weight.dtype)


@torch.no_grad()
def modular_residual_basis(model: nn.Module) -> Tensor:
    """Return a rotation that lines residual directions up with what layers write and read, [width, width].

    Eigenvectors of the weights' second moment over the residual stream (readers and writers, each of norm 1): the basis
    in which the fewest directions carry the most weight.
    """
    body, layers = _llama(model)
    width = body.embed_tokens.weight.shape[1]
    moment = torch.zeros(width, width, dtype=torch.float64)
    for layer in layers:
        a, m = layer.self_attn, layer.mlp
        for reader in (a.q_proj, a.k_proj, a.v_proj, m.gate_proj, m.up_proj):
            w = reader.weight.double()
            moment += w.T @ w / w.square().sum()
        for writer in (a.o_proj, m.down_proj):
            w = writer.weight.double()
            moment += w @ w.T / w.square().sum()
    basis: Tensor = torch.linalg.eigh(moment).eigenvectors.T.contiguous()
    return basis


def _llama(model: nn.Module) -> tuple[Any, Any]:
    body: Any = getattr(model, "model", model)
    layers: Any = getattr(body, "layers", None)
    known = ("input_layernorm", "self_attn", "post_attention_layernorm", "mlp")
    if layers is None or not len(layers) or any(not hasattr(layers[0], n) for n in known):
        raise ValueError(
            f"model must be built like Llama (layers with {', '.join(known)}), {type(model).__name__} is not"
        )
    if hasattr(layers[0].input_layernorm, "bias"):
        raise ValueError("model must have RMS norms: layer norms also centre, which no rotation commutes with")
    return body, layers


def _fold(norm: Any, readers: list[Any]) -> None:
    for reader in readers:
        reader.weight.mul_(norm.weight)
    norm.weight.fill_(1.0)


def _set(parameter: Tensor, value: Tensor) -> None:
    parameter.copy_(value.to(parameter.dtype))


def _check_orthogonal(name: str, q: Tensor, size: int) -> None:
    if q.shape != (size, size):
        raise ValueError(f"{name} must have shape [{size}, {size}], got {list(q.shape)}")
    off = float((q.double() @ q.double().T - torch.eye(size, dtype=torch.float64)).abs().max())
    if off > 1e-6:
        raise ValueError(f"{name} must be orthogonal, Q Q^T is off by {off:.1g}")
