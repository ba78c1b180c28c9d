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

// D^-1/2 W D^-1/2 of the surveyed vertices, in groups of cells (each cell its own, or all together when there are more
// than `limit`); u_a = D^1/2 of the group, normalised: the first eigenvector lies in their span.
inline BlockNorms normalised_blocks(const Survey& s, const Degrees& deg, int32_t limit = 256) {
    BlockNorms m;
    if (s.pairs.empty() || s.cells.count > limit) {
        m.count = 1;
        m.q = {1}, m.across = {0}, m.z = {1};
        m.norm = {std::sqrt(std::max(0.0, s.total_squares * (1 + 1e-9) - 1) + 1e-12)};
        return m;
    }
    std::vector<double> volume(s.cells.count, 0);
    for (int32_t c = 0; c < s.cells.count; ++c)
        for (int64_t x = s.cells.begin[c]; x < s.cells.begin[c + 1]; ++x)
            if (s.inverse[x] > 0) volume[c] += deg.d[x];
    std::vector<int32_t> group(s.cells.count, -1);
    for (int32_t c = 0; c < s.cells.count; ++c)
        if (volume[c] > 0) group[c] = int32_t(m.count++), m.z.push_back(std::sqrt(volume[c]));
    const int64_t n = m.count;
    m.q.assign(n * n, 0), m.across.assign(n * n, 0), m.norm.assign(n * n, 0);
    // w(x, b) of every cell a and its neighbours b.
    struct Side {
        int64_t other;
        const std::vector<double>* sums;
    };
    std::vector<std::vector<Side>> sides(s.cells.count);
    for (size_t k = 0; k < s.pairs.size(); ++k) {
        const CellPair& p = s.cells.pairs[k];
        if (group[p.a] < 0 || group[p.b] < 0) continue;
        sides[p.a].push_back({group[p.b], &s.pairs[k].row_sum});
        if (p.a != p.b) sides[p.b].push_back({group[p.a], &s.pairs[k].col_sum});
    }
    for (size_t k = 0; k < s.pairs.size(); ++k) {
        const CellPair& p = s.cells.pairs[k];
        const int64_t a = group[p.a], b = group[p.b];
        if (a < 0 || b < 0) continue;
        const double va = volume[p.a], vb = volume[p.b];
        const PairSurvey& ps = s.pairs[k];
        double total = 0, rows = 0, cols = 0;
        for (int64_t i = 0; i < s.cells.size(p.a); ++i) {
            const double inv = s.inverse[s.cells.begin[p.a] + i];
            if (inv == 0) continue;
            total += ps.row_sum[i];
            rows += ps.row_sum[i] * (ps.row_sum[i] * inv / vb);
        }
        if (p.a == p.b)
            cols = rows;
        else
            for (int64_t j = 0; j < s.cells.size(p.b); ++j)
                cols += ps.col_sum[j] * (ps.col_sum[j] * s.inverse[s.cells.begin[p.b] + j] / va);
        const double q = total / std::sqrt(va) / std::sqrt(vb);
        m.q[a * n + b] = m.q[b * n + a] = q;
        const double left = ps.squares - rows - cols + q * q + 1e-9 * (ps.squares + rows + cols + q * q) + 1e-18;
        m.norm[a * n + b] = m.norm[b * n + a] = std::sqrt(std::max(0.0, left));
    }
    for (int32_t c = 0; c < s.cells.count; ++c)
        for (const Side& l : sides[c])
            for (const Side& r : sides[c]) {
                if (l.other > r.other) continue;
                double sum = 0;
                for (int64_t i = 0; i < s.cells.size(c); ++i)
                    sum += (*l.sums)[i] * ((*r.sums)[i] * s.inverse[s.cells.begin[c] + i]);
                m.across[l.other * n + r.other] += sum / m.z[l.other] / m.z[r.other];
            }
    for (int64_t a = 0; a < n; ++a)
        for (int64_t b = a; b < n; ++b) {
            double square = 0;
            for (int64_t c = 0; c < n; ++c) square += m.q[a * n + c] * m.q[c * n + b];
            m.across[a * n + b] = m.across[b * n + a] = m.across[a * n + b] - square;
        }
    const double norm = std::sqrt([&] {
        double v = 0;
        for (double z : m.z) v += z * z;
        return v;
    }());
    for (double& z : m.z) z /= norm;
    return m;
}

}  // namespace modcut
