// Maximum preflow by push-relabel (Goldberg and Tarjan 1988), highest label first, with global relabelling and the gap
// heuristic, from one source to a set of sinks. First phase only: a cut needs no return of the excess.
// Cost O(n^2 sqrt(m)) at worst, independent of capacities: the robust choice where blocking flows would need many
// phases.
#pragma once
#include <cstdint>
#include <vector>

#include "core/augment.hpp"
#include "core/bits.hpp"
#include "core/residual.hpp"

namespace modcut {

template <class Arcs>
class PushRelabel {
public:
    using Arc = typename Arcs::Arc;

    PushRelabel(Arcs& arcs, int64_t n, Poll& poll) : arcs_(arcs), poll_(poll), n_(n) {}

    // As Augmenter::run; side() holds the vertices that reach no sink: the largest source side of a minimum cut.
    template <class Sink>
    Flow run(int64_t s, Sink&& sink, int64_t bound) {
        if constexpr (Arcs::kBits)
            if (height_.empty()) fresh_ = Bits(n_), levels_ = Levels(n_);
        height_.assign(n_, 0);
        cursor_.assign(n_, 0);
        excess_.assign(n_, 0);
        Flow flow;
        relabel_all(s, sink);
        int64_t cursor = 0;
        Arc arc;
        const auto any = [](int32_t) { return true; };
        while (flow.value < bound && arcs_.next(s, cursor, work, nullptr, any, arc)) {
            push(arc, arcs_.residual(arc), sink, flow, s);
            ++cursor;
        }
        int64_t since = 0, steps = 0;
        while (flow.value < bound) {
            while (top_ >= 0 && active_[top_] < 0) --top_;
            if (top_ < 0) break;
            const int64_t x = active_[top_];
            active_[top_] = next_active_[x];
            if (height_[x] != top_) continue;  // left behind by a gap
            if ((++steps & 255) == 0) poll_.check();
            const int64_t before = work;
            discharge(x, s, sink, bound, flow);
            since += work - before + 12;
            if (since > 2 * arcs_.size() + 6 * n_) {
                since = 0;
                relabel_all(s, sink);
            }
        }
        flow.stopped = flow.value >= bound;
        if (!flow.stopped) {
            relabel_all(s, sink);
            side_.clear();
            for (int64_t x = 0; x < n_; ++x)
                if (height_[x] >= n_ && !sink(int32_t(x))) side_.push_back(int32_t(x));
        }
        return flow;
    }
    const std::vector<int32_t>& side() const { return side_; }
    void rest() { arcs_.undo(); }

    int64_t work = 0, phases = 0;

private:
    template <class Sink>
    void push(const Arc& arc, int64_t amount, Sink&& sink, Flow& flow, int64_t s) {
        arcs_.push(arc, amount);
        const int64_t y = arc.target;
        if (sink(int32_t(y))) {
            flow.value += amount;
        } else if (y != s) {
            if (excess_[y] == 0 && height_[y] < n_) activate(y);
            excess_[y] += amount;
        }
    }

    void activate(int64_t y) {
        next_active_[y] = active_[height_[y]];
        active_[height_[y]] = int32_t(y);
        top_ = std::max<int64_t>(top_, height_[y]);
    }

    template <class Sink>
    void discharge(int64_t x, int64_t s, Sink&& sink, int64_t bound, Flow& flow) {
        Arc arc;
        while (excess_[x] > 0 && height_[x] < n_) {
            const int32_t below_x = height_[x] - 1;
            const bool found = arcs_.next(
                x, cursor_[x], work, levels_.row(below_x), [&](int32_t y) { return height_[y] == below_x; }, arc);
            if (found) {
                int64_t amount = std::min(excess_[x], arcs_.residual(arc));
                if (sink(arc.target)) amount = std::min(amount, bound - flow.value);
                excess_[x] -= amount;
                push(arc, amount, sink, flow, s);
                if (flow.value >= bound) return;
                continue;
            }
            const int32_t old = height_[x];
            if (count_[old] == 1) {  // gap: nothing above can reach a sink any more
                int64_t left = 0;
                for (int64_t h = old + 1; h < n_ && count_[h] > 0; ++h) left += count_[h];
                move(x, int32_t(n_));
                for (int64_t y = 0; left > 0; ++y)
                    if (height_[y] > old && height_[y] < n_) move(y, int32_t(n_)), --left;
                return;
            }
            move(x, lowest_neighbour(x) + 1);
        }
        if (excess_[x] > 0 && height_[x] < n_) activate(x);
    }

    // The least height at which x has a neighbour over an arc with residual capacity (none is below x); n - 1 where all
    // are out of reach. Leaves the cursor at the first such arc.
    int32_t lowest_neighbour(int64_t x) {
        Arc arc;
        if constexpr (Arcs::kBits) {
            // No level between the lowest and the highest is empty, so the first empty one ends the search.
            for (int32_t h = height_[x]; h < n_ - 1 && count_[h] > 0; ++h) {
                cursor_[x] = 0;
                if (arcs_.next(x, cursor_[x], work, levels_.row(h), [&](int32_t y) { return height_[y] == h; }, arc))
                    return h;
            }
            cursor_[x] = 0;
            return int32_t(n_ - 1);
        } else {
            int32_t lowest = int32_t(n_ - 1);
            int64_t cursor = 0;
            arcs_.next(
                x, cursor, work, nullptr,
                [&](int32_t y) {
                    lowest = std::min(lowest, height_[y]);
                    return false;
                },
                arc);
            cursor_[x] = 0;
            return lowest;
        }
    }

    void move(int64_t x, int32_t height) {
        if (height_[x] < n_) {
            --count_[height_[x]];
            if constexpr (Arcs::kBits) levels_.drop(x, height_[x]);
        }
        height_[x] = height;
        if (height < n_) {
            ++count_[height];
            if constexpr (Arcs::kBits) levels_.put(x, height);
        }
    }

    // Heights become distances to the sinks, by breadth-first search against the residual arcs.
    template <class Sink>
    void relabel_all(int64_t s, Sink&& sink) {
        ++phases;
        const int32_t far = int32_t(n_);
        height_.assign(n_, far);
        count_.assign(n_ + 1, 0);
        queue_.clear();
        if constexpr (Arcs::kBits) levels_.clear(), fresh_.fill(), fresh_.drop(s);
        auto reach = [&](int64_t x, int32_t height) {
            move(x, height);
            queue_.push_back(int32_t(x));
            if constexpr (Arcs::kBits) fresh_.drop(x);
        };
        for (int64_t x = 0; x < n_; ++x)
            if (sink(int32_t(x))) reach(x, 0);
        for (size_t head = 0; head < queue_.size(); ++head) {
            if ((head & 63) == 0) poll_.check();
            const int64_t y = queue_[head];
            const int32_t height = height_[y] + 1;
            arcs_.for_each_into(
                y, work, fresh_.data(), [&](int32_t x) { return height_[x] == far && x != s; },
                [&](int32_t x) { reach(x, height); });
        }
        active_.assign(n_, -1);
        next_active_.resize(n_);
        top_ = -1;
        for (int64_t x = 0; x < n_; ++x) {
            cursor_[x] = 0;
            if (height_[x] < far && height_[x] > 0 && excess_[x] > 0) activate(x);
        }
    }

    Arcs& arcs_;
    Poll& poll_;
    int64_t n_;
    std::vector<int32_t> height_;
    Bits fresh_{0};     // not yet reached by the global relabelling
    Levels levels_{0};  // by height, below n
    std::vector<int64_t> cursor_, excess_, count_;
    std::vector<int32_t> active_, next_active_;  // a linked list for each height
    int64_t top_ = -1;
    std::vector<int32_t> queue_, side_;
};

}  // namespace modcut
