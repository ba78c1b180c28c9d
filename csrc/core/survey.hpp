// What the proofs read of the weights, in one pass: sums of squares, largest ratios and strengths between cells.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <exception>
#include <vector>

#include "core/cells.hpp"
#include "core/degrees.hpp"
#include "core/simd.hpp"
#include "core/team.hpp"

namespace modcut {

// Of one pair of cells; w counts both pieces of a pair of vertices together, loops are left out.
struct PairSurvey {
    std::vector<double> row_sum, col_sum;  // w(x, b) for x in a; w(y, a) for y in b (empty where a == b)
    double squares = 0;                    // sum over x in a, y in b of w(x, y)^2 / (d(x) d(y))
};

struct Survey {
    Cells cells;                    // none for CSR input
    std::vector<PairSurvey> pairs;  // as cells.pairs
    std::vector<double> inverse;    // [n] 1 / d, 0 outside the surveyed vertices
    std::vector<double> top;        // [n] max over y of w(x, y) / d(y), y neither x nor, for x != hub, the hub
    std::vector<double> squares;    // [n] sum over y of w(x, y)^2 / d(y)
    double total_squares = 0;       // sum over x of squares(x) / d(x) = ||D^-1/2 W D^-1/2||_F^2
    bool valid = false;             // false: blocks beside CSR rows, too many cells, strengths near the ends of float64
};

namespace detail {

template <class T>
void survey_rows(const T* row, int64_t n, const double* inverse, const double* inverse_top, int64_t skip,
                 simd::RowStats& out) {
    auto part = [&](int64_t from, int64_t to) {
        if (to <= from) return;
        if constexpr (std::is_integral_v<T>) {
            for (int64_t j = from; j < to; ++j) {
                const double v = double(row[j]);
                out.top = std::max(out.top, v * inverse_top[j]);
                out.squares += v * (v * inverse[j]);
                out.sum += v;
            }
        } else {
            simd::row_stats(row + from, inverse + from, inverse_top + from, to - from, out);
        }
    };
    if (skip < 0 || skip >= n) return part(0, n);
    part(0, skip), part(skip + 1, n);
}

struct ColumnStats {
    std::vector<double> top, squares, sum;
    void clear(int64_t n) { top.assign(n, 0), squares.assign(n, 0), sum.assign(n, 0); }
};

template <class T>
void survey_columns(const T* rows, int64_t stride, int count, const double* inverse, const double* inverse_top,
                    int64_t n, ColumnStats& out) {
    if constexpr (std::is_integral_v<T>) {
        for (int r = 0; r < count; ++r)
            for (int64_t j = 0; j < n; ++j) {
                const double v = double(rows[r * stride + j]);
                out.top[j] = std::max(out.top[j], v * inverse_top[r]);
                out.squares[j] += v * (v * inverse[r]);
                out.sum[j] += v;
            }
    } else {
        simd::column_stats(rows, stride, count, inverse, inverse_top, n, out.top.data(), out.squares.data(),
                           out.sum.data());
    }
}

}  // namespace detail

// `member(x)` says which vertices are looked at (a union of connected components); `hub` is one of them. Sums of
// positive terms in eight lanes: relative errors below 1e-10. Ranks own bands of rows of fixed size, put together in
// order: the result does not depend on their number.
template <class Member>
Survey survey(const GraphView& g, const Degrees& deg, Member&& member, int32_t hub, int threads, Poll& poll) {
    Survey out;
    const int64_t n = g.n;
    out.inverse.assign(n, 0), out.top.assign(n, 0), out.squares.assign(n, 0);
    for (int64_t x = 0; x < n; ++x) {
        if (!member(x) || !(deg.d[x] > 0)) continue;
        if (deg.d[x] < 1e-280) return out;  // 1/d and w^2/d would leave the range of float64
        out.inverse[x] = 1 / deg.d[x];
    }
    std::vector<double> inverse_top = out.inverse;
    inverse_top[hub] = 0;
    if (g.has_csr) {
        if (!g.blocks.empty()) return out;
        for (int64_t x = 0; x < n; ++x)
            with_scalar(g.csr.type, g.csr.data, [&](auto* data) {
                if ((x & 1023) == 0) poll.check();
                if (out.inverse[x] == 0) return;
                for (int64_t p = g.csr.indptr[x]; p < g.csr.indptr[x + 1]; ++p) {
                    const int64_t y = g.csr.index(p);
                    if (y == x) continue;
                    const double w = double(data[p]);
                    out.squares[x] += w * (w * out.inverse[y]);
                    out.top[x] = std::max(out.top[x], w * inverse_top[y]);
                }
            });
    } else {
        out.cells = cells_of(g);
        if (out.cells.count == 0) return out;
        out.pairs.resize(out.cells.pairs.size());
        std::exception_ptr error;
        for (size_t k = 0; k < out.pairs.size(); ++k) {
            const CellPair& pair = out.cells.pairs[k];
            PairSurvey& ps = out.pairs[k];
            const int64_t rows = out.cells.size(pair.a), cols = out.cells.size(pair.b);
            const int64_t x0 = out.cells.begin[pair.a], y0 = out.cells.begin[pair.b];
            const bool square = pair.a == pair.b;
            ps.row_sum.assign(rows, 0);
            if (!square) ps.col_sum.assign(cols, 0);
            std::vector<double> row_squares(rows, 0);
            constexpr int64_t kBand = 512;  // rows whose column sums are added up apart
            const int64_t bands = (rows + kBand - 1) / kBand;
            std::vector<detail::ColumnStats> columns(square ? 0 : bands);
            run_team(bands > 1 ? threads : 1, [&](auto& team) {
                const Range mine = share(team, bands, 1);
                std::vector<double> scratch;
                for (int64_t band = mine.begin; band < mine.end; ++band) {
                    if (team.rank() == 0) {
                        poll.check();
                    }
                    const int64_t i0 = band * kBand, i1 = std::min(i0 + kBand, rows);
                    if (!square) columns[band].clear(cols);
                    for (int64_t i = i0; i < i1;) {
                        const int64_t upto = std::min(i1, i + 32);
                        const int64_t first = i;
                        for_each_row(out.cells, pair, first, upto, scratch, [&](auto* row, int64_t r) {
                            simd::RowStats s;
                            const int64_t x = x0 + r;
                            const double* tops = x == hub ? out.inverse.data() : inverse_top.data();
                            detail::survey_rows(row, cols, out.inverse.data() + y0, tops + y0, square ? r : -1, s);
                            ps.row_sum[r] = s.sum, row_squares[r] = s.squares;
                            out.top[x] = std::max(out.top[x], s.top);
                            if (square) return;
                            // Columns in groups of rows, while these are in cache. The hub's row raises no top but its
                            // own (inverse_top[hub] = 0), and the hub as a column sees every row.
                            const int64_t in_tile = r - first;
                            const bool last = r + 1 == upto;
                            const bool piece = pair.pieces.size() == 1;
                            if ((in_tile & 3) == 3 || last) {
                                const int count = int(in_tile & 3) + 1;
                                const int64_t stride = piece ? pair.pieces[0].block->stride : cols;
                                detail::survey_columns(row - (count - 1) * stride, stride, count,
                                                       out.inverse.data() + x - (count - 1),
                                                       inverse_top.data() + x - (count - 1), cols, columns[band]);
                            }
                        });
                        i = upto;
                    }
                }
            });
            for (int64_t r = 0; r < rows; ++r) {
                out.squares[x0 + r] += row_squares[r];
                ps.squares += row_squares[r] * out.inverse[x0 + r];
            }
            for (auto& c : columns)
                for (int64_t j = 0; j < cols; ++j) {
                    ps.col_sum[j] += c.sum[j];
                    out.squares[y0 + j] += c.squares[j];
                    out.top[y0 + j] = std::max(out.top[y0 + j], c.top[j]);
                }
        }
    }
    for (int64_t x = 0; x < n; ++x) out.total_squares += out.squares[x] * out.inverse[x];
    out.valid = true;
    return out;
}

}  // namespace modcut
