// The cut tree of weights that have moved a little: one reading against the strengths of the step before, one more of
// old and new weights where their gap has to be carried over, and flows for the few vertices that these leave.
#pragma once
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "core/certificates.hpp"
#include "core/cut_tree.hpp"
#include "core/glance.hpp"

namespace modcut {

struct Recheck {
    bool made = false;  // false: the graph is not one that glance() reads, or too much of it is left to flows
    bool star = false;  // every edge leads to the root
    TreeReport tree;
    int64_t by[16] = {};  // vertices by Proof
};

namespace detail {

// The same blocks with magnitudes for entries, in memory of its own.
class Magnitudes {
public:
    explicit Magnitudes(const GraphView& g) : view_(g) {
        view_.magnitude = false;
        for (BlockView& b : view_.blocks)
            with_scalar(b.type, b.data, [&](auto* data) {
                using T = std::remove_const_t<std::remove_pointer_t<decltype(data)>>;
                std::vector<char>& own = memory_.emplace_back(size_t(b.rows * b.cols) * sizeof(T));
                T* out = reinterpret_cast<T*>(own.data());
                for (int64_t i = 0; i < b.rows; ++i)
                    for (int64_t j = 0; j < b.cols; ++j)
                        out[i * b.cols + j] =
                            data[i * b.stride + j] < 0 ? -data[i * b.stride + j] : data[i * b.stride + j];
                b.data = out, b.stride = b.cols;
            });
    }
    const GraphView& view() const { return view_; }

private:
    GraphView view_;
    std::vector<std::vector<char>> memory_;
};

inline int64_t count_nonzero(const GraphView& g) {
    int64_t count = 0;
    for (const BlockView& b : g.blocks)
        with_scalar(b.type, b.data, [&](auto* data) {
            for (int64_t i = 0; i < b.rows; ++i) {
                int64_t row = 0;
                for (int64_t j = 0; j < b.cols; ++j) row += data[i * b.stride + j] != 0;
                count += row * (b.symmetric ? 1 : 2);
            }
        });
    return count;
}

}  // namespace detail

inline Recheck recheck(const GraphView& g, const double* guess, const Anchor* anchor, int threads, TreeOut out,
                       Poll& poll) {
    Recheck report;
    Glance seen = glance(g, guess, threads, poll);
    if (!seen.valid) return report;
    TreeSettings settings;
    settings.certificates.threads = threads;
    double passes = 1;
    const StarProof stars =
        detail::Stars(g, seen.deg, seen.comp, settings.certificates, poll).prove_surveyed(std::move(seen.survey), [&] {
            if (!anchor) return 0.0;
            passes += 2;
            return carried_gap(g, seen.deg, *anchor, poll);
        });
    TreeReport& tree = report.tree;
    tree.passes = passes + stars.passes;
    int64_t unproven = 0, merged = 0;
    for (int64_t x = 0; x < g.n; ++x) {
        unproven += x != stars.hub[seen.comp.of[x]] && stars.proof[x] == Proof::flow;
        merged += stars.proof[x] == Proof::merged;
    }
    if (unproven + merged > 0) {
        // That all vertices with strength hang together is what a positive gap says.
        if (!(stars.gap.nu > 0) || unproven * 8 > g.n) return report;
        const detail::Magnitudes own(g.magnitude ? g : GraphView());
        const GraphView& plain = g.magnitude ? own.view() : g;
        seen.deg.nonzero = detail::count_nonzero(plain);
        detail::finish_stars(plain, seen.deg, seen.comp, stars, settings, out, tree, poll);
    } else {
        const double inf = std::numeric_limits<double>::infinity();
        tree.nu = stars.gap, tree.components = seen.comp.count;
        tree.root = stars.hub[0];
        for (int32_t h : stars.hub)
            if (seen.deg.d[h] > seen.deg.d[tree.root]) tree.root = h;
        for (int64_t x = 0; x < g.n; ++x) {
            const bool hub = x == stars.hub[seen.comp.of[x]], top = x == tree.root;
            out.parent[x] = top ? -1 : tree.root;
            out.weight[x] = out.lower[x] = top ? inf : hub ? 0.0 : stars.weight[x];
            out.certified[x] = top ? 0 : uint8_t(hub ? Proof::component : stars.proof[x]);
        }
    }
    report.made = report.star = true;
    for (int64_t x = 0; x < g.n; ++x) {
        if (out.parent[x] < 0) continue;
        report.star = report.star && out.parent[x] == tree.root;
        ++report.by[out.certified[x]];
        tree.certified += out.certified[x] != 0;
    }
    return report;
}

}  // namespace modcut
