// The cut tree (Gomory and Hu 1961) by Gusfield's method (1990) with the swap that makes it a cut tree, on top of
// certificates, with contraction of vertices already known to be at least as well connected.
#pragma once
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <queue>
#include <vector>

#include "core/certificates.hpp"
#include "core/decompose.hpp"
#include "core/settle.hpp"
#include "core/st_cut.hpp"

namespace modcut {

struct TreeReport {
    int64_t flows = 0, certified = 0, nontrivial = 0, root = -1, components = 0, fallbacks = 0, repairs = 0;
    int64_t reduced = 0;  // vertices whose cut follows from bridges, blocks and chains
    double passes = 0, gap = 0;
    bool exact = true;
    Gap nu;
    const char* representation = "none";
    double seconds_certificates = 0;
};

// Vertices i, j in one class: proven mincut(i, j) >= the current threshold. The threshold only falls, so classes only
// merge.
class Classes {
public:
    explicit Classes(int64_t n) : of_(n), members_(n) {
        std::iota(of_.begin(), of_.end(), 0);
        for (int64_t x = 0; x < n; ++x) members_[x].assign(1, int32_t(x));
    }
    void learn(double lower, int32_t a, int32_t b) { known_.push({lower, {a, b}}); }
    void lower_to(double threshold) {
#if defined(MODCUT_PLANT_WEAK_CONTRACTION)
        threshold *= MODCUT_PLANT_WEAK_CONTRACTION;
#endif
        while (!known_.empty() && known_.top().first >= threshold) {
            join(of_[known_.top().second.first], of_[known_.top().second.second]);
            known_.pop();
        }
    }
    int32_t of(int64_t x) const { return of_[x]; }
    const int32_t* data() const { return of_.data(); }

private:
    void join(int32_t a, int32_t b) {
        if (a == b) return;
        if (members_[a].size() < members_[b].size()) std::swap(a, b);
        for (int32_t x : members_[b]) of_[x] = a;
        members_[a].insert(members_[a].end(), members_[b].begin(), members_[b].end());
        std::vector<int32_t>().swap(members_[b]);
    }
    std::vector<int32_t> of_;
    std::vector<std::vector<int32_t>> members_;
    std::priority_queue<std::pair<double, std::pair<int32_t, int32_t>>> known_;
};

template <class Arcs>
void run_flows(const GraphView& g, const Degrees& deg, const std::vector<int32_t>& order, Classes& classes,
               FlowKind kind, double eps, TreeOut out, TreeReport& report, Poll& poll) {
    Solver<Arcs> solver(g, deg, poll, kind);
    // A flow may end at a share 1 / (1 + eps) of its source's strength: the lower bound asked for.
    const auto enough = [&](const Cut& c) { return solver.proven(c) || c.lower * (1 + eps) >= c.upper.value; };
    double base = -1, threshold = std::numeric_limits<double>::infinity();
    for (int32_t s : order) {
        poll.check();
        const int64_t t = out.parent[s];
        if (base < 0 || (!g.integral && deg.d[s] < base / 16) || solver.refined > 0) {
            // No flow from here on exceeds d[s], so neither does a useful capacity.
            base = deg.d[s];
            solver.use(rounding_for(g, base));
            solver.refined = 0;
        }
        // Thresholds are compared in the rounded network, where a vertex and its flow agree to the last bit.
        // It must not rise: strengths are sorted before rounding, and classes merged at the last threshold.
        int64_t bound = solver.strength(s);
        // A little more than the share: the strength itself lies above its rounded sum.
        if (eps > 0) bound = std::min(bound, int64_t(std::ceil(double(bound) / (1 + eps) * (1 + 1e-9))));
        if (g.integral) {
            classes.lower_to(double(bound));
        } else {
            const double scaled = PowerOfTwo(solver.rounding().exponent)(threshold);
            if (scaled < 0x1p62) bound = std::min(bound, int64_t(scaled));
            threshold = to_float(bound, solver.rounding().exponent);
            classes.lower_to(threshold);
        }
        const int32_t ct = classes.of(t);
        const int32_t* of = classes.data();
        Cut cut = solver.cut(s, t, [of, ct](int32_t y) { return of[y] == ct; }, bound);
        if (!enough(cut)) solver.refine(s, t, g.n, cut);
        const double weight = cut.upper.value;
        const double lower = cut.lower;
        classes.learn(lower, s, int32_t(t));
        if (!solver.proven(cut)) {
            report.exact = false;
            report.gap = std::max(report.gap, weight > 0 ? (weight - lower) / weight : 0.0);
        }
        if (cut.shape != Shape::source) ++report.nontrivial;
        // Gusfield's step: neighbours of t on the side of s move to s; then the swap.
        std::vector<uint8_t>& in = solver.mark();
        const bool flip = cut.shape == Shape::all_but_target;
        auto inside = [&](int64_t x) { return flip ? x != t : bool(in[x]); };
        if (cut.shape == Shape::listed) {
            for (int32_t x : cut.side) in[x] = 1;
            for (int32_t x : cut.side)
                if (x != s && out.parent[x] == t) out.parent[x] = s;
        } else if (flip) {
            for (int64_t x = 0; x < g.n; ++x)
                if (x != s && x != t && out.parent[x] == t) out.parent[x] = s;
        } else {
            in[s] = 1;
        }
#if defined(MODCUT_PLANT_NO_SWAP)
        const bool swap = false && inside(t);
#else
        const bool swap = out.parent[t] >= 0 && inside(out.parent[t]);
#endif
        if (swap) {
            out.parent[s] = out.parent[t];
            out.parent[t] = s;
            out.weight[s] = out.weight[t], out.lower[s] = out.lower[t], out.certified[s] = out.certified[t];
            out.weight[t] = weight, out.lower[t] = lower, out.certified[t] = uint8_t(Proof::flow);
        } else {
            out.weight[s] = weight, out.lower[s] = lower, out.certified[s] = uint8_t(Proof::flow);
        }
        if (cut.shape == Shape::listed)
            for (int32_t x : cut.side) in[x] = 0;
        in[s] = 0;
    }
    report.flows = solver.flows;
    report.fallbacks = solver.fallbacks;
    report.passes += double(solver.work()) / double(std::max<int64_t>(1, solver.arcs.size()));
    report.representation = Arcs::kName;
}

struct TreeSettings {
    CertificateSettings certificates;
    FlowKind kind = FlowKind::automatic;
    int representation = 0;  // 0 auto, 1 block, 2 csr
    double eps = 0;          // 0: exact; otherwise every lower bound is at least weight / (1 + eps)
    bool flows = true;       // false: certificates only; what they leave is a leaf with lower bound 0
    bool reductions = true;
    int64_t repairs = 50;
};

// The tree of the groups as a graph of their own, rooted at the group of `root`. False where a cut that takes a hub
// from its module could be smaller.
struct GroupTree {
    std::vector<int64_t> parent;
    std::vector<double> weight, lower;
};
template <class Clock>
TreeReport cut_tree(const GraphView& g, const TreeSettings& settings, TreeOut out, Poll& poll, Clock&& seconds);

inline bool link_modules(const GraphView& g, const ModuleProof& m, int32_t root, GroupTree& tree, Poll& poll) {
    if (!m.linked || g.integral) return false;
    const int64_t k = m.groups();
    GraphView quotient;
    quotient.n = k;
    BlockView block;
    block.data = m.between.data(), block.type = Scalar::f64, block.rows = block.cols = block.stride = k;
    block.symmetric = true;
    quotient.blocks.push_back(block);
    tree.parent.resize(k), tree.weight.resize(k), tree.lower.resize(k);
    std::vector<uint8_t> proof(k);
    TreeSettings plain;
    plain.certificates.enabled = false;
    cut_tree(quotient, plain, {tree.parent.data(), tree.weight.data(), tree.lower.data(), proof.data()}, poll,
             [] { return 0.0; });
    // Turn the path from the group of the root upwards.
    int64_t x = m.label[root], above = tree.parent[x];
    double w = tree.weight[x], l = tree.lower[x];
    tree.parent[x] = -1;
    while (above >= 0) {
        const int64_t next = tree.parent[above];
        std::swap(tree.weight[above], w), std::swap(tree.lower[above], l);
        tree.parent[above] = x;
        x = above, above = next;
    }
    for (int64_t c = 0; c < k; ++c)
        if (c != m.label[root] && !(tree.weight[c] <= m.limit)) return false;
    return true;
}

namespace detail {

inline constexpr uint8_t kReduced = uint8_t(Proof::reduction);

// From what is proven of stars to the whole tree: components, stars, flows for what is left.
inline void finish_stars(const GraphView& g, const Degrees& deg, const Components& comp, const StarProof& stars,
                         const TreeSettings& settings, TreeOut out, TreeReport& report, Poll& poll) {
    const int64_t n = g.n;
    report.nu = stars.gap;
    report.components = comp.count;
    // Components first: cuts of value 0 between their hubs. Then stars inside, and stars in stars.
    int32_t root = stars.hub[0];
    for (int32_t h : stars.hub)
        if (deg.d[h] > deg.d[root]) root = h;
    report.root = root;
    const double inf = std::numeric_limits<double>::infinity();
    std::vector<int32_t> order;
    for (int64_t x = 0; x < n; ++x) {
        const int32_t h = stars.hub[comp.of[x]];
        const bool is_hub = x == h, is_root = x == root;
        out.parent[x] = is_root ? -1 : is_hub ? root : stars.parent[x];
        out.weight[x] = is_root ? inf : is_hub ? 0.0 : stars.weight[x];
        out.lower[x] = is_root ? inf : is_hub ? 0.0 : stars.lower[x];
        out.certified[x] = is_root ? 0 : is_hub ? uint8_t(Proof::component) : uint8_t(stars.proof[x]);
        report.nontrivial += !is_hub && (stars.proof[x] == Proof::merged || stars.proof[x] == Proof::quotient);
        if (!is_hub && stars.proof[x] == Proof::flow) order.push_back(int32_t(x));
        if (!is_hub && out.weight[x] > out.lower[x]) {
            report.exact = report.exact && out.weight[x] - out.lower[x] <= tolerance(g) * out.weight[x];
            report.gap = std::max(report.gap, 1 - out.lower[x] / out.weight[x]);
        }
    }
    if (!settings.flows)
        for (int32_t x : order) {
            out.lower[x] = 0;
            report.exact = false;
            report.gap = 1;
        }
    if (!settings.flows && !order.empty()) return;
    auto finish = [&]<class Arcs>() {
        if (g.integral || n < 3) return;
        const Settled settled = settle<Arcs>(g, deg, out, settings.kind, settings.repairs, poll);
        report.root = settled.root;
        report.repairs += settled.repairs;
        report.gap = std::max(report.gap, settled.gap);
        report.exact = report.exact && report.gap <= tolerance(g);
    };
    const bool csr = prefers_csr(g, deg, settings.representation);
    if (order.empty()) {
        // Stars weigh their strengths; only cuts between modules need to be summed again.
        csr ? finish.template operator()<CsrArcs>() : finish.template operator()<BlockArcs>();
        return;
    }
    std::stable_sort(order.begin(), order.end(),
                     [&](int32_t a, int32_t b) { return g.integral ? deg.di[a] > deg.di[b] : deg.d[a] > deg.d[b]; });
    Classes classes(n);
    for (int64_t x = 0; x < n; ++x)
        if (stars.proof[x] != Proof::flow)
            classes.learn(stars.lower[x], int32_t(x), stars.against.empty() ? stars.hub[comp.of[x]] : stars.against[x]);
    if (csr)
        run_flows<CsrArcs>(g, deg, order, classes, settings.kind, settings.eps, out, report, poll);
    else
        run_flows<BlockArcs>(g, deg, order, classes, settings.kind, settings.eps, out, report, poll);
    csr ? finish.template operator()<CsrArcs>() : finish.template operator()<BlockArcs>();
}

// Components, stars, flows: the cut tree of a graph as it is.
template <class Clock>
void tree_of_core(const GraphView& g, const Degrees& deg, const TreeSettings& settings, TreeOut out, TreeReport& report,
                  Poll& poll, Clock&& seconds) {
    const int64_t n = g.n;
    const Components comp = components(g, poll);
    const double before = seconds();
    StarProof stars = prove_stars(g, deg, comp, settings.certificates, poll);
    if (!stars.modules.hub.empty()) {
        const ModuleProof& m = stars.modules;
        const int32_t home = stars.hub[comp.of[m.hub[0]]];
        GroupTree tree;
        if (link_modules(g, m, home, tree, poll))
            for (int64_t x = 0; x < n; ++x) {
                const int32_t c = m.label[x];
                if (c < 0 || x == home) continue;
                if (x != m.hub[c]) {
                    stars.parent[x] = m.hub[c];
                    continue;
                }
                stars.proof[x] = Proof::quotient;
                stars.parent[x] = m.hub[tree.parent[c]];
                stars.weight[x] = tree.weight[c], stars.lower[x] = tree.lower[c] * (1 - 1e-14);
            }
        else if (settings.eps > 0)  // a leaf's hub may stay where it is, cut off by less than the leaf's own strength
            for (int64_t x = 0; x < n; ++x)
                if (stars.proof[x] == Proof::module) stars.proof[x] = Proof::flow;
    }
    report.seconds_certificates += seconds() - before;
    report.passes += 2 + stars.passes;
    finish_stars(g, deg, comp, stars, settings, out, report, poll);
}

// The cut tree put together from those of blocks, where chains have become edges.
template <class Clock>
void tree_by_blocks(const GraphView& g, const Degrees& deg, const TreeSettings& settings, TreeOut out,
                    TreeReport& report, Poll& poll, Clock&& seconds) {
    const int64_t n = g.n;
    const MergedRows rows(g, poll);
    std::vector<LightEdge> edges;
    edges.reserve(n);
    std::vector<int32_t> hubs;
    report.passes += 3;
    const double arcs = std::max<double>(1, double(rows.target.size()));
    bool whole = false;  // one block, nothing to reduce: leave the graph in the form it has
    auto of_block = [&](const Block& block) {
        const auto& name = block.vertices;
        if (name.size() == 2) {
            edges.push_back({name[0], name[1], block.capacity[0], block.capacity[0], kReduced});
            return;
        }
        const SeriesReduction chains(block);
        const Block core = chains.core();
        std::vector<LightEdge> tree;
        if (core.vertices.size() == 2) {
            tree.push_back({core.vertices[0], core.vertices[1], core.capacity[0], core.capacity[0], kReduced});
        } else {
            if (int64_t(core.vertices.size()) == n && !g.has_csr) {
                whole = true;
                return;
            }
            const OwnedCsr part(core, g);
            const int64_t k = part.view.n;
            const Degrees part_deg = degrees(part.view, 1);
            std::vector<int64_t> parent(k);
            std::vector<double> weight(k), lower(k);
            std::vector<uint8_t> code(k);
            TreeReport r;
            TreeSettings how = settings;
            if (chains.removed() > 0)
                how.eps = how.certificates.eps = 0;  // a chain's vertices go by what is exactly true of its ends
            tree_of_core(part.view, part_deg, how, {parent.data(), weight.data(), lower.data(), code.data()}, r, poll,
                         seconds);
            report.flows += r.flows, report.fallbacks += r.fallbacks, report.nontrivial += r.nontrivial;
            report.repairs += r.repairs, report.seconds_certificates += r.seconds_certificates;
            report.passes += r.passes * double(part.view.csr.nnz) / arcs;
            report.gap = std::max(report.gap, r.gap);
            report.exact = report.exact && r.exact;
            if (r.flows > 0) report.representation = r.representation;
            if (2 * k > n) report.nu = r.nu;
            for (int64_t v = 0; v < k; ++v)
                if (parent[v] >= 0)
                    tree.push_back({core.vertices[v], core.vertices[parent[v]],
                                    g.integral ? Wide::of(int64_t(weight[v])) : Wide::of(weight[v]),
                                    g.integral ? Wide::of(int64_t(lower[v])) : Wide::of(lower[v]), code[v]});
        }
        if (chains.removed() > 0) tree = chains.expand(tree, kReduced);
        for (LightEdge& e : tree) {
            e.a = name[e.a], e.b = name[e.b];
            edges.push_back(e);
        }
    };
    for_each_block(rows, poll, of_block, [&](const std::vector<int32_t>& members) {
        int32_t hub = members[0];
        for (int32_t x : members)
            if (deg.d[x] > deg.d[hub] || (deg.d[x] == deg.d[hub] && x < hub)) hub = x;
        hubs.push_back(hub);
    });
    if (whole) {
        tree_of_core(g, deg, settings, out, report, poll, seconds);
        return;
    }
    // One rooted tree: the hubs of the components hang on the strongest of them.
    int32_t root = hubs[0];
    for (int32_t h : hubs)
        if (deg.d[h] > deg.d[root]) root = h;
    const double inf = std::numeric_limits<double>::infinity();
    std::vector<int64_t> first(n + 1, 0);
    for (const LightEdge& e : edges) ++first[e.a + 1], ++first[e.b + 1];
    for (int64_t x = 0; x < n; ++x) first[x + 1] += first[x];
    std::vector<int32_t> at(2 * edges.size());
    {
        std::vector<int64_t> next(first.begin(), first.end() - 1);
        for (size_t i = 0; i < edges.size(); ++i)
            at[next[edges[i].a]++] = int32_t(i), at[next[edges[i].b]++] = int32_t(i);
    }
    std::vector<int32_t> queue;
    for (int32_t h : hubs) {
        out.parent[h] = h == root ? -1 : root;
        out.weight[h] = out.lower[h] = h == root ? inf : 0.0;
        out.certified[h] = h == root ? 0 : uint8_t(Proof::component);
        queue.push_back(h);
    }
    for (size_t head = 0; head < queue.size(); ++head) {
        const int32_t x = queue[head];
        for (int64_t i = first[x]; i < first[x + 1]; ++i) {
            const LightEdge& e = edges[at[i]];
            const int32_t y = e.a == x ? e.b : e.a;
            if (out.parent[x] == y) continue;  // components hang by their hubs only, so this is the edge of x itself
            out.parent[y] = x;
            if (g.integral) {
                out.weight[y] = double(e.weight.integer()), out.lower[y] = double(e.lower.integer());
            } else {
                out.weight[y] = e.weight.value();
                out.lower[y] = std::min(e.lower.down(), out.weight[y]);
                if (out.weight[y] > 0)
                    report.gap = std::max(report.gap, (out.weight[y] - out.lower[y]) / out.weight[y]);
            }
            out.certified[y] = e.code;
            queue.push_back(y);
        }
    }
    report.exact = report.exact && report.gap <= tolerance(g);
    report.root = root;
    report.components = int64_t(hubs.size());
}

}  // namespace detail

template <class Clock>
TreeReport cut_tree(const GraphView& g, const TreeSettings& settings, TreeOut out, Poll& poll, Clock&& seconds) {
    TreeReport report;
    const int64_t n = g.n;
    if (n == 0) return report;
    const Degrees deg = degrees(g, settings.certificates.threads);
    // Bridges and vertices with two neighbours are a matter of sparse graphs; a matrix is read as it is.
    if (settings.reductions && settings.flows && settings.representation != 1 &&
        (g.has_csr || prefers_csr(g, deg, settings.representation)))
        detail::tree_by_blocks(g, deg, settings, out, report, poll, seconds);
    else
        detail::tree_of_core(g, deg, settings, out, report, poll, seconds);
    for (int64_t v = 0; v < n; ++v) {
        report.reduced += out.certified[v] == detail::kReduced;
        report.certified += out.certified[v] != 0;
    }
    return report;
}

}  // namespace modcut
