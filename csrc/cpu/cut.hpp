// The CPU entry points: the core's algorithms on views, run by one caller (flows) and a team of threads (passes).
#pragma once
#include <cstdint>

#include "core/cut_tree.hpp"
#include "core/global_cut.hpp"
#include "core/recheck.hpp"

namespace modcut::cpu {

struct Settings {
    bool certificates = true;
    int threads = 1;
    int representation = 0;  // 0 auto, 1 block, 2 csr
    FlowKind kind = FlowKind::automatic;
    double eps = 0;          // gomory_hu: every lower bound at least weight / (1 + eps); 0 asks for the exact tree
    bool flows = true;       // gomory_hu: false returns what the certificates prove
    bool reductions = true;  // bridges, blocks, chains
    int64_t repairs = 50;    // of edges that rounding put on the wrong side: a flow and a pass each
};

FlowReport max_flow(const GraphView& g, int64_t s, int64_t t, uint8_t* side, const Settings& settings, Poll& poll);
TreeReport gomory_hu(const GraphView& g, const TreeOut& out, const Settings& settings, Poll& poll);
// The tree of `g` where certificates prove all of it, which guessed strengths only make cheaper to see. `g` may hold
// magnitudes; its symmetry is checked here.
Recheck recertify(const GraphView& g, const double* guess, const Anchor* anchor, const TreeOut& out,
                  const Settings& settings, Poll& poll);
GlobalReport global_cut(const GraphView& g, uint8_t* side, const Settings& settings, Poll& poll);
// Makes every weight of a tree the cut that it induces; returns the largest relative gap to its lower bound.
double settle_tree(const GraphView& g, const TreeOut& tree, const Settings& settings, Poll& poll);
void cut_values(const GraphView& g, const int64_t* labels, int64_t k, double* out, Poll& poll);
void degree(const GraphView& g, double* out, const Settings& settings);

}  // namespace modcut::cpu
