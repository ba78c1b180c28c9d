// Connected components (edges of positive capacity). Cost O(entries), far less on dense graphs: found vertices leave
// the list.
#pragma once
#include <cstdint>
#include <numeric>
#include <vector>

#include "core/views.hpp"

namespace modcut {

struct Components {
    std::vector<int32_t> of;  // [n], numbered by their smallest vertex
    int32_t count = 0;
};

inline Components components(const GraphView& g, Poll& poll) {
    Components out;
    out.of.assign(g.n, -1);
    std::vector<int32_t> stack;
    int64_t left = g.n;
    for (int64_t start = 0; start < g.n; ++start) {
        if (out.of[start] >= 0) continue;
        out.of[start] = out.count;
        --left;
        stack.assign(1, int32_t(start));
        while (!stack.empty() && left > 0) {
            const int64_t x = stack.back();
            stack.pop_back();
            if ((x & 63) == 0) poll.check();
            for_each_entry(g, x, [&](int64_t y, auto w) {
                if (out.of[y] < 0 && w > 0) {
                    out.of[y] = out.count;
                    --left;
                    stack.push_back(int32_t(y));
                }
            });
        }
        ++out.count;
    }
    return out;
}

}  // namespace modcut
