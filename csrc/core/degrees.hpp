// Strengths (weighted degrees) of all vertices and the checks of every entry, in one pass over the weights.
#pragma once
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "core/sums.hpp"
#include "core/team.hpp"
#include "core/views.hpp"

namespace modcut {

struct Degrees {
    std::vector<double> d;    // [n], compensated
    std::vector<int64_t> di;  // [n], exact; only for int64 capacities
    int64_t slots = 0;        // stored entries, both directions
    int64_t nonzero = 0;      // of which not zero
    double total = 0;         // sum of d
};

template <class T>
bool bad_entry(T w) {
    if constexpr (std::is_integral_v<T>)
        return w < 0;
    else
        return !(w >= T(0) && w <= std::numeric_limits<T>::max());
}

template <class T>
std::string describe_entry(T w) {
    if (w != w) return "NaN";
    if (w < 0) return std::to_string(w) + ", which is negative";
    return "infinity";
}

namespace detail {
inline constexpr int64_t kIntLimit = int64_t(1) << 60;  // residuals hold 2c and excess sums: two bits of room
}  // namespace detail

// One rank's part: rows [r.begin, r.end) and columns likewise of every block, so no two ranks write one vertex of a
// block.
template <class Team>
void degrees_of(Team& team, const GraphView& g, std::vector<Sum>& sum, std::vector<__int128>& isum,
                std::vector<int64_t>& nnz, std::vector<std::string>& error) {
    const int me = team.rank();
    auto fail = [&](const std::string& what, int64_t i, int64_t j, const std::string& value) {
        if (error[me].empty())
            error[me] = "capacities must be finite and non-negative: " + what + "[" + std::to_string(i) + ", " +
                        std::to_string(j) + "] is " + value;
    };
    for (size_t k = 0; k < g.blocks.size(); ++k) {
        const BlockView& b = g.blocks[k];
        with_scalar(b.type, b.data, [&](auto* data) {
            using T = std::remove_const_t<std::remove_pointer_t<decltype(data)>>;
            const bool overlap = b.row0 < b.col0 + b.cols && b.col0 < b.row0 + b.rows;
            Range rr = share(team, b.rows);
            for (int64_t i = rr.begin; i < rr.end; ++i) {
                const T* row = data + i * b.stride;
                const int64_t x = b.row0 + i, diag = overlap ? x - b.col0 : -1;
                int64_t bad = 0, count = 0;
                for (int64_t j = 0; j < b.cols; ++j) {
                    bad += bad_entry(row[j]);
                    count += row[j] != T(0);
                }
                const bool has_diag = diag >= 0 && diag < b.cols;
                if (bad)
                    for (int64_t j = 0; j < b.cols; ++j)
                        if (bad_entry(row[j])) {
                            fail("blocks[" + std::to_string(k) + "]", i, j, describe_entry(row[j]));
                            break;
                        }
                if (has_diag) count -= row[diag] != T(0);
                nnz[me] += count * (b.symmetric ? 1 : 2);
                if constexpr (std::is_integral_v<T>) {
                    __int128 s = 0;
                    for (int64_t j = 0; j < b.cols; ++j) s += row[j];
                    if (has_diag) s -= row[diag];
                    isum[x] += s;
                } else if (!bad) {
                    if (has_diag) {
                        sum[x].add(row_sum(row, diag));
                        sum[x].add(row_sum(row + diag + 1, b.cols - diag - 1));
                    } else {
                        sum[x].add(row_sum(row, b.cols));
                    }
                }
            }
            team.sync();  // the same vertex may be a row of one rank and a column of another
            if (!b.symmetric) {
                Range cr = share(team, b.cols);
                for (int64_t i = 0; i < b.rows; ++i) {
                    const T* row = data + i * b.stride;
                    const int64_t skip = overlap ? b.row0 + i - b.col0 : -1;
                    for (int64_t j = cr.begin; j < cr.end; ++j) {
                        if (j == skip) continue;
                        if constexpr (std::is_integral_v<T>)
                            isum[b.col0 + j] += row[j];
                        else
                            sum[b.col0 + j].add(double(row[j]));
                    }
                }
            }
            team.sync();
        });
    }
    if (g.has_csr) {
        with_scalar(g.csr.type, g.csr.data, [&](auto* data) {
            using T = std::remove_const_t<std::remove_pointer_t<decltype(data)>>;
            Range rr = share(team, g.n);
            for (int64_t x = rr.begin; x < rr.end; ++x)
                for (int64_t p = g.csr.indptr[x]; p < g.csr.indptr[x + 1]; ++p) {
                    const int64_t y = g.csr.index(p);
                    if (bad_entry(data[p])) fail("csr", x, y, describe_entry(data[p]));
                    if (y == x || data[p] == T(0)) continue;
                    ++nnz[me];
                    if constexpr (std::is_integral_v<T>)
                        isum[x] += data[p];
                    else
                        sum[x].add(double(data[p]));
                }
        });
    }
}

inline int64_t slots(const GraphView& g) {
    int64_t out = g.has_csr ? g.csr.nnz : 0;
    for (const BlockView& b : g.blocks) out += b.rows * b.cols * (b.symmetric ? 1 : 2);
    return out;
}

inline Degrees degrees(const GraphView& g, int threads) {
    std::vector<Sum> sum(g.n);
    std::vector<__int128> isum(g.integral ? g.n : 0);
    threads = std::max(1, threads);
    std::vector<int64_t> nnz(threads);
    std::vector<std::string> error(threads);
    run_team(threads, [&](auto& team) { degrees_of(team, g, sum, isum, nnz, error); });
    for (auto& e : error)
        if (!e.empty()) throw InputError(e);
    Degrees out;
    out.d.resize(g.n);
    if (g.integral) out.di.resize(g.n);
    __int128 itotal = 0;
    Sum total;
    for (int64_t x = 0; x < g.n; ++x) {
        if (g.integral) {
            itotal += isum[x];
            if (itotal >= detail::kIntLimit)
                throw InputError(
                    "integer capacities are too large: their sum (each edge counted twice) must stay below 2^60");
            out.di[x] = int64_t(isum[x]);
            out.d[x] = double(out.di[x]);
        } else {
            out.d[x] = sum[x].value();
        }
        total.add(out.d[x]);
    }
    out.total = total.value();
    if (!(out.total <= std::numeric_limits<double>::max()))
        throw InputError("float capacities are too large: their sum overflows float64; scale them down");
    for (int64_t c : nnz) out.nonzero += c;
    out.slots = slots(g);
    return out;
}

}  // namespace modcut
