// The cut tree of weights that have moved a little, where certificates prove all of it: one reading against the strengths
// of the step before, one more of old and new weights where their gap has to be carried over.
#pragma once
#include <limits>
#include <vector>

#include "core/certificates.hpp"
#include "core/cut_tree.hpp"
#include "core/glance.hpp"

namespace modcut {

struct Recheck {
    bool read = false;     // the graph is one that glance() reads
    int64_t unproven = 0;  // vertices left; the tree is written where there are none
    int64_t root = -1, nontrivial = 0, components = 0;
    int64_t by[16] = {};  // vertices by Proof
    double passes = 0;
    Gap nu;
};

inline Recheck recheck(const GraphView& g, const double* guess, const Anchor* anchor, int threads, TreeOut out,
                       Poll& poll) {
    Recheck report;
    Glance seen = glance(g, guess, threads, poll);
    report.passes = 1;
    report.read = seen.valid;
    report.unproven = g.n;
    if (!seen.valid) return report;
    CertificateSettings settings;
    settings.threads = threads;
    const StarProof stars = detail::Stars(g, seen.deg, seen.comp, settings, poll)
                                .prove_surveyed(std::move(seen.survey), [&] {
                                    if (!anchor) return 0.0;
                                    report.passes += 2;
                                    return carried_gap(g, seen.deg, *anchor, poll);
                                });
    report.passes += stars.passes;
    report.nu = stars.gap;
    report.components = seen.comp.count;
    int32_t root = stars.hub[0];
    for (int32_t h : stars.hub)
        if (seen.deg.d[h] > seen.deg.d[root]) root = h;
    report.root = root;
    report.unproven = 0;
    for (int64_t x = 0; x < g.n; ++x)
        report.unproven += x != stars.hub[seen.comp.of[x]] && stars.proof[x] == Proof::flow;
    if (report.unproven > 0 || (g.n > 1 && stars.certified == 0)) return report;
    const double inf = std::numeric_limits<double>::infinity();
    for (int64_t x = 0; x < g.n; ++x) {
        const bool hub = x == stars.hub[seen.comp.of[x]], top = x == root;
        out.parent[x] = top ? -1 : hub ? root : stars.parent[x];
        out.weight[x] = out.lower[x] = top ? inf : hub ? 0.0 : stars.weight[x];
        out.certified[x] = top ? 0 : uint8_t(hub ? Proof::component : stars.proof[x]);
        if (!top) ++report.by[out.certified[x]];
        report.nontrivial += !hub && stars.proof[x] == Proof::merged;
    }
    return report;
}

}  // namespace modcut
