// The second eigenvalue by elimination: layers without edges inside are taken out in one product of float32 panels,
// what remains is bounded by norms or factored. Statement and error bounds: docs/mathematics.md, section 4.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <exception>
#include <numeric>
#include <vector>

#include "core/simd.hpp"
#include "core/spectrum.hpp"
#include "core/survey.hpp"
#include "core/team.hpp"

namespace modcut {
namespace detail {

// Cholesky of a symmetric matrix, lower triangle, in place, blocked. False when a pivot is not positive.
template <class Team>
void cholesky(Team& team, double* a, int64_t n, bool& ok, std::exception_ptr& error, Poll& poll) {
    constexpr int64_t B = 48;
    for (int64_t k = 0; k < n; k += B) {
        const int64_t kb = std::min(B, n - k), rest = k + kb;
        if (team.rank() == 0) {
            try {
                poll.check();
            } catch (...) {  // the other ranks wait at the barrier: tell them before leaving
                error = std::current_exception();
                ok = false;
            }
            for (int64_t j = k; j < rest && ok; ++j) {
                double d = a[j * n + j];
                for (int64_t p = k; p < j; ++p) d -= a[j * n + p] * a[j * n + p];
                if (!(d > 0)) {
                    ok = false;
                    break;
                }
                a[j * n + j] = d = std::sqrt(d);
                for (int64_t i = j + 1; i < rest; ++i) {
                    double s = a[i * n + j];
                    for (int64_t p = k; p < j; ++p) s -= a[i * n + p] * a[j * n + p];
                    a[i * n + j] = s / d;
                }
            }
        }
        team.sync();
        if (!ok) return;
        Range r = share(team, n - rest, 4);
        for (int64_t i = rest + r.begin; i < rest + r.end; ++i)  // panel: rows below the diagonal block
            for (int64_t j = k; j < rest; ++j) {
                double s = a[i * n + j];
                for (int64_t p = k; p < j; ++p) s -= a[i * n + p] * a[j * n + p];
                a[i * n + j] = s / a[j * n + j];
            }
        team.sync();
        // Trailing update, tile by tile with the second factor transposed so that the inner loop runs along memory.
        double t[B * 64];
        for (int64_t j0 = rest; j0 < n; j0 += 64) {
            const int64_t jb = std::min<int64_t>(64, n - j0);
            for (int64_t p = 0; p < kb; ++p)
                for (int64_t j = 0; j < 64; ++j) t[p * 64 + j] = j < jb ? a[(j0 + j) * n + k + p] : 0.0;
            Range rows = share(team, n - j0, 4);
            for (int64_t i = j0 + rows.begin; i < j0 + rows.end; ++i) {
                const int64_t upto = std::min(jb, i - j0 + 1);
                simd::subtract_products(a + i * n + j0, upto, a + i * n + k, t, kb);
            }
        }
        team.sync();
    }
}

}  // namespace detail

// What is left of D^-1/2 W D^-1/2 after the elimination: A_rr + G / t with G = C' C, C the rows of the eliminated
// cells.
class Schur {
public:
    Schur() = default;
    // `eliminated[c]`: the cell goes; no two of them (nor one with itself) may share an edge.
    Schur(const Survey& s, const Degrees& deg, std::vector<uint8_t> eliminated)
        : from_(&s), gone_(std::move(eliminated)), offset_(s.cells.count, -1) {
        for (int32_t c = 0; c < s.cells.count; ++c) {
            if (gone_[c]) continue;
            offset_[c] = size_;
            size_ += (s.cells.size(c) + kPanel - 1) / kPanel * kPanel;  // whole panels: no panel has two cells
        }
        root_.assign(size_, 0);
        for (double inverse : s.inverse) scale_.push_back(std::sqrt(inverse));
        for (int32_t c = 0; c < s.cells.count; ++c)
            for (int64_t i = 0; offset_[c] >= 0 && i < s.cells.size(c); ++i)
                if (s.inverse[s.cells.begin[c] + i] > 0) root_[offset_[c] + i] = std::sqrt(deg.d[s.cells.begin[c] + i]);
        for (const CellPair& p : s.cells.pairs) inner_ = inner_ || (offset_[p.a] >= 0 && offset_[p.b] >= 0);
    }

    int64_t size() const { return size_; }
    // Multiplications of the product, and of the factorisation.
    static constexpr int64_t kPanel = 32, kRows = 128;

    double product_cost() const {
        double cost = 0;
        for (int32_t c = 0; c < from_->cells.count; ++c) {
            if (!gone_[c]) continue;
            double width = 0;
            for (const CellPair& p : from_->cells.pairs)
                if (p.a == c || p.b == c) width += double(from_->cells.size(p.a == c ? p.b : p.a));
            cost += double(from_->cells.size(c)) * width * width / 2;
        }
        return cost;
    }

    // The passes over the weights: G and A_rr.
    void form(int threads, Poll& poll) {
        g_.assign(size_t(size_) * size_, 0);
        std::exception_ptr error;
        int64_t chunks = 0;
        for (int32_t c = 0; c < from_->cells.count; ++c)
            if (gone_[c]) chunks += eliminate(c, threads, poll, error);
        if (error) std::rethrow_exception(error);
        // Every product of G is of non-negative numbers: relative errors of its entries, so of its norm (at most 1).
        gamma_ = double(kRows + chunks + 8) * 0x1p-24 * 1.01;
        for (int64_t i = 0; i < size_; ++i)
            for (int64_t j = i / kPanel * kPanel + kPanel; j < size_; ++j) g_[j * size_ + i] = g_[i * size_ + j];
        if (inner_) inner(poll);
    }

    // Bounds by norms of blocks; cost size^2.
    bool norms_prove(double t) {
        BlockNorms m = blocks(t);
        return SecondEigenvalue(std::move(m)).at_most(t, error(t));
    }

    // Bounds by a factorisation; cost size^3 / 6.
    bool factorisation_proves(double t, int threads, Poll& poll) {
#if defined(MODCUT_PLANT_LOOSE_NU)
        t += MODCUT_PLANT_LOOSE_NU * (1 - t);  // a bug for the tests to catch: proves a t, claims a smaller one
#endif
        const int64_t n = size_;
        std::vector<double> a(size_t(n) * n), v(n, 0);
        for (int64_t i = 0; i < n; ++i)
            for (int64_t j = 0; j < n; ++j) a[i * n + j] = -entry(i, j, t);
        for (int64_t i = 0; i < n; ++i) a[i * n + i] += t - error(t);
        double form = 0, norm = 0, trace = 0;
        for (int64_t i = 0; i < n; ++i) {
            for (int64_t j = 0; j < n; ++j) v[i] += a[i * n + j] * root_[j];
            form += v[i] * root_[i];
            norm += v[i] * v[i];
        }
        if (form < 0) {
            const double c = 2 / -form;
            for (int64_t i = 0; i < n; ++i)
                for (int64_t j = 0; j <= i; ++j) a[i * n + j] += c * v[i] * v[j];
            norm *= c;
        } else {
            norm = 0;
        }
        for (int64_t i = 0; i < n; ++i) trace += std::abs(a[i * n + i]);
        // |E| <= gamma trace(R'R) (Demmel 1989), and the rounding of the entries: each below 4 eps of its absolute
        // terms, whose matrices have norms t, 1, 1 / t and `norm`.
        const double shift = 2.3e-16 * (double(n + 8) * trace * 1.1 + 8 * (t + 1 + 1 / t + norm));
        for (int64_t i = 0; i < n; ++i) a[i * n + i] -= shift;
        bool ok = true;
        std::exception_ptr failed;
        run_team(threads, [&](auto& team) { detail::cholesky(team, a.data(), n, ok, failed, poll); });
        if (failed) std::rethrow_exception(failed);
        return ok;
    }

    // Where the second eigenvalue probably is: M(t) = A_rr + G / t has it at t, and falls in t. Power iteration; never
    // itself used as a bound.
    double estimate(Poll& poll) const {
        double low = 0.02, high = 1;
        std::vector<double> x(size_), y(size_);
        for (int64_t i = 0; i < size_; ++i)
            x[i] = double((uint64_t(i + 1) * 0x9E3779B97F4A7C15ull) >> 40) / double(1 << 24) - 0.5;
        if (!inner_) return std::sqrt(std::max(0.0, second(1, x, y, 30, poll)));
        if (std::none_of(gone_.begin(), gone_.end(), [](uint8_t c) { return c; })) return second(1, x, y, 30, poll);
        for (int step = 0; step < 7; ++step) {
            const double t = 0.5 * (low + high);
            (second(t, x, y, step == 0 ? 30 : 8, poll) > t ? low : high) = t;
        }
        return high;
    }

private:
    double error(double t) const { return gamma_ / t + 1.2e-7 + 1e-10; }

    double entry(int64_t i, int64_t j, double t) const {
        double m = double(g_[i * size_ + j]) / t;
        if (inner_) m += double(inner_entries_[i * size_ + j]);
        return m;
    }

    // One cell leaves: its rows, scaled and in panels, times themselves. Returns the number of chunks of rows.
    int64_t eliminate(int32_t c, int threads, Poll& poll, std::exception_ptr& error) {
        struct Neighbour {
            const CellPair* pair;
            int32_t other;
            int64_t panel;  // of this cell's own list
        };
        std::vector<Neighbour> neighbours;
        std::vector<int64_t> panels;  // their positions in G
        for (const CellPair& p : from_->cells.pairs) {
            if (p.a != c && p.b != c) continue;
            const int32_t other = p.a == c ? p.b : p.a;
            neighbours.push_back({&p, other, int64_t(panels.size())});
            for (int64_t at = 0; at < from_->cells.size(other); at += kPanel) panels.push_back(offset_[other] + at);
        }
        const int64_t rows = from_->cells.size(c), x0 = from_->cells.begin[c], width = int64_t(panels.size());
        const int64_t chunks = (rows + kRows - 1) / kRows;
        if (width == 0 || error) return chunks;
        std::vector<float> packed(size_t(width) * kPanel * kRows);
        run_team(threads, [&](auto& team) {
            std::vector<double> scratch;
            for (int64_t i0 = 0; i0 < rows; i0 += kRows) {
                const int64_t count = std::min(kRows, rows - i0);
                if (team.rank() == 0) {
                    try {
                        poll.check();
                    } catch (...) {
                        error = std::current_exception();
                    }
                }
                team.sync();
                if (error) return;
                for (const Neighbour& nb : neighbours) {
                    const int64_t cols = from_->cells.size(nb.other), y0 = from_->cells.begin[nb.other];
                    float* base = packed.data() + nb.panel * kPanel * kRows;
                    auto put = [&](int64_t i, int64_t j, double w) {
                        const double v = w * scale_[x0 + i0 + i] * scale_[y0 + j];
                        base[(j / kPanel * kRows + i) * kPanel + j % kPanel] = v < 1e-19 ? 0.0f : float(v);
                    };
                    if (nb.pair->a == c) {
                        const Range mine = share(team, count, 32);
                        for_each_row(from_->cells, *nb.pair, i0 + mine.begin, i0 + mine.end, scratch,
                                     [&](auto* row, int64_t r) {
                                         for (int64_t j = 0; j < cols; ++j) put(r - i0, j, double(row[j]));
                                     });
                    } else {
                        const Range mine = share(team, cols, 32);
                        for_each_row(from_->cells, *nb.pair, mine.begin, mine.end, scratch, [&](auto* row, int64_t r) {
                            for (int64_t i = 0; i < count; ++i) put(i, r, double(row[i0 + i]));
                        });
                    }
                }
                team.sync();
                int64_t turn = 0;
                for (int64_t p = 0; p < width; ++p) {
                    if (turn++ % team.size() != team.rank()) continue;
                    for (int64_t q = 0; q < width; ++q)
                        if (panels[q] >= panels[p])
                            simd::panel_product(packed.data() + p * kPanel * kRows, packed.data() + q * kPanel * kRows,
                                                count, g_.data() + panels[p] * size_ + panels[q], size_);
                }
                team.sync();
            }
        });
        return chunks;
    }

    void inner(Poll& poll) {
        inner_entries_.assign(size_t(size_) * size_, 0);
        std::vector<double> scratch;
        for (const CellPair& p : from_->cells.pairs) {
            if (offset_[p.a] < 0 || offset_[p.b] < 0) continue;
            poll.check();
            for_each_row(from_->cells, p, 0, from_->cells.size(p.a), scratch, [&](auto* row, int64_t r) {
                const double sx = scale_[from_->cells.begin[p.a] + r];
                for (int64_t j = 0; j < from_->cells.size(p.b); ++j) {
                    if (p.a == p.b && j == r) continue;
                    const float v = float(double(row[j]) * sx * scale_[from_->cells.begin[p.b] + j]);
                    inner_entries_[(offset_[p.a] + r) * size_ + offset_[p.b] + j] = v;
                    if (p.a != p.b) inner_entries_[(offset_[p.b] + j) * size_ + offset_[p.a] + r] = v;
                }
            });
        }
    }

    // Largest eigenvalue of M(t) beside that of the all-positive eigenvector, for non-negative M.
    double second(double t, std::vector<double>& x, std::vector<double>& y, int steps, Poll& poll) const {
        const int64_t n = size_;
        double rr = 0, rho = 0;
        for (double r : root_) rr += r * r;
        for (int step = 0; step <= steps; ++step) {
            poll.check();
            double c = 0, q = 0;
            for (int64_t i = 0; i < n; ++i) c += root_[i] * x[i];
            for (int64_t i = 0; i < n; ++i) x[i] -= root_[i] * (c / rr), q += x[i] * x[i];
            q = q > 0 ? 1 / std::sqrt(q) : 0;
            for (double& v : x) v *= q;
            rho = 0;
            for (int64_t i = 0; i < n; ++i) {
                y[i] = simd::dot(g_.data() + i * n, x.data(), n) / t;
                if (inner_) y[i] += simd::dot(inner_entries_.data() + i * n, x.data(), n);
                rho += y[i] * x[i];
            }
            for (int64_t i = 0; i < n; ++i) x[i] = y[i] + 0.2 * x[i];
        }
        return rho;
    }

    BlockNorms blocks(double t) const {
        BlockNorms m;
        const int64_t n = size_;
        std::vector<int64_t> group(n, -1);
        std::vector<double> volume;
        for (int32_t c = 0; c < from_->cells.count; ++c) {
            if (offset_[c] < 0) continue;
            double v = 0;
            for (int64_t i = 0; i < from_->cells.size(c); ++i) v += root_[offset_[c] + i] * root_[offset_[c] + i];
            if (!(v > 0)) continue;
            for (int64_t i = 0; i < from_->cells.size(c); ++i) group[offset_[c] + i] = int64_t(volume.size());
            volume.push_back(v);
        }
        const int64_t k = m.count = int64_t(volume.size());
        std::vector<double> sums(n * k, 0), squares(k * k, 0), row(n);
        for (int64_t i = 0; i < n; ++i) {
            if (group[i] < 0) continue;
            for (int64_t j = 0; j < n; ++j) row[j] = entry(i, j, t);
            for (int64_t j0 = 0; j0 < n; j0 += kPanel) {  // a panel lies in one cell
                if (group[j0] < 0) continue;
                double sum[kPanel / 4] = {}, square[kPanel / 4] = {};
                for (int64_t j = 0; j < kPanel; ++j) {
                    const double w = row[j0 + j];
                    sum[j % (kPanel / 4)] += w * root_[j0 + j];
                    square[j % (kPanel / 4)] += w * w;
                }
                double ss = 0, qq = 0;
                for (int64_t j = 0; j < kPanel / 4; ++j) ss += sum[j], qq += square[j];
                sums[i * k + group[j0]] += ss;
                squares[group[i] * k + group[j0]] += qq;
            }
        }
        m.q.assign(k * k, 0), m.across.assign(k * k, 0), m.norm.assign(k * k, 0);
        std::vector<double> row_part(k * k, 0);  // sum over x in a of (M u_b)(x)^2
        for (int64_t i = 0; i < n; ++i) {
            if (group[i] < 0) continue;
            for (int64_t b = 0; b < k; ++b) {
                const double s = sums[i * k + b] / std::sqrt(volume[b]);
                row_part[group[i] * k + b] += s * s;
                m.q[group[i] * k + b] += root_[i] * s / std::sqrt(volume[group[i]]);
                for (int64_t c = 0; c < k; ++c) m.across[b * k + c] += s * (sums[i * k + c] / std::sqrt(volume[c]));
            }
        }
        for (int64_t a = 0; a < k; ++a)
            for (int64_t b = 0; b < a; ++b) m.q[a * k + b] = m.q[b * k + a];
        for (int64_t a = 0; a < k; ++a)
            for (int64_t b = 0; b < k; ++b) {
                const double q2 = m.q[a * k + b] * m.q[a * k + b], rows = row_part[a * k + b],
                             cols = row_part[b * k + a], f = squares[a * k + b];
                m.norm[a * k + b] =
                    std::sqrt(std::max(0.0, f - rows - cols + q2 + 1e-9 * (f + rows + cols + q2) + 1e-18));
            }
        for (int64_t a = 0; a < k; ++a)
            for (int64_t b = 0; b < k; ++b)
                for (int64_t c = 0; c < k; ++c) m.across[a * k + b] -= m.q[a * k + c] * m.q[c * k + b];
        for (int64_t a = 0; a < k; ++a)
            for (int64_t b = 0; b < a; ++b) {
                m.norm[a * k + b] = m.norm[b * k + a] = std::max(m.norm[a * k + b], m.norm[b * k + a]);
                m.across[a * k + b] = m.across[b * k + a];
            }
        double total = 0;
        for (double v : volume) total += v;
        for (double v : volume) m.z.push_back(std::sqrt(v / total));
        return m;
    }

    const Survey* from_ = nullptr;
    std::vector<uint8_t> gone_;
    std::vector<int64_t> offset_;  // of a remaining cell; -1 for the others
    std::vector<double> root_;     // sqrt(d), 0 where padded
    std::vector<double> scale_;    // [n] 1 / sqrt(d), 0 outside the surveyed vertices
    std::vector<float> g_, inner_entries_;
    int64_t size_ = 0;
    bool inner_ = false;  // edges between the cells that remain
    double gamma_ = 0;
};

// Cells to eliminate: no two joined, the others as small as a simple rule finds. Two colours where these suffice.
inline std::vector<uint8_t> independent_cells(const Survey& s) {
    const Cells& cells = s.cells;
    std::vector<std::vector<int32_t>> joined(cells.count);
    std::vector<uint8_t> loop(cells.count, 0), gone(cells.count, 0);
    for (const CellPair& p : cells.pairs) {
        if (p.a == p.b)
            loop[p.a] = 1;
        else
            joined[p.a].push_back(p.b), joined[p.b].push_back(p.a);
    }
    std::vector<int8_t> colour(cells.count, -1);
    for (int32_t start = 0; start < cells.count; ++start) {
        if (colour[start] >= 0) continue;
        std::vector<int32_t> part{start};
        colour[start] = 0;
        bool two = true;
        int64_t size[2] = {};
        for (size_t head = 0; head < part.size(); ++head) {
            const int32_t c = part[head];
            size[colour[c]] += cells.size(c);
            two = two && !loop[c];
            for (int32_t other : joined[c]) {
                if (colour[other] < 0) colour[other] = int8_t(1 - colour[c]), part.push_back(other);
                two = two && colour[other] != colour[c];
            }
        }
        if (two) {
            for (int32_t c : part) gone[c] = colour[c] == (size[0] > size[1] ? 0 : 1);
            continue;
        }
        std::sort(part.begin(), part.end(), [&](int32_t a, int32_t b) {
            return std::make_pair(-cells.size(a), a) < std::make_pair(-cells.size(b), b);
        });
        for (int32_t c : part)
            if (!loop[c] && std::none_of(joined[c].begin(), joined[c].end(), [&](int32_t o) { return gone[o]; }))
                gone[c] = 1;
    }
    return gone;
}

}  // namespace modcut
