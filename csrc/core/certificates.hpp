// Proofs that a vertex is a leaf of the cut tree, without a flow. Statements and proofs: docs/mathematics.md.
//
// Deficiency theorem. Let nu be a lower bound on the second eigenvalue of the normalised Laplacian of a connected graph
// of volume V, i a vertex, h another, d_i <= d_h. With theta = (nu - 2 d_i / V) / 2:
//     w(i,u) <= theta d_u for all u != i, h   and   w(h,u) <= theta d_u for all u != i, h   =>   mincut(i, h) = d_i.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <exception>
#include <vector>

#include "core/components.hpp"
#include "core/degrees.hpp"
#include "core/team.hpp"
#include "core/views.hpp"

namespace modcut {

enum class Proof : uint8_t { flow = 0, deficiency = 1, component = 3 };
enum class NuProof : uint8_t { none, frobenius, cholesky };

struct Gap {  // a proven lower bound on nu_2 and how it was proven
    double nu = 0;
    NuProof proof = NuProof::none;
};

namespace detail {

inline bool parallel_blocks(const GraphView& g) {
    auto meet = [](int64_t a, int64_t la, int64_t b, int64_t lb) { return a < b + lb && b < a + la; };
    for (size_t i = 0; i < g.blocks.size(); ++i) {
        const BlockView& a = g.blocks[i];
        if (!a.symmetric && meet(a.row0, a.rows, a.col0, a.cols)) return true;  // (x, y) and (y, x) add up
        for (size_t j = 0; j < i; ++j) {
            const BlockView& b = g.blocks[j];
            if ((meet(a.row0, a.rows, b.row0, b.rows) && meet(a.col0, a.cols, b.col0, b.cols)) ||
                (meet(a.row0, a.rows, b.col0, b.cols) && meet(a.col0, a.cols, b.row0, b.rows)))
                return true;
        }
    }
    return g.has_csr && !g.blocks.empty();
}

// The largest ratios w(i,u) / d_u of every vertex i, over u != skip[i]; with parallel blocks the sum over blocks of the
// largest, which is at least as large. And the squared Frobenius norm of D^-1/2 W D^-1/2.
struct Ratios {
    std::vector<double> largest;  // [n]
    double frobenius2 = 0;
};

inline Ratios ratios(const GraphView& g, const Degrees& deg, const std::vector<int32_t>& skip, bool parallel,
                     Poll& poll) {
    const int64_t n = g.n;
    Ratios out;
    out.largest.assign(n, 0);
    std::vector<double> inverse(n), per_block(n);
    for (int64_t x = 0; x < n; ++x) inverse[x] = deg.d[x] > 0 ? 1.0 / deg.d[x] : 0.0;
    auto merge = [&](double times) {
        for (int64_t x = 0; x < n; ++x) {
            per_block[x] *= times;
            out.largest[x] = parallel ? out.largest[x] + per_block[x] : std::max(out.largest[x], per_block[x]);
            per_block[x] = 0;
        }
    };
    for (const BlockView& b : g.blocks) {
        with_scalar(b.type, b.data, [&](auto* data) {
            for (int64_t i = 0; i < b.rows; ++i) {
                if ((i & 63) == 0) poll.check();
                const auto* row = data + i * b.stride;
                const int64_t x = b.row0 + i;
                const double* inv = inverse.data() + b.col0;
                auto piece = [&](int64_t from,
                                 int64_t to) {  // of the row, without loops and without the skipped vertex
                    double top[8] = {};
                    int64_t j = from;
                    for (; j + 8 <= to; j += 8)
                        for (int k = 0; k < 8; ++k) {
                            const double q = double(row[j + k]) * inv[j + k];
                            top[k] = q > top[k] ? q : top[k];
                        }
                    for (; j < to; ++j) top[0] = std::max(top[0], double(row[j]) * inv[j]);
                    for (double q : top) per_block[x] = std::max(per_block[x], q);
                };
                int64_t c1 = x - b.col0, c2 = skip[x] - b.col0;
                if (c1 > c2) std::swap(c1, c2);
                c1 = std::clamp<int64_t>(c1, -1, b.cols), c2 = std::clamp<int64_t>(c2, -1, b.cols);
                piece(0, c1 < 0 ? 0 : c1);
                piece(c1 + 1, c2 < 0 ? 0 : c2);
                piece(c2 + 1, b.cols);
                double f[8] = {};
                int64_t j = 0;
                for (; j + 8 <= b.cols; j += 8)
                    for (int k = 0; k < 8; ++k) f[k] += double(row[j + k]) * (double(row[j + k]) * inv[j + k]);
                double fsum = 0;
                for (; j < b.cols; ++j) fsum += double(row[j]) * (double(row[j]) * inv[j]);
                for (double q : f) fsum += q;
                const int64_t diag = x - b.col0;
                if (diag >= 0 && diag < b.cols) fsum -= double(row[diag]) * (double(row[diag]) * inv[diag]);
                out.frobenius2 += fsum * inverse[x] * (b.symmetric ? 1 : 2);
                if (!b.symmetric) {
                    double* col = per_block.data() + b.col0;
                    const double inv_x = inverse[x];
                    for (int64_t k = 0; k < b.cols; ++k) {
                        const double q = double(row[k]) * inv_x;
                        if (q > col[k] && b.col0 + k != x && skip[b.col0 + k] != x) col[k] = q;
                    }
                }
            }
        });
        // Inside one block (x, y) and (y, x) may be two edges: at most twice the largest entry.
        merge(!b.symmetric && b.row0 < b.col0 + b.cols && b.col0 < b.row0 + b.rows ? 2 : 1);
    }
    if (g.has_csr) {
        for (int64_t x = 0; x < n; ++x)
            with_scalar(g.csr.type, g.csr.data, [&](auto* data) {
                for (int64_t p = g.csr.indptr[x]; p < g.csr.indptr[x + 1]; ++p) {
                    const int64_t y = g.csr.index(p);
                    if (y == x) continue;
                    const double w = double(data[p]);
                    out.frobenius2 += w * inverse[x] * (w * inverse[y]);
                    if (y != skip[x]) per_block[x] = std::max(per_block[x], w * inverse[y]);
                }
            });
        merge(1);
    }
    return out;
}

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
            for (int64_t i0 = j0 + rows.begin; i0 < j0 + rows.end; ++i0) {
                double c[64];
                double* out = a + i0 * n + j0;
                for (int64_t j = 0; j < 64; ++j) c[j] = j < jb ? out[j] : 0.0;
                const double* f = a + i0 * n + k;
                for (int64_t p = 0; p < kb; ++p) {
                    const double fp = f[p];
                    for (int64_t j = 0; j < 64; ++j) c[j] -= fp * t[p * 64 + j];
                }
                const int64_t upto = std::min(jb, i0 - j0 + 1);
                for (int64_t j = 0; j < upto; ++j) out[j] = c[j];
            }
        }
        team.sync();
    }
}

}  // namespace detail

// Does the second eigenvalue of the normalised Laplacian of one component exceed nu? Proven by a Cholesky factorisation
// of (1 - nu - shift) I - D^-1/2 W D^-1/2 + u u^T, u = D^1/2 1 / |D^1/2 1|; `shift` covers the rounding of forming and
// factoring
// (|error| <= gamma_{n+1} trace, Demmel 1989), so success is a proof. Cost n^3 / 3.
inline bool cholesky_proves(const GraphView& g, const Degrees& deg, const std::vector<int32_t>& members, double nu,
                            int threads, Poll& poll) {
    const int64_t n = int64_t(members.size());
    std::vector<int32_t> local(g.n, -1);
    double volume = 0;
    for (int64_t i = 0; i < n; ++i) local[members[i]] = int32_t(i), volume += deg.d[members[i]];
    std::vector<double> a(size_t(n) * n), root(n), inverse_root(n);
    for (int64_t i = 0; i < n; ++i) {
        root[i] = std::sqrt(deg.d[members[i]] / volume);
        inverse_root[i] = 1.0 / std::sqrt(deg.d[members[i]]);
        if (!std::isfinite(inverse_root[i]) || !(root[i] > 0)) return false;
    }
    const double shift = 1e-15 * double(n) * double(n + 8);
    for (int64_t i = 0; i < n; ++i) {
        double* row = a.data() + i * n;
        for (int64_t j = 0; j <= i; ++j) row[j] = root[i] * root[j];
        row[i] += 1 - nu - shift;
    }
    for (int64_t i = 0; i < n; ++i) {
        if ((i & 63) == 0) poll.check();
        for_each_entry(g, members[i], [&](int64_t y, auto w) {
            const int64_t j = local[y];
            if (j >= 0 && j < i) a[i * n + j] -= double(w) * inverse_root[i] * inverse_root[j];
        });
    }
    bool ok = true;
    std::exception_ptr error;
    run_team(threads, [&](auto& team) { detail::cholesky(team, a.data(), n, ok, error, poll); });
    if (error) std::rethrow_exception(error);
    return ok;
}

// 1 - the largest Rayleigh quotient found by power iteration on (I + D^-1/2 W D^-1/2)/2 away from the known top
// eigenvector: an upper estimate of nu_2, used only to choose what to prove.
inline double estimate_nu(const GraphView& g, const Degrees& deg, const std::vector<int32_t>& members, int steps,
                          Poll& poll) {
    const int64_t n = int64_t(members.size());
    std::vector<double> x(g.n, 0), y(g.n, 0);
    double volume = 0;
    for (int32_t v : members) volume += deg.d[v];
    auto clean = [&](std::vector<double>& f) {  // D-orthogonal to 1, D-norm 1
        double s = 0, q = 0;
        for (int32_t v : members) s += deg.d[v] * f[v];
        for (int32_t v : members) f[v] -= s / volume, q += deg.d[v] * f[v] * f[v];
        q = q > 0 ? 1 / std::sqrt(q) : 0;
        for (int32_t v : members) f[v] *= q;
    };
    for (int64_t i = 0; i < n; ++i)
        x[members[i]] = double((uint64_t(members[i] + 1) * 0x9E3779B97F4A7C15ull) >> 40) / double(1 << 24) - 0.5;
    clean(x);
    double rho = 0;
    for (int step = 0; step < steps; ++step) {
        poll.check();
        std::fill(y.begin(), y.end(), 0.0);
        for (const BlockView& b : g.blocks)
            with_scalar(b.type, b.data, [&](auto* data) {
                for (int64_t i = 0; i < b.rows; ++i) {
                    const auto* row = data + i * b.stride;
                    const double* in = x.data() + b.col0;
                    double lanes[8] = {};
                    int64_t j = 0;
                    for (; j + 8 <= b.cols; j += 8)
                        for (int k = 0; k < 8; ++k) lanes[k] += double(row[j + k]) * in[j + k];
                    double s = 0;
                    for (; j < b.cols; ++j) s += double(row[j]) * in[j];
                    for (double q : lanes) s += q;
                    const int64_t diag = b.row0 + i - b.col0;
                    if (diag >= 0 && diag < b.cols) s -= double(row[diag]) * in[diag];
                    y[b.row0 + i] += s;
                    if (!b.symmetric) {
                        double* out = y.data() + b.col0;
                        const double xi = x[b.row0 + i];
                        for (j = 0; j < b.cols; ++j) out[j] += double(row[j]) * xi;
                        if (diag >= 0 && diag < b.cols) out[diag] -= double(row[diag]) * xi;
                    }
                }
            });
        if (g.has_csr)
            for (int64_t v = 0; v < g.n; ++v)
                with_scalar(g.csr.type, g.csr.data, [&](auto* data) {
                    for (int64_t p = g.csr.indptr[v]; p < g.csr.indptr[v + 1]; ++p)
                        if (g.csr.index(p) != v) y[v] += double(data[p]) * x[g.csr.index(p)];
                });
        rho = 0;
        for (int32_t v : members) rho += x[v] * y[v];
        for (int32_t v : members) x[v] = 0.5 * (x[v] + y[v] / deg.d[v]);
        clean(x);
    }
    return 1 - rho;
}

struct StarProof {
    std::vector<Proof> proof;  // [n]
    std::vector<int32_t> hub;  // of each component
    Gap gap;                   // of the largest component
    int64_t certified = 0;
};

struct CertificateSettings {
    bool enabled = true;
    int threads = 1;
    int64_t cholesky_limit = 3000;  // n^3/3 beyond this costs more than the flows it saves
};

inline StarProof prove_stars(const GraphView& g, const Degrees& deg, const Components& comp,
                             const CertificateSettings& settings, Poll& poll) {
    StarProof out;
    out.proof.assign(g.n, Proof::flow);
    out.hub.assign(comp.count, -1);
    for (int64_t x = 0; x < g.n; ++x) {
        int32_t& h = out.hub[comp.of[x]];
        if (h < 0 || deg.d[x] > deg.d[h]) h = int32_t(x);
    }
    if (!settings.enabled || g.n < 4) return out;
    std::vector<int64_t> size(comp.count);
    std::vector<double> volume(comp.count);
    for (int64_t x = 0; x < g.n; ++x) ++size[comp.of[x]], volume[comp.of[x]] += deg.d[x];
    const int32_t big = int32_t(std::max_element(size.begin(), size.end()) - size.begin());
    if (size[big] < 4) return out;
    // Only the largest component is worth a proof; the others run flows.
    std::vector<int32_t> members;
    for (int64_t x = 0; x < g.n; ++x)
        if (comp.of[x] == big) members.push_back(int32_t(x));
    const int32_t hub = out.hub[big];
    const double V = volume[big];
    std::vector<int32_t> skip(g.n, hub);
    skip[hub] = -1;
    const bool parallel = detail::parallel_blocks(g);
    detail::Ratios q = detail::ratios(g, deg, skip, parallel, poll);
    // need[i]: the nu that certifies i. The margin covers the rounding of d, of the ratios and of V.
    constexpr double kMargin = 1 + 1e-9;
    std::vector<double> need(g.n, 2);
    double least = 2;
    for (int32_t i : members)
        if (i != hub) {
            need[i] = kMargin * (2 * std::max(q.largest[i], q.largest[hub]) + 2 * deg.d[i] / V) + 1e-12;
#if defined(MODCUT_PLANT_LOOSE_CERTIFICATE)
            need[i] *= MODCUT_PLANT_LOOSE_CERTIFICATE;
#endif
            least = std::min(least, need[i]);
        }
    // One pass has given ||D^-1/2 W D^-1/2||_F^2 = sum of squared eigenvalues of all components; each component has
    // a 1.
    if (!parallel) {
        const double rest = q.frobenius2 * (1 + 1e-9) - 1;
        const double nu = rest > 0 ? 1 - std::sqrt(rest) - 1e-9 : 0;
        const auto parts = std::count_if(size.begin(), size.end(), [](int64_t k) { return k > 1; });
        if (parts == 1 && nu > least) out.gap = {nu, NuProof::frobenius};
    }
    auto count = [&](double nu) {
        int64_t c = 0;
        for (int32_t i : members) c += i != hub && need[i] <= nu;
        return c;
    };
    const int64_t all = int64_t(members.size()) - 1;
    if (count(out.gap.nu) < all && int64_t(members.size()) <= settings.cholesky_limit) {
        const double estimate = estimate_nu(g, deg, members, 30, poll);
        // Worth n^3/3 only where it would save at least a third of the flows.
        for (double trust : {0.7, 0.3}) {
            double target = 0;
            for (int32_t i : members)
                if (i != hub && need[i] <= trust * estimate) target = std::max(target, need[i]);
            if (target <= out.gap.nu || count(target) * 3 < all) break;
            if (cholesky_proves(g, deg, members, target, settings.threads, poll)) {
                out.gap = {target, NuProof::cholesky};
                break;
            }
        }
    }
    for (int32_t i : members)
        if (i != hub && need[i] <= out.gap.nu) {
            out.proof[i] = Proof::deficiency;
            ++out.certified;
        }
    return out;
}

}  // namespace modcut
