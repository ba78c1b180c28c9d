// The contribution-share leak and its gradient in one pass over the weights: each row is summed while it is read and
// its gradient written while it is still in cache, so a matrix crosses memory once each way.
//
//   r_i = sum_j |W_ij| s_j     x_i = sum over j with c_j != c_i of |W_ij| s_j     leak_i = x_i / r_i
//   d(sum_i a_i leak_i) / dW_ij = sign(W_ij) s_j a_i / r_i (1[c_i != c_j] - leak_i)
//   proximal: W_ij <- sign(W_ij) max(|W_ij| - t_i s_j / r_i, 0) where c_i != c_j
//
// What crosses is summed by itself (not as r - inside): exact zeros where nothing crosses. Two layouts: rows
// contiguous, and columns contiguous (a transposed view), worked off in tiles of rows whose columns stay in the
// second-level cache. Sums run in a fixed order of lanes: the same bits on any number of threads.
#pragma once
#include <cstdint>
#include <cstring>
#include <vector>

#include "core/simd.hpp"
#include "core/team.hpp"

namespace modcut::leak {

constexpr uint8_t kNoLabel = 255;

struct bf16 {
    uint16_t bits;
};

// One matrix. A is the type of sums: float for float and bf16 weights, double for double.
template <class T, class A>
struct Matrix {
    T* w = nullptr;     // read; written by shrink only
    T* grad = nullptr;  // may be null: value only
    int64_t rows = 0, cols = 0;
    int64_t stride = 0;        // between rows, or between columns where transposed
    bool transposed = false;   // entry (i, j) at w[j * stride + i]
    int64_t taps = 1;          // consecutive columns that share a scale and a label
    const A* scale = nullptr;  // [cols / taps]
    const uint8_t* row_label = nullptr;
    const uint8_t* col_label = nullptr;      // [cols / taps]
    const A* row_weight = nullptr;           // a_i, or t_i for shrink
    A *leak = nullptr, *strength = nullptr;  // [rows], outputs; may be null for shrink
};

namespace detail {

template <class A>
struct Vec;
template <>
struct Vec<float> {
    typedef float V __attribute__((vector_size(64)));
    typedef int32_t I __attribute__((vector_size(64)));
    typedef uint16_t H __attribute__((vector_size(32)));
    typedef uint32_t U __attribute__((vector_size(64)));
    static constexpr int width = 16;
    static constexpr int32_t sign = int32_t(0x80000000u);
};
template <>
struct Vec<double> {
    typedef double V __attribute__((vector_size(64)));
    typedef int64_t I __attribute__((vector_size(64)));
    static constexpr int width = 8;
    static constexpr int64_t sign = int64_t(0x8000000000000000ull);
};
using F = Vec<float>;
using D = Vec<double>;

MODCUT_INLINE void load(F::V& v, const float* p) { std::memcpy(&v, p, sizeof v); }
MODCUT_INLINE void load(D::V& v, const double* p) { std::memcpy(&v, p, sizeof v); }
MODCUT_INLINE void load(F::V& v, const bf16* p) {
    F::H h;
    std::memcpy(&h, p, sizeof h);
    const F::U u = __builtin_convertvector(h, F::U) << 16;
    std::memcpy(&v, &u, sizeof v);
}
MODCUT_INLINE void store(float* p, const F::V& v) { std::memcpy(p, &v, sizeof v); }
MODCUT_INLINE void store(double* p, const D::V& v) { std::memcpy(p, &v, sizeof v); }
MODCUT_INLINE void store(bf16* p, const F::V& v) {
    F::U u;
    std::memcpy(&u, &v, sizeof u);
    u += 0x7fffu + ((u >> 16) & 1u);  // round to nearest, ties to even
    const F::H h = __builtin_convertvector(u >> 16, F::H);
    std::memcpy(p, &h, sizeof h);
}

template <class A>
MODCUT_INLINE void magnitude(typename Vec<A>::V& v) {
    typename Vec<A>::I i;
    std::memcpy(&i, &v, sizeof i);
    i &= ~Vec<A>::sign;
    std::memcpy(&v, &i, sizeof v);
}

// value with the sign of w flipped in, 0 where w is 0
template <class A>
MODCUT_INLINE void signed_by(typename Vec<A>::V& value, const typename Vec<A>::V& w) {
    typename Vec<A>::I i, j;
    std::memcpy(&i, &value, sizeof i);
    std::memcpy(&j, &w, sizeof j);
    i ^= j & Vec<A>::sign;
    i &= (w != 0);
    std::memcpy(&value, &i, sizeof value);
}

// Lanes added in halves: four steps where one after the other would be as long as the row of a small matrix.
MODCUT_INLINE float total(const F::V& v) {
    typedef float V8 __attribute__((vector_size(32)));
    typedef float V4 __attribute__((vector_size(16)));
    V8 a, b;
    std::memcpy(&a, &v, sizeof a);
    std::memcpy(&b, reinterpret_cast<const char*>(&v) + sizeof a, sizeof b);
    a += b;
    V4 c, d;
    std::memcpy(&c, &a, sizeof c);
    std::memcpy(&d, reinterpret_cast<const char*>(&a) + sizeof c, sizeof d);
    c += d;
    return (c[0] + c[2]) + (c[1] + c[3]);
}
MODCUT_INLINE double total(const D::V& v) { return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7])); }

// The last, partial vector of a row goes through a buffer: one code path, one order of sums.
template <class T, class A>
struct Tail {
    T w[Vec<A>::width];
    A s[Vec<A>::width], x[Vec<A>::width];
    MODCUT_INLINE Tail(const T* pw, const A* ps, const A* px, int64_t n) {
        std::memset(static_cast<void*>(w), 0, sizeof w), std::memset(s, 0, sizeof s), std::memset(x, 0, sizeof x);
        std::memcpy(static_cast<void*>(w), pw, size_t(n) * sizeof(T));
        std::memcpy(s, ps, size_t(n) * sizeof(A)), std::memcpy(x, px, size_t(n) * sizeof(A));
    }
};

template <class T, class A>
MODCUT_INLINE void add(typename Vec<A>::V& r, typename Vec<A>::V& c, const T* w, const A* s, const A* x) {
    typename Vec<A>::V v, a, b;
    load(v, w), load(a, s), load(b, x);
    magnitude<A>(v);
    r += v * a;
    c += v * b;
}

// Sums of one contiguous row: r over s, c over x.
template <class T, class A>
MODCUT_INLINE void row_sums(const T* w, const A* s, const A* x, int64_t n, A& r, A& c) {
    constexpr int W = Vec<A>::width;
    typename Vec<A>::V r0 = {}, r1 = {}, r2 = {}, r3 = {}, c0 = {}, c1 = {}, c2 = {}, c3 = {};
    int64_t j = 0;
    for (; j + 4 * W <= n; j += 4 * W) {
        add<T, A>(r0, c0, w + j, s + j, x + j);
        add<T, A>(r1, c1, w + j + W, s + j + W, x + j + W);
        add<T, A>(r2, c2, w + j + 2 * W, s + j + 2 * W, x + j + 2 * W);
        add<T, A>(r3, c3, w + j + 3 * W, s + j + 3 * W, x + j + 3 * W);
    }
    for (; j + W <= n; j += W) add<T, A>(r0, c0, w + j, s + j, x + j);
    if (j < n) {
        const Tail<T, A> t(w + j, s + j, x + j, n - j);
        add<T, A>(r1, c1, t.w, t.s, t.x);
    }
    r = total((r0 + r1) + (r2 + r3));
    c = total((c0 + c1) + (c2 + c3));
}

template <class T, class A>
MODCUT_INLINE void slope(T* g, const T* w, const A* s, const A* x, A a, A b, bool add_to) {
    typename Vec<A>::V v, u, d;
    load(v, w), load(u, s), load(d, x);
    d = d * a - u * b;
    signed_by<A>(d, v);
    if (add_to) {
        typename Vec<A>::V old;
        load(old, g);
        d += old;
    }
    store(g, d);
}

// g_j = sign(w_j) (a x_j - b s_j)
template <class T, class A>
MODCUT_INLINE void row_slopes(T* g, const T* w, const A* s, const A* x, int64_t n, A a, A b, bool add_to) {
    constexpr int W = Vec<A>::width;
    int64_t j = 0;
    for (; j + W <= n; j += W) slope<T, A>(g + j, w + j, s + j, x + j, a, b, add_to);
    if (j < n) {
        const Tail<T, A> t(w + j, s + j, x + j, n - j);
        T out[W] = {};
        std::memcpy(static_cast<void*>(out), g + j, size_t(n - j) * sizeof(T));
        slope<T, A>(out, t.w, t.s, t.x, a, b, add_to);
        std::memcpy(static_cast<void*>(g + j), out, size_t(n - j) * sizeof(T));
    }
}

template <class T, class A>
MODCUT_INLINE void shrink_one(T* w, const T* from, const A* x, A t) {
    typename Vec<A>::V v, m, d;
    load(v, from), load(d, x);
    m = v;
    magnitude<A>(m);
    m -= d * t;
    const typename Vec<A>::V zero = {};
    m = m > 0 ? m : zero;
    signed_by<A>(m, v);
    store(w, m);
}

template <class T, class A>
MODCUT_INLINE void row_shrink(T* w, const A* x, int64_t n, A t) {
    constexpr int W = Vec<A>::width;
    int64_t j = 0;
    for (; j + W <= n; j += W) shrink_one<T, A>(w + j, w + j, x + j, t);
    if (j < n) {
        const Tail<T, A> tail(w + j, x + j, x + j, n - j);
        T out[W] = {};
        shrink_one<T, A>(out, tail.w, tail.x, t);
        std::memcpy(static_cast<void*>(w + j), out, size_t(n - j) * sizeof(T));
    }
}

// Tables [1 + k][pitch]: the scale of every column; then, for each label, the same with 0 where the column has it. Rows
// of whole cache lines: a vector load that crosses two costs twice.
template <class T, class A>
struct Tables {
    int64_t pitch;
    std::vector<A> memory;
    A* all;
    Tables(const Matrix<T, A>& m, int k)
        : pitch((m.cols + kLine - 1) / kLine * kLine), memory(size_t(pitch) * size_t(k + 1) + kLine) {
        all = memory.data() + (kLine - (reinterpret_cast<uintptr_t>(memory.data()) / sizeof(A)) % kLine) % kLine;
        for (int64_t j = 0; j < m.cols; ++j) {
            const uint8_t label = m.col_label[j / m.taps];
            all[j] = label == kNoLabel ? A(0) : m.scale[j / m.taps];
        }
        if (m.transposed) return;  // tiles make their own
        for (int c = 0; c < k; ++c) {
            A* cross = all + (c + 1) * pitch;
            std::memcpy(cross, all, size_t(m.cols) * sizeof(A));
            if (m.taps == 1)
                for (int64_t j = 0; j < m.cols; ++j) cross[j] = m.col_label[j] == c ? A(0) : cross[j];
            else
                for (int64_t j = 0; j < m.cols; ++j) cross[j] = m.col_label[j / m.taps] == c ? A(0) : cross[j];
        }
    }
    static constexpr int64_t kLine = 64 / int64_t(sizeof(A));
};

template <class T, class A>
MODCUT_INLINE void finish(const Matrix<T, A>& m, int64_t i, A r, A c, A& a, A& b) {
    const bool live = m.row_label[i] != kNoLabel && !(r <= 0);  // NaN stays alive: it must not pass as a silent 0
    const A leak = live ? c / r : A(0);
    if (m.leak) m.leak[i] = leak;
    if (m.strength) m.strength[i] = live ? r : A(0);
    a = live ? m.row_weight[i] / r : A(0);
    b = a * leak;
}

template <class T, class A>
MODCUT_INLINE void rows_pass(const Matrix<T, A>& m, const A* all, int64_t pitch, int64_t begin, int64_t end,
                             bool shrink, bool add_to) {
    for (int64_t i = begin; i < end; ++i) {
        T* w = m.w + i * m.stride;
        const A* x = all + (m.row_label[i] == kNoLabel ? 1 : m.row_label[i] + 1) * pitch;
        A r, c, a, b;
        row_sums<T, A>(w, all, x, m.cols, r, c);
        finish<T, A>(m, i, r, c, a, b);
        if (shrink) {
            if (a > 0) row_shrink<T, A>(w, x, m.cols, a);
        } else if (m.grad && !(add_to && a == 0)) {
            row_slopes<T, A>(m.grad + i * m.stride, w, all, x, m.cols, a, b, add_to);
        }
    }
}

// Columns contiguous: `lanes` rows at a time, all columns, twice; the tile stays in the second-level cache.
template <class T, class A, int NV>
MODCUT_INLINE void tile_pass(const Matrix<T, A>& m, const A* other, const A* all, int64_t begin, int64_t count,
                             bool shrink, bool add_to) {
    constexpr int W = Vec<A>::width, N = NV * W;
    typedef typename Vec<A>::V V;
    V r[NV] = {}, c[NV] = {};
    const bool whole = count == N;
    T buffer[N];
    for (int64_t j = 0; j < m.cols; ++j) {
        const uint8_t label = m.col_label[j / m.taps];
        if (label == kNoLabel) continue;
        const T* w = m.w + j * m.stride + begin;
        if (!whole) {
            std::memset(static_cast<void*>(buffer), 0, sizeof buffer);
            std::memcpy(static_cast<void*>(buffer), w, size_t(count) * sizeof(T));
            w = buffer;
        }
        const A* y = other + int64_t(label) * N;
        for (int k = 0; k < NV; ++k) {
            V v, u;
            load(v, w + k * W), load(u, y + k * W);
            magnitude<A>(v);
            v *= all[j];
            r[k] += v;
            c[k] += v * u;
        }
    }
    A a[N] = {}, b[N] = {};
    for (int64_t i = 0; i < count; ++i) finish<T, A>(m, begin + i, r[i / W][i % W], c[i / W][i % W], a[i], b[i]);
    if (!shrink && !m.grad) return;
    for (int64_t j = 0; j < m.cols; ++j) {
        const uint8_t label = m.col_label[j / m.taps];
        const A* y = other + int64_t(label == kNoLabel ? 0 : label) * N;
        T* at = m.w + j * m.stride + begin;
        const T* w = at;
        T* out = shrink ? at : m.grad + j * m.stride + begin;
        T result[N];
        if (!whole) {
            std::memset(static_cast<void*>(buffer), 0, sizeof buffer);
            std::memcpy(static_cast<void*>(buffer), w, size_t(count) * sizeof(T));
            std::memset(static_cast<void*>(result), 0, sizeof result);
            std::memcpy(static_cast<void*>(result), out, size_t(count) * sizeof(T));
            w = buffer;
        }
        T* to = whole ? out : result;
        for (int k = 0; k < NV; ++k) {
            V v, u, p, q;
            load(v, w + k * W), load(u, y + k * W), load(p, a + k * W), load(q, b + k * W);
            V d;
            if (shrink) {
                d = v;
                magnitude<A>(d);
                d -= p * u * all[j];
                const V zero = {};
                d = d > 0 ? d : zero;
                signed_by<A>(d, v);
            } else {
                d = (p * u - q) * all[j];
                signed_by<A>(d, v);
                if (add_to) {
                    V old;
                    load(old, to + k * W);
                    d += old;
                }
            }
            store(to + k * W, d);
        }
        if (!whole) std::memcpy(static_cast<void*>(out), result, size_t(count) * sizeof(T));
    }
}

template <class T, class A>
MODCUT_INLINE void tiles_pass(const Matrix<T, A>& m, const A* all, int k, int64_t begin, int64_t end, bool shrink,
                              bool add_to) {
    constexpr int NV = 8, N = NV * Vec<A>::width;
    std::vector<A> other(size_t(k) * N);
    for (int64_t i = begin; i < end; i += N) {
        const int64_t count = end - i < N ? end - i : N;
        for (int c = 0; c < k; ++c)
            for (int64_t l = 0; l < N; ++l)
                other[size_t(c) * N + size_t(l)] = l < count && m.row_label[i + l] != c ? A(1) : A(0);
        tile_pass<T, A, NV>(m, other.data(), all, i, count, shrink, add_to);
    }
}

template <class T, class A>
MODCUT_INLINE void part(const Matrix<T, A>& m, const A* all, int64_t pitch, int k, int64_t begin, int64_t end,
                        bool shrink, bool add_to) {
    if (m.transposed)
        tiles_pass<T, A>(m, all, k, begin, end, shrink, add_to);
    else
        rows_pass<T, A>(m, all, pitch, begin, end, shrink, add_to);
}

#define MODCUT_SHARE_PART(name, T, A)                                                                                  \
    MODCUT_LEVELS(name,                                                                                                \
                  (const Matrix<T, A>& m, const A* all, int64_t pitch, int k, int64_t begin, int64_t end, bool shrink, \
                   bool add_to),                                                                                       \
                  { part(m, all, pitch, k, begin, end, shrink, add_to); })                                             \
    inline void dispatch(const Matrix<T, A>& m, const A* all, int64_t pitch, int k, int64_t begin, int64_t end,        \
                         bool shrink, bool add_to) {                                                                   \
        MODCUT_AT_LEVEL(name, m, all, pitch, k, begin, end, shrink, add_to);                                           \
    }
using simd::level;
MODCUT_SHARE_PART(part_f32, float, float)
MODCUT_SHARE_PART(part_bf16, bf16, float)
MODCUT_SHARE_PART(part_f64, double, double)
#undef MODCUT_SHARE_PART

}  // namespace detail

// One pass over every matrix. `shrink`: the proximal step in place; else gradients where there is a place for them,
// added to what is there where `add_to` says so.
template <class T, class A>
void run(std::vector<Matrix<T, A>>& matrices, int k, bool shrink, bool add_to, int threads) {
    std::vector<detail::Tables<T, A>> tables;
    tables.reserve(matrices.size());
    for (const auto& m : matrices) tables.emplace_back(m, k);
    run_team(threads, [&](auto& team) {
        for (size_t i = 0; i < matrices.size(); ++i) {
            // Whole tiles for each rank: a tile's sums must not depend on the number of threads.
            const Range mine = modcut::share(team, matrices[i].rows, 128);
            if (mine.begin < mine.end)
                detail::dispatch(matrices[i], tables[i].all, tables[i].pitch, k, mine.begin, mine.end, shrink, add_to);
            team.sync();  // the next matrix may be other rows and columns of the same memory
        }
    });
}

}  // namespace modcut::leak
