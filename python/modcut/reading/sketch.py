"""What is remembered of a data stream of any length: sums, tables by token, best contexts, a fixed sample of windows.

Every part is associative: the sketch of a stream is the merge of the sketches of its pieces, in any order (sums to the
rounding of float64, all choices exactly). Choices are made by hashes of the sample's number, never by arrival, so that
a stream read in shards, or in two sittings, keeps the very same windows as one read in one go.

Memory: O(kept windows * positions * (1 + draws) * k) + O(distinct tokens * (1 + draws) * k); nothing grows with the
length of the stream except the table of distinct tokens, which the vocabulary bounds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = dict[str, NDArray[Any]]

# Candidates for the top contexts of a module: more than are shown, because they are ranked again when the stream ended.
CANDIDATES = 64
PER_WINDOW = 2
BEFORE, AFTER = 12, 6
# Inputs that are not tokens keep at most so many features of the flattened input, evenly spaced.
FEATURES = 4096


@dataclass
class Window:
    """One sample of the data and how much every module was used on it."""

    index: int
    """Number of the sample in the order of the data."""
    slice: str
    selection: bool
    """True: evidence is chosen here. False: held out, scores and effects are measured here."""
    tokens: NDArray[np.int64] | None
    """[positions], or None where the inputs are not tokens."""
    vector: NDArray[np.float32] | None
    """The flattened input (at most :data:`FEATURES` of it), or None where the inputs are tokens."""
    use: NDArray[np.float32]
    """[positions, 1 + controls, k]; one position where the inputs are not tokens. Index 0 is the partition itself."""


@dataclass
class Spot:
    """One position where a module was used much: what stands around it, and how much every module was used there."""

    score: float
    window: int
    slice: str
    position: int
    use: NDArray[np.float32]
    """[k]."""
    tokens: NDArray[np.int64]
    """The tokens around the position; empty where the inputs are not tokens."""
    before: int
    """How many of them stand before it."""

    @property
    def order(self) -> tuple[float, int, int]:
        """Best first; ties by place in the data."""
        return -self.score, self.window, self.position


def key_of(seed: int, *parts: Any) -> int:
    """Return a 64-bit hash of the parts: the same on every machine, in every process, in any order of asking."""
    text = "|".join(map(str, (seed, *parts)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def is_selection(seed: int, name: str, ordinal: int) -> bool:
    """Whether a sample chooses evidence: of every two neighbours of a slice exactly one does, by hash."""
    return (key_of(seed, "half", name, ordinal // 2) & 1) == ordinal % 2


def shares(use: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return each module's part of the whole network's use, [..., k]; NaN where nothing is used."""
    total = use.sum(-1, keepdims=True, dtype=np.float64)
    result: NDArray[np.float64] = np.divide(use, total, out=np.full(use.shape, np.nan), where=total > 0)
    return result


@dataclass
class Table:
    """Sums of shares by token: ``share[row]`` [draws, k] of the token ``ids[row]`` seen ``count[row]`` times."""

    draws: int
    k: int
    row: dict[int, int] = field(default_factory=dict)
    count: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    share: NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, 1, 1)))

    def add(self, tokens: NDArray[np.int64], share: NDArray[np.float64]) -> None:
        """Add ``share`` [positions, draws, k] at ``tokens`` [positions]."""
        ids, where, counts = np.unique(tokens, return_inverse=True, return_counts=True)
        sums = np.zeros((len(ids), self.draws, self.k))
        np.add.at(sums, where, share)
        self._merge(ids, counts, sums)

    def merge(self, other: Table) -> None:
        """Add another table's sums."""
        ids = other.ids
        self._merge(ids, other.count[: len(ids)], other.share[: len(ids)])

    def _merge(self, ids: NDArray[Any], counts: NDArray[Any], sums: NDArray[np.float64]) -> None:
        at = np.fromiter((self.row.setdefault(int(t), len(self.row)) for t in ids), dtype=np.int64, count=len(ids))
        if len(self.row) > len(self.count):
            size = max(len(self.row), 2 * len(self.count), 64)
            count, share = np.zeros(size, dtype=np.int64), np.zeros((size, self.draws, self.k))
            count[: len(self.count)] = self.count
            if len(self.count):
                share[: len(self.count)] = self.share
            self.count, self.share = count, share
        self.count[at] += counts
        self.share[at] += sums

    @property
    def ids(self) -> NDArray[np.int64]:
        """Token ids in the order of rows."""
        return np.fromiter(self.row, dtype=np.int64, count=len(self.row))

    def sorted(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
        """Return ids ascending, counts and sums [ids, draws, k]: independent of the order in which they arrived."""
        ids = self.ids
        order = np.argsort(ids)
        return ids[order], self.count[: len(ids)][order], self.share[: len(ids)][order]


@dataclass
class Sketch:
    """The associative summary of a stream; see the module's text."""

    k: int
    draws: int
    """1 + controls."""
    seed: int
    keep: int
    """Windows kept per slice and half."""
    windows: int = 0
    held: int = 0
    positions: int = 0
    sums: dict[tuple[str, bool], NDArray[np.float64]] = field(default_factory=dict)
    """Use added up by (slice, selection), [draws, k]."""
    counts: dict[tuple[str, bool], list[int]] = field(default_factory=dict)
    """[windows, positions] by (slice, selection)."""
    known: NDArray[np.int64] = field(default_factory=lambda: np.zeros(1, dtype=np.int64))
    """Positions of the selection half where anything is used, [draws]."""
    share: NDArray[np.float64] = field(default_factory=lambda: np.zeros((1, 1)))
    """Shares added up over those positions, [draws, k]."""
    square: NDArray[np.float64] = field(default_factory=lambda: np.zeros((1, 1)))
    table: Table = field(default_factory=lambda: Table(1, 1))
    x: NDArray[np.float64] | None = None
    """Sums over vector inputs of the selection half, [2, features]: x and x squared."""
    xy: NDArray[np.float64] | None = None
    """Sums of x times share, [features, draws, k]; ``known`` counts them."""
    spots: list[list[Spot]] = field(default_factory=list)
    kept: dict[tuple[str, bool], list[tuple[int, Window]]] = field(default_factory=dict)
    """By (slice, selection): (hash, window), the ``keep`` smallest hashes."""

    def __post_init__(self) -> None:
        if self.share.shape != (self.draws, self.k):
            self.known = np.zeros(self.draws, dtype=np.int64)
            self.share, self.square = np.zeros((self.draws, self.k)), np.zeros((self.draws, self.k))
            self.table = Table(self.draws, self.k)
        self.spots = self.spots or [[] for _ in range(self.k)]

    # -- building -----------------------------------------------------------------------------------------------------

    def add(self, window: Window) -> None:
        """Take in one window. O(positions * draws * k)."""
        at = (window.slice, window.selection)
        self.windows += 1
        self.held += not window.selection
        self.positions += len(window.use)
        self.sums[at] = self.sums.get(at, np.zeros((self.draws, self.k))) + window.use.sum(0, dtype=np.float64)
        count = self.counts.setdefault(at, [0, 0])
        count[0] += 1
        count[1] += len(window.use)
        kept = self.kept.setdefault(at, [])
        kept.append((key_of(self.seed, "keep", window.slice, window.index), window))
        if len(kept) >= 2 * self.keep:
            self._trim(kept)
        if window.selection:
            self._select(window)

    def _trim(self, kept: list[tuple[int, Window]]) -> None:
        kept.sort(key=lambda entry: (entry[0], entry[1].index))
        del kept[self.keep :]

    def _select(self, w: Window) -> None:
        share = shares(w.use)
        total = w.use[:, 0].sum(-1, dtype=np.float64)
        known = np.isfinite(share[:, :, 0])
        filled = np.nan_to_num(share)
        self.known += known.sum(0)
        self.share += filled.sum(0)
        self.square += (filled**2).sum(0)
        seen = known[:, 0]
        if w.tokens is not None:
            if seen.any():
                self.table.add(w.tokens[seen], filled[seen])
        elif w.vector is not None and seen.any():
            x = w.vector.astype(np.float64)
            self.x = (0.0 if self.x is None else self.x) + np.stack([x, x * x])
            self.xy = (0.0 if self.xy is None else self.xy) + x[:, None, None] * filled[0][None]
        # Much used here, by itself and compared with the rest of the network: where both are high, the module is on.
        strength = w.use[:, 0].astype(np.float64) * filled[:, 0]
        for i in range(self.k):
            column = strength[:, i]
            best = np.argsort(-column, kind="stable")[:PER_WINDOW]
            for p in best:
                if column[p] > 0 and total[p] > 0:
                    self.spots[i].append(self._spot(w, int(p), float(column[p])))
            if len(self.spots[i]) >= 4 * CANDIDATES:
                self._rank(i)

    def _spot(self, w: Window, p: int, score: float) -> Spot:
        if w.tokens is None:
            return Spot(score, w.index, w.slice, p, w.use[p, 0].copy(), np.zeros(0, dtype=np.int64), 0)
        start = max(0, p - BEFORE)
        return Spot(score, w.index, w.slice, p, w.use[p, 0].copy(), w.tokens[start : p + 1 + AFTER].copy(), p - start)

    def _rank(self, i: int) -> None:
        self.spots[i].sort(key=lambda s: s.order)
        del self.spots[i][CANDIDATES:]

    def close(self) -> Sketch:
        """Sort and trim what is kept: the same result whatever the order in which windows and merges came."""
        for kept in self.kept.values():
            self._trim(kept)
        for i in range(self.k):
            self._rank(i)
        return self

    def merge(self, other: Sketch) -> Sketch:
        """Take in the sketch of another part of the stream (same seed, modules and controls).

        Raises:
            ValueError: the sketches are of different settings.
        """
        mine, theirs = (self.k, self.draws, self.seed, self.keep), (other.k, other.draws, other.seed, other.keep)
        if mine != theirs:
            raise ValueError(f"sketches must have the same (k, draws, seed, keep), got {mine} and {theirs}")
        self.windows += other.windows
        self.held += other.held
        self.positions += other.positions
        for at, value in other.sums.items():
            self.sums[at] = self.sums.get(at, 0.0) + value
            count = self.counts.setdefault(at, [0, 0])
            count[0] += other.counts[at][0]
            count[1] += other.counts[at][1]
            self.kept.setdefault(at, []).extend(other.kept.get(at, []))
        self.known += other.known
        self.share += other.share
        self.square += other.square
        self.table.merge(other.table)
        if other.x is not None and other.xy is not None:
            self.x = other.x + (0.0 if self.x is None else self.x)
            self.xy = other.xy + (0.0 if self.xy is None else self.xy)
        for i in range(self.k):
            self.spots[i] = self.spots[i] + other.spots[i]
        return self.close()

    # -- reading ------------------------------------------------------------------------------------------------------

    @property
    def sample(self) -> list[Window]:
        """The kept windows, in the order of the data."""
        return sorted((w for kept in self.kept.values() for _, w in kept), key=lambda w: w.index)

    def use(self, name: str | None, *, selection: bool) -> tuple[NDArray[np.float64], int, int]:
        """Return use added up over a slice (None: all) of one half, [draws, k], its windows and its positions."""
        chosen = [at for at in self.sums if at[1] == selection and name in (None, at[0])]
        # In the order of names, so that sums of many slices do not depend on which came first.
        total = sum((self.sums[at] for at in sorted(chosen)), np.zeros((self.draws, self.k)))
        return total, sum(self.counts[at][0] for at in chosen), sum(self.counts[at][1] for at in chosen)

    @property
    def base(self) -> NDArray[np.float64]:
        """Mean share over the positions of the selection half, [draws, k]."""
        mean: NDArray[np.float64] = self.share / np.maximum(self.known, 1)[:, None]
        return mean


def of_windows(windows: Sequence[Window], *, seed: int = 0, keep: int | None = None) -> Sketch:
    """Return the sketch of windows in memory (at least one)."""
    draws, k = windows[0].use.shape[1:]
    sketch = Sketch(int(k), int(draws), seed, len(windows) if keep is None else keep)
    for w in windows:
        sketch.add(w)
    return sketch.close()


# -- as arrays --------------------------------------------------------------------------------------------------------


def to_arrays(s: Sketch) -> tuple[Arrays, dict[str, Any]]:
    """Return the sketch as flat arrays and plain values, for safetensors and JSON."""
    s.close()
    ids, count, share = s.table.sorted()
    arrays: Arrays = {"known": s.known, "share": s.share, "square": s.square}
    arrays |= {"table.ids": ids, "table.count": count, "table.share": share}
    if s.x is not None and s.xy is not None:
        arrays |= {"x": s.x, "xy": s.xy}
    places = sorted(s.sums)
    for n, at in enumerate(places):
        arrays[f"sums.{n}"] = s.sums[at]
    arrays |= windows_to_arrays("kept", s.sample)
    spots = [x for part in s.spots for x in part]
    arrays |= {
        "spots.module": np.repeat(np.arange(s.k), [len(part) for part in s.spots]),
        "spots.score": np.array([x.score for x in spots]),
        "spots.place": np.array([[x.window, x.position, x.before] for x in spots], dtype=np.int64).reshape(-1, 3),
        "spots.use": np.array([x.use for x in spots], dtype=np.float32).reshape(-1, s.k),
        **_ragged("spots.tokens", [x.tokens for x in spots]),
    }
    settings = {name: getattr(s, name) for name in ("k", "draws", "seed", "keep", "windows", "held", "positions")}
    plain = {
        **settings,
        "places": [[name, selection, *s.counts[name, selection]] for name, selection in places],
        "slices": [w.slice for w in s.sample],
        "spot_slices": [x.slice for x in spots],
    }
    return arrays, plain


def from_arrays(arrays: Mapping[str, NDArray[Any]], plain: Mapping[str, Any]) -> Sketch:
    """Rebuild a sketch from :func:`to_arrays`."""
    s = Sketch(int(plain["k"]), int(plain["draws"]), int(plain["seed"]), int(plain["keep"]))
    s.windows, s.held, s.positions = (int(plain[name]) for name in ("windows", "held", "positions"))
    s.known, s.share, s.square = (np.array(arrays[name]) for name in ("known", "share", "square"))
    ids = arrays["table.ids"]
    if len(ids):
        s.table._merge(ids, arrays["table.count"], arrays["table.share"])
    if "x" in arrays:
        s.x, s.xy = np.array(arrays["x"]), np.array(arrays["xy"])
    for n, (name, selection, windows, positions) in enumerate(plain["places"]):
        s.sums[name, bool(selection)] = np.array(arrays[f"sums.{n}"])
        s.counts[name, bool(selection)] = [int(windows), int(positions)]
    for w in windows_from_arrays("kept", arrays, plain["slices"]):
        s.kept.setdefault((w.slice, w.selection), []).append((key_of(s.seed, "keep", w.slice, w.index), w))
    tokens = _parts("spots.tokens", arrays)
    for n, module in enumerate(arrays["spots.module"].tolist()):
        window, position, before = arrays["spots.place"][n].tolist()
        score, name = float(arrays["spots.score"][n]), plain["spot_slices"][n]
        spot = Spot(score, window, name, position, np.array(arrays["spots.use"][n]), tokens[n], before)
        s.spots[module].append(spot)
    return s.close()


def windows_to_arrays(name: str, windows: Sequence[Window]) -> Arrays:
    """Return windows as arrays whose names start with ``name`` (their slices' names are kept elsewhere)."""
    tokens = [w.tokens if w.tokens is not None else np.zeros(0, dtype=np.int64) for w in windows]
    vectors = [w.vector if w.vector is not None else np.zeros(0, dtype=np.float32) for w in windows]
    return {
        f"{name}.index": np.array([w.index for w in windows], dtype=np.int64),
        f"{name}.selection": np.array([w.selection for w in windows], dtype=bool),
        f"{name}.has_tokens": np.array([w.tokens is not None for w in windows], dtype=bool),
        **_ragged(f"{name}.tokens", tokens),
        **_ragged(f"{name}.vector", vectors),
        **_ragged(f"{name}.use", [w.use for w in windows]),
    }


def windows_from_arrays(name: str, arrays: Mapping[str, NDArray[Any]], slices: Sequence[str]) -> list[Window]:
    """Rebuild what :func:`windows_to_arrays` wrote."""
    tokens, vectors, uses = (_parts(f"{name}.{part}", arrays) for part in ("tokens", "vector", "use"))
    out = []
    for n, index in enumerate(arrays[f"{name}.index"].tolist()):
        has = bool(arrays[f"{name}.has_tokens"][n])
        selection = bool(arrays[f"{name}.selection"][n])
        shown = (tokens[n], None) if has else (None, vectors[n])
        out.append(Window(index, slices[n], selection, shown[0], shown[1], uses[n]))
    return out


def _ragged(name: str, parts: Sequence[NDArray[Any]]) -> Arrays:
    """Arrays of different lengths as one array and the lengths."""
    lengths = np.array([len(p) for p in parts], dtype=np.int64)
    return {name: np.concatenate(parts) if len(parts) else np.zeros(0), f"{name}.lengths": lengths}


def _parts(name: str, arrays: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
    ends = np.cumsum(arrays[f"{name}.lengths"])
    return [np.array(p) for p in np.split(arrays[name], ends[:-1])] if len(ends) else []
