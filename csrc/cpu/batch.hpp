// Cut trees of many small dense graphs on a CPU: threads over graphs, and teams in graphs where threads are left over.
#pragma once
#include "core/small_tree.hpp"
#include "core/views.hpp"

namespace modcut::cpu {

struct BatchOut {
    int64_t* parent;  // [b, n]
    double* weight;   // [b, n]
    double* lower;    // [b, n]
    int64_t* status;  // [b, small::kStatus]
};

// `w` is [b, n, n]: `apart` entries from graph to graph, `pitch` from row to row. W: float, double, int32_t, int64_t.
template <class W>
void gomory_hu_batch(const W* w, int64_t b, int64_t n, int64_t apart, int64_t pitch, const BatchOut& out, int threads,
                     Poll& poll);

}  // namespace modcut::cpu
