// The residual network of dense blocks, made where a flow needs it.
//
// The arcs of a vertex lie in a few segments, one per block and direction: no indices. A flow between two vertices of a
// dense graph looks at few of them, so a segment's residuals are made from the given weights only when it is read at
// length; until then an arc is its rounded weight plus the pushes noted for the segment. Nothing is proportional to the
// number of edges unless the flow is.
#pragma once
#include <cstdint>
#include <memory>
#include <vector>

#include "core/bits.hpp"
#include "core/residual.hpp"

#if !defined(MODCUT_NOTED_PUSHES)
#define MODCUT_NOTED_PUSHES (1 << 16)  // at least, or a quarter of the arcs; csrc/tests also runs with 8
#endif

namespace modcut {

class BlockArcs {
public:
    static constexpr const char* kName = "block";
    static constexpr bool kBits = true;
    static constexpr double kPatience = 1.0 / 16;  // passes that Augmenter may look at before PushRelabel is to begin

    struct Arc {
        int32_t segment, index, back_segment, back_index;  // of the arc and of its reverse
        int32_t target;
    };

    explicit BlockArcs(const GraphView& g) : g_(g), first_(g.n + 1) {
        int64_t base = 0;
        auto segment = [&](int64_t vertex, int64_t target, int64_t length, int64_t block, int64_t position,
                           int64_t reverse, bool column) {
            const int64_t loop = vertex - target;
            segments_.push_back({base, int32_t(target), int32_t(length), int32_t(block), int32_t(position),
                                 int32_t(reverse), loop >= 0 && loop < length ? int32_t(loop) : -1, column});
            base += length;
            ++first_[vertex + 1];
        };
        for (size_t k = 0; k < g.blocks.size(); ++k) {
            const BlockView& b = g.blocks[k];
            const int64_t id = int64_t(segments_.size()), across = b.symmetric ? id : id + b.rows;
            for (int64_t i = 0; i < b.rows; ++i) segment(b.row0 + i, b.col0, b.cols, int64_t(k), i, across, false);
            if (!b.symmetric)
                for (int64_t j = 0; j < b.cols; ++j) segment(b.col0 + j, b.row0, b.rows, int64_t(k), j, id, true);
        }
        size_ = base;
        limit_ = MODCUT_NOTED_PUSHES < 1 << 16 ? MODCUT_NOTED_PUSHES : std::clamp<int64_t>(base / 4, 1 << 16, 1 << 28);
        state_.resize(segments_.size());
        for (int64_t x = 0; x < g.n; ++x) first_[x + 1] += first_[x];
        of_vertex_.resize(segments_.size());
        std::vector<int64_t> at(first_.begin(), first_.end() - 1);
        for (size_t k = 0; k < segments_.size(); ++k) {
            const Segment& s = segments_[k];
            const BlockView& b = g.blocks[s.block];
            state_[k].base = s.base;
            of_vertex_[at[(s.column ? b.col0 : b.row0) + s.position]++] = int32_t(k);
        }
        // Reserved, not touched: the system gives memory to the segments that are made.
        r_.reset(new int64_t[size_t(size_)]);
    }

    int64_t size() const { return size_; }

    void fill(const Rounding& rounding) {
        scale_ = PowerOfTwo(rounding.exponent);
        clip_ = rounding.clip;
        ++epoch_;
    }

    template <class Want>
    bool next(int64_t x, int64_t& cursor, int64_t& work, const uint64_t* bits, Want&& want, Arc& out) {
        int64_t s = first_[x] + (cursor >> 32), from = cursor & 0xffffffff;
        for (; s < first_[x + 1]; ++s, from = 0) {
            const int32_t k = of_vertex_[s];
            const Segment& seg = segments_[k];
            if (worn(k)) make(k);
            int64_t looked = 0, found = -1;
            auto scan = [&](auto&& open) {
                if (!bits) {
                    for (int64_t j = from; j < seg.length; ++j)
                        if (open(j) && want(seg.target + int32_t(j))) {
                            found = j;
                            break;
                        }
                    looked = (found < 0 ? seg.length : found + 1) - from;
                } else {
                    any_of(bits, seg.target + from, seg.target + int64_t(seg.length), [&](int64_t y) {
                        ++looked;
                        if (!open(y - seg.target) || !want(int32_t(y))) return false;
                        found = y - seg.target;
                        return true;
                    });
                }
            };
            if (made(k)) {
                const int64_t* row = r_.get() + seg.base;
                scan([row](int64_t j) { return row[j] > 0; });
            } else {
                scan([&](int64_t j) { return unmade(k, j) > 0; });
                state_[k].looked += int32_t(looked);
            }
            work += looked + 1;
            if (found >= 0) {
                cursor = ((s - first_[x]) << 32) | found;
                out = arc(k, found);
                return true;
            }
        }
        cursor = (s - first_[x]) << 32;
        return false;
    }

    bool find(int64_t x, int64_t y, int64_t& work, Arc& out) {
        for (int64_t s = first_[x]; s < first_[x + 1]; ++s) {
            const int32_t k = of_vertex_[s];
            const int64_t j = y - segments_[k].target;
            ++work;
            if (j < 0 || j >= segments_[k].length) continue;
            out = arc(k, j);
            if (residual(out) > 0) return true;
        }
        return false;
    }

    template <class Want, class F>
    void for_each_into(int64_t y, int64_t& work, const uint64_t* bits, Want&& want, F&& f) {
        for (int64_t s = first_[y]; s < first_[y + 1]; ++s) {
            const int32_t k = of_vertex_[s];
            const Segment& seg = segments_[k];
            work += 1;
            any_of(bits, seg.target, seg.target + int64_t(seg.length), [&](int64_t x) {
                ++work;
                const int64_t j = x - seg.target;
                // What is left into y is twice the capacity less what is left out of y: it stands in y's own row.
                const int64_t open =
                    made(k) ? 2 * capacity(seg, j) - r_[seg.base + j] : at(int32_t(seg.reverse + j), seg.position);
                if (open > 0 && want(int32_t(x))) f(int32_t(x));
                return false;
            });
        }
    }

    int64_t strength(int64_t x) {
        int64_t sum = 0;
        for (int64_t s = first_[x]; s < first_[x + 1]; ++s) {
            const int32_t k = of_vertex_[s];
            if (!made(k)) make(k);
            for (int64_t j = 0; j < segments_[k].length; ++j) sum += r_[segments_[k].base + j];
        }
        return sum;
    }

    int64_t residual(const Arc& a) {
        if (made(a.segment)) return r_[state_[a.segment].base + a.index];
        if (made(a.back_segment))  // without a look at the notes
            return 2 * capacity(segments_[a.back_segment], a.back_index) -
                   r_[state_[a.back_segment].base + a.back_index];
        return at(a.segment, a.index);
    }

    void push(const Arc& a, int64_t amount) {
        if (int64_t(changes_.size()) >= limit_) return push_unnoted(a, amount);
        const int32_t number = int32_t(changes_.size()) * 2;
        changes_.push_back({amount, {a.segment, a.back_segment}, {a.index, a.back_index}, {-1, -1}});
        change(changes_.back(), 0, number, -amount);
        change(changes_.back(), 1, number, amount);
    }

    void undo() {
        for (const Change& c : changes_) {
            restore(c, 0, c.amount);
            restore(c, 1, -c.amount);
        }
        changes_.clear();
        if (forgotten_) ++epoch_;
        forgotten_ = false;
    }

    int64_t made_entries = 0;  // work of making segments, in arcs

private:
    struct Segment {
        int64_t base;
        int32_t target, length, block, position, reverse;  // the reverse of its j-th arc is number `position` of the
        int32_t loop;                                      // segment reverse + j; loops have no capacity
        bool column;
    };
    struct State {
        int64_t base = 0;   // as in the segment
        int32_t note = -1;  // newest change (times 2, plus its end) that is not yet in the residuals
        uint32_t epoch = 0;
        int32_t looked = 0;  // weights and notes read while it is not made
    };
    struct Change {  // `amount` less on end 0, more on end 1
        int64_t amount;
        int32_t segment[2], index[2];
        int32_t next[2];
    };

    bool made(int32_t k) const { return state_[k].epoch == epoch_; }

    void change(Change& c, int end, int32_t number, int64_t by) {
        const int32_t k = c.segment[end];
        State& state = state_[k];
        if (state.epoch == epoch_) {
            r_[state.base + c.index[end]] += by;
        } else {
            c.next[end] = state.note;
            state.note = number + end;
        }
    }
    void restore(const Change& c, int end, int64_t by) {
        State& state = state_[c.segment[end]];
        if (state.epoch == epoch_)
            r_[state.base + c.index[end]] += by;
        else
            state.note = -1;
    }

    Arc arc(int32_t k, int64_t j) const {
        const Segment& seg = segments_[k];
        return {k, int32_t(j), int32_t(seg.reverse + j), seg.position, int32_t(seg.target + j)};
    }

    int64_t capacity(const Segment& seg, int64_t j) const {
        if (j == seg.loop) return 0;
        const BlockView& b = g_.blocks[seg.block];
        const int64_t place = seg.column ? j * b.stride + seg.position : seg.position * b.stride + j;
        return with_scalar(b.type, b.data, [&](auto* data) { return rounded(data[place], scale_, clip_); });
    }

    // Read at about the price of making it?
    bool worn(int32_t k) const { return !made(k) && int64_t(state_[k].looked) * 4 > segments_[k].length; }

    int64_t unmade(int32_t k, int64_t j) {
        int64_t r = capacity(segments_[k], j);
        if (r > 0)
            for (int32_t note = state_[k].note; note >= 0; note = changes_[note >> 1].next[note & 1]) {
                const Change& c = changes_[note >> 1];
                ++state_[k].looked;
                if (c.index[note & 1] == j) r += note & 1 ? c.amount : -c.amount;
            }
        return r;
    }

    int64_t at(int32_t k, int64_t j) {
        if (worn(k)) make(k);
        return made(k) ? r_[segments_[k].base + j] : unmade(k, j);
    }

    void make(int32_t k) {
        const Segment& seg = segments_[k];
        const BlockView& b = g_.blocks[seg.block];
        int64_t* row = r_.get() + seg.base;
        with_scalar(b.type, b.data, [&](auto* data) {
            if (seg.column) {
                for (int64_t j = 0; j < seg.length; ++j)
                    row[j] = rounded(data[j * b.stride + seg.position], scale_, clip_);
            } else {
                auto* given = data + seg.position * b.stride;
                for (int64_t j = 0; j < seg.length; ++j) row[j] = rounded(given[j], scale_, clip_);
            }
        });
        if (seg.loop >= 0) row[seg.loop] = 0;
        State& state = state_[k];
        for (int32_t note = state.note; note >= 0; note = changes_[note >> 1].next[note & 1]) {
            const Change& c = changes_[note >> 1];
            row[c.index[note & 1]] += note & 1 ? c.amount : -c.amount;
        }
        state.note = -1, state.epoch = epoch_, state.looked = 0;
        made_entries += seg.length;
    }

    // A flow of more pushes than the journal is to hold: both ends are made, and undo() makes all anew.
    void push_unnoted(const Arc& a, int64_t amount) {
        forgotten_ = true;
        if (!made(a.segment)) make(a.segment);
        if (!made(a.back_segment)) make(a.back_segment);
        r_[segments_[a.segment].base + a.index] -= amount;
        r_[segments_[a.back_segment].base + a.back_index] += amount;
    }

    const GraphView& g_;
    std::vector<int64_t> first_;
    std::vector<int32_t> of_vertex_;  // the segments of vertex x: of_vertex_[first_[x] .. first_[x + 1])
    std::vector<Segment> segments_;
    std::vector<State> state_;
    std::vector<Change> changes_;
    std::unique_ptr<int64_t[]> r_;
    int64_t size_ = 0, limit_ = 0;
    uint32_t epoch_ = 0;
    bool forgotten_ = false;
    PowerOfTwo scale_;
    double clip_ = 0;
};

}  // namespace modcut
