"""Read a data stream once: measure every batch, remember a sketch and a fixed sample of inputs, stop and go on.

Under ``torch.distributed`` batch number ``b`` belongs to rank ``b mod world``; every rank reads (but does not run) the
others' batches, so that samples are numbered, halved and hashed as in one process.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from modcut import _batches
from modcut.reading import shards
from modcut.reading.sketch import FEATURES, Sketch, Window, from_arrays, is_selection, key_of, to_arrays
from modcut.reading.store import read_arrays, write_arrays
from modcut.reading.watch import Watch

Step = Callable[[str], None]
CALIBRATION_POSITIONS = 512
CALIBRATION_BATCHES = 8
_FORMAT = "modcut-stream-1"


@dataclass
class Sample:
    """The inputs of one sample, kept to run the model on it again."""

    index: int
    slice: str
    selection: bool
    form: str
    """``tensor``, ``tuple`` or ``dict``."""
    fields: dict[str, Tensor]
    shared: tuple[str, ...] = ()
    """Fields that belong to the whole batch, not to the sample."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Plain values (flags) of a dict batch."""

    @property
    def shape(self) -> tuple[Any, ...]:
        """What samples must agree in to be run as one batch."""
        sizes = tuple((n, tuple(v.shape), str(v.dtype)) for n, v in sorted(self.fields.items()))
        return (self.slice, self.form, sizes, repr(self.extra))


def samples_of(batch: Any, rows: Sequence[int], name: str, first: int, selection: Sequence[bool]) -> list[Sample]:
    """Return the samples at ``rows`` of a batch, each as a batch of one. Tensors are copied to the CPU."""
    size = _batches.batch_size(batch)
    if isinstance(batch, Tensor):
        form, values = "tensor", {"0": batch}
    elif isinstance(batch, Mapping):
        form, values = "dict", dict(batch)
    else:
        form, values = "tuple", {str(n): v for n, v in enumerate(batch)}
    tensors = {n: v for n, v in values.items() if isinstance(v, Tensor)}
    extra = {n: v for n, v in values.items() if not isinstance(v, Tensor)}
    shared = tuple(n for n, v in tensors.items() if v.ndim == 0 or v.shape[0] != size)
    return [
        Sample(
            first + row,
            name,
            bool(selection[row]),
            form,
            {n: (v if n in shared else v[row : row + 1]).detach().cpu().clone() for n, v in tensors.items()},
            shared,
            extra,
        )
        for row in rows
    ]


def batches_of(samples: Iterable[Sample], size: int = 8) -> list[tuple[str, Any]]:
    """Return samples as batches ``(slice, batch)`` of at most ``size`` of the same shapes, in the order of the data."""
    groups: dict[tuple[Any, ...], list[Sample]] = {}
    for s in sorted(samples, key=lambda s: s.index):
        groups.setdefault(s.shape, []).append(s)
    out: list[tuple[str, Any]] = []
    for group in groups.values():
        for start in range(0, len(group), size):
            part = group[start : start + size]
            head = part[0]
            fields = {
                n: v if n in head.shared else torch.cat([s.fields[n] for s in part]) for n, v in head.fields.items()
            }
            batch: Any
            if head.form == "tensor":
                batch = fields["0"]
            elif head.form == "dict":
                batch = {**fields, **head.extra}
            else:
                both = {**fields, **head.extra}
                batch = tuple(both[str(n)] for n in range(len(both)))
            out.append((head.slice, batch))
    return out


@dataclass
class Stream:
    """What is left of a stream when it has been read."""

    sketch: Sketch
    samples: list[Sample]
    data: str
    """Digest of every batch that was read."""
    batches: int


class DataDigest:
    """SHA-256 of batches in their order: names of slices, dtypes, shapes and bytes."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def add(self, name: str, batch: Any) -> None:
        """Take in one batch."""
        values = (
            batch.items() if isinstance(batch, Mapping) else enumerate([batch] if isinstance(batch, Tensor) else batch)
        )
        self._hash.update(f"{name}\n".encode())
        for key, v in values:
            if isinstance(v, Tensor):
                self._hash.update(f"{key}|{v.dtype}|{list(v.shape)}\n".encode())
                raw = v.detach().to("cpu").contiguous().reshape(-1)
                if raw.numel():
                    self._hash.update(raw.view(torch.uint8).numpy().data)
            else:
                self._hash.update(f"{key}|{v!r}\n".encode())

    def value(self) -> str:
        """Return the digest so far, 64 hex digits."""
        return self._hash.copy().hexdigest()


def data_digest(data: _batches.Data, max_batches: int | None = None) -> str:
    """Return the digest of a data set without running any model. One pass over the data."""
    digest = DataDigest()
    for name, batch in _batches.iterate(data, max_batches=max_batches):
        digest.add(name, batch)
    return digest.value()


def calibration(data: _batches.Data, max_batches: int | None) -> tuple[list[Any], _batches.Data]:
    """Return the first batches (of every slice in turn) and data that still begins with them."""
    if isinstance(data, Mapping) and not all(isinstance(v, Tensor) for v in data.values()):
        empty = [name for name, part in data.items() if isinstance(part, (list, tuple)) and not part]
        if empty:
            raise ValueError(f"data[{empty[0]!r}] must hold at least one batch, got none")
        taken: list[Any] = []
        whole: dict[str, Any] = {}
        for name, part in data.items():
            batch, whole[name] = _batches.peek(part) if not isinstance(part, (list, tuple)) else (part[0], part)
            if len(taken) < CALIBRATION_BATCHES:
                taken.append(batch)
        return taken, whole
    batch, data = _batches.peek(data)
    if isinstance(data, Tensor) or not isinstance(data, (list, tuple)) or isinstance(batch, type(data)):
        return [batch], data
    count = min(len(data), CALIBRATION_BATCHES, max_batches or CALIBRATION_BATCHES)
    positions, out = 0, []
    for item in data[:count]:
        out.append(item)
        positions += _positions(item)
        if positions >= CALIBRATION_POSITIONS:
            break
    return out, data


def _positions(batch: Any) -> int:
    inputs = _batches.inputs_of(batch)
    return inputs.numel() if inputs.ndim == 2 and not inputs.is_floating_point() else int(inputs.shape[0])


def read_stream(
    watch: Watch,
    data: _batches.Data,
    *,
    seed: int,
    keep: int,
    samples: int,
    max_batches: int | None = None,
    device: torch.device | None = None,
    folder: Path | None = None,
    settings: str = "",
    every: float = 60.0,
    shard: bool = True,
    say: Step = lambda _: None,
) -> Stream:
    """Read the data once and return its sketch, merged over the ranks of ``torch.distributed`` where there are several.

    Args:
        watch: measures one batch.
        data: see :mod:`modcut._batches`.
        seed: of halves and of what is kept.
        keep: windows kept per half, shared evenly by the slices.
        samples: inputs kept per half to run the model on again, at most ``keep``.
        max_batches: per slice.
        device: where batches go.
        folder: where the state is written every ``every`` seconds and when the run is interrupted; a state found there
            is continued if its ``settings`` and the data read so far are the same.
        settings: digest of everything that the state depends on besides the data.
        every: seconds.
        shard: whether batches are dealt to the ranks of ``torch.distributed``.
        say: called with words of progress.

    Raises:
        ValueError: no batch, or a state of other data or settings.
    """
    rank, world = shards.place() if shard else (0, 1)
    slices = max(1, len(data)) if isinstance(data, Mapping) and not _one_batch(data) else 1
    keep, samples = max(2, keep // slices), max(1, samples // slices)
    state = None if folder is None else folder / f"partial-{rank}-of-{world}.safetensors"
    sketch = Sketch(watch.k, len(watch.labelings), seed, keep)
    held: list[Sample] = []
    cursor, expected = 0, ""
    if state is not None and state.is_file():
        sketch, held, cursor, expected = _resume(state, settings)
    digest, ordinals, index = DataDigest(), {"": 0}, 0
    due = time.monotonic() + every
    done = 0
    try:
        for number, (name, batch) in enumerate(_batches.iterate(data, max_batches=max_batches)):
            size = _batches.batch_size(batch)
            digest.add(name, batch)
            ordinal = ordinals.get(name, 0)
            ordinals[name] = ordinal + size
            if number % world == rank and number >= cursor:
                say(
                    f"use of modules: batch {number + 1}, {sketch.positions} positions"
                    + (f", rank {rank}" * (world > 1))
                )
                selection = [is_selection(seed, name, ordinal + row) for row in range(size)]
                moved = batch if device is None else _batches.to_device(batch, device)
                windows = _windows(moved, name, index, selection, watch(moved).numpy())
                for w in windows:
                    sketch.add(w)
                held = _keep(held + samples_of(batch, range(size), name, index, selection), seed, samples)
            index += size
            done = number + 1
            if number + 1 == cursor and digest.value() != expected:
                raise ValueError(
                    f"data must be what {folder} was begun with: its first {cursor} batches have another digest; "
                    "delete the folder, or read the same data"
                )
            if state is not None and done > cursor and time.monotonic() >= due:
                _save(state, sketch, held, done, digest.value(), settings)
                due = time.monotonic() + every
    except KeyboardInterrupt:
        if state is not None and done > cursor:
            _save(state, sketch, held, done, digest.value(), settings)
        raise
    if state is not None:
        _save(state, sketch, held, max(done, cursor), digest.value(), settings)
    parts = shards.gather(_pack(sketch.close(), held, {"cursor": done})) if world > 1 else None
    if parts is not None:
        sketch, held = Sketch(watch.k, len(watch.labelings), seed, keep), []
        for part in parts:
            other, more, _ = _unpack(*part)
            sketch.merge(other)
            held = _keep(held + more, seed, samples)
    return Stream(sketch.close(), sorted(held, key=lambda s: s.index), digest.value(), done)


def _one_batch(data: Mapping[str, Any]) -> bool:
    return all(isinstance(v, Tensor) for v in data.values())


def _keep(samples: list[Sample], seed: int, most: int) -> list[Sample]:
    """The samples with the smallest hashes of every slice and half."""
    groups: dict[tuple[str, bool], list[Sample]] = {}
    for s in samples:
        groups.setdefault((s.slice, s.selection), []).append(s)
    order = lambda s: (key_of(seed, "keep", s.slice, s.index), s.index)  # noqa: E731
    return [s for group in groups.values() for s in sorted(group, key=order)[:most]]


def _windows(batch: Any, name: str, first: int, selection: Sequence[bool], use: np.ndarray[Any, Any]) -> list[Window]:
    inputs = _batches.inputs_of(batch)
    tokens = inputs.ndim == 2 and not inputs.is_floating_point()
    mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
    out = []
    for row in range(len(use)):
        keep: Any = slice(None)
        if tokens and isinstance(mask, Tensor) and mask.shape == inputs.shape:
            keep = mask[row].bool().cpu().numpy()
        shown = inputs[row].detach().cpu()
        vector = None if tokens else thinned(shown.float().flatten().numpy())
        ids = shown.numpy().astype(np.int64)[keep] if tokens else None
        out.append(Window(first + row, name, bool(selection[row]), ids, vector, use[row][keep].copy()))
    return out


def feature_ids(size: int) -> np.ndarray[Any, Any]:
    """Which features of a flattened input are kept: all, or :data:`FEATURES` of them, evenly spaced."""
    return np.arange(size) if size <= FEATURES else np.linspace(0, size - 1, FEATURES).astype(np.int64)


def thinned(vector: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return the features of a flattened input that are kept."""
    return vector if len(vector) <= FEATURES else vector[feature_ids(len(vector))]


# -- state on disk ----------------------------------------------------------------------------------------------------


def _pack(sketch: Sketch, samples: list[Sample], more: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    arrays, plain = to_arrays(sketch)
    out: dict[str, Any] = {f"sketch.{n}": v for n, v in arrays.items()}
    described = []
    for n, s in enumerate(samples):
        try:
            json.dumps(s.extra)
        except TypeError as error:
            raise ValueError(
                f"batches must hold tensors and plain values to be stored or sharded, slice {s.slice!r} holds {error}"
            ) from error
        fields = {name: f"sample.{n}.{name}" for name in s.fields}
        out |= {fields[name]: v for name, v in s.fields.items()}
        described.append({**vars(replace(s, fields={})), "fields": fields})
    return out, {"sketch": plain, "samples": described, **more}


def _unpack(arrays: Mapping[str, Any], plain: Mapping[str, Any]) -> tuple[Sketch, list[Sample], Mapping[str, Any]]:
    mine = {n[7:]: v.numpy() for n, v in arrays.items() if n.startswith("sketch.")}
    sketch = from_arrays(mine, plain["sketch"])
    samples = []
    for s in plain["samples"]:
        fields = {name: arrays[key] for name, key in s["fields"].items()}
        samples.append(Sample(**{**s, "fields": fields, "shared": tuple(s["shared"])}))
    return sketch, samples, plain


def _save(path: Path, sketch: Sketch, samples: list[Sample], cursor: int, data: str, settings: str) -> None:
    arrays, plain = _pack(sketch, samples, {"cursor": cursor, "data": data, "settings": settings})
    write_arrays(path, arrays, {"format": _FORMAT, "plain": json.dumps(plain)})


def _resume(path: Path, settings: str) -> tuple[Sketch, list[Sample], int, str]:
    arrays, header = read_arrays(path, _FORMAT)
    plain = json.loads(header["plain"])
    if plain["settings"] != settings:
        raise ValueError(
            f"{path.parent} was begun with another model, partition or other settings; delete it, or use the same ones"
        )
    sketch, samples, _ = _unpack(arrays, plain)
    return sketch, samples, int(plain["cursor"]), str(plain["data"])
