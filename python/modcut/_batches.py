"""How every part of modcut reads ``data``: batches, the model's call, its loss and its logits.

A batch is a tensor, a tuple ``(inputs, targets)`` or a dict of keyword arguments for the model's call. ``data`` is an
iterable of batches, or a dict of such iterables (labelled slices).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

Batch = Any
Data = Any
LossFn = Callable[[nn.Module, Any], Tensor]


def iterate(data: Data, *, max_batches: int | None = None) -> Iterator[tuple[str, Batch]]:
    """Yield ``(slice name, batch)``; the slice name is ``""`` where ``data`` is not a dict of iterables.

    Raises:
        TypeError: ``data`` is not iterable.
        ValueError: ``data`` holds no batch.
    """
    # A dict of tensors is one batch of keyword arguments, a dict of anything else is a dict of slices.
    if isinstance(data, Mapping) and data and all(isinstance(v, Tensor) for v in data.values()):
        slices: dict[str, Iterable[Batch]] = {"": [data]}
    elif _is_pair(data):
        slices = {"": [data]}
    elif isinstance(data, Mapping):
        slices = {str(k): v for k, v in data.items()}
    elif isinstance(data, Tensor):
        slices = {"": [data]}
    else:
        slices = {"": data}
    empty = True
    for name, batches in slices.items():
        try:
            iterator = iter(batches)
        except TypeError as error:
            raise TypeError(f"data must be an iterable of batches, got {type(batches).__name__}") from error
        for i, batch in enumerate(iterator):
            if max_batches is not None and i >= max_batches:
                break
            empty = False
            yield name, batch
    if empty:
        raise ValueError("data must hold at least one batch, got none")


def peek(data: Data) -> tuple[Batch, Data]:
    """Return the first batch and the data; a generator is put together again behind it, in every slice.

    Raises:
        As :func:`iterate`.
    """
    if hasattr(data, "__next__"):
        batch = next(iterate(data))[1]
        return batch, itertools.chain([batch], data)
    if isinstance(data, Mapping) and any(hasattr(v, "__next__") for v in data.values()):
        for name, part in data.items():
            first = next(iter(part), None)
            if first is not None:
                rest = itertools.chain([first], part) if hasattr(part, "__next__") else part
                return first, {**data, name: rest}
    return next(iterate(data))[1], data


def _is_pair(data: Data) -> bool:
    """Whether data is one batch (inputs, targets): two tensors of as many samples that no one model could both read."""
    if not (isinstance(data, tuple) and len(data) == 2 and all(isinstance(x, Tensor) and x.ndim for x in data)):
        return False
    x, y = data
    return bool(
        x.shape[0] == y.shape[0] and (x.shape[1:] != y.shape[1:] or x.is_floating_point() != y.is_floating_point())
    )


def inputs_of(batch: Batch) -> Tensor:
    """Return the tensor of a batch that varies with the sample, [batch, ...]."""
    if isinstance(batch, Tensor):
        return batch
    if isinstance(batch, Mapping):
        for key in ("input_ids", "pixel_values", "inputs_embeds", "inputs", "x"):
            if key in batch:
                return batch[key]  # type: ignore[no-any-return]
        return next(v for v in batch.values() if isinstance(v, Tensor))
    if isinstance(batch, (tuple, list)) and batch and isinstance(batch[0], Tensor):
        return batch[0]
    raise TypeError(
        "a batch must be a tensor, a tuple (inputs, targets) or a dict of keyword arguments, "
        f"got {type(batch).__name__}"
    )


def batch_size(batch: Batch) -> int:
    """Return the number of samples in a batch."""
    return int(inputs_of(batch).shape[0])


def forward(model: nn.Module, batch: Batch) -> Any:
    """Call the model on one batch."""
    if isinstance(batch, Mapping):
        return model(**batch)
    return model(inputs_of(batch))


def logits_of(output: Any) -> Tensor:
    """Return the prediction tensor of a model's output: the tensor itself, ``.logits``, or the first tensor in it."""
    if isinstance(output, Tensor):
        return output
    for key in ("logits", "last_hidden_state"):
        value = getattr(output, key, None)
        if isinstance(value, Tensor):
            return value
    values = output.values() if isinstance(output, Mapping) else output if isinstance(output, (tuple, list)) else ()
    for value in values:
        if isinstance(value, Tensor) and value.ndim > 0:
            return value
    raise TypeError(f"the model must return a tensor or hold one in its output, got {type(output).__name__}")


def targets_of(batch: Batch) -> Tensor | None:
    """Return the targets of a batch, or ``None`` where it carries none."""
    if isinstance(batch, Mapping):
        labels = batch.get("labels")
        return labels if isinstance(labels, Tensor) else None
    if isinstance(batch, (tuple, list)) and len(batch) > 1 and isinstance(batch[1], Tensor):
        return batch[1]
    return None


def _scores_tokens(output: Any, logits: Tensor, tokens: Tensor) -> bool:
    """Whether an output scores the tokens it read: hidden states of a bare encoder have the same shape and do not."""
    hidden = getattr(output, "last_hidden_state", None)
    if logits is hidden or tokens.is_floating_point() or logits.ndim != 3 or logits.shape[:2] != tokens.shape:
        return False
    return tokens.numel() == 0 or int(tokens.max()) < logits.shape[-1]


def loss_of(model: nn.Module, batch: Batch, loss_fn: LossFn | None = None) -> Tensor:
    """Return the scalar loss of one batch.

    With ``loss_fn`` it is ``loss_fn(model, batch)``. Otherwise: the model's own ``.loss``; cross-entropy against
    integer targets; mean squared error against floating targets of the output's shape; next-token cross-entropy where
    the batch is only tokens [batch, time] and the output is logits [batch, time, vocabulary].

    Raises:
        ValueError: none of these applies.
    """
    if loss_fn is not None:
        return loss_fn(model, batch)
    output = forward(model, batch)
    own = getattr(output, "loss", None)
    if isinstance(own, Tensor):
        return own
    logits, targets, tokens = logits_of(output), targets_of(batch), inputs_of(batch)
    if targets is not None and not targets.is_floating_point():
        if logits.ndim == targets.ndim + 1:
            flat = logits.reshape(-1, logits.shape[-1]) if logits.ndim == 3 else logits
            return F.cross_entropy(flat, targets.reshape(-1) if logits.ndim == 3 else targets)
    elif targets is not None and targets.shape == logits.shape:
        return F.mse_loss(logits, targets)
    elif targets is None and _scores_tokens(output, logits, tokens):
        return F.cross_entropy(logits[:, :-1].reshape(-1, logits.shape[-1]), tokens[:, 1:].reshape(-1))
    raise ValueError(
        "loss_fn must be given: the model returns no loss and the batch has no targets that fit its output "
        f"(output {list(logits.shape)}, targets {None if targets is None else list(targets.shape)})"
    )


def unwrap(model: nn.Module) -> nn.Module:
    """Return the module inside wrappers of torch.compile and DistributedDataParallel."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and type(model).__name__ in ("DistributedDataParallel", "DataParallel"):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def device_of(model: nn.Module) -> torch.device:
    """Return the device of the model's first parameter (CPU where it has none)."""
    parameter = next(model.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device


def ordinary(batch: Batch) -> Batch:
    """Return the batch with tensors made in inference mode copied: no gradient can pass through those."""
    if isinstance(batch, Tensor):
        return batch.clone() if batch.is_inference() else batch
    if isinstance(batch, Mapping):
        return {k: ordinary(v) for k, v in batch.items()}
    if type(batch) in (tuple, list):
        return type(batch)(ordinary(v) for v in batch)
    return batch


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Return the batch with its tensors on ``device`` (the same object where nothing has to move)."""
    if isinstance(batch, Tensor):
        return batch.to(device)
    if isinstance(batch, Mapping):
        return {k: to_device(v, device) for k, v in batch.items()}
    if isinstance(batch, (tuple, list)):
        return tuple(to_device(v, device) for v in batch)
    return batch
