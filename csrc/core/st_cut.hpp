// One minimum s-t cut with its proof: (side, U re-summed from the given weights, L proven by a flow).
#pragma once
#include <cmath>
#include <vector>

#include "core/augment.hpp"
#include "core/block_arcs.hpp"
#include "core/csr_arcs.hpp"
#include "core/degrees.hpp"
#include "core/push_relabel.hpp"

namespace modcut {

// What "exact" may differ by, relative to the cut (guide: exactness contract). Integers must agree.
inline double tolerance(const GraphView& g) { return g.integral ? 0.0 : g.single ? 1e-6 : 1e-12; }

// Capacity between `side` and the rest, from the given weights, compensated. Reads the rows of the smaller side.
struct CutValue {
    double value = 0;
    int64_t integer = 0;
};
inline CutValue resum(const GraphView& g, const std::vector<int32_t>& side, std::vector<uint8_t>& mark, Poll& poll) {
    for (int32_t x : side) mark[x] = 1;
    Sum sum;
    int64_t isum = 0;
    auto row = [&](int64_t x) {
        const uint8_t mine = mark[x];
        for_each_entry(g, x, [&](int64_t y, auto w) {
            if (mark[y] != mine) {
                if constexpr (std::is_integral_v<decltype(w)>)
                    isum += w;
                else
                    sum.add(double(w));
            }
        });
    };
    if (int64_t(side.size()) * 2 <= g.n) {
        for (size_t i = 0; i < side.size(); ++i) {
            if ((i & 63) == 0) poll.check();
            row(side[i]);
        }
    } else {
        for (int64_t x = 0; x < g.n; ++x) {
            if ((x & 63) == 0) poll.check();
            if (!mark[x]) row(x);
        }
    }
    for (int32_t x : side) mark[x] = 0;
    return g.integral ? CutValue{double(isum), isum} : CutValue{sum.value(), 0};
}

enum class Shape : uint8_t { source, all_but_target, listed };  // {s}, V \ {t}, or Cut::side

struct Cut {
    Shape shape = Shape::source;
    std::vector<int32_t> side;  // only for Shape::listed
    CutValue upper;
    double lower = 0;
    int64_t lower_int = 0;
};

// automatic: augment, which is all that most flows of a cut tree need, and push-relabel where that turns out long.
enum class FlowKind : uint8_t { automatic, augment, push_relabel };
#if !defined(MODCUT_AUGMENT_PASSES)
#define MODCUT_AUGMENT_PASSES 1  // times the patience of the network; csrc/tests also runs with 0
#endif

// Flows on one network at a given rounding.
template <class Arcs>
class Solver {
public:
    Solver(const GraphView& g, const Degrees& degrees, Poll& poll, FlowKind kind)
        : g_(g),
          deg_(degrees),
          poll_(poll),
          kind_(kind),
          arcs(g),
          augment_(arcs, g.n, poll),
          preflow_(arcs, g.n, poll),
          mark_(g.n, 0) {}

    void use(const Rounding& rounding) {
        arcs.fill(rounding);
        rounding_ = rounding;
    }
    const Rounding& rounding() const { return rounding_; }

    // Strength of x in the rounded network (at rest).
    int64_t strength(int64_t x) { return arcs.strength(x); }

    // A minimum cut between s and the sinks (t among them) in the rounded network; {s} as soon as the flow reaches
    // `bound`, the strength of s in that network (or a little less: then `lower` is).
    template <class Sink>
    Cut cut(int64_t s, int64_t t, Sink&& sink, int64_t bound) {
        Cut out;
        ++flows;
        Flow flow;
        // After a wrong guess the next ones are less likely to be right: the first choice is given up for 1, 2, 4 .. 64
        // flows.
        bool augmented = kind_ != FlowKind::push_relabel && waiting_ == 0;
        if (waiting_ > 0) --waiting_;
        if (augmented) {
            flow = kind_ == FlowKind::augment ? augment_.run(s, sink, bound) : augment_.run(s, sink, bound, patience());
            if (flow.abandoned) {
                augment_.rest();
                augmented = false;
                ++fallbacks;
                wait_ = std::min<int64_t>(64, std::max<int64_t>(1, 2 * wait_));
                waiting_ = wait_;
            } else {
                wait_ = 0;
            }
        }
        if (!augmented) flow = preflow_.run(s, sink, bound);
        // Beyond the bound a flow to a class of sinks says nothing of t alone; push-relabel may overshoot.
        if (flow.stopped) flow.value = std::min(flow.value, bound);
        out.lower_int = flow.value;
        out.lower = rounding_.integral ? double(flow.value) : to_float(flow.value, rounding_.exponent);
        out.shape = flow.stopped ? Shape::source : Shape::listed;
        if (!flow.stopped) {
            out.side = augmented ? augment_.side() : preflow_.side();
            out.upper = resum(g_, out.side, mark_, poll_);
            settle_ties(s, t, out);
        } else {
            out.upper = of_vertex(s);
        }
        if (augmented)
            augment_.rest();
        else
            preflow_.rest();
        if (!g_.integral) out.lower = std::min(out.lower, out.upper.value);
        return out;
    }

    bool proven(const Cut& c) const {
        return g_.integral ? c.upper.integer == c.lower_int : c.upper.value - c.lower <= tolerance(g_) * c.upper.value;
    }

    // Where the common rounding was too coarse for this pair: round relative to the cut itself until proven. Each step
    // resolves 2^-50 of the last upper bound, so scales from 1e-300 to 1e300 need at most some forty.
    void refine(int64_t s, int64_t t, int64_t s_entries, Cut& best) {
        if (g_.integral) return;
        for (int step = 0; step < 64 && !proven(best); ++step) {
            const double clip = best.upper.value;
            const double injected = std::min(deg_.d[s], clip * double(std::max<int64_t>(s_entries, 1)));
            int e;
            std::frexp(injected, &e);
            use({60 - e, clip, false});
            Cut c = cut(s, t, OneSink{int32_t(t)}, strength(s));
            ++refined;
            const bool progress = c.lower > best.lower || c.upper.value < best.upper.value;
            const double lower = std::max(best.lower, c.lower);
            if (c.upper.value < best.upper.value) best = c;
            best.lower = std::min(lower, best.upper.value);
            if (!progress) break;
        }
    }

    int64_t work() const { return augment_.work + preflow_.work + arcs.made_entries; }
    int64_t phases() const { return augment_.phases + preflow_.phases; }
    std::vector<uint8_t>& mark() { return mark_; }

    int64_t flows = 0, refined = 0, fallbacks = 0;

private:
    // Arcs that augment may look at: some per vertex on small graphs, a share of all on large ones.
    int64_t patience() const {
        return int64_t(MODCUT_AUGMENT_PASSES * (16.0 * double(g_.n) + Arcs::kPatience * double(arcs.size())));
    }
    CutValue of_vertex(int64_t x) const { return {deg_.d[x], g_.integral ? deg_.di[x] : 0}; }

    // Rounding may prefer a large cut to an equal single vertex: prefer the vertex.
    void settle_ties(int64_t s, int64_t t, Cut& c) const {
        if (of_vertex(s).value <= c.upper.value) {
            c.shape = Shape::source;
            c.upper = of_vertex(s);
        } else if (of_vertex(t).value <= c.upper.value) {
            c.shape = Shape::all_but_target;
            c.upper = of_vertex(t);
        }
    }

    const GraphView& g_;
    const Degrees& deg_;
    Poll& poll_;
    FlowKind kind_;

public:
    Arcs arcs;

private:
    Augmenter<Arcs> augment_;
    PushRelabel<Arcs> preflow_;
    std::vector<uint8_t> mark_;
    Rounding rounding_;
    int64_t wait_ = 0, waiting_ = 0;
};

// Compressed rows pay where most slots of the blocks are empty.
inline bool prefers_csr(const GraphView& g, const Degrees& d, int forced) {
    if (forced) return forced == 2;
    if (g.has_csr) return true;
    return double(d.nonzero) < 0.25 * double(d.slots);
}

inline Rounding rounding_for(const GraphView& g, double strength) {
    if (g.integral) return {0, 0, true};
    int e = 0;
    std::frexp(strength, &e);
    return {60 - e, strength, false};
}

struct FlowReport {
    CutValue value;
    double lower = 0;
    int64_t lower_int = 0;
    bool exact = false;
    int64_t phases = 0, work = 0;
    bool push_relabel = false;  // chosen, or taken over to
    const char* representation = "";
};

template <class Arcs>
FlowReport st_cut(const GraphView& g, const Degrees& deg, int64_t s, int64_t t, uint8_t* side, FlowKind kind,
                  Poll& poll) {
    // A single flow over rows is not worth a guess: push-relabel is never far behind there, and often far ahead.
    if (kind == FlowKind::automatic && !Arcs::kBits) kind = FlowKind::push_relabel;
    Solver<Arcs> solver(g, deg, poll, kind);
    // The flow leaves from the weaker end: fewer arcs, and its strength bounds the cut.
    const bool swapped = deg.d[t] < deg.d[s];
    const int64_t a = swapped ? t : s, b = swapped ? s : t;
    Cut cut;
    cut.upper = {deg.d[a], g.integral ? deg.di[a] : 0};
    if (deg.d[a] > 0) {
        solver.use(rounding_for(g, deg.d[a]));
        cut = solver.cut(a, b, OneSink{int32_t(b)}, solver.strength(a));
        solver.refine(a, b, g.n, cut);
    }
    for (int64_t x = 0; x < g.n; ++x) side[x] = cut.shape == Shape::all_but_target;
    if (cut.shape == Shape::source) side[a] = 1;
    if (cut.shape == Shape::all_but_target) side[b] = 0;
    if (cut.shape == Shape::listed)
        for (int32_t x : cut.side) side[x] = 1;
    if (swapped)
        for (int64_t x = 0; x < g.n; ++x) side[x] = !side[x];
    return {cut.upper,
            cut.lower,
            cut.lower_int,
            solver.proven(cut),
            solver.phases(),
            solver.work(),
            kind == FlowKind::push_relabel || solver.fallbacks > 0,
            Arcs::kName};
}

}  // namespace modcut
