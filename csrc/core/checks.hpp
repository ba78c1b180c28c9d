// Checks of the input. The structure is that symmetric blocks and rows are symmetric; the values are for degrees(), or
// for cut_ends(), which reads a graph once for both checks where only two strengths are wanted.
#pragma once
#include <algorithm>
#include <string>
#include <vector>

#include "core/degrees.hpp"
#include "core/views.hpp"

namespace modcut {

namespace detail {

// Names the first entry at fault; returns where none is.
inline void find_fault(const GraphView& g) {
    for (size_t k = 0; k < g.blocks.size(); ++k) {
        const BlockView& b = g.blocks[k];
        if (!b.symmetric) continue;
        with_scalar(b.type, b.data, [&](auto* data) {
            constexpr int64_t T = 32;
            for (int64_t i0 = 0; i0 < b.rows; i0 += T)
                for (int64_t j0 = 0; j0 <= i0; j0 += T) {
                    bool same = true;
                    const int64_t i1 = std::min(i0 + T, b.rows), j1 = std::min(j0 + T, b.rows);
                    for (int64_t i = i0; i < i1; ++i)
                        for (int64_t j = j0; j < j1; ++j) same &= data[i * b.stride + j] == data[j * b.stride + i];
                    if (same) continue;
                    for (int64_t i = i0; i < i1; ++i)
                        for (int64_t j = j0; j < j1; ++j) {
                            const auto x = data[i * b.stride + j], y = data[j * b.stride + i];
                            if (i != j && x == x && y == y && x != y)  // NaN is degrees()' to report
                                throw InputError("blocks[" + std::to_string(k) +
                                                 "] is declared symmetric, but entries [" + std::to_string(i) + ", " +
                                                 std::to_string(j) + "] and its mirror differ");
                        }
                }
        });
    }
    if (!g.has_csr) return;
    const CsrView& c = g.csr;
    auto at = [](int64_t x, int64_t y) { return "csr[" + std::to_string(x) + ", " + std::to_string(y) + "]"; };
    if (c.indptr[0] != 0 || c.indptr[g.n] != c.nnz)
        throw InputError("csr indptr must start at 0 and end at the number of entries");
    for (int64_t x = 0; x < g.n; ++x)
        if (c.indptr[x + 1] < c.indptr[x])
            throw InputError("csr indptr must not decrease, but does at row " + std::to_string(x));
    for (int64_t x = 0; x < g.n; ++x)
        for (int64_t p = c.indptr[x]; p < c.indptr[x + 1]; ++p) {
            if (c.index(p) < 0 || c.index(p) >= g.n)
                throw InputError("csr indices must be between 0 and n-1 (" + std::to_string(g.n - 1) + "), got " +
                                 std::to_string(c.index(p)) + " in row " + std::to_string(x));
            if (p > c.indptr[x] && c.index(p) <= c.index(p - 1))
                throw InputError(
                    "csr columns must increase strictly in each row (sum duplicates and sort first), but row " +
                    std::to_string(x) + " does not");
        }
    // Rows are sorted, so walking all rows in order meets the mirrors of row y in its own order.
    std::vector<int64_t> next(c.indptr, c.indptr + g.n);
    with_scalar(c.type, c.data, [&](auto* data) {
        for (int64_t x = 0; x < g.n; ++x)
            for (int64_t p = c.indptr[x]; p < c.indptr[x + 1]; ++p) {
                const int64_t y = c.index(p);
                const int64_t q = next[y]++;
                if (q >= c.indptr[y + 1] || c.index(q) != x)
                    throw InputError("csr must be symmetric, but the mirror of " + at(x, y) + " is missing");
                if (data[p] == data[p] && data[q] == data[q] && data[p] != data[q])
                    throw InputError("csr must be symmetric, but " + at(x, y) + " and its mirror differ");
            }
    });
}

// What one reading of a graph finds.
struct Reading {
    bool fault = false;   // of structure or of a value: which one is for find_fault() and degrees() to say
    int64_t nonzero = 0;  // stored entries, both directions
    double total = 0;     // of floats, about; to see whether the sum overflows
    __int128 integers = 0;
    void add(const Reading& o) { fault |= o.fault, nonzero += o.nonzero, total += o.total, integers += o.integers; }
};

template <class T>
void read_row(const T* row, int64_t n, int64_t times, Reading& out) {
    int64_t count = 0;
    if constexpr (std::is_integral_v<T>) {
        uint64_t any = 0, sum = 0;
        for (int64_t j = 0; j < n; ++j) any |= uint64_t(row[j]), sum += uint64_t(row[j]), count += row[j] != 0;
        out.fault |= int64_t(any) < 0;
        if (any < uint64_t(1) << 32 && n < int64_t(1) << 31) {
            out.integers += __int128(sum) * times;
        } else {
            for (int64_t j = 0; j < n; ++j) out.integers += __int128(row[j]) * times;
        }
    } else {
        constexpr int L = 8;
        T low[L] = {}, sum[L] = {};
        int64_t nonzero[L] = {}, j = 0;
        bool bad = false;
        for (; j + L <= n; j += L)
            for (int k = 0; k < L; ++k) {
                const T w = row[j + k];
                low[k] = w < low[k] ? w : low[k];
                sum[k] += w;
                nonzero[k] += w != T(0);
            }
        T all = 0;
        for (; j < n; ++j) bad |= bad_entry(row[j]), count += row[j] != T(0), all += row[j];
        for (int k = 0; k < L; ++k) bad |= low[k] < 0, count += nonzero[k], all += sum[k];
        if (!(all <= std::numeric_limits<T>::max()))  // a NaN or an infinity, or a sum beyond T
            for (j = 0; j < n; ++j) bad |= bad_entry(row[j]);
        out.fault |= bad;
        if (all <= std::numeric_limits<T>::max())
            out.total += double(all) * double(times);
        else
            for (j = 0; j < n; ++j) out.total += double(row[j]) * double(times);
    }
    out.nonzero += count * times;
}

// Whether the square of `size` rows and columns at (i0, j0) mirrors that at (j0, i0).
template <class T>
bool mirrors(const T* data, int64_t stride, int64_t i0, int64_t i1, int64_t j0, int64_t j1) {
    constexpr int64_t S = 32;
    T turned[S][S + 1];  // the mirror image, read along its rows
    for (int64_t j = j0; j < j1; ++j)
        for (int64_t i = i0; i < i1; ++i) turned[i - i0][j - j0] = data[j * stride + i];
    bool same = true;
    for (int64_t i = i0; i < i1; ++i) {
        const T *row = data + i * stride + j0, *other = turned[i - i0];
        int64_t differ = 0;
        for (int64_t j = 0; j < j1 - j0; ++j) differ += row[j] != other[j];
        same &= differ == 0;
    }
    return same;
}

template <bool kValues, class Team>
void read_block(Team& team, const BlockView& b, Reading& out) {
    with_scalar(b.type, b.data, [&](auto* data) {
        constexpr int64_t S = 32;
        const int64_t panels = (b.rows + S - 1) / S;
        for (int64_t panel = team.rank(); panel < panels; panel += team.size()) {
            const int64_t i0 = panel * S, i1 = std::min(i0 + S, b.rows);
            if constexpr (kValues)
                for (int64_t i = i0; i < i1; ++i) read_row(data + i * b.stride, b.cols, b.symmetric ? 1 : 2, out);
            if (!b.symmetric) continue;
            for (int64_t j0 = 0; j0 <= i0; j0 += S)
                out.fault |= !mirrors(data, b.stride, i0, i1, j0, std::min(j0 + S, b.rows));
        }
    });
}

// Rows are sorted, so walking all rows in order meets the mirrors of row y in its own order.
template <bool kValues, class Index, class T>
void read_rows(const CsrView& c, int64_t n, const Index* columns, const T* data, Reading& out) {
    std::vector<int64_t> next(c.indptr, c.indptr + n);
    for (int64_t x = 0; x < n; ++x) {
        int64_t before = -1;
        for (int64_t p = c.indptr[x]; p < c.indptr[x + 1]; ++p) {
            const int64_t y = columns[p];
            if (y <= before || y >= n) return void(out.fault = true);
            before = y;
            const int64_t q = next[y]++;
            if (q >= c.indptr[y + 1] || int64_t(columns[q]) != x || data[p] != data[q]) return void(out.fault = true);
        }
        if constexpr (kValues) read_row(data + c.indptr[x], c.indptr[x + 1] - c.indptr[x], 1, out);
    }
}

template <bool kValues>
Reading read_graph(const GraphView& g, int threads) {
    int64_t entries = 0;
    for (const BlockView& b : g.blocks) entries += b.rows * b.cols;
    if (entries < (int64_t(1) << 21)) threads = 1;  // a thread costs more than this reading
    std::vector<Reading> part(size_t(std::max(1, threads)));
    run_team(threads, [&](auto& team) {
        for (const BlockView& b : g.blocks)
            if (kValues || b.symmetric) read_block<kValues>(team, b, part[team.rank()]);
    });
    Reading out;
    for (const Reading& r : part) out.add(r);
    if (g.has_csr) {
        const CsrView& c = g.csr;
        out.fault |= c.indptr[0] != 0 || c.indptr[g.n] != c.nnz;
        for (int64_t x = 0; x < g.n; ++x) out.fault |= c.indptr[x + 1] < c.indptr[x];
        if (!out.fault)
            with_scalar(c.type, c.data, [&](auto* data) {
                if (c.wide)
                    read_rows<kValues>(c, g.n, static_cast<const int64_t*>(c.indices), data, out);
                else
                    read_rows<kValues>(c, g.n, static_cast<const int32_t*>(c.indices), data, out);
            });
    }
    return out;
}

}  // namespace detail

inline void check_structure(const GraphView& g, int threads = 1) {
    if (detail::read_graph<false>(g, threads).fault) detail::find_fault(g);
}

// Checks everything in one reading; the strengths of s and t, and zeros for the others.
inline Degrees cut_ends(const GraphView& g, int64_t s, int64_t t, int threads) {
    const detail::Reading r = detail::read_graph<true>(g, threads);
    if (r.fault || r.integers >= detail::kIntLimit || !(r.total <= std::numeric_limits<double>::max())) {
        detail::find_fault(g);
        return degrees(g, threads);  // says which value is bad; there may be none, as loops do not count
    }
    Degrees out;
    out.d.resize(g.n);
    if (g.integral) out.di.resize(g.n);
    for (int64_t x : {s, t}) {
        Sum sum;
        int64_t isum = 0;
        for_each_entry(g, x, [&](int64_t, auto w) {
            if constexpr (std::is_integral_v<decltype(w)>)
                isum += w;
            else
                sum.add(double(w));
        });
        out.d[x] = g.integral ? double(isum) : sum.value();
        if (g.integral) out.di[x] = isum;
    }
    out.nonzero = r.nonzero;
    out.slots = slots(g);
    return out;
}

}  // namespace modcut
