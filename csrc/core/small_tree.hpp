// The exact cut tree of one small dense graph, by one team: Gusfield's n - 1 flows with the swap that makes the result
// a cut tree (Gusfield 1990), each flow by push-relabel in synchronous pulses (Goldberg and Tarjan 1988). Many graphs
// at once are many teams: threads on a CPU, one block per graph on a GPU. The same source runs on both.
//
// No atomics, and the same bits for every team: vertex x belongs to one rank. Within a pulse heights stand still, so an
// arc carries a push in one direction only, and the rank of the arc's tail is the only one to touch the pair. Nobody
// adds to another vertex's excess either: with integer capacities the excess of x is what is left on the arcs out of x
// less the strength of x, so every rank reads its own in the next pulse.
//
// Residuals lie transposed, residual[k * stride + x] for the arc x -> k: ranks with neighbouring x read neighbouring
// words, and a CPU reads whole cache lines. A pair holds twice its capacity in all, so a finished flow is undone in
// place and no copy of the capacities is kept: n^2 words are all that one graph needs.
#pragma once
#include <bit>
#include <cmath>
#include <cstdint>
#include <type_traits>

#include "core/residual.hpp"
#include "core/team.hpp"

namespace modcut::small {

// Capacities are rounded down to integers of this type (core/residual.hpp): 29 to 30 bits for the largest where they
// are float32, 58 to 59 for the largest strength where they are float64. Integers stay as they are.
template <class W>
using Residual = std::conditional_t<sizeof(W) == 4, int32_t, int64_t>;

enum Status : int64_t {
    kDone = 0,
    kNotANumber = 1,  // at status[1], status[2], as are the next three
    kInfinite = 2,
    kNegative = 3,
    kAsymmetric = 4,
    kTooLarge = 5,  // an int32 capacity of 2^30 or more, int64 ones that add up to 2^60, strengths of 2^53, or overflow
    kUnfinished = 6,  // a flow took more pulses than it can: a bug, reported instead of a hang
    kStopped = 7,     // by the caller
};
constexpr int64_t kStatus = 4;  // entries per graph: code, row, column, pulses of all flows

// Tiles of neighbouring vertices stay whole, and rows start in different banks and cache sets.
template <class Team>
MODCUT_FN int64_t stride_of(int64_t n) {
    return Team::kTile == 1 ? n | 1 : ((n + Team::kTile - 1) / Team::kTile | 1) * Team::kTile;
}

// The arrays of one graph, cut out of two pieces of memory (both multiples of 8 bytes): the large one holds what pulses
// stream, n^2 words and n^2 bits; the little one 36 bytes per vertex.
template <class R>
struct Memory {
    R* residual;                        // [n][stride]
    uint32_t* bits;                     // [words][stride]: arcs x -> k with something left; later who is below whom
    int64_t *excess, *strength, *flow;  // [stride] each
    int32_t* height[2];                 // [stride] each
    int32_t* parent;                    // [stride]
    uint32_t* frontier;                 // [words]

    MODCUT_FN static int64_t words(int64_t n) { return (n + 31) / 32; }
    MODCUT_FN static int64_t large(int64_t n, int64_t stride) {
        return (n * stride * int64_t(sizeof(R)) + words(n) * stride * 4 + 7) / 8 * 8;
    }
    MODCUT_FN static int64_t little(int64_t n, int64_t stride) { return (36 * stride + 4 * words(n) + 7) / 8 * 8; }

    MODCUT_FN Memory(void* large_at, void* little_at, int64_t n, int64_t stride) {
        residual = static_cast<R*>(large_at);
        bits = reinterpret_cast<uint32_t*>(residual + n * stride);
        excess = static_cast<int64_t*>(little_at);
        strength = excess + stride, flow = strength + stride;
        height[0] = reinterpret_cast<int32_t*>(flow + stride), height[1] = height[0] + stride;
        parent = height[1] + stride;
        frontier = reinterpret_cast<uint32_t*>(parent + stride);
    }
};

struct Out {
    int64_t* parent;  // [n], -1 at the root
    double* weight;   // [n], infinite at the root: the cut that the edge induces, re-summed from the given capacities
    double* lower;    // [n], the value of a feasible flow
    int64_t* status;  // [kStatus]
};

namespace detail {

// The strength of the edge {x, y}: where rounding made the two entries differ, their mean, as modcut._problem does.
template <class W>
MODCUT_FN W entry(const W* w, int64_t pitch, int64_t x, int64_t y) {
    const W a = w[x * pitch + y], b = w[y * pitch + x];
    if constexpr (std::is_floating_point_v<W>) return a == b ? a : a / 2 + b / 2;
    return a;
}

template <class W>
MODCUT_FN int64_t fault(W a, W b) {
    if (a != a) return kNotANumber;
    if (a < 0) return kNegative;
    if constexpr (std::is_floating_point_v<W>) {
        if (a - a != 0) return kInfinite;
        const W gap = a < b ? b - a : a - b;
        if (gap > (sizeof(W) == 4 ? W(1e-5) : W(1e-9)) * (a < b ? b : a)) return kAsymmetric;
    } else if (a != b) {
        return kAsymmetric;
    }
    return kDone;
}

template <class R, class Team>
class Flows {
public:
    MODCUT_FN Flows(Team& team, const Memory<R>& memory, int64_t n, int64_t stride)
        : team_(team),
          m_(memory),
          n_(n),
          stride_(stride),
          own_(share(team, n, Team::kTile)),
          height_(memory.height[0]),
          spare_(memory.height[1]) {}

    // A maximum preflow from s to t. Afterwards in_side(x) tells a minimum cut's side of s.
    MODCUT_FN int64_t run(int64_t s, int64_t t) {
        rest();
        saturate(s);
        s_ = s, t_ = t, alone_ = 0;
        relabel_all();
        const int64_t bound = m_.strength[s] < m_.strength[t] ? m_.strength[s] : m_.strength[t];
        for (int64_t since = 0;; ++since) {
            const bool active = gather();
            ++pulses;
            const int64_t value = m_.excess[t];
            if (value >= bound) {  // no cut is smaller than either end alone
                alone_ = m_.strength[s] <= m_.strength[t] ? 1 : 2;
                return value;
            }
            if (pulses > limit()) {
                unfinished = true;
                return value;
            }
            if (!active || since >= kPulses) {
                if (!active && since == 0) return value;  // heights were distances: what is stuck never gets to t
                relabel_all();
                since = -1;
                continue;
            }
            push();
        }
    }

    MODCUT_FN bool in_side(int64_t x) const { return alone_ == 1 ? x == s_ : alone_ == 2 ? x != t_ : height_[x] >= n_; }

    int64_t pulses = 0;
    bool unfinished = false;

private:
    static constexpr int T = Team::kTile;
    static constexpr int64_t kPulses = 6;  // between two breadth-first searches

    // Pulses of push-relabel are fewer than 2 n^2 a flow (Goldberg and Tarjan); searches come on top.
    MODCUT_FN int64_t limit() const { return 4 * n_ * n_ * n_ + 1024; }

    // f(x) for every tile of vertices that this rank owns; vertices from n on are padding.
    template <class F>
    MODCUT_FN void tiles(F&& f) const {
        for (int64_t x = own_.begin; x < own_.end; x += T) f(x);
    }
    template <class F>
    MODCUT_FN void vertices(F&& f) const {
        for (int64_t x = own_.begin; x < own_.end; ++x) f(x);
    }

    MODCUT_FN void rest() {
        tiles([&](int64_t x) {
            for (int64_t k = x + 1; k < n_; ++k) {
                R* row = m_.residual + k * stride_ + x;
                MODCUT_UNROLL
                for (int l = 0; l < T; ++l)
                    if (x + l < k) {
                        R& back = m_.residual[(x + l) * stride_ + k];
                        row[l] = back = (row[l] + back) / 2;
                    }
            }
        });
        team_.sync();
    }

    MODCUT_FN void saturate(int64_t s) {
        vertices([&](int64_t x) {
            m_.residual[s * stride_ + x] *= 2;
            m_.residual[x * stride_ + s] = 0;
        });
        team_.sync();
    }

    // Every rank reads the excess of its vertices and lifts those that have some but no arc down. Whether any may push.
    MODCUT_FN bool gather() {
        const int32_t *old = height_, far = int32_t(n_);
        int32_t* made = spare_;
        bool active = false;
        tiles([&](int64_t x) {
            int64_t sum[T] = {};
            int32_t low[T];
            MODCUT_UNROLL
            for (int l = 0; l < T; ++l) low[l] = far;
            for (int64_t k = 0; k < n_; ++k) {
                const R* row = m_.residual + k * stride_ + x;
                const int32_t h = old[k];
                MODCUT_UNROLL
                for (int l = 0; l < T; ++l) {
                    sum[l] += row[l];
                    low[l] = row[l] > 0 && h < low[l] ? h : low[l];
                }
            }
            MODCUT_UNROLL
            for (int l = 0; l < T; ++l) {
                const int64_t y = x + l;
                if (y >= n_) break;
                const int64_t excess = sum[l] - m_.strength[y];
                int32_t h = old[y];
                m_.excess[y] = excess;
                if (y != s_ && y != t_ && excess > 0 && h < far) {
                    if (low[l] >= h) h = low[l] + 1 < far ? low[l] + 1 : far;
                    active |= h < far;
                }
                made[y] = h;
            }
        });
        spare_ = height_, height_ = made;
        return team_.any(active);
    }

    MODCUT_FN void push() {
        const int32_t* height = height_;
        tiles([&](int64_t x) {
            int64_t left[T];
            int32_t below[T], live = 0;
            MODCUT_UNROLL
            for (int l = 0; l < T; ++l) {
                const int64_t y = x + l;
                left[l] = 0, below[l] = -2;
                if (y >= n_ || y == s_ || y == t_ || m_.excess[y] <= 0 || height[y] >= n_) continue;
                left[l] = m_.excess[y], below[l] = height[y] - 1, ++live;
            }
            for (int64_t k = 0; k < n_ && live > 0; ++k) {
                const int32_t h = height[k];
                MODCUT_UNROLL
                for (int l = 0; l < T; ++l) {
                    if (h != below[l]) continue;  // nobody else touches the arcs that are left
                    R& out = m_.residual[k * stride_ + x + l];
                    if (out <= 0) continue;
                    const R amount = int64_t(out) < left[l] ? out : R(left[l]);
                    out -= amount;
                    m_.residual[(x + l) * stride_ + k] += amount;
                    left[l] -= amount;
                    if (left[l] == 0) below[l] = -2, --live;
                }
            }
        });
        team_.sync();
    }

    // Heights become distances to t, by breadth-first search over bits of the residual arcs; n where t is out of reach.
    MODCUT_FN void relabel_all() {
        const int64_t words = Memory<R>::words(n_);
        int32_t* height = height_;
        tiles([&](int64_t x) {
            for (int64_t word = 0; word < words; ++word) {
                const int64_t end = n_ < 32 * word + 32 ? n_ : 32 * word + 32;
                uint32_t set[T] = {};
                for (int64_t k = 32 * word; k < end; ++k) {
                    const R* row = m_.residual + k * stride_ + x;
                    MODCUT_UNROLL
                    for (int l = 0; l < T; ++l) set[l] |= uint32_t(row[l] > 0) << (k & 31);
                }
                MODCUT_UNROLL
                for (int l = 0; l < T; ++l) m_.bits[word * stride_ + x + l] = set[l];
            }
        });
        vertices([&](int64_t x) { height[x] = x == t_ ? 0 : int32_t(n_); });
        team_.sync();
        const Range mine = share(team_, words, 1);
        for (int32_t level = 1;; ++level) {
            for (int64_t word = mine.begin; word < mine.end; ++word) {
                uint32_t set = 0;
                for (int64_t k = 32 * word; k < 32 * word + 32 && k < n_; ++k)
                    set |= uint32_t(height[k] == level - 1) << (k & 31);
                m_.frontier[word] = set;
            }
            team_.sync();
            bool found = false;
            vertices([&](int64_t x) {
                if (height[x] < n_ || x == s_) return;
                for (int64_t word = 0; word < words; ++word)
                    if (m_.bits[word * stride_ + x] & m_.frontier[word]) {
                        height[x] = level, found = true;
                        break;
                    }
            });
            if (!team_.any(found)) return;
        }
    }

    Team& team_;
    const Memory<R>& m_;
    const int64_t n_, stride_;
    const Range own_;
    int32_t *height_, *spare_;  // where heights are, and where the next ones go
    int64_t s_ = 0, t_ = 0;
    int alone_ = 0;  // 1: s is alone on its side, 2: t is
};

}  // namespace detail

// `w` is [n, n] with `pitch` entries from row to row. stop() is asked before every flow; a rank that says true ends
// all.
template <class W, class Team, class Stop>
MODCUT_FN void cut_tree(Team& team, const W* w, int64_t pitch, int64_t n, const Memory<Residual<W>>& m, const Out& out,
                        Stop&& stop) {
    using R = Residual<W>;
    constexpr bool kFloat = std::is_floating_point_v<W>;
    using Total = std::conditional_t<kFloat, double, int64_t>;
    const int64_t stride = stride_of<Team>(n);
    const Range own = share(team, n, Team::kTile);
    const auto end_with = [&](int64_t code, int64_t row, int64_t col, int64_t pulses) {
        if (team.rank() == 0) out.status[0] = code, out.status[1] = row, out.status[2] = col, out.status[3] = pulses;
        if (code != kDone)
            for (int64_t x = own.begin; x < own.end; ++x) out.parent[x] = -1, out.weight[x] = out.lower[x] = 0;
    };

    // Entries, and the strengths and largest capacity of each vertex in floats (kept as bits until all have them).
    bool bad = false;
    for (int64_t x = own.begin; x < own.end; ++x) {
        Sum sum;
        double top = 0;
        int64_t code = kDone, at = 0;
        for (int64_t k = 0; k < n && code == kDone; ++k) {
            code = detail::fault(w[x * pitch + k], w[k * pitch + x]), at = k;
            if (k == x) continue;
            const double c = double(detail::entry(w, pitch, x, k));
            sum.add(c);
            top = c > top ? c : top;
        }
        m.height[0][x] = int32_t(code), m.height[1][x] = int32_t(at);
        m.excess[x] = std::bit_cast<int64_t>(sum.value()), m.flow[x] = std::bit_cast<int64_t>(top);
        bad |= code != kDone;
    }
    if (team.any(bad)) {
        int64_t x = 0;
        while (m.height[0][x] == kDone) ++x;
        return end_with(m.height[0][x], x, m.height[1][x], 0);
    }
    double total = 0, strongest = 0, top = 0;
    for (int64_t x = 0; x < n; ++x) {
        const double d = std::bit_cast<double>(m.excess[x]), c = std::bit_cast<double>(m.flow[x]);
        total += d, strongest = d > strongest ? d : strongest, top = c > top ? c : top;
    }
    int exponent = 0;
    if constexpr (kFloat) {
        if (!(total - total == 0)) return end_with(kTooLarge, 0, 0, 0);
        if (top > 0) exponent = sizeof(W) == 4 ? 29 - std::ilogb(top) : 58 - std::ilogb(total);
    } else if (sizeof(W) == 4 ? top >= 0x1p30 : total >= 0x1p60 || strongest >= 0x1p53) {
        return end_with(kTooLarge, 0, 0, 0);
    }
    team.sync();  // `excess` and `flow` are free again

    const PowerOfTwo scale(exponent);
    for (int64_t x = own.begin; x < own.end; ++x) {
        int64_t strength = 0;
        for (int64_t k = 0; k < n; ++k) {
            R c = 0;
            if (k != x) {
                if constexpr (kFloat)
                    c = R(scale(double(detail::entry(w, pitch, k, x))));
                else
                    c = w[k * pitch + x];
            }
            m.residual[k * stride + x] = c;
            strength += c;
        }
        m.strength[x] = strength;
    }
    for (int64_t x = n; x < stride && team.rank() == 0; ++x)
        for (int64_t k = 0; k < n; ++k) m.residual[k * stride + x] = 0;
    team.sync();

    int64_t root = 0;
    for (int64_t x = 1; x < n; ++x)
        if (m.strength[x] > m.strength[root]) root = x;
    for (int64_t x = own.begin; x < own.end; ++x) m.parent[x] = int32_t(root), m.flow[x] = 0;
    team.sync();
    detail::Flows<R, Team> flows(team, m, n, stride);
    for (int64_t s = 0; s < n; ++s) {
        if (s == root) continue;
        if (team.any(stop())) return end_with(kStopped, 0, 0, flows.pulses);
        const int64_t t = m.parent[s];
        const int64_t value = flows.run(s, t);
        if (flows.unfinished) return end_with(kUnfinished, s, t, flows.pulses);
        for (int64_t x = own.begin; x < own.end; ++x)
            if (x != s && m.parent[x] == t && x != t && flows.in_side(x)) m.parent[x] = int32_t(s);
        team.sync();
        if (team.rank() == 0) {
            m.flow[s] = value;
#if !defined(MODCUT_PLANT_NO_SWAP)
            if (t != root && flows.in_side(m.parent[t])) {
                m.parent[s] = m.parent[t], m.parent[t] = int32_t(s);
                m.flow[s] = m.flow[t], m.flow[t] = value;
            }
#endif
        }
        team.sync();
    }

    // What every edge cuts, from the given capacities; bit x of column v: x hangs below v.
    for (int64_t v = own.begin; v < own.end; ++v) {
        for (int64_t word = 0; word < Memory<R>::words(n); ++word) {
            uint32_t set = 0;
            for (int64_t x = 32 * word; x < 32 * word + 32 && x < n; ++x) {
                int64_t up = x;
                while (up != v && up != root) up = m.parent[up];
                set |= uint32_t(up == v) << (x & 31);
            }
            m.bits[word * stride + v] = set;
        }
        const auto below = [&](int64_t x) { return m.bits[(x >> 5) * stride + v] >> (x & 31) & 1; };
        std::conditional_t<kFloat, Sum, Total> cut{};
        for (int64_t x = 0; x < n; ++x) {
            if (v == root || !below(x)) continue;
            for (int64_t y = 0; y < n; ++y) {
                if (below(y)) continue;
                if constexpr (kFloat)
                    cut.add(double(detail::entry(w, pitch, y, x)));
                else
                    cut += w[y * pitch + x];
            }
        }
        double weight;
        if constexpr (kFloat)
            weight = cut.value();
        else
            weight = double(cut);
        const double lower = to_float(m.flow[v], exponent);
        out.parent[v] = v == root ? -1 : m.parent[v];
        out.weight[v] = v == root ? std::bit_cast<double>(uint64_t(0x7ff) << 52) : weight;
        out.lower[v] = v == root ? out.weight[v] : lower < weight ? lower : weight;
    }
    end_with(kDone, 0, 0, flows.pulses);
}

}  // namespace modcut::small
