// The minimum cut over all pairs, without flows: maximum adjacency scans (Nagamochi and Ibaraki 1992; Stoer and Wagner
// 1997) and the local tests of Padberg and Rinaldi (1990), on a graph that shrinks.
//
// best = capacity of the lightest cut seen. Two vertices that no lighter cut divides are drawn together:
// 1. In a maximum adjacency order (next comes the vertex of largest r = capacity to those already scanned), an edge
// from
//    the scanned x to y has connectivity >= r(y), counted up to and with that edge. With r(y) >= best, x and y join.
//    The last two of the order: connectivity = the strength of the last.
// 2. Twice w(u, v) >= strength of u: taking u over to the side of v makes no cut heavier but {u} itself, which was
// seen.
//    Each vertex takes part in one such pair per round, so that the others' strengths still hold.
// Everything beyond best is best (saturated): the tests ask for no more. Capacities are integers, so sums are exact;
// floats are rounded down at a scale at which the lightest strength takes 60 bits, and the proven bound is the rounded
// network's cut. If that scale is too coarse for the cut that is found, the cut sets the next one.
#pragma once
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <queue>
#include <utility>
#include <vector>

#include "core/components.hpp"
#include "core/st_cut.hpp"

namespace modcut {

struct GlobalReport {
    CutValue value;
    double lower = 0;
    int64_t lower_int = 0;
    bool exact = false;
    int64_t rounds = 0, work = 0;
};

class Shrinking {
public:
    static constexpr int64_t kFull = int64_t(1) << 61;  // sums of two stay below 2^63

    Shrinking(const GraphView& g, const Rounding& rounding, Poll& poll) : poll_(poll), n_(g.n), home_(g.n) {
        std::iota(home_.begin(), home_.end(), 0);
        const PowerOfTwo scale(rounding.exponent);
        first_.assign(n_ + 1, 0);
        for (int64_t x = 0; x < n_; ++x) {
            if ((x & 63) == 0) poll_.check();
            for_each_entry(g, x, [&](int64_t y, auto w) {
                const int64_t c = rounded(w, scale, rounding.clip);
                if (c > 0) {
                    to_.push_back(int32_t(y));
                    cap_.push_back(c);
                }
            });
            first_[x + 1] = int64_t(to_.size());
        }
    }

    // The minimum cut of the rounded network; side() holds one side of it.
    int64_t run() {
        best_ = std::numeric_limits<int64_t>::max();
        while (n_ > 1) {
            ++rounds;
            see_strengths();
            if (best_ == 0) break;
            std::vector<int32_t> into(n_);
            std::iota(into.begin(), into.end(), 0);
            join_heavy(into);
            const int64_t before = n_;
            if (shrink(into) && n_ * 8 <= before * 7) continue;
            into.resize(n_);
            std::iota(into.begin(), into.end(), 0);
            see_strengths();
            if (n_ < 2 || best_ == 0 || !scan(into)) break;  // not connected: best_ is 0
            shrink(into);
        }
        return best_;
    }
    const std::vector<int32_t>& side() const { return side_; }

    int64_t rounds = 0, work = 0;

private:
    static int64_t add(int64_t a, int64_t b) { return std::min(a + b, kFull); }

    void see_strengths() {
        strength_.assign(n_, 0);
        int32_t least = 0;
        for (int64_t x = 0; x < n_; ++x) {
            for (int64_t a = first_[x]; a < first_[x + 1]; ++a) strength_[x] = add(strength_[x], cap_[a]);
            if (strength_[x] < strength_[least]) least = int32_t(x);
        }
        work += first_[n_];
        if (strength_[least] < best_) keep(strength_[least], [least](int32_t x) { return x == least; });
    }

    template <class In>
    void keep(int64_t value, In&& in) {
        best_ = value;
        side_.clear();
        for (size_t x = 0; x < home_.size(); ++x)
            if (in(home_[x])) side_.push_back(int32_t(x));
    }

    void join_heavy(std::vector<int32_t>& into) {
        std::vector<uint8_t> taken(n_, 0);
        for (int64_t x = 0; x < n_ && n_ > 2; ++x)
            for (int64_t a = first_[x]; a < first_[x + 1] && !taken[x]; ++a) {
                const int32_t y = to_[a];
                if (!taken[y] && (cap_[a] >= best_ || cap_[a] >= strength_[x] - cap_[a])) {
                    into[std::max<int64_t>(x, y)] = int32_t(std::min<int64_t>(x, y));
                    taken[x] = taken[y] = 1;
                }
            }
    }

    bool scan(std::vector<int32_t>& into) {
        std::vector<int64_t> r(n_, 0);
        std::vector<uint8_t> done(n_, 0);
        std::priority_queue<std::pair<int64_t, int32_t>> queue;
        auto root = [&](int32_t x) {
            while (into[x] != x) x = into[x] = into[into[x]];
            return x;
        };
        auto join = [&](int32_t a, int32_t b) {
            a = root(a), b = root(b);
            into[std::max(a, b)] = std::min(a, b);
        };
        // The next vertex: from a heap, or, where most pairs are edges, by looking at all (a heap would take every
        // edge).
        const bool all = first_[n_] > n_ * n_ / 16;
        auto next = [&]() -> int32_t {
            if (all) {
                int32_t x = -1;
                for (int64_t y = 0; y < n_; ++y)
                    if (!done[y] && (x < 0 || r[y] > r[x])) x = int32_t(y);
                return x >= 0 && r[x] == 0 && x != 0 ? -1 : x;
            }
            while (!queue.empty()) {
                const auto [key, x] = queue.top();
                queue.pop();
                if (!done[x] && key == r[x]) return x;
            }
            return -1;
        };
        int32_t before = -1, last = -1;
        int64_t count = 0;
        queue.push({0, 0});
        for (int32_t x = next(); x >= 0; x = next()) {
            if ((count & 255) == 0) poll_.check();
            done[x] = 1;
            ++count;
            before = last, last = x;
            for (int64_t a = first_[x]; a < first_[x + 1]; ++a) {
                const int32_t y = to_[a];
                if (done[y]) continue;
                const bool full = r[y] >= best_;
                r[y] = std::min(r[y] + cap_[a], best_);
                if (r[y] >= best_) join(x, y);
                if (!all && !full) queue.push({r[y], y});
            }
        }
        work += first_[n_];
        if (count < n_) {
            keep(0, [&](int32_t x) { return done[x] != 0; });
            return false;
        }
        join(before, last);
        return true;
    }

    // Draws together; whether anything was.
    bool shrink(std::vector<int32_t>& into) {
        std::vector<int32_t> name(n_, -1);
        int32_t count = 0;
        for (int64_t x = 0; x < n_; ++x) {  // roots come before what joined them
            if (into[x] == x)
                name[x] = count++;
            else
                name[x] = name[into[x]];
        }
        if (count == n_) return false;
        for (int32_t& x : home_) x = name[x];
        std::vector<int64_t> start(count + 1, 0), first(count + 1, 0), seen(count, -1);
        for (int64_t x = 0; x < n_; ++x) ++start[name[x] + 1];
        std::partial_sum(start.begin(), start.end(), start.begin());
        std::vector<int32_t> member(n_);
        std::vector<int64_t> fill(start.begin(), start.end() - 1);
        for (int64_t x = 0; x < n_; ++x) member[fill[name[x]]++] = int32_t(x);
        std::vector<int32_t> to;
        std::vector<int64_t> cap;
        for (int32_t c = 0; c < count; ++c) {
            const int64_t begin = int64_t(to.size());
            for (int64_t m = start[c]; m < start[c + 1]; ++m)
                for (int64_t a = first_[member[m]]; a < first_[member[m] + 1]; ++a) {
                    const int32_t y = name[to_[a]];
                    if (y == c) continue;
                    if (seen[y] >= begin) {
                        cap[seen[y]] = add(cap[seen[y]], cap_[a]);
                    } else {
                        seen[y] = int64_t(to.size());
                        to.push_back(y);
                        cap.push_back(cap_[a]);
                    }
                }
            first[c + 1] = int64_t(to.size());
        }
        work += first_[n_];
        n_ = count;
        first_.swap(first), to_.swap(to), cap_.swap(cap);
        return true;
    }

    Poll& poll_;
    int64_t n_;
    std::vector<int32_t> home_;  // of every vertex of the graph, the one it is drawn into
    std::vector<int64_t> first_, cap_, strength_;
    std::vector<int32_t> to_, side_;
    int64_t best_ = 0;
};

// n >= 2. `side` [n] gets 1 on one side of a minimum cut.
inline GlobalReport global_cut(const GraphView& g, const Degrees& deg, uint8_t* side, Poll& poll) {
    GlobalReport out;
    std::fill(side, side + g.n, uint8_t(0));
    const Components comp = components(g, poll);
    if (comp.count > 1) {
        for (int64_t x = 0; x < g.n; ++x) side[x] = comp.of[x] == 0;
        out.exact = true;
        return out;
    }
    const double least = *std::min_element(deg.d.begin(), deg.d.end());
    std::vector<uint8_t> mark(g.n, 0);
    std::vector<int32_t> best;
    out.value.value = std::numeric_limits<double>::infinity();
    double clip = least;
    for (int step = 0; step < 64 && !out.exact; ++step) {
        int e = 0;
        std::frexp(clip, &e);
        const Rounding rounding = g.integral ? Rounding{0, 0, true} : Rounding{60 - e, clip, false};
        Shrinking net(g, rounding, poll);
        const int64_t lower = net.run();
        out.rounds += net.rounds, out.work += net.work;
        const CutValue value = resum(g, net.side(), mark, poll);
        const bool better = step == 0 || value.value < out.value.value;
        if (better) out.value = value, best = net.side();
        const double proven =
            g.integral ? double(lower) : std::min(to_float(lower, rounding.exponent), out.value.value);
        const bool progress = better || proven > out.lower;
        out.lower = std::max(out.lower, proven);
        out.lower_int = lower;
        out.exact = g.integral ? value.integer == lower : out.value.value - out.lower <= tolerance(g) * out.value.value;
        if (!progress) break;
        clip = out.value.value;
    }
    for (int32_t x : best) side[x] = 1;
    return out;
}

}  // namespace modcut
