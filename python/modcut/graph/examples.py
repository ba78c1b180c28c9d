"""Small example inputs for a model, given or guessed."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

Inputs = tuple[tuple[Any, ...], dict[str, Any]]


def as_call(example_inputs: Any) -> Inputs:
    """Return (args, kwargs) of the model's call: a tensor, a tuple of positional arguments, or a dict of named ones."""
    if isinstance(example_inputs, Mapping):
        return (), dict(example_inputs)
    if isinstance(example_inputs, (tuple, list)):
        return tuple(example_inputs), {}
    if isinstance(example_inputs, Tensor):
        return (example_inputs,), {}
    raise TypeError(
        "example_inputs must be a tensor, a tuple of positional arguments or a dict of keyword arguments, "
        f"got {type(example_inputs).__name__}"
    )


def extra_arguments(model: nn.Module) -> dict[str, Any]:
    """Return keyword arguments that keep the forward simple (no key-value cache)."""
    try:
        names = inspect.signature(model.forward).parameters
    except (TypeError, ValueError):
        return {}
    return {"use_cache": False} if "use_cache" in names else {}


def guesses(model: nn.Module) -> Iterator[Inputs]:
    """Yield calls that may fit the model, likely ones first. Random numbers come from a private generator."""
    rng = torch.Generator().manual_seed(0)
    first = next(iter(model.parameters()))
    device, dtype = first.device, first.dtype if first.is_floating_point() else torch.float32

    def floats(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng).to(device, dtype)

    def ints(high: int, *shape: int) -> Tensor:
        return torch.randint(0, max(2, high), shape, generator=rng).to(device)

    config = getattr(model, "config", None)
    if config is not None and not isinstance(config, dict):
        yield from _from_config(model, config, floats, ints)
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            for length in (8, 4, 2, 1):
                yield (ints(module.num_embeddings, 2, length),), {}
            yield (ints(module.num_embeddings, 2),), {}
            break
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            n = {nn.Conv1d: 1, nn.Conv2d: 2, nn.Conv3d: 3}.get(type(module), 2)
            for size in (32, 28, 64, 16, 8, 224, 96, 48):
                if size**n <= 64**3:
                    yield (floats(2, module.in_channels, *[size] * n),), {}
            break
        if isinstance(module, nn.Linear):
            yield (floats(2, module.in_features),), {}
            yield (floats(2, 8, module.in_features),), {}
            break
        if isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
            yield (floats(2, 8, module.input_size),), {}
            yield (floats(2, module.input_size),), {}
            break
    yield from _from_parameters(model, floats, ints)


def _from_config(model: nn.Module, config: Any, floats: Any, ints: Any) -> Iterator[Inputs]:
    main = getattr(model, "main_input_name", "")
    text = getattr(config, "text_config", None) or config
    vision = getattr(config, "vision_config", None) or config
    vocabulary = int(getattr(text, "vocab_size", 0) or 0)
    longest = int(getattr(text, "max_position_embeddings", 0) or 8)
    named: dict[str, Any] = {}
    size = getattr(vision, "image_size", None)
    if size is not None and (main == "pixel_values" or hasattr(config, "vision_config")):
        h, w = size if isinstance(size, (tuple, list)) else (size, size)
        named["pixel_values"] = floats(2, int(getattr(vision, "num_channels", 3)), int(h), int(w))
    if vocabulary and main != "pixel_values":
        named["input_ids"] = ints(vocabulary, 2, min(8, longest))
    if named and getattr(config, "is_encoder_decoder", False) and vocabulary:
        named["decoder_input_ids"] = ints(vocabulary, 2, min(8, longest))
    if named:
        yield (), named
        yield (), {k: v[:1] for k, v in named.items()}
    if main == "pixel_values" and size is None:
        for side in (32, 64, 224):
            yield (), {"pixel_values": floats(2, int(getattr(config, "num_channels", 3)), side, side)}
    size = getattr(config, "block_size", None)  # hand-written GPTs
    if vocabulary and not named:
        yield (ints(vocabulary, 2, min(8, int(size or 8))),), {}
    try:
        dummy = getattr(model, "dummy_inputs", None)
    except Exception:
        dummy = None
    if isinstance(dummy, Mapping) and dummy:
        yield (), {k: v for k, v in dummy.items() if isinstance(v, Tensor)}


def _from_parameters(model: nn.Module, floats: Any, ints: Any) -> Iterator[Inputs]:
    """Models written with bare parameters: try the sizes of the first weight matrix."""
    for p in model.parameters():
        if p.ndim >= 2:
            for n in dict.fromkeys((p.shape[1], p.shape[0])):
                yield (floats(2, n),), {}
                yield (floats(2, 8, n),), {}
            yield (ints(int(p.shape[0]), 2, 8),), {}
            break
