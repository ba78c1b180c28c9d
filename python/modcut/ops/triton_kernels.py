# mypy: ignore-errors
"""The Triton kernels of the share loss and of the block sums; this file needs triton, its callers ask for it.

One program works off some rows of one matrix; which, it reads from ``programs`` [P, 4] (matrix, tile of rows, kind, 0)
and ``matrices`` [M, FIELDS]. What a row is made of decides its path, the kind:

===  ==========================  ====================================================================================
  0  rows of <= 256 entries      entries contiguous, 16-byte aligned: 16 rows at a time in registers, W read once
  1  rows of <= 1024 entries     the same, 4 rows at a time
  2  rows of <= 4096 entries     the same, one row at a time
  3  longer aligned rows         chunks of 4096, summed, then read again (from cache, if it holds a row) and written
  4  any other contiguous rows   unaligned views, convolutions: chunks, two passes
  5  columns contiguous          a transposed weight, aligned: a tile of rows, columns in chunks, two passes
  6  the same, unaligned
===  ==========================  ====================================================================================

No atomics; every sum runs in an order fixed by the shape: the same bits every time. Written for triton 3.6 and newer,
also under its interpreter: loops whose length is known at run time are ``while`` loops.
"""

from __future__ import annotations

import triton
import triton.language as tl

FIELDS = tl.constexpr(8)  # weight, output, rows, entries a row, stride, taps a column, first row, first column
NONE = tl.constexpr(255)  # the label of what lies outside the graph
VALUE, GRADIENT, ADD, SHRINK = (tl.constexpr(i) for i in range(4))
STEPS = tl.constexpr(4)  # tiles of rows that one program of kinds 0 to 2 works off


@triton.jit
def _sign(v):
    return tl.where(v > 0, 1.0, tl.where(v < 0, -1.0, 0.0))


@triton.jit
def _columns(scale, col_label, j, ok):
    label = tl.load(col_label + j, mask=ok, other=NONE)
    s = tl.load(scale + j, mask=ok, other=0.0)
    return tl.where(label == NONE, 0.0, s), label


@triton.jit
def _finish(own, r, x, g, leak, strength, i, ok, STATS: tl.constexpr):
    """Leak and strength of rows; return the slope of every entry inside (-b) and what crossing adds to it (a)."""
    live = (own != NONE) & ~(r <= 0)  # NaN stays alive: it must not pass as a silent 0
    whole = tl.where(live, r, 1.0)
    share = tl.where(live, x / whole, 0.0)
    if STATS:
        tl.store(leak + i, share, mask=ok)
        tl.store(strength + i, tl.where(live, r, 0.0), mask=ok)
    a = tl.where(live, g / whole, 0.0)
    return a, a * share


@triton.jit
def _write(out, at, mask, v, s, cross, a, b, T: tl.constexpr, MODE: tl.constexpr):
    if MODE == SHRINK:
        new = tl.where(a > 0, _sign(v) * tl.maximum(tl.abs(v) - tl.where(cross, a * s, 0.0), 0.0), v)
    else:
        new = _sign(v) * (s * (tl.where(cross, a, 0.0) - b))
    if MODE == ADD:
        new += tl.load(out + at, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + at, new.to(T), mask=mask)


@triton.jit
def _once(
    w, out, rows, cols, stride, first, scale, row_label, col_label, row_weight, leak, strength,
    T: tl.constexpr, R: tl.constexpr, C: tl.constexpr, MODE: tl.constexpr, STATS: tl.constexpr,
):  # fmt: skip
    """Rows that fit into registers: read once, summed, written."""
    j = tl.arange(0, C)
    inside = j < cols
    s, label = _columns(scale, col_label, j, inside)
    for step in range(STEPS):
        i = first + step * R + tl.arange(0, R)
        ok = i < rows
        g = tl.load(row_weight + i, mask=ok, other=0.0)
        # Rows that count nothing are not even read where nobody asks for their sums.
        if STATS or tl.sum((g != 0).to(tl.int32), axis=0) > 0:
            own = tl.load(row_label + i, mask=ok, other=NONE)
            at = i.to(tl.int64)[:, None] * stride + j[None, :]
            mask = ok[:, None] & inside[None, :]
            v = tl.load(w + at, mask=mask, other=0.0).to(tl.float32)
            cross = own[:, None] != label[None, :]
            strong = tl.abs(v) * s[None, :]
            r, x = tl.sum(strong, axis=1), tl.sum(tl.where(cross, strong, 0.0), axis=1)
            a, b = _finish(own, r, x, g, leak, strength, i, ok, STATS)
            if MODE == ADD:
                mask = mask & (a != 0)[:, None]
            if MODE == SHRINK:
                mask = mask & (a > 0)[:, None]
            if MODE != VALUE and out.to(tl.int64) != 0:
                _write(out, at, mask, v, s[None, :], cross, a[:, None], b[:, None], T, MODE)


@triton.jit
def _tile(w, stride, i, ok, own, j0, cols, taps, scale, col_label, TAPS: tl.constexpr, LAST: tl.constexpr,
          C: tl.constexpr):  # fmt: skip
    """One chunk of C columns: [rows, C], or [C, rows] where rows are what is contiguous (LAST = 0)."""
    j = j0 + tl.arange(0, C)
    inside = j < cols
    if TAPS:
        s, label = _columns(scale, col_label, j // taps, inside)
    else:
        s, label = _columns(scale, col_label, j, inside)
    if LAST:
        at = i.to(tl.int64)[:, None] * stride + j[None, :]
        mask = ok[:, None] & inside[None, :]
        cross = own[:, None] != label[None, :]
        s2 = s[None, :]
    else:
        at = j.to(tl.int64)[:, None] * stride + i[None, :]
        mask = inside[:, None] & ok[None, :]
        cross = label[:, None] != own[None, :]
        s2 = s[:, None]
    v = tl.load(w + at, mask=mask, other=0.0).to(tl.float32)
    return v, at, mask, cross, s2


@triton.jit
def _twice(
    w, out, rows, cols, stride, taps, first, scale, row_label, col_label, row_weight, leak, strength,
    T: tl.constexpr, R: tl.constexpr, C: tl.constexpr, TAPS: tl.constexpr, LAST: tl.constexpr,
    MODE: tl.constexpr, STATS: tl.constexpr,
):  # fmt: skip
    """Rows that do not fit: chunks are summed lane by lane, lanes once at the end; then read again, last chunk first.

    The chunks of the first pass that are read last are the likeliest to be in cache still.
    """
    i = first + tl.arange(0, R)
    ok = i < rows
    g = tl.load(row_weight + i, mask=ok, other=0.0)
    if STATS or tl.sum((g != 0).to(tl.int32), axis=0) > 0:
        own = tl.load(row_label + i, mask=ok, other=NONE)
        if LAST:
            rs = tl.zeros([R, C], tl.float32)
            xs = tl.zeros([R, C], tl.float32)
        else:
            rs = tl.zeros([C, R], tl.float32)
            xs = tl.zeros([C, R], tl.float32)
        j = 0
        while j < cols:
            v, _at, _mask, cross, s = _tile(w, stride, i, ok, own, j, cols, taps, scale, col_label, TAPS, LAST, C)
            strong = tl.abs(v) * s
            rs += strong
            xs += tl.where(cross, strong, 0.0)
            j += C
        r, x = tl.sum(rs, axis=LAST), tl.sum(xs, axis=LAST)
        a, b = _finish(own, r, x, g, leak, strength, i, ok, STATS)
        if MODE != VALUE and out.to(tl.int64) != 0:
            if LAST:
                a2, b2 = a[:, None], b[:, None]
            else:
                a2, b2 = a[None, :], b[None, :]
            while j > 0:
                j -= C
                v, at, mask, cross, s = _tile(w, stride, i, ok, own, j, cols, taps, scale, col_label, TAPS, LAST, C)
                _write(out, at, mask, v, s, cross, a2, b2, T, MODE)


@triton.jit
def share(
    matrices, programs, scales, row_labels, col_labels, row_weights, leaks, strengths,
    T: tl.constexpr, VEC: tl.constexpr, MODE: tl.constexpr, STATS: tl.constexpr, KINDS: tl.constexpr,
    EVEN: tl.constexpr,
):  # fmt: skip
    """Leak and strength of every row of every matrix (STATS), and a gradient or the proximal step (MODE).

    ``VEC`` entries are 16 bytes. ``KINDS`` has a bit for every path that occurs: the others are not compiled in, they
    would cost registers. ``EVEN``: the columns of every matrix start at a multiple of 16.
    """
    p = tl.program_id(0)
    d = matrices + tl.load(programs + 4 * p).to(tl.int64) * FIELDS
    tile, kind = tl.load(programs + 4 * p + 1), tl.load(programs + 4 * p + 2)
    w = tl.load(d).to(tl.pointer_type(T))
    out = tl.load(d + 1).to(tl.pointer_type(T))
    rows, cols, stride = tl.load(d + 2).to(tl.int32), tl.load(d + 3).to(tl.int32), tl.load(d + 4)
    taps = tl.load(d + 5).to(tl.int32)
    row0, col0 = tl.load(d + 6), tl.load(d + 7)
    if EVEN:
        col0 = (col0 // 16) * 16
    scale, col_label = scales + col0, col_labels + col0
    row_label, row_weight, leak, strength = row_labels + row0, row_weights + row0, leaks + row0, strengths + row0
    # What makes 16-byte accesses: the compiler is told that bases, strides and lengths are whole multiples.
    wa, outa = tl.multiple_of(w, 16), tl.multiple_of(out, 16)
    wide, step = (cols // VEC) * VEC, (stride // VEC) * VEC
    if KINDS & 1:
        if kind == 0:
            _once(wa, outa, rows, wide, step, tile * (16 * STEPS), scale, row_label, col_label, row_weight, leak,
                  strength, T, 16, 256, MODE, STATS)  # fmt: skip
    if KINDS & 2:
        if kind == 1:
            _once(wa, outa, rows, wide, step, tile * (4 * STEPS), scale, row_label, col_label, row_weight, leak,
                  strength, T, 4, 1024, MODE, STATS)  # fmt: skip
    if KINDS & 4:
        if kind == 2:
            _once(wa, outa, rows, wide, step, tile * STEPS, scale, row_label, col_label, row_weight, leak,
                  strength, T, 1, 4096, MODE, STATS)  # fmt: skip
    if KINDS & 8:
        if kind == 3:
            _twice(wa, outa, rows, wide, step, taps, tile, scale, row_label, col_label, row_weight, leak,
                   strength, T, 1, 4096, False, 1, MODE, STATS)  # fmt: skip
    if KINDS & 16:
        if kind == 4:
            _twice(w, out, rows, cols, stride, taps, tile * 4, scale, row_label, col_label, row_weight, leak,
                   strength, T, 4, 512, True, 1, MODE, STATS)  # fmt: skip
    if KINDS & 32:
        if kind == 5:
            _twice(wa, outa, (rows // VEC) * VEC, cols, step, taps, tile * (8 * VEC), scale, row_label, col_label,
                   row_weight, leak, strength, T, 8 * VEC, 512 // VEC, False, 0, MODE, STATS)  # fmt: skip
    if KINDS & 64:
        if kind == 6:
            _twice(w, out, rows, cols, stride, taps, tile * (8 * VEC), scale, row_label, col_label,
                   row_weight, leak, strength, T, 8 * VEC, 512 // VEC, False, 0, MODE, STATS)  # fmt: skip
