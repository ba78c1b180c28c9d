// Exact reductions of sparse graphs, in linear time: a cut tree is put together from those of its blocks (biconnected
// components), and in a block a vertex with two neighbours is replaced by an edge. Statements and proofs:
// docs/mathematics.md, section 6. Trees, paths, cycles, cacti and series-parallel graphs need no flow.
#pragma once
#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include "core/degrees.hpp"
#include "core/views.hpp"
#include "core/wide.hpp"

namespace modcut {

// Rows of merged positive capacities; parallel edges have become one.
struct MergedRows {
    std::vector<int64_t> first;   // [n + 1]
    std::vector<int32_t> target;  // columns ascend
    std::vector<Wide> capacity;

    explicit MergedRows(const GraphView& g, Poll& poll) : first(g.n + 1, 0) {
        std::vector<std::pair<int32_t, Wide>> row;
        for (int64_t x = 0; x < g.n; ++x) {
            if ((x & 63) == 0) poll.check();
            row.clear();
            bool sorted = true;
            for_each_entry(g, x, [&](int64_t y, auto w) {
                if (w == 0) return;
                Wide c;
                if constexpr (std::is_integral_v<decltype(w)>)
                    c = Wide::of(int64_t(w));
                else
                    c = Wide::of(double(w));
                sorted = sorted && (row.empty() || row.back().first < y);
                row.push_back({int32_t(y), c});
            });
            if (!sorted)
                std::stable_sort(row.begin(), row.end(),
                                 [](const auto& a, const auto& b) { return a.first < b.first; });
            for (auto& [y, c] : row)
                if (int64_t(target.size()) > first[x] && target.back() == y)
                    capacity.back() += c;
                else
                    target.push_back(y), capacity.push_back(c);
            first[x + 1] = int64_t(target.size());
        }
    }
};

struct LightEdge {  // of a tree or of a block
    int32_t a, b;
    Wide weight, lower;
    uint8_t code = 0;
};

// A block in its own numbering.
struct Block {
    std::vector<int32_t> vertices;      // ascending, of the graph
    std::vector<int32_t> end_a, end_b;  // of its edges, local
    std::vector<Wide> capacity;
};

// f(block) for every block with at least one edge; g(vertices) for every connected component.
template <class OnBlock, class OnComponent>
void for_each_block(const MergedRows& g, Poll& poll, OnBlock&& on_block, OnComponent&& on_component) {
    const int32_t n = int32_t(g.first.size()) - 1;
    std::vector<int32_t> seen(n, -1), low(n), from(n, -1), stack, waiting, component, local(n, -1);
    std::vector<int64_t> next(g.first.begin(), g.first.end() - 1);
    int32_t time = 0;
    Block block;
    for (int32_t start = 0; start < n; ++start) {
        if (seen[start] >= 0) continue;
        component.clear();
        stack.assign(1, start), waiting.assign(1, start);
        seen[start] = low[start] = time++;
        component.push_back(start);
        while (!stack.empty()) {
            const int32_t x = stack.back();
            if (next[x] < g.first[x + 1]) {
                if ((next[x] & 255) == 0) poll.check();
                const int32_t y = g.target[next[x]++];
                if (seen[y] < 0) {
                    from[y] = x, seen[y] = low[y] = time++;
                    stack.push_back(y), waiting.push_back(y), component.push_back(y);
                } else if (y != from[x]) {
                    low[x] = std::min(low[x], seen[y]);
                }
                continue;
            }
            stack.pop_back();
            const int32_t p = from[x];
            if (p < 0) continue;
            low[p] = std::min(low[p], low[x]);
            if (low[x] < seen[p]) continue;
            // p and all that waits from x on form a block.
            block.vertices.assign(1, p);
            while (true) {
                const int32_t y = waiting.back();
                waiting.pop_back();
                block.vertices.push_back(y);
                if (y == x) break;
            }
            std::sort(block.vertices.begin(), block.vertices.end());
            block.end_a.clear(), block.end_b.clear(), block.capacity.clear();
            if (block.vertices.size() == 2) {
                const int32_t a = block.vertices[0], b = block.vertices[1];
                // Rows are sorted: the edge of a bridge is found in the shorter one.
                const int32_t u = g.first[a + 1] - g.first[a] <= g.first[b + 1] - g.first[b] ? a : b;
                const auto row = g.target.begin() + g.first[u];
                const auto at = std::lower_bound(row, g.target.begin() + g.first[u + 1], u == a ? b : a);
                block.end_a.push_back(0), block.end_b.push_back(1);
                block.capacity.push_back(g.capacity[at - g.target.begin()]);
            } else {
                for (size_t i = 0; i < block.vertices.size(); ++i) local[block.vertices[i]] = int32_t(i);
                // Each vertex but p has all its edges to descendants or ancestors; those inside this block lead to its
                // members. An edge is taken at the end that is not p and was seen later, so rows of p are not read.
                for (int32_t u : block.vertices) {
                    if (u == p) continue;
                    for (int64_t e = g.first[u]; e < g.first[u + 1]; ++e) {
                        const int32_t v = g.target[e];
                        if (local[v] < 0 || seen[v] > seen[u]) continue;
                        block.end_a.push_back(local[u]), block.end_b.push_back(local[v]);
                        block.capacity.push_back(g.capacity[e]);
                    }
                }
                for (int32_t u : block.vertices) local[u] = -1;
            }
            on_block(block);
        }
        on_component(component);
    }
}

namespace detail {

// (u, v) -> edge, for u < v; open addressing.
class PairTable {
public:
    explicit PairTable(size_t pairs) {
        size_t size = 16;
        while (size < 3 * pairs) size *= 2;
        key_.assign(size, kEmpty), value_.resize(size);
    }
    int32_t* find(int32_t u, int32_t v) {
        const size_t i = slot(u, v);
        return key_[i] == kEmpty ? nullptr : &value_[i];
    }
    void put(int32_t u, int32_t v, int32_t edge) {  // at most `pairs` times, plus replacements
        const size_t i = slot(u, v);
        key_[i] = key(u, v), value_[i] = edge;
    }

private:
    static constexpr uint64_t kEmpty = ~uint64_t(0);
    static uint64_t key(int32_t u, int32_t v) {
        return u < v ? uint64_t(u) << 32 | uint32_t(v) : uint64_t(v) << 32 | uint32_t(u);
    }
    size_t slot(int32_t u, int32_t v) const {
        const uint64_t k = key(u, v), mask = key_.size() - 1;
        uint64_t i = (k * 0x9E3779B97F4A7C15ull >> 20) & mask;
        while (key_[i] != kEmpty && key_[i] != k) i = (i + 1) & mask;
        return i;
    }
    std::vector<uint64_t> key_;
    std::vector<int32_t> value_;
};

// Smallest lower bound between two vertices of a growing tree: leaves are added, never moved. Jump pointers, O(log n).
class GrowingTree {
public:
    explicit GrowingTree(size_t n) : up_(n, -1), jump_(n, -1), depth_(n, 0), to_up_(n), to_jump_(n) {}
    void root(int32_t v) { up_[v] = jump_[v] = v; }
    void add(int32_t v, int32_t above, Wide bound) {
        up_[v] = above, depth_[v] = depth_[above] + 1, to_up_[v] = bound;
        const int32_t j = jump_[above];
        if (depth_[above] - depth_[j] == depth_[j] - depth_[jump_[j]] && j != above) {
            jump_[v] = jump_[j];
            to_jump_[v] = least(bound, least(to_jump_[above], to_jump_[j]));
        } else {
            jump_[v] = above, to_jump_[v] = bound;
        }
    }
    Wide weakest(int32_t u, int32_t v) const {
        Wide bound = Wide::of(std::numeric_limits<double>::infinity());
        if (depth_[u] < depth_[v]) std::swap(u, v);
        while (depth_[u] > depth_[v])
            if (depth_[jump_[u]] >= depth_[v])
                bound = least(bound, to_jump_[u]), u = jump_[u];
            else
                bound = least(bound, to_up_[u]), u = up_[u];
        while (u != v)
            if (jump_[u] != jump_[v])
                bound = least(bound, least(to_jump_[u], to_jump_[v])), u = jump_[u], v = jump_[v];
            else
                bound = least(bound, least(to_up_[u], to_up_[v])), u = up_[u], v = up_[v];
        return bound;
    }

private:
    static Wide least(Wide a, Wide b) { return a < b ? a : b; }
    std::vector<int32_t> up_, jump_, depth_;
    std::vector<Wide> to_up_, to_jump_;
};

}  // namespace detail

// What is left of a block when vertices with two neighbours have become edges, and how to bring them back.
class SeriesReduction {
public:
    explicit SeriesReduction(const Block& block)
        : n_(int32_t(block.vertices.size())),
          a_(block.end_a),
          b_(block.end_b),
          c_(block.capacity),
          alive_(a_.size(), 1) {
        std::vector<int32_t> degree(n_, 0);
        for (size_t e = 0; e < a_.size(); ++e) ++degree[a_[e]], ++degree[b_[e]];
        left_ = n_;
        gone_.assign(n_, 0);
        std::vector<int32_t> todo;
        for (int32_t v = n_; v-- > 0;)
            if (degree[v] == 2) todo.push_back(v);
        if (todo.empty() || n_ < 3) return;
        // Incident edges as doubly linked lists: slot 2e is edge e at a_[e], slot 2e + 1 at b_[e].
        std::vector<int32_t> head(n_, -1), next(2 * a_.size()), previous(2 * a_.size());
        auto link = [&](int32_t slot, int32_t v) {
            next[slot] = head[v], previous[slot] = -1;
            if (head[v] >= 0) previous[head[v]] = slot;
            head[v] = slot;
        };
        auto unlink = [&](int32_t slot, int32_t v) {
            (previous[slot] < 0 ? head[v] : next[previous[slot]]) = next[slot];
            if (next[slot] >= 0) previous[next[slot]] = previous[slot];
        };
        detail::PairTable edge(a_.size() + n_);
        for (size_t e = 0; e < a_.size(); ++e) {
            link(int32_t(2 * e), a_[e]), link(int32_t(2 * e + 1), b_[e]);
            edge.put(a_[e], b_[e], int32_t(e));
        }
        auto other = [&](int32_t slot) { return slot & 1 ? a_[slot >> 1] : b_[slot >> 1]; };
        while (!todo.empty() && left_ > 2) {
            const int32_t v = todo.back();
            todo.pop_back();
            if (gone_[v] || degree[v] != 2) continue;
            int32_t s = head[v], t = next[s];
            if (c_[t >> 1] < c_[s >> 1]) std::swap(s, t);
            const int32_t e = s >> 1, f = t >> 1, a = other(s), b = other(t);  // c(e) <= c(f)
            steps_.push_back({v, a, b, c_[e], c_[f]});
            gone_[v] = 1, --left_;
            alive_[f] = 0;
            unlink(t ^ 1, b);
            int32_t* known = edge.find(a, b);
            if (known && *known >= 0) {
                c_[*known] += c_[e];
                alive_[e] = 0;
                unlink(s ^ 1, a);
                if (--degree[a] == 2) todo.push_back(a);
                if (--degree[b] == 2) todo.push_back(b);
            } else {  // e now joins a and b
                (s & 1 ? b_ : a_)[e] = b;
                link(s, b);
                edge.put(a, b, e);
            }
        }
    }

    int32_t left() const { return left_; }
    int64_t removed() const { return n_ - left_; }

    // What is left: its vertices in the block's numbering, and its edges in its own.
    Block core() const {
        Block out;
        std::vector<int32_t> local(n_, -1);
        for (int32_t v = 0; v < n_; ++v)
            if (!gone_[v]) local[v] = int32_t(out.vertices.size()), out.vertices.push_back(v);
        for (size_t e = 0; e < a_.size(); ++e)
            if (alive_[e])
                out.end_a.push_back(local[a_[e]]), out.end_b.push_back(local[b_[e]]), out.capacity.push_back(c_[e]);
        return out;
    }

    // The cut tree of the block from that of the core (both in the block's numbering).
    std::vector<LightEdge> expand(const std::vector<LightEdge>& core, uint8_t code) const {
        // Rooted, so that "is (a, b) an edge" takes constant time.
        std::vector<int32_t> parent(n_, -1), first(n_ + 1, 0);
        std::vector<LightEdge> above(n_);
        std::vector<std::pair<int32_t, int32_t>> at(2 * core.size());
        for (auto& e : core) ++first[e.a + 1], ++first[e.b + 1];
        for (int32_t v = 0; v < n_; ++v) first[v + 1] += first[v];
        {
            std::vector<int32_t> next(first.begin(), first.end() - 1);
            for (size_t i = 0; i < core.size(); ++i) {
                at[next[core[i].a]++] = {core[i].b, int32_t(i)};
                at[next[core[i].b]++] = {core[i].a, int32_t(i)};
            }
        }
        detail::GrowingTree bounds(n_);
        std::vector<int32_t> queue{core[0].a};
        bounds.root(core[0].a);
        for (size_t h = 0; h < queue.size(); ++h) {
            const int32_t x = queue[h];
            for (int32_t i = first[x]; i < first[x + 1]; ++i) {
                const auto [y, e] = at[i];
                if (y == parent[x]) continue;
                parent[y] = x, above[y] = core[e];
                bounds.add(y, x, core[e].lower);
                queue.push_back(y);
            }
        }
        for (size_t i = steps_.size(); i-- > 0;) {
            const Step& s = steps_[i];
            const Wide sum = s.p + s.q, gain = s.q - s.p;
            Wide lower = bounds.weakest(s.a, s.b) + gain;
            if (sum < lower) lower = sum;
            // For every cut in the tree, v lies with b, the neighbour that holds it more strongly.
            bounds.add(s.v, s.b, lower);
            const int32_t u = between(s.a, s.b, s.p + s.p, parent, above, bounds);
            if (u >= 0) {  // x - y becomes x - v - b; without ties between a and b
                const LightEdge joint = above[u];
                const LightEdge strong{s.v, s.b, joint.weight + gain, lower, code};
                const int32_t over = parent[u];
                if (below(s.b, u, parent)) {
                    int32_t z = s.b, up = parent[z];
                    LightEdge e = above[z];
                    while (z != u) {  // turn the path from b to u
                        const int32_t next = parent[up];
                        const LightEdge next_edge = above[up];
                        parent[up] = z, above[up] = e;
                        z = up, up = next, e = next_edge;
                    }
                    parent[s.v] = over, above[s.v] = joint;
                    parent[s.b] = s.v, above[s.b] = strong;
                } else {
                    parent[u] = s.v;
                    parent[s.v] = s.b, above[s.v] = strong;
                }
            } else {
                parent[s.v] = s.b;
                above[s.v] = {s.v, s.b, sum, lower, code};
            }
        }
        std::vector<LightEdge> out;
        for (int32_t v = 0; v < n_; ++v)
            if (parent[v] >= 0) {
                LightEdge e = above[v];
                e.a = v, e.b = parent[v];
                out.push_back(e);
            }
        return out;
    }

private:
    // The lower end of the weakest edge between a and b if that is below `limit`, else -1. An edge (a, b) of at least
    // limit / 2 is in the graph, which makes them neighbours in every exact tree with such an edge between them; where
    // floats have rounded a tie away, the path may be longer.
    static int32_t between(int32_t a, int32_t b, Wide limit, const std::vector<int32_t>& parent,
                           const std::vector<LightEdge>& above, const detail::GrowingTree& bounds) {
        if (parent[a] == b) return above[a].weight < limit ? a : -1;
        if (parent[b] == a) return above[b].weight < limit ? b : -1;
        if (!(bounds.weakest(a, b).hi < limit.hi * (1 - 1e-13))) return -1;
        std::vector<int32_t> from_a, from_b;
        for (int32_t x = a; x >= 0; x = parent[x]) from_a.push_back(x);
        for (int32_t x = b; x >= 0; x = parent[x]) from_b.push_back(x);
        while (!from_a.empty() && !from_b.empty() && from_a.back() == from_b.back())
            from_a.pop_back(), from_b.pop_back();
        from_a.insert(from_a.end(), from_b.begin(), from_b.end());
        int32_t u = -1;
        for (int32_t x : from_a)
            if (u < 0 || above[x].weight < above[u].weight) u = x;
        return above[u].weight < limit ? u : -1;
    }

    static bool below(int32_t x, int32_t u, const std::vector<int32_t>& parent) {
        while (x >= 0 && x != u) x = parent[x];
        return x == u;
    }

    struct Step {
        int32_t v, a, b;  // v stood between a and b
        Wide p, q;        // its capacities to a and to b, p <= q
    };
    int32_t n_, left_ = 0;
    std::vector<int32_t> a_, b_;
    std::vector<Wide> c_;
    std::vector<uint8_t> alive_, gone_;
    std::vector<Step> steps_;
};

// A block as compressed rows, its capacities rounded down to float64 (integers stay exact).
struct OwnedCsr {
    std::vector<int64_t> indptr, integers;
    std::vector<int32_t> columns;
    std::vector<double> floats;
    GraphView view;

    OwnedCsr(const Block& block, const GraphView& like) {
        const int64_t n = int64_t(block.vertices.size()), m = int64_t(block.end_a.size());
        indptr.assign(n + 1, 0);
        for (int64_t e = 0; e < m; ++e) ++indptr[block.end_a[e] + 1], ++indptr[block.end_b[e] + 1];
        for (int64_t x = 0; x < n; ++x) indptr[x + 1] += indptr[x];
        columns.resize(2 * m);
        (like.integral ? integers.resize(2 * m) : floats.resize(2 * m));
        // Two bucket passes sort the rows: by column, then stably by row.
        std::vector<int64_t> at(indptr.begin(), indptr.end() - 1);
        std::vector<int32_t> by_column(2 * m);
        for (int64_t e = 0; e < m; ++e) {
            by_column[at[block.end_a[e]]++] = int32_t(2 * e);
            by_column[at[block.end_b[e]]++] = int32_t(2 * e + 1);
        }
        at.assign(indptr.begin(), indptr.end() - 1);
        for (int32_t s : by_column) {
            const int32_t e = s >> 1, column = s & 1 ? block.end_b[e] : block.end_a[e];
            const int64_t p = at[s & 1 ? block.end_a[e] : block.end_b[e]]++;
            columns[p] = column;
            if (like.integral)
                integers[p] = block.capacity[e].integer();
            else
                floats[p] = block.capacity[e].down();
        }
        view.n = n, view.has_csr = true, view.integral = like.integral, view.single = like.single;
        CsrView& c = view.csr;
        c.indptr = indptr.data(), c.indices = columns.data(), c.nnz = 2 * m;
        c.type = like.integral ? Scalar::i64 : Scalar::f64;
        c.data = like.integral ? static_cast<const void*>(integers.data()) : floats.data();
    }
    OwnedCsr(const OwnedCsr&) = delete;
    OwnedCsr& operator=(const OwnedCsr&) = delete;
};

}  // namespace modcut
