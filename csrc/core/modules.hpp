// Certificates inside modules, where the whole graph has no spectral gap. The modules are a guess (label propagation);
// what is proven of them does not depend on how they were found. Statement and proof: docs/mathematics.md, section 3.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <vector>

#include "core/excess.hpp"
#include "core/schur.hpp"
#include "core/spectrum.hpp"
#include "core/survey.hpp"

namespace modcut {

struct ModuleProof {
    std::vector<int32_t> label;   // [n] group, -1 outside; groups of one vertex are exceptions to every rule
    std::vector<int32_t> hub;     // [groups] largest strength
    std::vector<uint8_t> leaf;    // [n] mincut(x, hub of its group) = d(x), proven
    std::vector<double> between;  // [groups, groups] capacities between groups, compensated
    bool linked = false;          // for hubs g, h of two groups, and U the smallest cut of whole groups between them,
    double limit = 0;             // mincut(g, h) >= min(U, limit)
    double smallest_nu = 0;
    double passes = 0;
    int32_t groups() const { return int32_t(hub.size()); }
};

namespace detail {

inline constexpr int32_t kMostGroups = 256;

// Each vertex takes the label that most of its strength leads to, until few change.
inline std::vector<int32_t> propagate(const GraphView& g, const std::vector<int32_t>& members, ModuleProof& out,
                                      Poll& poll) {
    std::vector<int32_t> label(g.n, -1);
    for (int32_t x : members) label[x] = x;
    std::vector<double> pull(g.n, 0);
    std::vector<int32_t> seen;
    for (int sweep = 0; sweep < 8; ++sweep) {
        int64_t changed = 0;
        out.passes += 1;
        for (int32_t x : members) {
            if ((x & 63) == 0) poll.check();
            seen.clear();
            for_each_entry(g, x, [&](int64_t y, auto w) {
                if (!(w > 0)) return;
                const int32_t l = label[y];
                if (pull[l] == 0) seen.push_back(l);
                pull[l] += double(w);
            });
            int32_t best = label[x];
            for (int32_t l : seen)
                if (pull[l] > pull[best] || (pull[l] == pull[best] && l < best)) best = l;
            for (int32_t l : seen) pull[l] = 0;
            changed += best != label[x];
            label[x] = best;
        }
        if (changed * 200 < int64_t(members.size())) break;
    }
    return label;
}

}  // namespace detail

// Nothing where no modules show. `deg` are the strengths in the whole graph.
inline ModuleProof prove_modules(const GraphView& g, const Degrees& deg, const std::vector<int32_t>& members,
                                 int threads, Poll& poll) {
    ModuleProof out;
    const int64_t n = g.n;
    std::vector<int32_t> label = detail::propagate(g, members, out, poll);
    // Groups numbered in order; few of them, or this is no modular graph.
    std::vector<int32_t> number(n, -1);
    int32_t k = 0;
    for (int32_t x : members) {
        int32_t& at = number[label[x]];
        if (at < 0) at = k++;
        label[x] = at;
        if (k > detail::kMostGroups) return {};
    }
    if (k < 2 || int64_t(k) * n > (int64_t(1) << 26)) return {};
    auto sums = [&](std::vector<double>& to) {  // w(x, group), [n, k]
        to.assign(size_t(n) * k, 0);
        for (int32_t x : members) {
            if ((x & 63) == 0) poll.check();
            double* row = to.data() + int64_t(x) * k;
            for_each_entry(g, x, [&](int64_t y, auto w) {
                if (w > 0) row[label[y]] += double(w);
            });
        }
        out.passes += 1;
    };
    std::vector<double> to;
    sums(to);
    // Groups that a fifth of the smaller one's strength joins are one.
    std::vector<double> q(size_t(k) * k, 0);
    for (int32_t x : members)
        for (int32_t c = 0; c < k; ++c) q[label[x] * k + c] += to[int64_t(x) * k + c];
    std::vector<int32_t> root(k);
    std::iota(root.begin(), root.end(), 0);
    auto find = [&](int32_t c) {
        while (root[c] != c) c = root[c];
        return c;
    };
    std::vector<double> volume(k, 0);
    for (int32_t a = 0; a < k; ++a)
        for (int32_t b = 0; b < k; ++b) volume[a] += q[a * k + b];
    for (int32_t a = 0; a < k; ++a)
        for (int32_t b = 0; b < a; ++b)
            if (q[a * k + b] > 0.2 * std::min(volume[a], volume[b])) root[find(a)] = find(b);
    std::vector<int32_t> renumber(k, -1);
    int32_t fewer = 0;
    for (int32_t c = 0; c < k; ++c)
        if (renumber[find(c)] < 0) renumber[find(c)] = fewer++;
    if (fewer < 2) return {};
    for (int32_t x : members) label[x] = renumber[find(label[x])];
    if (fewer < k) {
        k = fewer;
        sums(to);
    }
    std::vector<std::vector<int32_t>> group(k);
    for (int32_t x : members) group[label[x]].push_back(x);
    // The gap inside every group, and with it the room at each of its vertices: w(a, u) may be at most room(u).
    std::vector<double> inverse_room(n, 0);  // 0 for groups of one: any capacity will do
    std::vector<int32_t> local(n, -1);
    out.smallest_nu = 1;
    for (int32_t c = 0; c < k; ++c) {
        const auto& in = group[c];
        const int64_t s = int64_t(in.size());
        if (s == 1) continue;
        if (s > 4000) return {};
        for (int64_t i = 0; i < s; ++i) local[in[i]] = int32_t(i);
        std::vector<double> w(size_t(s) * s, 0);
        for (int64_t i = 0; i < s; ++i)
            for_each_entry(g, in[i], [&](int64_t y, auto v) {
                if (label[y] == c) w[i * s + local[y]] += double(v);
            });
        GraphView part;
        part.n = s;
        BlockView block;
        block.data = w.data(), block.type = Scalar::f64, block.rows = block.cols = block.stride = s;
        block.symmetric = true;
        part.blocks.push_back(block);
        const Degrees inner = degrees(part, 1);
        if (!std::all_of(inner.d.begin(), inner.d.end(), [](double d) { return d > 0; })) return {};
        const Survey seen = survey(part, inner, [](int64_t) { return true; }, 0, 1, poll);
        if (!seen.valid) return {};
        double nu = 1 - SecondEigenvalue(normalised_blocks(seen, inner)).best();
        if (nu < 0.15 || s <= 400) {  // a poor bound, or a cheap factorisation
            Schur schur(seen, inner, independent_cells(seen));
            schur.form(threads, poll);
            const double t = schur.estimate(poll), trial = t + 0.1 * (1 - t) + 1e-3;
            if (1 - trial > nu && schur.factorisation_proves(trial, threads, poll)) nu = 1 - trial;
        }
        out.smallest_nu = std::min(out.smallest_nu, nu);
        for (int64_t i = 0; i < s; ++i) {
            double leak = 0;
            for (int32_t b = 0; b < k; ++b)
                if (b != c) leak += to[int64_t(in[i]) * k + b];
            const double room = (nu / 2 * inner.d[i] * (1 - 1e-9) - leak * (1 + 1e-9)) / 2;
            if (!(room > 0)) return {};
            inverse_room[in[i]] = detail::kPlantedLooseness / room;
        }
    }
    out.passes += 2;
    out.label.assign(n, -1);
    out.leaf.assign(n, 0);
    out.hub.assign(k, -1);
    for (int32_t x : members) {
        out.label[x] = label[x];
        int32_t& h = out.hub[label[x]];
        if (h < 0 || deg.d[x] > deg.d[h]) h = x;
    }
    q.assign(size_t(k) * k, 0);
    {
        std::vector<Sum> exact(size_t(k) * k);
        for (int32_t x : members) {
            Sum* row = exact.data() + int64_t(label[x]) * k;
            for_each_entry(g, x, [&](int64_t y, auto w) {
                if (w > 0 && label[y] != label[x]) row[label[y]].add(double(w));
            });
        }
        for (size_t e = 0; e < q.size(); ++e) q[e] = exact[e].value();
        for (int32_t a = 0; a < k; ++a)  // both directions hold the same edges, added in another order
            for (int32_t b = 0; b < a; ++b) q[a * k + b] = q[b * k + a];
    }
    auto holds = [&](int32_t a) {
        const int32_t c = label[a], h = out.hub[c];
        for (int32_t b = 0; b < k; ++b)
            if (b != c && 2 * to[int64_t(a) * k + b] * (1 + 1e-9) > q[c * k + b]) return false;
        bool fits = true;
        for_each_entry(g, a, [&](int64_t y, auto w) {
            if (y != h && double(w) * inverse_room[y] * (1 + 1e-9) > 1) fits = false;
        });
        return fits;
    };
    out.linked = true;
    out.limit = std::numeric_limits<double>::infinity();
    // Parallel edges add up before they are compared; one entry at a time would not do.
    const bool parallel = [&] {
        const Cells cells = cells_of(g);
        if (g.has_csr) return !g.blocks.empty();
        if (cells.count == 0) return true;
        return std::any_of(cells.pairs.begin(), cells.pairs.end(),
                           [](const CellPair& p) { return p.pieces.size() > 1; });
    }();
    if (parallel) return {};
    for (int32_t c = 0; c < k; ++c) {
        if (group[c].size() == 1) continue;
        const bool hub = holds(out.hub[c]);
        out.linked = out.linked && hub;
        out.limit = std::min(out.limit, deg.d[out.hub[c]] * (1 - 1e-12));
        for (int32_t x : group[c]) {
            if (x == out.hub[c]) continue;
            poll.check();
            out.leaf[x] = hub && holds(x);
        }
    }
    out.between = std::move(q);
    return out;
}

}  // namespace modcut
