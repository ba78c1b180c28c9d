// Maximum flow by blocking flows (Dinic 1970) from one source to a set of sinks, touching only what the flow reaches.
//
// In a cut tree most flows end at their bound (the strength of the source) two or three arcs away from it, so nothing
// here is proportional to n: levels carry the number of the phase, residuals are undone from what the network noted.
// Cost of one flow: O(phases * arcs reached + paths * length), at worst O(n^2 m): far from its bound, or over many
// phases, it gives up after `budget` arcs, and PushRelabel starts afresh.
#pragma once
#include <cstdint>
#include <limits>
#include <type_traits>
#include <vector>

#include "core/bits.hpp"
#include "core/residual.hpp"

namespace modcut {

struct Flow {
    int64_t value = 0;
    bool stopped = false;    // at the bound: side() is not filled
    bool abandoned = false;  // the budget is spent: neither maximum nor at the bound
};

// The sinks of most flows are a class of vertices, asked for one by one; a single one is looked up in a row.
struct OneSink {
    int32_t vertex;
    bool operator()(int32_t y) const { return y == vertex; }
};

template <class Arcs>
class Augmenter {
public:
    using Arc = typename Arcs::Arc;

    Augmenter(Arcs& arcs, int64_t n, Poll& poll)
        : arcs_(arcs),
          poll_(poll),
          level_(n),
          stamp_(n, 0),
          cursor_(n),
          fresh_(Arcs::kBits ? n : 0),
          levels_(Arcs::kBits ? n : 0) {}

    // Flow from s to {y : sink(y)}; ends when it reaches `bound`. Otherwise it is maximum and side() holds the vertices
    // that s still reaches: the smallest source side of a minimum cut. The network is left as the flow leaves it: call
    // rest(). `budget` bounds the arcs looked at, up to one labelling.
    template <class Sink>
    Flow run(int64_t s, Sink&& sink, int64_t bound, int64_t budget = std::numeric_limits<int64_t>::max()) {
        Flow flow;
        const int64_t start = work;
        while (flow.value < bound) {
            if (!label(s, sink)) return flow;
            ++phases;
            block(s, sink, bound, flow, start, budget);
            flow.abandoned = flow.value < bound && work - start > budget;
            if (flow.abandoned) return flow;
        }
        flow.stopped = true;
        return flow;
    }
    const std::vector<int32_t>& side() const { return queue_; }
    void rest() { arcs_.undo(); }

    int64_t work = 0, phases = 0;

private:
    // Levels by breadth-first search, up to the first level from which a sink is one arc away.
    template <class Sink>
    bool label(int64_t s, Sink&& sink) {
        if constexpr (Arcs::kBits) {
            for (int32_t x : queue_) levels_.drop(x, level_[x]);
            fresh_.fill();
        }
        ++epoch_;
        queue_.clear();
        visit(s, 0);
        for (size_t head = 0; head < queue_.size(); ++head) {
            if ((head & 255) == 0) poll_.check();
            const int64_t x = queue_[head];
            const int32_t next_level = level_[x] + 1;
            int64_t cursor = 0;
            Arc arc;
            bool found = false;
            if constexpr (kOne<Sink>) found = arcs_.find(x, sink.vertex, work, arc);
            if (!found)
                found = arcs_.next(
                    x, cursor, work, fresh_.data(),
                    [&](int32_t y) {
                        if (sink(y)) return true;
                        if (stamp_[y] != epoch_) visit(y, next_level);
                        return false;
                    },
                    arc);
            if (found) {
                sink_level_ = next_level;
                return true;
            }
        }
        return false;
    }

    template <class Sink>
    void block(int64_t s, Sink&& sink, int64_t bound, Flow& flow, int64_t start, int64_t budget) {
        path_.clear();
        int64_t x = s;
        for (int64_t steps = 0;; ++steps) {
            if ((steps & 1023) == 0) {
                poll_.check();
                if (work - start > budget) return;
            }
            const int32_t next_level = level_[x] + 1;
            const bool last = next_level == sink_level_;
            Arc arc;
            if (!last && arcs_.next(
                             x, cursor_[x], work, levels_.row(next_level),
                             [&](int32_t y) { return stamp_[y] == epoch_ && level_[y] == next_level; }, arc)) {
                path_.push_back({x, arc});
                x = arc.target;
                continue;
            }
            if (last) {  // into all the sinks of x at once, then once along the path
                int64_t room = bound - flow.value;
                for (auto& step : path_) room = std::min(room, arcs_.residual(step.arc));
                const int64_t total = room - into_sinks(x, sink, room);
                flow.value += total;
                size_t keep = path_.size();
                for (size_t i = path_.size(); i-- > 0 && total > 0;) {
                    arcs_.push(path_[i].arc, total);
                    if (arcs_.residual(path_[i].arc) == 0) keep = i;
                }
                if (flow.value == bound) return;
                if (keep < path_.size()) {
                    x = path_[keep].from;
                    path_.resize(keep);
                    continue;
                }
            }
            if (path_.empty()) return;
            stamp_[x] = epoch_ - 1;  // a dead end: out of this phase's levels
            if constexpr (Arcs::kBits) levels_.drop(x, level_[x]);
            x = path_.back().from;
            path_.pop_back();
        }
    }

    // Sends up to `room` from x to sinks beside it; returns what is left of it.
    template <class Sink>
    int64_t into_sinks(int64_t x, Sink&& sink, int64_t room) {
        Arc arc;
        while (room > 0) {
            bool found;
            if constexpr (kOne<Sink>)
                found = arcs_.find(x, sink.vertex, work, arc);
            else
                found = arcs_.next(x, cursor_[x], work, nullptr, sink, arc);
            if (!found) break;
            const int64_t amount = std::min(room, arcs_.residual(arc));
            arcs_.push(arc, amount);
            room -= amount;
        }
        return room;
    }

    void visit(int64_t x, int32_t level) {
        stamp_[x] = epoch_;
        level_[x] = level;
        cursor_[x] = 0;
        queue_.push_back(int32_t(x));
        if constexpr (Arcs::kBits) {
            fresh_.drop(x);
            levels_.put(x, level);
        }
    }

    template <class Sink>
    static constexpr bool kOne = std::is_same_v<std::remove_cvref_t<Sink>, OneSink>;

    struct Step {
        int64_t from;
        Arc arc;
    };
    Arcs& arcs_;
    Poll& poll_;
    std::vector<int32_t> level_;
    std::vector<int64_t> stamp_, cursor_;
    Bits fresh_;     // not yet labelled
    Levels levels_;  // of the labelled, dead ends left out
    std::vector<int32_t> queue_;
    std::vector<Step> path_;
    int64_t epoch_ = 0;
    int32_t sink_level_ = 0;
};

}  // namespace modcut
