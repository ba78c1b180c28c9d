// Inner loops of the proofs, written once in vectors of fixed width and compiled for several instruction sets, of which
// the machine's best is taken at run time. Equal lanes and no fused operations: the same bits whichever is taken.
#pragma once
#include <cstdint>
#include <cstring>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__SANITIZE_THREAD__) && !defined(__SANITIZE_ADDRESS__)
#define MODCUT_X86_LEVELS 1
#endif
#define MODCUT_INLINE inline __attribute__((always_inline))

namespace modcut::simd {

typedef double D8 __attribute__((vector_size(64)));
typedef float F8 __attribute__((vector_size(32)));
typedef float F16 __attribute__((vector_size(64)));

// 2: AVX-512, 1: AVX2, 0: what every machine has.
inline int level() {
#if defined(MODCUT_X86_LEVELS)
    static const int found = __builtin_cpu_supports("avx512f") ? 2 : __builtin_cpu_supports("avx2") ? 1 : 0;
    return found;
#else
    return 0;
#endif
}

#if defined(MODCUT_X86_LEVELS)
#define MODCUT_LEVELS(name, parameters, body)                               \
    __attribute__((target("avx512f"))) inline void name##_2 parameters body \
        __attribute__((target("avx2"))) inline void name##_1 parameters body inline void name##_0 parameters body
#define MODCUT_AT_LEVEL(name, ...) \
    (level() == 2 ? name##_2(__VA_ARGS__) : level() == 1 ? name##_1(__VA_ARGS__) : name##_0(__VA_ARGS__))
#else
#define MODCUT_LEVELS(name, parameters, body) inline void name##_0 parameters body
#define MODCUT_AT_LEVEL(name, ...) name##_0(__VA_ARGS__)
#endif

// ---- one row of weights against the strengths of its columns

struct RowStats {
    double top = 0;      // max of w * inverse_top
    double squares = 0;  // sum of w * w * inverse
    double sum = 0;      // sum of w
};

namespace detail {

MODCUT_INLINE void load(D8& out, const double* p) { std::memcpy(&out, p, sizeof out); }
MODCUT_INLINE void load(D8& out, const float* p) {
    F8 v;
    std::memcpy(&v, p, sizeof v);
    out = __builtin_convertvector(v, D8);
}

template <class T>
MODCUT_INLINE void row_stats(const T* w, const double* inverse, const double* inverse_top, int64_t n, RowStats& out) {
    D8 top = {}, squares = {}, sum = {};
    int64_t j = 0;
    for (; j + 8 <= n; j += 8) {
        D8 v, inv, inv_top;
        load(v, w + j), load(inv, inverse + j), load(inv_top, inverse_top + j);
        const D8 q = v * inv_top;
        top = q > top ? q : top;
        squares += v * (v * inv);
        sum += v;
    }
    for (; j < n; ++j) {
        const double v = double(w[j]), q = v * inverse_top[j];
        if (q > top[0]) top[0] = q;
        squares[0] += v * (v * inverse[j]);
        sum[0] += v;
    }
    for (int k = 0; k < 8; ++k) {
        if (top[k] > out.top) out.top = top[k];
        out.squares += squares[k];
        out.sum += sum[k];
    }
}

// Four rows (of stride `stride`) against all columns: what the columns see.
template <class T, int R>
MODCUT_INLINE void column_stats(const T* w, int64_t stride, const double* inverse, const double* inverse_top, int64_t n,
                                double* top, double* squares, double* sum) {
    int64_t j = 0;
    for (; j + 8 <= n; j += 8) {
        D8 t, q, s;
        load(t, top + j), load(q, squares + j), load(s, sum + j);
        for (int r = 0; r < R; ++r) {
            D8 v;
            load(v, w + r * stride + j);
            const D8 ratio = v * inverse_top[r];
            t = ratio > t ? ratio : t;
            q += v * (v * inverse[r]);
            s += v;
        }
        std::memcpy(top + j, &t, sizeof t), std::memcpy(squares + j, &q, sizeof q), std::memcpy(sum + j, &s, sizeof s);
    }
    for (; j < n; ++j)
        for (int r = 0; r < R; ++r) {
            const double v = double(w[r * stride + j]), ratio = v * inverse_top[r];
            if (ratio > top[j]) top[j] = ratio;
            squares[j] += v * (v * inverse[r]);
            sum[j] += v;
        }
}

template <class T>
MODCUT_INLINE void all_columns(const T* w, int64_t stride, int rows, const double* inverse, const double* inverse_top,
                               int64_t n, double* top, double* squares, double* sum) {
    int r = 0;
    for (; r + 4 <= rows; r += 4)
        column_stats<T, 4>(w + r * stride, stride, inverse + r, inverse_top + r, n, top, squares, sum);
    for (; r < rows; ++r)
        column_stats<T, 1>(w + r * stride, stride, inverse + r, inverse_top + r, n, top, squares, sum);
}

// Products of rows of floats: c[r][k] += sum over i of a[i][r] * b[i][k], both panels of 32 columns.
template <class V, int NV, int MR>
MODCUT_INLINE void panel_product(const float* a, const float* b, int64_t rows, float* c, int64_t stride) {
    constexpr int W = int(sizeof(V) / sizeof(float));
    for (int r0 = 0; r0 < 32; r0 += MR)
        for (int k0 = 0; k0 < 32; k0 += NV * W) {
            V acc[MR][NV] = {};
            for (int64_t i = 0; i < rows; ++i) {
                V v[NV];
                for (int k = 0; k < NV; ++k) std::memcpy(&v[k], b + i * 32 + k0 + k * W, sizeof(V));
                for (int r = 0; r < MR; ++r) {
                    const float f = a[i * 32 + r0 + r];
                    for (int k = 0; k < NV; ++k) acc[r][k] += v[k] * f;
                }
            }
            for (int r = 0; r < MR; ++r)
                for (int k = 0; k < NV; ++k) {
                    V v;
                    float* at = c + (r0 + r) * stride + k0 + k * W;
                    std::memcpy(&v, at, sizeof v);
                    v += acc[r][k];
                    std::memcpy(at, &v, sizeof v);
                }
        }
}

// out[j] -= sum over p of f[p] * t[p * 64 + j], j < count <= 64; the row of the trailing update of a factorisation.
MODCUT_INLINE void subtract_products(double* out, int64_t count, const double* f, const double* t, int64_t terms) {
    D8 acc[8] = {};
    for (int64_t p = 0; p < terms; ++p)
        for (int k = 0; k < 8; ++k) {
            D8 v;
            load(v, t + p * 64 + k * 8);
            acc[k] += v * f[p];
        }
    for (int64_t j = 0; j < count; ++j) out[j] -= acc[j / 8][j % 8];
}

MODCUT_INLINE void dot(const float* a, const double* x, int64_t n, double& out) {
    D8 sum = {};
    int64_t j = 0;
    for (; j + 8 <= n; j += 8) {
        D8 v, u;
        load(v, a + j), load(u, x + j);
        sum += v * u;
    }
    for (; j < n; ++j) sum[0] += double(a[j]) * x[j];
    out = ((sum[0] + sum[1]) + (sum[2] + sum[3])) + ((sum[4] + sum[5]) + (sum[6] + sum[7]));
}

}  // namespace detail

MODCUT_LEVELS(dot_f32, (const float* a, const double* x, int64_t n, double& out), { detail::dot(a, x, n, out); })
inline double dot(const float* a, const double* x, int64_t n) {
    double out = 0;
    MODCUT_AT_LEVEL(dot_f32, a, x, n, out);
    return out;
}
MODCUT_LEVELS(subtract_products_f64, (double* out, int64_t count, const double* f, const double* t, int64_t terms),
              { detail::subtract_products(out, count, f, t, terms); })
inline void subtract_products(double* out, int64_t count, const double* f, const double* t, int64_t terms) {
    MODCUT_AT_LEVEL(subtract_products_f64, out, count, f, t, terms);
}
MODCUT_LEVELS(row_stats_f32, (const float* w, const double* inv, const double* top, int64_t n, RowStats& out),
              { detail::row_stats(w, inv, top, n, out); })
MODCUT_LEVELS(row_stats_f64, (const double* w, const double* inv, const double* top, int64_t n, RowStats& out),
              { detail::row_stats(w, inv, top, n, out); })
inline void row_stats(const float* w, const double* inv, const double* top, int64_t n, RowStats& out) {
    MODCUT_AT_LEVEL(row_stats_f32, w, inv, top, n, out);
}
inline void row_stats(const double* w, const double* inv, const double* top, int64_t n, RowStats& out) {
    MODCUT_AT_LEVEL(row_stats_f64, w, inv, top, n, out);
}

#define MODCUT_COLUMNS(T)                                                                                    \
    (const T* w, int64_t stride, int rows, const double* inv, const double* inv_top, int64_t n, double* top, \
     double* squares, double* sum)
MODCUT_LEVELS(column_stats_f32, MODCUT_COLUMNS(float),
              { detail::all_columns(w, stride, rows, inv, inv_top, n, top, squares, sum); })
MODCUT_LEVELS(column_stats_f64, MODCUT_COLUMNS(double),
              { detail::all_columns(w, stride, rows, inv, inv_top, n, top, squares, sum); })
#undef MODCUT_COLUMNS
inline void column_stats(const float* w, int64_t stride, int rows, const double* inv, const double* inv_top, int64_t n,
                         double* top, double* squares, double* sum) {
    MODCUT_AT_LEVEL(column_stats_f32, w, stride, rows, inv, inv_top, n, top, squares, sum);
}
inline void column_stats(const double* w, int64_t stride, int rows, const double* inv, const double* inv_top, int64_t n,
                         double* top, double* squares, double* sum) {
    MODCUT_AT_LEVEL(column_stats_f64, w, stride, rows, inv, inv_top, n, top, squares, sum);
}

#if defined(MODCUT_X86_LEVELS)
__attribute__((target("avx512f"))) inline void panel_product_2(const float* a, const float* b, int64_t rows, float* c,
                                                               int64_t stride) {
    detail::panel_product<F16, 2, 8>(a, b, rows, c, stride);
}
__attribute__((target("avx2"))) inline void panel_product_1(const float* a, const float* b, int64_t rows, float* c,
                                                            int64_t stride) {
    detail::panel_product<F8, 2, 4>(a, b, rows, c, stride);
}
#endif
inline void panel_product_0(const float* a, const float* b, int64_t rows, float* c, int64_t stride) {
    detail::panel_product<F8, 1, 4>(a, b, rows, c, stride);
}
inline void panel_product(const float* a, const float* b, int64_t rows, float* c, int64_t stride) {
    MODCUT_AT_LEVEL(panel_product, a, b, rows, c, stride);
}

}  // namespace modcut::simd
