// Strengths and survey in one reading, against strengths guessed beforehand: those of the tree of the step before. What
// is found holds for any guess; a poor one only makes the bounds loose. Statement: docs/mathematics.md, section 5.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>
#include <vector>

#include "core/cells.hpp"
#include "core/checks.hpp"
#include "core/components.hpp"
#include "core/degrees.hpp"
#include "core/simd_glance.hpp"
#include "core/survey.hpp"
#include "core/team.hpp"

namespace modcut {

struct Glance {
    Degrees deg;      // `nonzero` is not counted: an upper bound
    Survey survey;    // of the vertices with strength; tops and squares are upper bounds
    Components comp;  // as if those vertices were connected: a proven gap says that they are
    bool valid = false;
};

// Weights and their gap as they were when it was proven.
struct Anchor {
    std::vector<BlockView> blocks;  // as those of the graph now, one by one
    const double* d = nullptr;      // [n]
    double nu = 0;
};

namespace detail {

inline constexpr double kGlanceRounding = 1 + 2e-4;  // float sums of 128 x 1024 terms: below 1e-4

// A band of rows of a pair of cells, and what its columns got from it.
struct Band {
    size_t pair;
    int64_t begin, end;
    size_t at;  // of its columns, in the buffers
};

template <class T>
class Glancer {
public:
    Glancer(const GraphView& g, const double* guess, Glance& out) : g_(g), out_(out), guess_(guess) {}

    // False where the reading is not for this: another kind of input, an entry that is no capacity.
    bool read(int threads, Poll& poll) {
        Survey& s = out_.survey;
        const int64_t n = g_.n;
        inverse_.assign(size_t(n) + 16, 0);
        double largest = 0;
        for (int64_t x = 0; x < n; ++x)
            if (guess_[x] < kMost) largest = std::max(largest, guess_[x]);
        for (int64_t x = 0; x < n; ++x) {
            const double d = std::isinf(guess_[x]) ? largest : guess_[x];
            if (d > kLeast && d < kMost) inverse_[x] = T(1 / d);
        }
        size_t columns = 0;
        for (size_t k = 0; k < s.cells.pairs.size(); ++k) {
            const CellPair& p = s.cells.pairs[k];
            const int64_t rows = s.cells.size(p.a);
            for (int64_t i = 0; i < rows; i += kBand) {
                bands_.push_back({k, i, std::min(i + kBand, rows), columns});
                if (p.a != p.b) columns += size_t(s.cells.size(p.b) + 15) / 16 * 16;
            }
        }
        sum_.assign(columns, 0), top_.assign(columns, 0), squares_.assign(columns, 0);
        if (sizeof(T) == 8) rest_.assign(columns, 0);
        rows_.resize(bands_.size());
        if (slots(g_) < (int64_t(1) << 21)) threads = 1;  // a thread costs more than this reading
        std::vector<uint8_t> bad(size_t(std::max(1, threads)));
        run_team(threads, [&](auto& team) {
            Scratch scratch;
            // In stripes: bands of one pair are alike, pairs are not.
            for (size_t b = size_t(team.rank()); b < bands_.size(); b += size_t(team.size())) {
                if (team.rank() == 0) poll.check();
                if (!band(bands_[b], rows_[b], scratch)) bad[team.rank()] = 1;
            }
        });
        if (std::any_of(bad.begin(), bad.end(), [](uint8_t x) { return x; })) return false;
        fold();
        return loosen();
    }

private:
    static constexpr int64_t kBand = 128, kWide = 1024, kTurned = 256;
    static constexpr double kLeast = 1e-9, kMost = 1e9;  // strengths: what underflows then is below 1e-15 of any sum
    struct Scratch {
        std::vector<T> turned, both;
    };
    using Rows = std::vector<simd::RowGlance<T>>;

    bool band(const Band& b, Rows& rows, Scratch& scratch) {
        const Cells& cells = out_.survey.cells;
        const CellPair& p = cells.pairs[b.pair];
        const int64_t x0 = cells.begin[p.a], y0 = cells.begin[p.b], columns = cells.size(p.b), count = b.end - b.begin;
        const bool square = p.a == p.b;
        if (square && p.pieces.size() > 1) return false;
        rows.assign(size_t(count), {});
        const int magnitude = g_.magnitude ? simd::kMagnitude : 0, side = square ? 0 : simd::kColumns;
        const T* inverse_row = inverse_.data() + x0 + b.begin;
        auto columns_at = [&](int64_t j) {
            simd::ColumnGlance<T> c;
            if (square) return c;
            const size_t at = b.at + size_t(j);
            c.sum = sum_.data() + at, c.rest = rest_.empty() ? nullptr : rest_.data() + at;
            c.top = top_.data() + at, c.squares = squares_.data() + at;
            return c;
        };
        if (p.pieces.size() == 1) {
            const Piece& piece = p.pieces[0];
            const int64_t stride = piece.block->stride;
            const T* data = static_cast<const T*>(piece.block->data) + (piece.row + b.begin) * stride + piece.col;
            const int what = simd::kSums | simd::kRatios | magnitude | side;
            auto part = [&](int64_t i, int64_t n, int64_t from, int64_t to) {
                for (int64_t j = from; j < to; j += kWide)
                    simd::glance(what, data + i * stride + j, stride, int(n), std::min(kWide, to - j),
                                 inverse_.data() + y0 + j, inverse_row + i, rows.data() + i, columns_at(j));
            };
            if (!square) {
                part(0, count, 0, columns);
            } else {
                for (int64_t i = 0; i < count; i += 4) {  // around the diagonal
                    const int64_t m = std::min<int64_t>(4, count - i), at = b.begin + i;
                    part(i, m, 0, at), part(i, m, at + m, columns);
                    for (int64_t r = 0; r < m; ++r) part(i + r, 1, at, at + r), part(i + r, 1, at + r + 1, at + m);
                }
            }
        } else {
            scratch.turned.resize(size_t(kBand * kTurned)), scratch.both.resize(size_t(kBand * kTurned));
            T *turned = scratch.turned.data(), *both = scratch.both.data();
            for (int64_t j = 0; j < columns; j += kTurned) {
                const int64_t width = std::min(kTurned, columns - j);
                for (size_t k = 0; k < p.pieces.size(); ++k) {
                    const Piece& piece = p.pieces[k];
                    const int64_t stride = piece.block->stride;
                    const T* data = static_cast<const T*>(piece.block->data);
                    const T* in = turned;
                    int64_t step = kTurned;
                    if (piece.transposed) {
                        simd::turned(data + (piece.row + j) * stride + piece.col + b.begin, stride, width, count,
                                     turned, kTurned);
                    } else {
                        in = data + (piece.row + b.begin) * stride + piece.col + j, step = stride;
                    }
                    simd::glance(simd::kSums | magnitude | side, in, step, int(count), width, inverse_.data(),
                                 inverse_row, rows.data(), columns_at(j));
                    for (int64_t i = 0; i < count; ++i) {
                        const T* row = in + i * step;
                        T* sum = both + i * kTurned;
                        if (k == 0)
                            for (int64_t c = 0; c < width; ++c) sum[c] = std::abs(row[c]);
                        else
                            for (int64_t c = 0; c < width; ++c) sum[c] += std::abs(row[c]);
                    }
                }
                simd::glance(simd::kRatios | side, both, kTurned, int(count), width, inverse_.data() + y0 + j,
                             inverse_row, rows.data(), columns_at(j));
            }
        }
        return std::all_of(rows.begin(), rows.end(), [](const simd::RowGlance<T>& r) {
            return r.low >= 0 && r.sum.value() <= std::numeric_limits<double>::max() && std::isfinite(r.squares);
        });
    }

    // Bands in their order: strengths, and what the survey holds of rows and columns.
    void fold() {
        Survey& s = out_.survey;
        const int64_t n = g_.n;
        std::vector<Sum> strength(n), column;
        s.top.assign(n, 0), s.squares.assign(n, 0), s.pairs.resize(s.cells.pairs.size());
        for (size_t b = 0; b < bands_.size();) {
            const size_t k = bands_[b].pair;
            const CellPair& p = s.cells.pairs[k];
            PairSurvey& ps = s.pairs[k];
            const int64_t x0 = s.cells.begin[p.a], y0 = s.cells.begin[p.b], columns = s.cells.size(p.b);
            ps.row_sum.assign(s.cells.size(p.a), 0);
            const bool square = p.a == p.b;
            column.assign(square ? 0 : columns, {});
            for (; b < bands_.size() && bands_[b].pair == k; ++b) {
                const Band& band = bands_[b];
                for (size_t r = 0; r < rows_[b].size(); ++r) {
                    const simd::RowGlance<T>& row = rows_[b][r];
                    const int64_t x = x0 + band.begin + int64_t(r);
                    strength[x].add(row.sum);
                    ps.row_sum[band.begin + int64_t(r)] = row.sum.value();
                    s.top[x] = std::max(s.top[x], double(row.top));
                    s.squares[x] += double(row.squares);
                    ps.squares += double(row.squares) * double(inverse_[x]);
                }
                if (square) continue;
                for (int64_t j = 0; j < columns; ++j) {
                    const size_t at = band.at + size_t(j);
                    column[j].add(Sum{sum_[at], rest_.empty() ? 0.0 : rest_[at]});
                    s.top[y0 + j] = std::max(s.top[y0 + j], double(top_[at]));
                    s.squares[y0 + j] += double(squares_[at]);
                }
            }
            if (!square) ps.col_sum.resize(columns);
            for (size_t j = 0; j < column.size(); ++j) {
                strength[y0 + int64_t(j)].add(column[j]);
                ps.col_sum[j] = column[j].value();
            }
        }
        Degrees& deg = out_.deg;
        deg.d.resize(n);
        Sum total;
        for (int64_t x = 0; x < n; ++x) total.add(deg.d[x] = strength[x].value());
        deg.total = total.value();
        deg.slots = deg.nonzero = slots(g_);
    }

    // From the guess to the strengths: every bound is made larger by the most that any vertex has lost; the few that
    // lost more are looked at by themselves.
    bool loosen() {
        Survey& s = out_.survey;
        const int64_t n = g_.n;
        const std::vector<double>& d = out_.deg.d;
        constexpr double kUsual = 1.25;
        double rho = 1;
        std::vector<int32_t> odd;
        s.inverse.assign(n, 0);
        for (int64_t x = 0; x < n; ++x) {
            if (d[x] == 0) continue;
            if (!(d[x] > kLeast && d[x] < kMost)) return false;
            s.inverse[x] = 1 / d[x];
            const double lost = inverse_[x] > 0 ? s.inverse[x] / double(inverse_[x]) : 2 * kUsual;
            if (lost > kUsual)
                odd.push_back(int32_t(x));
            else
                rho = std::max(rho, lost);
        }
        if (int64_t(odd.size()) * 64 > n) return false;
#if defined(MODCUT_PLANT_TIGHT_GUESS)
        rho = 1;  // a bug for the tests to catch: takes the guess for the strengths
#endif
        rho *= kGlanceRounding;
        for (PairSurvey& p : s.pairs) p.squares = p.squares * rho * rho + 1e-15;
        for (int64_t x = 0; x < n; ++x) s.top[x] = s.top[x] * rho + 1e-28, s.squares[x] = s.squares[x] * rho + 1e-28;
        if (!odd.empty()) again(odd);
        for (int64_t x = 0; x < n; ++x) s.total_squares += s.squares[x] * s.inverse[x];
        s.valid = true;
        return true;
    }

    void again(const std::vector<int32_t>& odd) {
        Survey& s = out_.survey;
        std::vector<int32_t> cell(g_.n);
        std::vector<std::vector<size_t>> pair(s.cells.count);
        for (int32_t c = 0; c < s.cells.count; ++c)
            for (int64_t x = s.cells.begin[c]; x < s.cells.begin[c + 1]; ++x) cell[x] = c;
        for (size_t k = 0; k < s.cells.pairs.size(); ++k) {
            pair[s.cells.pairs[k].a].push_back(k);
            if (s.cells.pairs[k].a != s.cells.pairs[k].b) pair[s.cells.pairs[k].b].push_back(k);
        }
        std::vector<double> w(g_.n, 0);
        std::vector<int32_t> met;
        for (int32_t y : odd) {
            met.clear();
            for_each_entry(g_, y, [&](int64_t x, auto v) {
                if (!(v > 0)) return;
                if (w[x] == 0) met.push_back(int32_t(x));
                w[x] += double(v);
            });
            for (int32_t x : met) {
                s.top[x] = std::max(s.top[x], w[x] * s.inverse[y] * (1 + 1e-9));
                s.squares[x] += w[x] * (w[x] * s.inverse[y]) * (1 + 1e-9);
                // Both ends may be odd: the sum is that of both orders then, an upper bound.
                const double square = w[x] * s.inverse[x] * (w[x] * s.inverse[y]) * (1 + 1e-9);
                for (size_t k : pair[cell[y]]) {
                    const CellPair& p = s.cells.pairs[k];
                    if ((p.a == cell[y] && p.b == cell[x]) || (p.b == cell[y] && p.a == cell[x]))
                        s.pairs[k].squares += p.a == p.b ? 2 * square : square;
                }
                w[x] = 0;
            }
        }
    }

    const GraphView& g_;
    Glance& out_;
    const double* guess_;
    std::vector<T> inverse_, top_, squares_;
    std::vector<double> sum_, rest_;
    std::vector<Band> bands_;
    std::vector<Rows> rows_;
};

}  // namespace detail

// `guess` [n]: where it is infinite, as the weight of a tree's root, the largest of the others is taken.
// Nothing valid for CSR rows, integers, floats of both widths, entries that are no capacities, strengths far from 1, or
// where more than one vertex in 64 has lost a fifth of its guessed strength.
inline Glance glance(const GraphView& g, const double* guess, int threads, Poll& poll) {
    Glance out;
    if (g.has_csr || g.integral || g.blocks.empty()) return out;
    const Scalar type = g.blocks[0].type;
    bool symmetric = false;
    for (const BlockView& b : g.blocks) {
        if (b.type != type) return out;
        symmetric = symmetric || b.symmetric;
    }
    if (symmetric && detail::read_graph<false>(g, threads).fault) return out;
    out.survey.cells = cells_of(g);
    if (out.survey.cells.count == 0) return out;
    out.valid = type == Scalar::f32 ? detail::Glancer<float>(g, guess, out).read(threads, poll)
                                    : detail::Glancer<double>(g, guess, out).read(threads, poll);
    if (!out.valid) return out;
    int32_t& count = out.comp.count;
    int32_t big = -1;
    out.comp.of.resize(g.n);
    for (int64_t x = 0; x < g.n; ++x) {
        if (!(out.deg.d[x] > 0))
            out.comp.of[x] = count++;
        else
            out.comp.of[x] = big = big < 0 ? count++ : big;
    }
    return out;
}

// A proven lower bound on the gap of `g`, from the anchor's: 0 where none is. One reading of both.
inline double carried_gap(const GraphView& g, const Degrees& deg, const Anchor& anchor, Poll& poll) {
    std::vector<double> moved(g.n, 0);  // sum over y of |w(x, y) - w_anchor(x, y)|
    for (size_t k = 0; k < g.blocks.size(); ++k) {
        const BlockView &b = g.blocks[k], &old = anchor.blocks[k];
        auto add = [&](auto* data) {
            using T = std::remove_const_t<std::remove_pointer_t<decltype(data)>>;
            if constexpr (!std::is_integral_v<T>) {
                const T* before = static_cast<const T*>(old.data);
                std::vector<T> column(b.symmetric ? 0 : size_t(b.cols) + 16, T(0));
                constexpr int64_t kBand = 128;
                for (int64_t i0 = 0; i0 < b.rows; i0 += kBand) {
                    poll.check();
                    for (int64_t i = i0; i < std::min(i0 + kBand, b.rows); ++i)
                        for (int64_t j = 0; j < b.cols; j += 1024)
                            moved[b.row0 + i] += double(simd::drift(
                                g.magnitude, data + i * b.stride + j, before + i * old.stride + j,
                                std::min<int64_t>(1024, b.cols - j), b.symmetric ? nullptr : column.data() + j));
                    if (b.symmetric) continue;
                    for (int64_t j = 0; j < b.cols; ++j) moved[b.col0 + j] += double(column[j]), column[j] = 0;
                }
            }
        };
        with_scalar(b.type, b.data, add);
    }
    double most = 0, lost = 1;
    for (int64_t x = 0; x < g.n; ++x) {
        if (!(deg.d[x] > 0)) continue;
        if (!(anchor.d[x] > 0)) return 0;
        most = std::max(most, moved[x] / anchor.d[x]);
        lost = std::max(lost, anchor.d[x] / deg.d[x]);
    }
#if defined(MODCUT_PLANT_FREE_DRIFT)
    most = 0;  // a bug for the tests to catch: weights may move for nothing
#endif
    const double t = std::max(0.0, 1 - anchor.nu + most * detail::kGlanceRounding + 1e-9) * lost * (1 + 1e-9);
    return t < 1 ? 1 - t : 0.0;
}

}  // namespace modcut
