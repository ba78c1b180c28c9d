// Proven bounds on the second eigenvalue of a symmetric matrix whose rows and columns fall into groups, from sums
// alone. Statement and proof: docs/mathematics.md, section 4.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <map>
#include <vector>

#include "core/survey.hpp"

namespace modcut {

// M in the blocks of `count` groups, u_a a unit vector of group a, P the projection onto them.
struct BlockNorms {
    int64_t count = 0;
    std::vector<double> q;       // u_a' M u_b
    std::vector<double> across;  // (u_a' M^2 u_b) - (q^2)_ab = u_a' M (I - P) M u_b
    std::vector<double> norm;    // ||block (a, b) of (I - P) M (I - P)||_F, upper bounds
    std::vector<double> z;       // where M's first eigenvector has the coordinates z, more or less: need not be exact
};

namespace detail {

// lambda_max of a symmetric non-negative matrix is at most max (T z)_a / z_a for every positive z (Collatz, Wielandt).
inline double norm_of_norms(const std::vector<double>& t, int64_t n) {
    std::vector<double> z(n, 1), next(n);
    double best = std::numeric_limits<double>::infinity();
    for (int step = 0; step < 60; ++step) {
        double worst = 0, largest = 0;
        for (int64_t a = 0; a < n; ++a) {
            double s = 0;
            for (int64_t b = 0; b < n; ++b) s += t[a * n + b] * z[b];
            worst = std::max(worst, s / z[a]);
            next[a] = s + 0.5 * z[a];  // half the identity: so that bipartite matrices converge as well
            largest = std::max(largest, next[a]);
        }
        best = std::min(best, worst);
        for (int64_t a = 0; a < n; ++a) z[a] = std::max(next[a] / largest, 1e-6);
    }
    return best * (1 + 1e-12);
}

// Plain Cholesky of a small matrix, in place.
inline bool positive_definite(std::vector<double>& a, int64_t n) {
    for (int64_t j = 0; j < n; ++j) {
        double d = a[j * n + j];
        for (int64_t p = 0; p < j; ++p) d -= a[j * n + p] * a[j * n + p];
        if (!(d > 0)) return false;
        a[j * n + j] = d = std::sqrt(d);
        for (int64_t i = j + 1; i < n; ++i) {
            double s = a[i * n + j];
            for (int64_t p = 0; p < j; ++p) s -= a[i * n + p] * a[j * n + p];
            a[i * n + j] = s / d;
        }
    }
    return true;
}

}  // namespace detail

class SecondEigenvalue {
public:
    explicit SecondEigenvalue(BlockNorms m) : m_(std::move(m)), eta_(detail::norm_of_norms(m_.norm, m_.count)) {}

    double eta() const { return eta_; }

    // Is the second largest eigenvalue proven to be at most t? `error` bounds the norm of what was not counted.
    bool at_most(double t, double error = 0) const {
        const double room = t - error - eta_ - 1e-9;
        if (!(room > 1e-6)) return false;
        const int64_t n = m_.count;
        std::vector<double> h(n * n), v(n, 0);
        for (int64_t a = 0; a < n; ++a)
            for (int64_t b = 0; b < n; ++b) h[a * n + b] = -m_.q[a * n + b] - m_.across[a * n + b] / room;
        double form = 0, trace = 0;
        for (int64_t a = 0; a < n; ++a) h[a * n + a] += t - error - 1e-9 - 1e-9 / room;
        for (int64_t a = 0; a < n; ++a) {
            for (int64_t b = 0; b < n; ++b) v[a] += h[a * n + b] * m_.z[b];
            form += m_.z[a] * v[a];
        }
        if (form < 0)
            for (int64_t a = 0; a < n; ++a)
                for (int64_t b = 0; b < n; ++b) h[a * n + b] += v[a] * v[b] * (2 / -form);
        for (int64_t a = 0; a < n; ++a) trace += std::abs(h[a * n + a]);
        for (int64_t a = 0; a < n; ++a) h[a * n + a] -= 1e-15 * double(n + 8) * trace;
        return detail::positive_definite(h, n);
    }

    // The smallest t in (0, 1) that is proven, to a hundredth or so of 1 - t; 1 where none is.
    double best(int steps = 12) const {
        double low = eta_, high = 1;
        if (!(low < 1) || !at_most(1 - 1e-6)) return 1;
        high = 1 - 1e-6;
        if (at_most(low + 2e-6)) return low + 2e-6;
        for (int step = 0; step < steps && high - low > 0.01 * (1 - high); ++step) {
            const double t = 0.5 * (low + high);
            (at_most(t) ? high : low) = t;
        }
        return high;
    }

private:
    BlockNorms m_;
    double eta_;
};

// The groups of cells in which norms are taken: each cell its own where they are few, else those with the same
// neighbours together, else all. -1: a cell without strength.
inline std::vector<int32_t> groups_of_cells(const Survey& s, const std::vector<double>& volume, int32_t few = 48,
                                            int32_t most = 256) {
    std::vector<int32_t> group(s.cells.count, -1);
    int32_t count = 0;
    for (int32_t c = 0; c < s.cells.count; ++c)
        if (volume[c] > 0) group[c] = count++;
    if (count <= few) return group;
    std::vector<std::vector<int32_t>> beside(s.cells.count);
    for (const CellPair& p : s.cells.pairs) {
        beside[p.a].push_back(p.b);
        if (p.a != p.b) beside[p.b].push_back(p.a);
    }
    std::map<std::vector<int32_t>, int32_t> known;
    for (int32_t c = 0; c < s.cells.count; ++c) {
        if (group[c] < 0) continue;
        std::sort(beside[c].begin(), beside[c].end());
        group[c] = known.try_emplace(std::move(beside[c]), int32_t(known.size())).first->second;
    }
    if (int32_t(known.size()) > most)
        for (int32_t& a : group) a = std::min(a, 0);
    return group;
}

// D^-1/2 W D^-1/2 of the surveyed vertices, in groups of cells; u_a = D^1/2 of the group, normalised: the first
// eigenvector lies in their span.
inline BlockNorms normalised_blocks(const Survey& s, const Degrees& deg) {
    BlockNorms m;
    if (s.pairs.empty()) {
        m.count = 1;
        m.q = {1}, m.across = {0}, m.z = {1};
        m.norm = {std::sqrt(std::max(0.0, s.total_squares * (1 + 1e-9) - 1) + 1e-12)};
        return m;
    }
    std::vector<double> of_cell(s.cells.count, 0);
    for (int32_t c = 0; c < s.cells.count; ++c)
        for (int64_t x = s.cells.begin[c]; x < s.cells.begin[c + 1]; ++x)
            if (s.inverse[x] > 0) of_cell[c] += deg.d[x];
    const std::vector<int32_t> group = groups_of_cells(s, of_cell);
    for (int32_t a : group) m.count = std::max<int64_t>(m.count, a + 1);
    const int64_t n = m.count;
    std::vector<double> volume(n, 0);
    for (int32_t c = 0; c < s.cells.count; ++c)
        if (group[c] >= 0) volume[group[c]] += of_cell[c];
    double total = 0;
    for (double v : volume) total += v;
    for (double v : volume) m.z.push_back(std::sqrt(v / total));
    m.q.assign(n * n, 0), m.across.assign(n * n, 0), m.norm.assign(n * n, 0);
    std::vector<double> squares(n * n, 0), along(n * n, 0);  // ||A_ab||_F^2; |A_ab u_b|^2
    std::vector<std::vector<size_t>> pairs(s.cells.count);
    for (size_t k = 0; k < s.pairs.size(); ++k) {
        const CellPair& p = s.cells.pairs[k];
        const int64_t a = group[p.a], b = group[p.b];
        if (a < 0 || b < 0) continue;
        pairs[p.a].push_back(k);
        if (p.a != p.b) pairs[p.b].push_back(k);
        squares[a * n + b] += s.pairs[k].squares;
        if (p.a != p.b) squares[b * n + a] += s.pairs[k].squares;
    }
    std::vector<double> to(n);  // w(x, b) of one vertex
    std::vector<int64_t> met;
    for (int32_t c = 0; c < s.cells.count; ++c) {
        if (group[c] < 0) continue;
        met.clear();
        for (size_t k : pairs[c]) {
            const CellPair& p = s.cells.pairs[k];
            const int64_t b = group[p.a == c ? p.b : p.a];
            if (std::find(met.begin(), met.end(), b) == met.end()) met.push_back(b);
        }
        const int64_t a = group[c];
        for (int64_t i = 0; i < s.cells.size(c); ++i) {
            const double inv = s.inverse[s.cells.begin[c] + i];
            if (inv == 0) continue;
            for (int64_t b : met) to[b] = 0;
            for (size_t k : pairs[c]) {
                const CellPair& p = s.cells.pairs[k];
                if (p.a == c)
                    to[group[p.b]] += s.pairs[k].row_sum[i];
                else
                    to[group[p.a]] += s.pairs[k].col_sum[i];
            }
            for (int64_t b : met) {
                m.q[a * n + b] += to[b];
                const double scaled = to[b] * inv;
                along[a * n + b] += scaled * to[b];
                for (int64_t l : met)
                    if (l <= b) m.across[l * n + b] += scaled * to[l];
            }
        }
    }
    for (int64_t a = 0; a < n; ++a)
        for (int64_t b = 0; b < n; ++b) {
            m.q[a * n + b] /= std::sqrt(volume[a]) * std::sqrt(volume[b]);
            along[a * n + b] /= volume[b];
        }
    for (int64_t a = 0; a < n; ++a)
        for (int64_t b = a; b < n; ++b) {
            const double q2 = m.q[a * n + b] * m.q[a * n + b], f = squares[a * n + b];
            const double rows = along[a * n + b], columns = along[b * n + a];
            const double left = f - rows - columns + q2 + 1e-9 * (f + rows + columns + q2) + 1e-18;
            m.norm[a * n + b] = m.norm[b * n + a] = std::sqrt(std::max(0.0, left));
            double square = 0;
            for (int64_t c = 0; c < n; ++c) square += m.q[a * n + c] * m.q[c * n + b];
            m.across[a * n + b] = m.across[b * n + a] =
                m.across[a * n + b] / (std::sqrt(volume[a]) * std::sqrt(volume[b])) - square;
            m.q[b * n + a] = m.q[a * n + b];
        }
    return m;
}

}  // namespace modcut
