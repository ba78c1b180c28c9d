// Proofs of cuts of the tree without a flow: which vertices are leaves, which small sets hang together. Statements and
// proofs: docs/mathematics.md, sections 3 and 4.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <vector>

#include "core/components.hpp"
#include "core/degrees.hpp"
#include "core/excess.hpp"
#include "core/modules.hpp"
#include "core/schur.hpp"
#include "core/spectrum.hpp"
#include "core/survey.hpp"
#include "core/views.hpp"

namespace modcut {

// How a vertex's cut was proven; TreeOut::certified and CERTIFICATES in python/modcut/tree.py.
enum class Proof : uint8_t {
    flow = 0,
    deficiency = 1,  // every capacity at it is small beside its other end's strength
    component = 3,   // another connected component
    exceptions = 4,  // the same but for a few edges, each looked at by itself
    merged = 5,      // a set: the vertex with what hangs on it by more than half of its strength
    module = 6,      // against the hub of its module
    quotient = 7,    // a hub: a cut of whole modules
    reduction = 8,   // by the graph's structure: bridges, blocks, vertices with two neighbours
};
enum class NuProof : uint8_t { none, frobenius, norms, cholesky, carried };
inline const char* name_of(NuProof how) {
    static constexpr const char* kNames[] = {"none", "frobenius", "norms", "cholesky", "carried"};
    return kNames[int(how)];
}

struct Gap {  // a proven lower bound on nu_2 and how it was proven
    double nu = 0;
    NuProof proof = NuProof::none;
};

struct StarProof {
    std::vector<Proof> proof;           // [n]
    std::vector<int32_t> parent;        // [n] in the tree so far: the innermost proven set's vertex, or the hub
    std::vector<double> weight, lower;  // [n] of the proven
    std::vector<int32_t> hub;           // of each component
    Gap gap;                            // of the largest component
    int64_t certified = 0;
    double passes = 0;             // over the weights, estimated from the rows and products looked at
    std::vector<int32_t> against;  // [n] whom the proof is against, where that is not the component's hub; or empty
    ModuleProof modules;           // where these were used
    bool exact = true;             // lower == weight wherever proven
};

struct CertificateSettings {
    bool enabled = true;
    int threads = 1;
    double eps = 0;  // a bound of d / (1 + eps) is proof enough
};

namespace detail {

// What flows would cost against what a proof may: seconds, roughly, as measured on one core.
inline double flow_seconds(const Degrees& deg, int64_t vertices) {
    return double(vertices) * (3e-6 + 70e-12 * double(std::min(deg.slots, 4 * deg.nonzero)));
}
inline double schur_seconds(const Schur& s) {
    const double r = double(s.size());
    return s.product_cost() / 4e10 + r * r * 2e-8 + r * r * r / 6 / 1e10;
}

class Stars {
public:
    Stars(const GraphView& g, const Degrees& deg, const Components& comp, const CertificateSettings& settings,
          Poll& poll)
        : g_(g), deg_(deg), comp_(comp), set_(settings), poll_(poll), row_(g.n) {}

    StarProof prove() {
        StarProof& out = out_;
        if (!begin()) return std::move(out_);
        const int32_t big = comp_.of[hub_];
        survey_ = survey(g_, deg_, [&](int64_t x) { return comp_.of[x] == big; }, hub_, set_.threads, poll_);
        out.passes += 1;
        if (!survey_.valid) return std::move(out_);
        if (hopeless()) return std::move(out_);
        SecondEigenvalue blocks(normalised_blocks(survey_, deg_));
        const double t = blocks.best();
        if (t < 1) out.gap = {1 - t, NuProof::frobenius};
        if (out.gap.nu > 0) certify();
        // Where nothing is proven yet there may be modules, or the bound was too poor: the cheaper attempt first.
        const Schur schur = survey_.cells.count ? Schur(survey_, deg_, independent_cells(survey_)) : Schur();
        const bool labels_first = survey_.cells.count == 0 || schur_seconds(schur) > kLabelSeconds * double(deg_.slots);
        if (out_.certified == 0 && labels_first) by_modules();
        if (left() > 0 && out_.modules.hub.empty() && survey_.cells.count) by_elimination(schur);
        if (out_.certified == 0 && !labels_first) by_modules();
        place();
        return std::move(out_);
    }

    // From a survey at hand, and a gap that `more()` may know of where that of the survey is not enough. No
    // elimination, no modules: what these would prove is left.
    template <class More>
    StarProof prove_surveyed(Survey seen, More&& more) {
        if (!begin()) return std::move(out_);
        survey_ = std::move(seen);
        SecondEigenvalue blocks(normalised_blocks(survey_, deg_));
        const double t = blocks.best();
        if (t < 1) out_.gap = {1 - t, NuProof::frobenius};
        if (out_.gap.nu > 0) certify();
        if (left() > 0) {
            const double nu = more();
            if (nu > out_.gap.nu) out_.gap = {nu, NuProof::carried}, certify();
        }
        place();
        return std::move(out_);
    }

private:
    // The hubs, and the component that is worth a proof: the largest; the others run flows. False where none is.
    bool begin() {
        const int64_t n = g_.n;
        out_.proof.assign(n, Proof::flow);
        out_.hub.assign(comp_.count, -1);
        for (int64_t x = 0; x < n; ++x) {
            int32_t& h = out_.hub[comp_.of[x]];
            if (h < 0 || deg_.d[x] > deg_.d[h]) h = int32_t(x);
        }
        out_.parent.resize(n);
        for (int64_t x = 0; x < n; ++x) out_.parent[x] = out_.hub[comp_.of[x]];
        out_.weight = out_.lower = deg_.d;
        if (!set_.enabled || n < 4) return false;
        std::vector<int64_t> size(comp_.count);
        for (int64_t x = 0; x < n; ++x) ++size[comp_.of[x]];
        const int32_t big = int32_t(std::max_element(size.begin(), size.end()) - size.begin());
        if (size[big] < 4) return false;
        for (int64_t x = 0; x < n; ++x)
            if (comp_.of[x] == big) members_.push_back(int32_t(x)), volume_ += deg_.d[x];
        if (!(volume_ < 1e290)) return false;
        volume_ *= 1 - 1e-9;
        hub_ = out_.hub[big];
        return true;
    }

    int64_t left() const { return int64_t(members_.size()) - 1 - out_.certified; }

    // Not even nu = 1 would certify a fifth of the vertices by their ratios: sparse graphs, which flows do better.
    bool hopeless() const {
        int64_t hopeful = 0;
        for (int32_t x : members_) hopeful += survey_.top[x] <= 0.45;
        return hopeful * 5 < int64_t(members_.size());
    }

    static constexpr double kLabelSeconds = 1.2e-8;  // for every slot: some sweeps of label propagation

    void by_elimination(Schur schur) {
        if (schur.size() > 10000 || schur_seconds(schur) > flow_seconds(deg_, left())) return;
        schur.form(set_.threads, poll_);
        out_.passes += 1 + schur.product_cost() / double(std::max<int64_t>(1, deg_.slots)) / 16;  // 16 lanes
        const double estimate = schur.estimate(poll_);
        // A little above the estimate; much above, should that have been too low.
        for (const double above : {0.1, 0.35}) {
            const double t = estimate + above * (1 - estimate) + 1e-3;
            if (!(1 - t > out_.gap.nu * 1.1)) return;
            NuProof how = NuProof::none;
            if (schur.norms_prove(t))
                how = NuProof::norms;
            else if (schur.factorisation_proves(t, set_.threads, poll_))
                how = NuProof::cholesky;
            if (how == NuProof::none) continue;
            out_.gap = {1 - t, how};
            certify();
            return;
        }
    }

    void by_modules() {
        if (kLabelSeconds * double(deg_.slots) > flow_seconds(deg_, left())) return;
        ModuleProof m = prove_modules(g_, deg_, members_, set_.threads, poll_);
        out_.passes += m.passes;
        if (m.hub.empty()) return;
        out_.against = out_.parent;
        for (int32_t x : members_) {
            if (!m.leaf[x]) continue;
            accept(x, Proof::module, deg_.d[x], deg_.d[x]);
            out_.against[x] = m.hub[m.label[x]];
        }
        out_.modules = std::move(m);
    }

    double theta(double cut) const { return (out_.gap.nu - 2 * cut / volume_) / 2 - 1e-12; }

    // With the nu proven so far, whatever it proves.
    void certify() {
        double largest = 0;  // strength below the hub's
        for (int32_t x : members_)
            if (x != hub_) largest = std::max(largest, deg_.d[x]);
        const double at_hub = theta(largest);
        if (!(at_hub > 0)) return;
        Excess excess(g_, deg_, survey_);
        double hub_pay = 0;
        constexpr double kMargin = 1 + 1e-9;
        if (survey_.top[hub_] * kMargin * kPlantedLooseness > at_hub) {
            row_.clear();
            row_.add(g_, hub_);
            hub_pay = excess(row_, -1, at_hub);
            row_.clear();
        }
        const double hub_bound = deg_.d[hub_] * (1 - 1e-12) - hub_pay;
        const double enough = 1 / (1 + set_.eps);
        double rows = 0;
        for (int32_t i : members_) {
            if (i == hub_ || (out_.proof[i] != Proof::flow && out_.lower[i] == out_.weight[i])) continue;
            poll_.check();
            const double d = deg_.d[i];
            const bool hub_clear = hub_pay == 0 || hub_bound >= d;
            const double th = theta(d);
            if (th <= 0 || (!hub_clear && hub_bound < enough * d)) continue;
            if (survey_.top[i] * kMargin * kPlantedLooseness <= th) {
                accept(i, Proof::deficiency, d, hub_clear ? d : hub_bound);
                continue;
            }
            row_.clear();
            row_.add(g_, i);
            ++rows;
            double pay = excess(row_, hub_, th);
            const double bound = std::min(hub_clear ? d : hub_bound, pay > 0 ? d * (1 - 1e-12) - pay : d);
            if (bound >= d || (set_.eps > 0 && bound >= enough * d)) {
                accept(i, Proof::exceptions, d, bound);
                continue;
            }
            merge(i, excess, hub_bound, hub_pay, rows);
        }
        row_.clear();
        out_.passes += rows * double(g_.n) / double(std::max<int64_t>(1, deg_.slots));
    }

    void accept(int32_t i, Proof how, double weight, double lower) {
        if (out_.proof[i] == Proof::flow) ++out_.certified;
        out_.proof[i] = how, out_.weight[i] = weight, out_.lower[i] = std::min(lower, weight);
        out_.exact = out_.exact && out_.lower[i] == out_.weight[i];
    }

    // Whatever hangs on i by more than half of its strength stays with i in every cut: take it in, and try again.
    void merge(int32_t i, Excess& excess, double hub_bound, double hub_pay, double& rows) {
        constexpr size_t kMost = 64;
        bool grown = true;
        while (grown) {
            grown = false;
            const std::vector<int32_t> touched = row_.touched();
            for (int32_t u : touched) {
                if (u == hub_ || row_.has(u) || !(2 * row_[u] > deg_.d[u] * (1 + 1e-9))) continue;
                if (row_.members().size() >= kMost) return;
                row_.add(g_, u);
                ++rows;
                grown = true;
            }
        }
        if (row_.members().size() < 2) return;
        Sum sum;
        int64_t whole = 0;
        for (int32_t x : row_.members())
            for_each_entry(g_, x, [&](int64_t y, auto w) {
                if (row_.has(y)) return;
                if constexpr (std::is_integral_v<decltype(w)>)
                    whole += w;
                else
                    sum.add(double(w));
            });
        const double cut = g_.integral ? double(whole) : sum.value();
        const double th = theta(cut);
        if (!(cut < deg_.d[i]) || th <= 0 || (hub_pay > 0 && hub_bound < cut)) return;
        if (excess(row_, hub_, th) > 0) return;
        std::vector<int32_t> set = row_.members();
        std::sort(set.begin(), set.end());
        sets_.push_back({i, std::move(set)});
        accept(i, Proof::merged, cut, cut);
    }

    // The proven sets form a tree: each hangs in the smallest one around it. Sets that do not nest go back to flows.
    void place() {
        if (sets_.empty()) return;
        std::stable_sort(sets_.begin(), sets_.end(),
                         [](const Set& a, const Set& b) { return a.members.size() > b.members.size(); });
        std::vector<int32_t> innermost(g_.n, -1);  // index of the smallest accepted set around a vertex
        for (size_t k = 0; k < sets_.size(); ++k) {
            const Set& s = sets_[k];
            const int32_t around = innermost[s.vertex];
            // Nested: all members lie in the same sets so far, and none of those has this vertex for its own.
            const bool fits =
                std::all_of(s.members.begin(), s.members.end(), [&](int32_t x) { return innermost[x] == around; }) &&
                std::none_of(s.members.begin(), s.members.end(),
                             [&](int32_t x) { return around >= 0 && x == sets_[around].vertex; });
            if (!fits) {
                out_.proof[s.vertex] = Proof::flow;
                out_.weight[s.vertex] = out_.lower[s.vertex] = deg_.d[s.vertex];
                --out_.certified;
                continue;
            }
            for (int32_t x : s.members) {
                innermost[x] = int32_t(k);
                out_.parent[x] = x == s.vertex ? (around >= 0 ? sets_[around].vertex : hub_) : s.vertex;
            }
        }
    }

    struct Set {
        int32_t vertex;
        std::vector<int32_t> members;
    };
    const GraphView& g_;
    const Degrees& deg_;
    const Components& comp_;
    const CertificateSettings& set_;
    Poll& poll_;
    StarProof out_;
    std::vector<int32_t> members_;
    std::vector<Set> sets_;
    Survey survey_;
    Row row_;
    double volume_ = 0;
    int32_t hub_ = -1;
};

}  // namespace detail

inline StarProof prove_stars(const GraphView& g, const Degrees& deg, const Components& comp,
                             const CertificateSettings& settings, Poll& poll) {
    return detail::Stars(g, deg, comp, settings, poll).prove();
}

}  // namespace modcut
