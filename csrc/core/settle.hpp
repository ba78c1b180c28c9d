// The last step of a cut tree over floats: every edge weighs exactly the cut that it induces.
//
// Flows run on capacities rounded to 60 bits below the strength of a source. A vertex held by less than that lands on
// either side of a cut, which leaves that cut's value as it is; but a much lighter edge beside it may then induce
// another cut than the one that was measured. Such edges are found by re-summing all induced cuts, mended by moving
// what lies on the wrong side, and, where that fails, given the weight that they really induce, so that nobody calls
// them exact.
#pragma once
#include <cmath>
#include <cstdint>
#include <limits>
#include <set>
#include <utility>
#include <vector>

#include "core/ancestors.hpp"
#include "core/certificates.hpp"
#include "core/degrees.hpp"
#include "core/st_cut.hpp"
#include "core/wide.hpp"

namespace modcut {

struct TreeOut {
    int64_t* parent;     // [n]
    double* weight;      // [n]
    double* lower;       // [n]
    uint8_t* certified;  // [n]
};

// The capacity between the two sides of every edge of a tree, re-summed from the given weights (0 at the root). With
// D(S) the sum over x in S of what leaves x and I(S) what joins two members, cut(S) = D(S) - 2 I(S); an edge lies
// inside the subtrees that hold the lowest common ancestor of its ends. Leaves are folded into their parents first:
// their cut is their strength. The two sums cancel, so they are kept to 106 bits, and where that could still cost the
// last bits of the difference, the cut is summed again from its edges. O(entries + n).
inline std::vector<double> induced_cuts(const GraphView& g, const Degrees& deg, const int64_t* parent,
                                        const uint8_t* code, Poll& poll) {
    const int64_t n = g.n;
    std::vector<double> out(n, 0);
    std::vector<uint8_t> leaf(n, 1);
    int64_t inner = 0;
    for (int64_t v = 0; v < n; ++v) {
        if (parent[v] >= 0)
            leaf[parent[v]] = 0;
        else
            leaf[v] = 0;
    }
    if (n == 1) return out;
    for (int64_t v = 0; v < n; ++v)
        if (leaf[v])
            out[v] = deg.d[v];
        else
            ++inner;
    if (inner <= 1) return out;
    const Ancestors tree(n, parent);
    std::vector<int32_t> home(n);  // preorder numbers
    for (int64_t v = 0; v < n; ++v) home[v] = tree.at(leaf[v] ? parent[v] : v);
    std::vector<Wide> sum(n);  // D - 2 I of the subtree that starts here, by preorder number
    std::vector<double> volume(n, 0);
    int64_t terms = n;
    for (int64_t x = 0; x < n; ++x) {
        if ((x & 63) == 0) poll.check();
        const int32_t hx = home[x];
        for_each_entry(g, x, [&](int64_t y, auto w) {
            const int32_t hy = home[y];
            if (hx == hy || w == 0) return;
            Wide c;
            if constexpr (std::is_integral_v<decltype(w)>)
                c = Wide::of(int64_t(w));
            else
                c = Wide::of(double(w));
            sum[hx] += c;
            volume[hx] += c.hi;
            const int32_t m = tree.meet(hx, hy);
            sum[m] = sum[m] - c;  // seen from both ends: twice in all
            ++terms;
        });
    }
    std::vector<uint8_t> mark;
    std::vector<int32_t> side;
    for (int32_t p = int32_t(n) - 1; p > 0; --p) {
        const int32_t v = tree.vertex(p);
        if (leaf[v]) continue;
        sum[tree.up(p)] += sum[p];
        volume[tree.up(p)] += volume[p];
        const double error = 0x1p-100 * double(terms) * volume[p];
        if (sum[p].hi * 1e-15 >= error) {
            out[v] = sum[p].value();
            continue;
        }
        if (volume[p] == 0 || code[v] == uint8_t(Proof::component)) continue;  // nothing leaves
        mark.resize(n);
        side.clear();
        for (int32_t q = p; q < tree.end(p); ++q) side.push_back(tree.vertex(q));
        out[v] = resum(g, side, mark, poll).value;
    }
    return out;
}

namespace detail {

inline constexpr double kResummed = 1e-13;  // two sums of the same positive float64 terms differ by less

struct Plain {  // a tree on its own
    std::vector<int64_t> parent;
    std::vector<double> weight, lower;
    std::vector<uint8_t> code;
};

inline void reroot(Plain& t, int64_t v) {
    int64_t x = v, above = t.parent[v];
    double weight = t.weight[v], lower = t.lower[v];
    uint8_t code = t.code[v];
    while (above >= 0) {
        const int64_t next = t.parent[above];
        const double w = t.weight[above], l = t.lower[above];
        const uint8_t c = t.code[above];
        t.parent[above] = x, t.weight[above] = weight, t.lower[above] = lower, t.code[above] = code;
        x = above, above = next, weight = w, lower = l, code = c;
    }
    t.parent[v] = -1, t.code[v] = 0;
    t.weight[v] = t.lower[v] = std::numeric_limits<double>::infinity();
}

// The smallest lower bound on the path between two vertices.
inline double weakest(const Plain& t, int64_t u, int64_t v) {
    std::vector<double> seen(t.parent.size(), -1);
    double bound = std::numeric_limits<double>::infinity();
    for (int64_t x = u; x >= 0; bound = std::min(bound, t.lower[x]), x = t.parent[x]) seen[x] = bound;
    bound = std::numeric_limits<double>::infinity();
    for (int64_t x = v;; bound = std::min(bound, t.lower[x]), x = t.parent[x])
        if (seen[x] >= 0) return std::min(bound, seen[x]);
}

// Hangs everything that `side` (of v) puts on the other side of edge v there; false where nothing moves. Lower bounds
// stay proven: the minimum cut between a moved vertex and its new parent is at least the smallest on its old path.
inline bool move_across(Plain& t, int64_t v, const std::vector<uint8_t>& side) {
    const int64_t n = int64_t(t.parent.size()), above = t.parent[v];
    reroot(t, v);  // so that nothing that moves is above where it goes
    const Ancestors tree(n, t.parent.data());
    auto wrong = [&](int64_t x) { return bool(side[x]) == tree.below(tree.at(above), tree.at(x)); };
    std::vector<std::pair<int64_t, int64_t>> moves;
    std::vector<double> bound;
    for (int64_t x = 0; x < n; ++x)
        if (t.parent[x] >= 0 && wrong(x) && !wrong(t.parent[x])) {
            const int64_t to = side[x] ? v : above;
            if (to == t.parent[x]) continue;
            moves.push_back({x, to});
            bound.push_back(weakest(t, t.parent[x], to));
        }
    for (size_t i = 0; i < moves.size(); ++i) {
        const int64_t x = moves[i].first;
        t.parent[x] = moves[i].second;
        t.lower[x] = std::min({t.lower[x], bound[i], t.weight[x]});
    }
    return !moves.empty();
}

}  // namespace detail

struct Settled {
    double gap = 0;  // largest (weight - lower) / weight
    int64_t repairs = 0;
    int64_t root = -1;
};

// Weights become the induced cuts. Each of at most `most` repairs costs a flow and a pass over the weights.
template <class Arcs>
Settled settle(const GraphView& g, const Degrees& deg, TreeOut out, FlowKind kind, int64_t most, Poll& poll) {
    const int64_t n = g.n;
    detail::Plain t{{out.parent, out.parent + n},
                    {out.weight, out.weight + n},
                    {out.lower, out.lower + n},
                    {out.certified, out.certified + n}};
    auto excess = [&](const detail::Plain& p, const std::vector<double>& cuts, int64_t v) {
        if (p.parent[v] < 0) return 0.0;
        const double off = std::abs(cuts[v] - p.weight[v]);
        return off > detail::kResummed * p.weight[v] ? off / std::max(cuts[v], p.weight[v]) : 0.0;
    };
    auto total = [&](const detail::Plain& p, const std::vector<double>& cuts) {
        double s = 0;
        for (int64_t v = 0; v < n; ++v) s += excess(p, cuts, v);
        return s;
    };
    Settled result;
    std::vector<double> cuts = induced_cuts(g, deg, t.parent.data(), t.code.data(), poll);
    double worst = total(t, cuts);
    std::set<std::pair<int64_t, int64_t>> tried;
    std::vector<uint8_t> side;
    while (worst > 0 && result.repairs < most) {
        int64_t v = -1;
        for (int64_t x = 0; x < n; ++x)
            if (excess(t, cuts, x) > 0 && !tried.count(std::minmax(x, t.parent[x])) && (v < 0 || cuts[x] < cuts[v]))
                v = x;
        if (v < 0) break;
        tried.insert(std::minmax(v, t.parent[v]));
        ++result.repairs;
        side.assign(n, 0);
        st_cut<Arcs>(g, deg, v, t.parent[v], side.data(), kind, poll);
        detail::Plain moved = t;
        if (!detail::move_across(moved, v, side)) continue;
        std::vector<double> again = induced_cuts(g, deg, moved.parent.data(), moved.code.data(), poll);
        const double left = total(moved, again);
        if (left < worst) t = std::move(moved), cuts = std::move(again), worst = left;
    }
    for (int64_t v = 0; v < n; ++v) {
        out.parent[v] = t.parent[v], out.certified[v] = t.code[v];
        if (t.parent[v] < 0) {
            out.weight[v] = out.lower[v] = std::numeric_limits<double>::infinity();
            result.root = v;
            continue;
        }
        out.weight[v] = cuts[v];
        out.lower[v] = std::min(t.lower[v], cuts[v]);
        if (cuts[v] > 0) result.gap = std::max(result.gap, (cuts[v] - out.lower[v]) / cuts[v]);
    }
    return result;
}

}  // namespace modcut
