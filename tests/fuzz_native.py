"""Calls the compiled engine with arrays that lie: it may refuse or answer, it may not crash, hang or write elsewhere.

    python tests/fuzz_native.py --minutes 10 [--seed 0]
    ASAN_OPTIONS=detect_leaks=0 LD_PRELOAD="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libstdc++.so)" \\
        python tests/fuzz_native.py     # with a module built by -DMODCUT_SANITIZE=address,undefined

Capsules are built by hand (DLPack 0.8): wrong names, null pointers, dimensions, dtypes, lanes, devices, negative sizes,
strides, byte offsets, misalignment; around them sizes, offsets, index arrays, vertices, settings and outputs of every
wrong kind, and graphs whose numbers are NaN, infinite, negative, huge or subnormal. What no reader can check (a size
larger than the memory behind the pointer) stays inside one arena, whose surroundings are compared after each call.
Call i depends on --seed and i only. Calls run in a process of its own, so that a crash is caught, with its number.
"""

from __future__ import annotations

import argparse
import collections
import ctypes
import faulthandler
import math
import mmap
import random
import signal
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from modcut import _native as native

# Answers and refusals; anything else is a failure. RuntimeError is what a build without CUDA says.
REFUSALS = (ValueError, TypeError, OverflowError)
GUARD = 64  # bytes around every array that nothing may write to
ARENA = 1 << 16


class Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
        ("manager", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
    )


_new = ctypes.pythonapi.PyCapsule_New
_new.restype, _new.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
CODES = {"f4": (2, 32), "f8": (2, 64), "i4": (0, 32), "i8": (0, 64), "u1": (1, 8), "b1": (6, 8)}


class Maker:
    """Makes one call's arrays; holds what they point to until the call is over."""

    def __init__(self, rng: random.Random) -> None:
        self.rng, self.held, self.outputs = rng, [], []  # type: ignore[var-annotated]

    def chance(self, p: float) -> bool:
        return self.rng.random() < p

    def capsule(self, a: Any, wrong: bool, guarded: bool = False) -> Any:
        """A capsule over a copy of ``a`` inside a large arena, with one lie where ``wrong``."""
        rng = self.rng
        # Half of the honest inputs have nothing around them, so that an AddressSanitizer build sees a read too far.
        alone = not wrong and not guarded and self.chance(0.5)
        arena = np.full(a.nbytes if alone else ARENA, 0xA5, dtype=np.uint8)
        start = 0 if alone else ARENA // 2
        start -= 0 if alone else (arena.ctypes.data + start) % 16
        arena[start : start + a.nbytes] = np.frombuffer(np.ascontiguousarray(a).tobytes(), dtype=np.uint8)
        kind = a.dtype.str[1:]
        code, bits = CODES[kind]
        ndim = a.ndim
        shape = (ctypes.c_int64 * 8)(*a.shape)
        strides = (ctypes.c_int64 * 8)(*[s // a.itemsize for s in np.ascontiguousarray(a).strides])
        t = Tensor(arena.ctypes.data + start, 1, 0, ndim, code, bits, 1, shape, strides, 0, None, None)
        name: bytes | None = b"dltensor"
        if self.chance(0.3):
            t.strides = None
        if self.chance(0.2):
            shift = a.itemsize * rng.randint(0, 4)
            t.data, t.byte_offset = t.data - shift, shift
        if wrong:
            lie = rng.randrange(13)
            if lie == 0:
                name = rng.choice([b"used_dltensor", b"", None, b"dltensor_versioned", b"x" * 300])
            elif lie == 1:
                t.data = None
            elif lie == 2:
                t.ndim = rng.choice([-1, 0, 1, 2, 3, 7, 2**31 - 1, -(2**31)])
            elif lie == 3:
                t.code, t.bits = rng.randrange(256), rng.choice([0, 1, 8, 16, 32, 64, 128, 255])
                if (t.code, t.bits) in CODES.values() and t.bits > bits:
                    t.code = 4
            elif lie == 4:
                t.lanes = rng.choice([0, 2, 4, 65535])
            elif lie == 5:
                t.device_type = rng.choice([0, 2, 4, 10, 13, -1, 2**31 - 1])
            elif lie == 6:
                shape[rng.randrange(max(ndim, 1))] = rng.choice([-1, -(2**63), 2**62, 2**63 - 1, 2**40, 0])
            elif lie == 7:
                # Only smaller or wildly larger: a size a little too large is what no reader can see.
                at = rng.randrange(max(ndim, 1))
                shape[at] = rng.randint(0, max(int(shape[at]), 0))
            elif lie == 8:
                t.strides = strides
                strides[rng.randrange(max(ndim, 1))] = rng.choice([-1, -(2**63), 2**62, 2**63 - 1, 0, -5])
            elif lie == 9:
                t.byte_offset = rng.choice([1, 2, 3, 5])
            elif lie == 10:
                t.shape = None
            elif lie == 11:
                t.data += rng.choice([1, 2, 3, 4, 7])
            else:
                return rng.choice([None, 0, "dltensor", a, object(), [1.0], b"", 1.5])
        self.held += [arena, shape, strides, t]
        if guarded:
            self.outputs.append((arena, start, a.nbytes))
        label = ctypes.c_char_p(name)
        self.held.append(label)
        return _new(ctypes.addressof(t), label, None)

    def untouched(self) -> bool:
        """Whether nothing around the outputs was written to (they may lie a few bytes further, see byte_offset)."""
        return all(
            bool((arena[: start - GUARD] == 0xA5).all() and (arena[start + size + GUARD :] == 0xA5).all())
            for arena, start, size in self.outputs
        )

    # --- parts of a call ----------------------------------------------------------------------------------------------

    def integer(self, good: int) -> Any:
        rng = self.rng
        if self.chance(0.95):
            return good
        return rng.choice([-1, 0, good + 1, 2**31 - 1, 2**31, 2**63 - 1, 2**63, -(2**63), 2**100, 1.5, "1", None, True])

    def values(self, shape: tuple[int, ...], kind: str) -> Any:
        rng = np.random.default_rng(self.rng.randrange(2**32))
        x = rng.integers(0, 4, shape).astype(kind) if self.chance(0.5) else (rng.random(shape) * 100).astype(kind)
        if self.chance(0.1) and x.size:
            lies: list[Any] = [-1, 2**62, 2**60]
            if kind[0] == "f":
                lies += [math.nan, math.inf, -math.inf, 5e-324, 1e308, -0.0, 1e-45, 3e38]
            with np.errstate(over="ignore"):
                for _ in range(self.rng.randint(1, 3)):
                    x.reshape(-1)[self.rng.randrange(x.size)] = np.asarray(self.rng.choice(lies)).astype(kind)
        if self.chance(0.2) and kind[0] == "f":
            with np.errstate(over="ignore"):
                x = (x * 10.0 ** rng.integers(-40, 41, shape)).astype(kind)
        return x

    def blocks(self, n: int, kind: str) -> list[Any]:
        rng, out = self.rng, []
        for _ in range(rng.choice([0, 1, 1, 1, 2, 3, 5])):
            mixed = rng.choice(["f4", "f8", "i8", "i4", "u1"]) if self.chance(0.05) else kind
            lie = self.chance(0.06)
            if self.chance(0.5):
                size = rng.randint(0, n)
                at = rng.randint(0, n - size)
                x = self.values((size, size), mixed)
                if self.chance(0.97):
                    x = np.triu(x, 1) + np.triu(x, 1).T
                block = [self.capsule(x, lie), self.integer(at), at, True]
            else:
                r, c = rng.randint(0, n), rng.randint(0, n)
                block = [self.capsule(self.values((r, c), mixed), lie), rng.randint(0, n - r), rng.randint(0, n - c)]
                block[1:] = [self.integer(block[1]), self.integer(block[2]), False]
            if self.chance(0.02):
                block = rng.choice([block[:3], [*block, 0], [None, None], []])
            out.append(block if self.chance(0.01) else tuple(block))
        return out if self.chance(0.99) else rng.choice([None, {}, 3, (), "x"])

    def csr(self, n: int, kind: str) -> Any:
        rng = np.random.default_rng(self.rng.randrange(2**32))
        x = np.triu(self.values((n, n), kind) * (rng.random((n, n)) < 0.3), 1)
        with np.errstate(invalid="ignore"):
            x = x + x.T
        i, j = np.nonzero(x)
        wide = self.rng.choice(["i8", "i8", "i4"])
        indptr = np.concatenate([[0], np.cumsum(np.bincount(i, minlength=n))]).astype("i8")
        indices, data = j.astype(wide), x[i, j].astype(kind)
        for a, top in ((indptr, len(data)), (indices, n)):
            if self.chance(0.08) and a.size:
                lies = [-1, 0, top, top + 1, 2**31 - 1, -(2**31)] + (
                    [2**63 - 1, -(2**63)] if a.dtype == np.int64 else []
                )
                a[self.rng.randrange(a.size)] = self.rng.choice(lies)
        if self.chance(0.03):
            data = data[: self.rng.randint(0, len(data))]
        parts = [self.capsule(a, self.chance(0.03)) for a in (indptr, indices, data)]
        return tuple(parts) if self.chance(0.98) else self.rng.choice([tuple(parts[:2]), parts, 3, (None,) * 3])

    def settings(self) -> Any:
        rng, d = self.rng, {}
        choices: dict[str, list[Any]] = {
            "certificates": [True, False, 0, 1, None, "no", [], 2.5],
            "threads": [1, 2, 3, 1, 2, 3, 0, -1, 1025, 2**64, "2", None, 2.0, True],
            "seed": [0, -1, 2**64, 1.5, "x"],
            "eps": [0.0, 0.1, 1.0, -0.1, 1.1, math.nan, math.inf, "x", None, 1],
            "representation": ["auto", "block", "csr", "dense", "", None, 1, "x" * 500, "\udc80"],
            "flow": ["auto", "augment", "push_relabel", "magic", None, 3],
            "unheard of": [1],
        }
        good = {"certificates": 2, "threads": 6, "seed": 1, "eps": 3, "representation": 3, "flow": 3, "unheard of": 1}
        for key, values in choices.items():
            if self.chance(0.03 if key == "unheard of" else 0.25):
                good = {"certificates": 2, "threads": 6, "seed": 1, "eps": 3, "representation": 3, "flow": 3}.get(
                    key, 1
                )
                d[key] = rng.choice(values[:good] if self.chance(0.9) else values)
        if self.chance(0.01):
            d[rng.choice([3, None, b"x"])] = 1
        return d if self.chance(0.99) else rng.choice([None, [], 3])

    def output(self, size: int, kind: str) -> Any:
        wrong_kind = self.rng.choice(sorted(CODES)) if self.chance(0.02) else kind
        size = max(size + self.rng.choice([-1, 1]), 0) if self.chance(0.02) else size
        return self.capsule(np.zeros(size, dtype=wrong_kind), self.chance(0.02), guarded=True)

    def anchor(self, n: int, blocks: Any) -> Any:
        """The graph that a proof came from: none, this one again, another one, or no graph at all."""
        kind = self.rng.choice(["f4", "f8", "i8"])
        before = blocks if self.chance(0.6) else self.blocks(n, kind)
        nu = self.rng.choice([0.0, 0.5, 1.0, 2.0, 2.1, -1.0, math.nan, math.inf, 1, "x", None])
        made = (before, self.capsule(self.values((n,), "f8"), self.chance(0.03)), nu)
        return self.rng.choice([None, None, made, made, made, made, made[:2], list(made), 3])

    def graph(self) -> tuple[Any, list[Any], Any, int]:
        n = self.rng.choice([0, 1, 2, 3, 5, 8, 13, 20, 30])
        kind = self.rng.choice(["f4", "f8", "i8"])
        csr = self.csr(n, self.rng.choice(["f8", "i8"]) if self.chance(0.1) else kind) if self.chance(0.4) else None
        blocks = self.blocks(n, kind) if csr is None or self.chance(0.3) else []
        return self.integer(n), blocks, csr, n


def call(seed: int, number: int) -> str:
    """Make call ``number``; returns what came of it, raises where that is a failure."""
    rng = random.Random(f"{seed}/{number}")
    make = Maker(rng)
    which = rng.choice(["flow", "tree", "tree", "flow", "values", "degree", "recertify", "recertify"])
    n_said, blocks, csr, n = make.graph()
    try:
        if which == "flow":
            s, t = make.integer(rng.randint(0, max(n - 1, 0))), make.integer(rng.randint(0, max(n - 1, 0)))
            native.max_flow(n_said, blocks, csr, s, t, make.output(n, "u1"), make.settings())
        elif which in ("tree", "recertify"):
            parent = make.output(n, "i8")
            held = make.outputs[-1] if make.outputs else None
            outs = [parent, make.output(n, "f8"), make.output(n, "f8"), make.output(n, "u1")]
            settings = make.settings()
            if which == "tree":
                native.gomory_hu(n_said, blocks, csr, *outs, settings)
            else:
                guess = make.capsule(make.values((n,), "f8"), make.chance(0.03))
                made = native.recertify(
                    n_said, blocks, guess, make.anchor(n, blocks), make.chance(0.3), *outs, settings
                )["made"]
            # An answer means that the output was good: then it is the first one that was made.
            assert held is not None
            arena, start, size = held
            found = arena[start : start + size].view(np.int64)
            whole = which == "tree" or made
            if n and whole and (not ((found >= -1) & (found < n)).all() or int((found == -1).sum()) != 1):
                raise AssertionError(f"no tree: {found.tolist()}")
        elif which == "values":
            labels = np.array([rng.randint(0, 3) for _ in range(n)], dtype="i8")
            if n and make.chance(0.1):
                labels[rng.randrange(n)] = rng.choice([-1, 4, 2**62, -(2**63)])
            native.cut_values(n_said, blocks, csr, make.capsule(labels, make.chance(0.05)), make.output(4, "f8"), {})
        else:
            native.degree_cpu(n_said, blocks, csr, make.output(n, "f8"), make.settings())
    except REFUSALS as error:
        if not str(error):
            raise AssertionError(f"{type(error).__name__} without a word") from error
        outcome = "refused"
    else:
        outcome = "answered"
        if which == "recertify":
            outcome = "answered" if made else "declined"
    if not make.untouched():
        raise AssertionError("wrote outside its outputs")
    return f"{which} {outcome}"


def work(seed: int, start: int, stop: int, seconds: float, note: str) -> None:
    """Make calls, writing each one's number to a shared page first; print the counts."""
    faulthandler.enable()

    def late(*_: Any) -> None:
        raise TimeoutError("a call took over 30 s")

    signal.signal(signal.SIGALRM, late)
    counts: collections.Counter[str] = collections.Counter()
    until = time.monotonic() + seconds
    with open(note, "r+b") as file, mmap.mmap(file.fileno(), 16) as page:
        number = start
        while number < stop and time.monotonic() < until:
            page[:8] = struct.pack("<q", number)
            signal.alarm(30)
            try:
                counts[call(seed, number)] += 1
            except Exception as error:
                counts["failures"] += 1
                print(f"FAILED call {number}: {type(error).__name__}: {error}", flush=True)
            signal.alarm(0)
            number += 1
        page[8:] = struct.pack("<q", number)
    print(" ".join(f"{k.replace(' ', '_')}={v}" for k, v in sorted(counts.items())))


def supervise(seed: int, calls: int, minutes: float) -> dict[str, int]:
    """Run workers until the time or the calls are over; a worker that dies counts as a failure at its call."""
    counts: collections.Counter[str] = collections.Counter()
    until, number = time.monotonic() + 60 * minutes, 0
    with tempfile.NamedTemporaryFile() as note:
        while number < calls and time.monotonic() < until:
            note.seek(0)
            note.write(bytes(16))
            note.flush()
            left = until - time.monotonic()
            command = [sys.executable, __file__, "--work", f"{seed},{number},{calls},{left},{note.name}"]
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=left + 90)
                code, out, err = done.returncode, done.stdout, done.stderr
            except subprocess.TimeoutExpired as error:
                code, out, err = 1, (error.stdout or b"").decode(), "it hung, and did not let a signal through"
            at, after = struct.unpack("<qq", Path(note.name).read_bytes()[:16])
            for line in out.splitlines():
                if line.startswith("FAILED"):
                    print(line, flush=True)
                else:
                    counts.update({k: int(v) for k, v in (pair.split("=") for pair in line.split())})
            if code == 0:
                number = after
                continue
            counts["failures"] += 1
            print(f"FAILED call {at}: the process died ({code})\n{err[-3000:]}", flush=True)
            counts["calls before a crash"] += at - number
            number = at + 1
    return dict(counts)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--calls", type=int, default=10**9)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        seed, start, stop, seconds, note = args.work.split(",", 4)
        work(int(seed), int(start), int(stop), float(seconds), note)
        return 0
    counts = supervise(args.seed, args.calls, args.minutes)
    print(f"{sum(v for k, v in counts.items())} calls: {dict(sorted(counts.items()))}")
    return 1 if counts.get("failures") else 0


if __name__ == "__main__":
    sys.exit(main())
