// Inner loops of glance.hpp: what one reading of a tile of rows says of its rows and of its columns. As in simd.hpp,
// the same bits whichever instruction set is taken.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "core/simd.hpp"
#include "core/sums.hpp"

namespace modcut::simd {

// Sums are of doubles: floats of a tile are few enough to be added plainly, doubles are compensated. Ratios and squares
// are of the input's own type: they go into bounds only, which leave room for their rounding.
template <class T>
struct RowGlance {
    Sum sum;
    T top = 0;      // max of w * inverse[column]
    T squares = 0;  // sum of w * w * inverse[column]
    T low = 0;      // the smallest entry below 0
};
template <class T>
struct ColumnGlance {  // [columns, rounded up to 16] each; sums only, or all
    double *sum = nullptr, *rest = nullptr;
    T *top = nullptr, *squares = nullptr;
};

enum Glanced : int { kSums = 1, kRatios = 2, kMagnitude = 4, kColumns = 8 };

namespace detail {

template <class T>
struct Lanes;
template <>
struct Lanes<float> {
    typedef float V __attribute__((vector_size(64)));
    typedef int32_t Bits __attribute__((vector_size(64)));
    static constexpr int32_t kClear = 0x7fffffff;
};
template <>
struct Lanes<double> {
    typedef double V __attribute__((vector_size(64)));
    typedef int64_t Bits __attribute__((vector_size(64)));
    static constexpr int64_t kClear = 0x7fffffffffffffff;
};

// Eight floats as doubles; the compiler's own way to do this takes four instructions where AVX-512 has one.
template <int Level>
MODCUT_INLINE void widen(D8& out, const F8& v) {
#if defined(MODCUT_X86_LEVELS)
    if constexpr (Level == 2) {
        asm("vcvtps2pd %1, %0" : "=v"(out) : "v"(v));
        return;
    }
#endif
    out = __builtin_convertvector(v, D8);
}

template <class T>
struct RowLanes {
    typename Lanes<T>::V top = {}, squares = {};
    D8 sum = {}, rest = {};
};

template <class T, int R, int F, int Level>
MODCUT_INLINE void glance_rows(const T* w, int64_t stride, int64_t columns, const T* inverse, const T* inverse_row,
                               RowGlance<T>* out, const ColumnGlance<T>& c) {
    using V = typename Lanes<T>::V;
    constexpr int W = int(sizeof(V) / sizeof(T));
    constexpr bool wide = sizeof(T) == 8;
    RowLanes<T> a0, a1, a2, a3;  // not an array: this has to stay in registers
    V low = {};
    T tail[R][W] = {};
    for (int64_t j = 0; j < columns; j += W) {
        const T* at = w + j;
        int64_t step = stride;
        if (j + W > columns) {  // the last few: beside zeros
            for (int r = 0; r < R; ++r) std::memcpy(tail[r], w + r * stride + j, size_t(columns - j) * sizeof(T));
            at = &tail[0][0], step = W;
        }
        V inv, ctop, csquares;
        D8 csum, crest;
        if constexpr (bool(F & kRatios)) std::memcpy(&inv, inverse + j, sizeof(V));
        if constexpr ((F & kColumns) && (F & kRatios))
            std::memcpy(&ctop, c.top + j, sizeof(V)), std::memcpy(&csquares, c.squares + j, sizeof(V));
        if constexpr ((F & kColumns) && (F & kSums)) {
            std::memcpy(&csum, c.sum + j, sizeof(D8));
            std::memcpy(&crest, wide ? c.rest + j : c.sum + j + 8, sizeof(D8));
        }
        auto row = [&](RowLanes<T>& a, int r) __attribute__((always_inline)) {
            V v;
            std::memcpy(&v, at + r * step, sizeof(V));
            __builtin_prefetch(at + (r + R) * step);  // the rows that come next, here
            if constexpr (bool(F & kMagnitude)) {
                typename Lanes<T>::Bits bits;
                std::memcpy(&bits, &v, sizeof bits);
                bits &= Lanes<T>::kClear;
                std::memcpy(&v, &bits, sizeof bits);
            } else {
                low = v < low ? v : low;
            }
            if constexpr (bool(F & kRatios)) {
                const V q = v * inv;
                a.top = q > a.top ? q : a.top;
                a.squares += v * q;
                if constexpr (bool(F & kColumns)) {
                    const V s = v * inverse_row[r];
                    ctop = s > ctop ? s : ctop;
                    csquares += v * s;
                }
            }
            if constexpr ((F & kSums) && wide) {
                D8 t = a.sum + v, z = t - a.sum;
                a.rest += (a.sum - (t - z)) + (v - z);
                a.sum = t;
                if constexpr (bool(F & kColumns)) {
                    t = csum + v, z = t - csum;
                    crest += (csum - (t - z)) + (v - z);
                    csum = t;
                }
            } else if constexpr (bool(F & kSums)) {
                F8 half[2];
                std::memcpy(half, &v, sizeof v);
                D8 x, y;
                widen<Level>(x, half[0]), widen<Level>(y, half[1]);
                a.sum += x, a.rest += y;
                if constexpr (bool(F & kColumns)) csum += x, crest += y;
            }
        };
        row(a0, 0);
        if constexpr (R == 4) row(a1, 1), row(a2, 2), row(a3, 3);
        if constexpr ((F & kColumns) && (F & kRatios))
            std::memcpy(c.top + j, &ctop, sizeof(V)), std::memcpy(c.squares + j, &csquares, sizeof(V));
        if constexpr ((F & kColumns) && (F & kSums)) {
            std::memcpy(c.sum + j, &csum, sizeof(D8));
            std::memcpy(wide ? c.rest + j : c.sum + j + 8, &crest, sizeof(D8));
        }
    }
    auto done = [&](const RowLanes<T>& a, RowGlance<T>& o) __attribute__((always_inline)) {
        if constexpr ((F & kSums) && wide) {
            double sum[8], rest[8];
            std::memcpy(sum, &a.sum, sizeof sum), std::memcpy(rest, &a.rest, sizeof rest);
            for (int k = 0; k < 8; ++k) o.sum.add(Sum{sum[k], rest[k]});
        } else if constexpr (bool(F & kSums)) {
            double sum[8];
            const D8 both = a.sum + a.rest;
            std::memcpy(sum, &both, sizeof sum);
            o.sum.add(((sum[0] + sum[1]) + (sum[2] + sum[3])) + ((sum[4] + sum[5]) + (sum[6] + sum[7])));
        }
        if constexpr (bool(F & kRatios)) {
            T top[W], squares[W];
            std::memcpy(top, &a.top, sizeof top), std::memcpy(squares, &a.squares, sizeof squares);
            for (int half = W / 2; half > 0; half /= 2)
                for (int k = 0; k < half; ++k)
                    top[k] = std::max(top[k], top[k + half]), squares[k] += squares[k + half];
            o.top = std::max(o.top, top[0]);
            o.squares += squares[0];
        }
    };
    done(a0, out[0]);
    if constexpr (R == 4) done(a1, out[1]), done(a2, out[2]), done(a3, out[3]);
    if constexpr (!(F & kMagnitude)) {
        T lows[W];
        std::memcpy(lows, &low, sizeof lows);
        for (int k = 0; k < W; ++k) out[0].low = std::min(out[0].low, lows[k]);
    }
}

template <class T, int F, int Level>
MODCUT_INLINE void glance_tile(const T* w, int64_t stride, int rows, int64_t columns, const T* inverse,
                               const T* inverse_row, RowGlance<T>* out, const ColumnGlance<T>& c) {
    int r = 0;
    for (; r + 4 <= rows; r += 4)
        glance_rows<T, 4, F, Level>(w + r * stride, stride, columns, inverse, inverse_row + r, out + r, c);
    for (; r < rows; ++r)
        glance_rows<T, 1, F, Level>(w + r * stride, stride, columns, inverse, inverse_row + r, out + r, c);
}

template <int Level, class T>
MODCUT_INLINE void glance_any(int what, const T* w, int64_t stride, int rows, int64_t columns, const T* inverse,
                              const T* inverse_row, RowGlance<T>* out, const ColumnGlance<T>& c) {
    switch (what) {
#define MODCUT_CASE(F)                                                                    \
    case F:                                                                               \
        glance_tile<T, F, Level>(w, stride, rows, columns, inverse, inverse_row, out, c); \
        break;
        MODCUT_CASE(kSums)
        MODCUT_CASE(kSums | kMagnitude)
        MODCUT_CASE(kSums | kColumns)
        MODCUT_CASE(kSums | kColumns | kMagnitude)
        MODCUT_CASE(kRatios)
        MODCUT_CASE(kRatios | kColumns)
        MODCUT_CASE(kSums | kRatios)
        MODCUT_CASE(kSums | kRatios | kMagnitude)
        MODCUT_CASE(kSums | kRatios | kColumns)
        MODCUT_CASE(kSums | kRatios | kColumns | kMagnitude)
#undef MODCUT_CASE
    }
}

// Sums of |a - b| (of their magnitudes), along rows and columns.
template <class T, bool kAbs>
MODCUT_INLINE T drift_row(const T* a, const T* b, int64_t columns, T* column) {
    using V = typename Lanes<T>::V;
    using Bits = typename Lanes<T>::Bits;
    constexpr int W = int(sizeof(V) / sizeof(T));
    V sum = {};
    T tail[2][W] = {};
    auto magnitude = [](V& v) {
        Bits bits;
        std::memcpy(&bits, &v, sizeof bits);
        bits &= Lanes<T>::kClear;
        std::memcpy(&v, &bits, sizeof bits);
    };
    for (int64_t j = 0; j < columns; j += W) {
        const T *x = a + j, *y = b + j;
        if (j + W > columns) {
            std::memcpy(tail[0], x, size_t(columns - j) * sizeof(T));
            std::memcpy(tail[1], y, size_t(columns - j) * sizeof(T));
            x = tail[0], y = tail[1];
        }
        V u, v, s;
        std::memcpy(&u, x, sizeof u), std::memcpy(&v, y, sizeof v);
        if constexpr (kAbs) magnitude(u), magnitude(v);
        u -= v;
        magnitude(u);
        sum += u;
        if (column) {
            std::memcpy(&s, column + j, sizeof s);
            s += u;
            std::memcpy(column + j, &s, sizeof s);
        }
    }
    T out = 0;
    for (int k = 0; k < W; ++k) out += sum[k];
    return out;
}

template <class T>
MODCUT_INLINE void drift_any(bool magnitude, const T* a, const T* b, int64_t columns, T* column, T& out) {
    out = magnitude ? drift_row<T, true>(a, b, columns, column) : drift_row<T, false>(a, b, columns, column);
}

// 8 x 8 floats turned.
MODCUT_INLINE void turn(const float* in, int64_t stride, float* out, int64_t out_stride) {
    F8 r[8], t[8];
    for (int k = 0; k < 8; ++k) std::memcpy(&r[k], in + k * stride, sizeof(F8));
    for (int k = 0; k < 8; k += 2) {
        t[k] = __builtin_shufflevector(r[k], r[k + 1], 0, 8, 2, 10, 4, 12, 6, 14);
        t[k + 1] = __builtin_shufflevector(r[k], r[k + 1], 1, 9, 3, 11, 5, 13, 7, 15);
    }
    for (int k = 0; k < 8; k += 4)
        for (int i = 0; i < 2; ++i) {
            r[k + i] = __builtin_shufflevector(t[k + i], t[k + i + 2], 0, 1, 8, 9, 4, 5, 12, 13);
            r[k + i + 2] = __builtin_shufflevector(t[k + i], t[k + i + 2], 2, 3, 10, 11, 6, 7, 14, 15);
        }
    for (int k = 0; k < 4; ++k) {
        t[k] = __builtin_shufflevector(r[k], r[k + 4], 0, 1, 2, 3, 8, 9, 10, 11);
        t[k + 4] = __builtin_shufflevector(r[k], r[k + 4], 4, 5, 6, 7, 12, 13, 14, 15);
    }
    for (int k = 0; k < 8; ++k) std::memcpy(out + k * out_stride, &t[k], sizeof(F8));
}

template <class T>
MODCUT_INLINE void turned(const T* in, int64_t stride, int64_t rows, int64_t columns, T* out, int64_t out_stride) {
    int64_t i = 0;
    if constexpr (sizeof(T) == 4)
        for (; i + 8 <= rows; i += 8) {
            int64_t j = 0;
            for (; j + 8 <= columns; j += 8) turn(in + i * stride + j, stride, out + j * out_stride + i, out_stride);
            for (; j < columns; ++j)
                for (int64_t r = i; r < i + 8; ++r) out[j * out_stride + r] = in[r * stride + j];
        }
    for (; i < rows; ++i)
        for (int64_t j = 0; j < columns; ++j) out[j * out_stride + i] = in[i * stride + j];
}

}  // namespace detail

#define MODCUT_GLANCE(name, T, Level)                                                                                  \
    void name(int what, const T* w, int64_t stride, int rows, int64_t columns, const T* inverse, const T* inverse_row, \
              RowGlance<T>* out, const ColumnGlance<T>& c) {                                                           \
        detail::glance_any<Level>(what, w, stride, rows, columns, inverse, inverse_row, out, c);                       \
    }
#if defined(MODCUT_X86_LEVELS)
__attribute__((target("avx512f"))) inline MODCUT_GLANCE(glance_f32_2, float, 2)
    __attribute__((target("avx512f"))) inline MODCUT_GLANCE(glance_f64_2, double, 2)
        __attribute__((target("avx2"))) inline MODCUT_GLANCE(glance_f32_1, float, 1)
            __attribute__((target("avx2"))) inline MODCUT_GLANCE(glance_f64_1, double, 1)
#endif
                inline MODCUT_GLANCE(glance_f32_0, float, 0) inline MODCUT_GLANCE(glance_f64_0, double, 0)
#undef MODCUT_GLANCE
    // What `rows` rows of a block say, added to `out` [rows] and to the columns.
    template <class T>
    void glance(int what, const T* w, int64_t stride, int rows, int64_t columns, const T* inverse, const T* inverse_row,
                RowGlance<T>* out, const ColumnGlance<T>& c) {
    if constexpr (sizeof(T) == 4)
        MODCUT_AT_LEVEL(glance_f32, what, w, stride, rows, columns, inverse, inverse_row, out, c);
    else
        MODCUT_AT_LEVEL(glance_f64, what, w, stride, rows, columns, inverse, inverse_row, out, c);
}

#define MODCUT_DRIFT(T) (bool magnitude, const T* a, const T* b, int64_t columns, T* column, T& out)
MODCUT_LEVELS(drift_f32, MODCUT_DRIFT(float), { detail::drift_any(magnitude, a, b, columns, column, out); })
MODCUT_LEVELS(drift_f64, MODCUT_DRIFT(double), { detail::drift_any(magnitude, a, b, columns, column, out); })
#undef MODCUT_DRIFT
// The sum over a row of |a - b|, or of ||a| - |b||; also added to `column` [columns, rounded up to 16] if given.
template <class T>
T drift(bool magnitude, const T* a, const T* b, int64_t columns, T* column) {
    T out = 0;
    if constexpr (sizeof(T) == 4)
        MODCUT_AT_LEVEL(drift_f32, magnitude, a, b, columns, column, out);
    else
        MODCUT_AT_LEVEL(drift_f64, magnitude, a, b, columns, column, out);
    return out;
}

#define MODCUT_TURNED(T) (const T* in, int64_t stride, int64_t rows, int64_t columns, T* out, int64_t out_stride)
MODCUT_LEVELS(turned_f32, MODCUT_TURNED(float), { detail::turned(in, stride, rows, columns, out, out_stride); })
MODCUT_LEVELS(turned_f64, MODCUT_TURNED(double), { detail::turned(in, stride, rows, columns, out, out_stride); })
#undef MODCUT_TURNED
// out[j, i] = in[i, j].
template <class T>
void turned(const T* in, int64_t stride, int64_t rows, int64_t columns, T* out, int64_t out_stride) {
    if constexpr (sizeof(T) == 4)
        MODCUT_AT_LEVEL(turned_f32, in, stride, rows, columns, out, out_stride);
    else
        MODCUT_AT_LEVEL(turned_f64, in, stride, rows, columns, out, out_stride);
}

}  // namespace modcut::simd
