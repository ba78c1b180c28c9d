// Residual networks in integers.
//
// Float capacities are rounded DOWN to multiples of 2^-e, so every flow is exact integer arithmetic on capacities that
// never exceed the given ones: its value is a proven lower bound on the true cut, no order of operations can change it,
// and the algorithm ends whatever the scales are. The upper bound is re-summed from the given weights afterwards.
//
// An undirected edge {x, y} of capacity c is a pair of arcs with r(x,y) + r(y,x) = 2c, c each at rest. A network
// offers, beside its size(), for the flow algorithms:
//     fill(rounding)                    new capacities; the network must be at rest
//     strength(x)                       sum of the capacities at x
//     next(x, cursor, work, bits, want, arc)   the first arc of x at or after the cursor with residual capacity whose
//                                       target is in `bits` (nullptr: everywhere) and want(target); false at the end
//     find(x, y, work, arc)             an arc from x to y with residual capacity, if there is one
//     for_each_into(y, work, bits, want, f)   f(x) for every x in `bits` with want(x) and residual capacity on an arc
//                                       x -> y
//     residual(arc), push(arc, amount)  and undo(): back to rest, at the price of the flow and not of the network.
// `work` counts the arcs looked at. kBits says whether the network uses `bits` at all, or leaves the choice to `want`.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>

#include "core/sums.hpp"
#include "core/views.hpp"

namespace modcut {

struct Rounding {
    int exponent = 0;  // capacity = floor(w * 2^exponent)
    double clip = 0;   // after min(w, clip); float input only
    bool integral = false;
};

inline int64_t rounded(int64_t w, const PowerOfTwo&, double) { return w; }
inline int64_t rounded(double w, const PowerOfTwo& s, double clip) { return int64_t(s(std::min(w, clip))); }
inline int64_t rounded(float w, const PowerOfTwo& s, double clip) { return rounded(double(w), s, clip); }

// value * 2^-exponent, rounded down.
MODCUT_FN inline double to_float(int64_t value, int exponent) {
    double x = double(value);
    if (x >= 0x1p63 || int64_t(x) > value) x = std::nextafter(x, 0.0);
    double y = PowerOfTwo(-exponent)(x);
    if (y != 0 && PowerOfTwo(exponent)(y) > x) y = std::nextafter(y, 0.0);  // only where the result is subnormal
    return y;
}

}  // namespace modcut
