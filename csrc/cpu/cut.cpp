#include "cpu/cut.hpp"

#include <chrono>
#include <string>
#include <vector>

#include "core/checks.hpp"

namespace modcut::cpu {

FlowReport max_flow(const GraphView& g, int64_t s, int64_t t, uint8_t* side, const Settings& settings, Poll& poll) {
    const Degrees deg = cut_ends(g, s, t, settings.threads);
    if (prefers_csr(g, deg, settings.representation)) return st_cut<CsrArcs>(g, deg, s, t, side, settings.kind, poll);
    return st_cut<BlockArcs>(g, deg, s, t, side, settings.kind, poll);
}

TreeReport gomory_hu(const GraphView& g, const TreeOut& out, const Settings& settings, Poll& poll) {
    check_structure(g);
    TreeSettings tree;
    tree.certificates.enabled = settings.certificates;
    tree.certificates.threads = settings.threads;
    tree.certificates.eps = tree.eps = settings.eps;
    tree.flows = settings.flows;
    tree.kind = settings.kind;
    tree.representation = settings.representation;
    tree.reductions = settings.reductions;
    tree.repairs = settings.repairs;
    const auto start = std::chrono::steady_clock::now();
    return cut_tree(g, tree, out, poll, [start] {
        return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    });
}

Recheck recertify(const GraphView& g, const double* guess, const Anchor* anchor, const TreeOut& out,
                  const Settings& settings, Poll& poll) {
    return recheck(g, guess, anchor, settings.threads, out, poll);
}

GlobalReport global_cut(const GraphView& g, uint8_t* side, const Settings& settings, Poll& poll) {
    check_structure(g);
    return modcut::global_cut(g, degrees(g, settings.threads), side, poll);
}

double settle_tree(const GraphView& g, const TreeOut& tree, const Settings& settings, Poll& poll) {
    check_structure(g);
    int64_t roots = 0;
    for (int64_t x = 0; x < g.n; ++x) {
        if (tree.parent[x] >= g.n) throw InputError("parent must hold vertices below n, or -1 at the root");
        roots += tree.parent[x] < 0;
    }
    if (roots != 1) throw InputError("parent must be -1 at exactly one vertex");
    if (Ancestors(g.n, tree.parent).reached() != g.n) throw InputError("parent must not have cycles");
    const Degrees deg = degrees(g, settings.threads);
    return prefers_csr(g, deg, settings.representation)
               ? settle<CsrArcs>(g, deg, tree, settings.kind, settings.repairs, poll).gap
               : settle<BlockArcs>(g, deg, tree, settings.kind, settings.repairs, poll).gap;
}

void cut_values(const GraphView& g, const int64_t* labels, int64_t k, double* out, Poll& poll) {
    check_structure(g);
    for (int64_t x = 0; x < g.n; ++x)
        if (labels[x] < 0 || labels[x] >= k)
            throw InputError("labels must be between 0 and k-1 (" + std::to_string(k - 1) + "), got " +
                             std::to_string(labels[x]) + " at " + std::to_string(x));
    std::vector<Sum> sum(k);
    for (int64_t x = 0; x < g.n; ++x) {
        if ((x & 63) == 0) poll.check();
        for_each_entry(g, x, [&](int64_t y, auto w) {
            if (labels[y] != labels[x]) sum[labels[x]].add(double(w));
        });
    }
    for (int64_t i = 0; i < k; ++i) out[i] = sum[i].value();
}

void degree(const GraphView& g, double* out, const Settings& settings) {
    check_structure(g);
    const Degrees deg = degrees(g, settings.threads);
    for (int64_t x = 0; x < g.n; ++x) out[x] = deg.d[x];
}

}  // namespace modcut::cpu
