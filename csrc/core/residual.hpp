// Residual networks in integers.
//
// Float capacities are rounded DOWN to multiples of 2^-e, so every flow is exact integer arithmetic on capacities that
// never exceed the given ones: its value is a proven lower bound on the true cut, no order of operations can change it,
// and the algorithm ends whatever the scales are. The upper bound is re-summed from the given weights afterwards.
//
// An undirected edge {x, y} of capacity c is a pair of arcs with r(x,y) + r(y,x) = 2c, c each at rest; so a network is
// put back to rest without remembering capacities.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

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
inline double to_float(int64_t value, int exponent) {
    double x = double(value);
    if (x >= 0x1p63 || int64_t(x) > value) x = std::nextafter(x, 0.0);
    double y = PowerOfTwo(-exponent)(x);
    if (y != 0 && PowerOfTwo(exponent)(y) > x) y = std::nextafter(y, 0.0);  // only where the result is subnormal
    return y;
}

struct Arc {
    int64_t arc, reverse;
    int32_t target;
};

// Arcs of x lie in a few contiguous segments, one per block and direction: no indices, and a row is read in order.
class BlockArcs {
public:
    static constexpr const char* kName = "block";
    explicit BlockArcs(const GraphView& g) : g_(g), first_(g.n + 1) {
        for (const BlockView& b : g.blocks) {
            for (int64_t i = 0; i < b.rows; ++i) ++first_[b.row0 + i + 1];
            if (!b.symmetric)
                for (int64_t j = 0; j < b.cols; ++j) ++first_[b.col0 + j + 1];
        }
        for (int64_t x = 0; x < g.n; ++x) first_[x + 1] += first_[x];
        segments_.resize(first_[g.n]);
        std::vector<int64_t> at(first_.begin(), first_.end() - 1);
        int64_t base = 0;
        for (const BlockView& b : g.blocks) {
            if (b.symmetric) {
                for (int64_t i = 0; i < b.rows; ++i)
                    segments_[at[b.row0 + i]++] = {base + i * b.cols, base + i, b.cols, int32_t(b.col0),
                                                   int32_t(b.cols)};
                base += b.rows * b.cols;
            } else {
                const int64_t back = base + b.rows * b.cols;
                for (int64_t i = 0; i < b.rows; ++i)
                    segments_[at[b.row0 + i]++] = {base + i * b.cols, back + i, b.rows, int32_t(b.col0),
                                                   int32_t(b.cols)};
                for (int64_t j = 0; j < b.cols; ++j)
                    segments_[at[b.col0 + j]++] = {back + j * b.rows, base + j, b.cols, int32_t(b.row0),
                                                   int32_t(b.rows)};
                base += 2 * b.rows * b.cols;
            }
        }
        r.assign(base, 0);
    }

    int64_t size() const { return int64_t(r.size()); }

    void fill(const Rounding& rounding) {
        const PowerOfTwo scale(rounding.exponent);
        int64_t base = 0;
        for (const BlockView& b : g_.blocks) {
            with_scalar(b.type, b.data, [&](auto* data) {
                for (int64_t i = 0; i < b.rows; ++i) {
                    auto* row = data + i * b.stride;
                    int64_t* out = r.data() + base + i * b.cols;
                    for (int64_t j = 0; j < b.cols; ++j) out[j] = rounded(row[j], scale, rounding.clip);
                    const int64_t diag = b.row0 + i - b.col0;
                    if (diag >= 0 && diag < b.cols) out[diag] = 0;
                }
            });
            if (b.symmetric) {
                base += b.rows * b.cols;
            } else {
                const int64_t back = base + b.rows * b.cols;
                constexpr int64_t tile = 16;
                for (int64_t i0 = 0; i0 < b.rows; i0 += tile)
                    for (int64_t j0 = 0; j0 < b.cols; j0 += tile)
                        for (int64_t i = i0; i < std::min(i0 + tile, b.rows); ++i)
                            for (int64_t j = j0; j < std::min(j0 + tile, b.cols); ++j)
                                r[back + j * b.rows + i] = r[base + i * b.cols + j];
                base += 2 * b.rows * b.cols;
            }
        }
    }

    // The first arc of x at or after the cursor with residual capacity and want(target); false at the end of the row.
    template <class Want>
    bool next(int64_t x, int64_t& cursor, int64_t& work, Want&& want, Arc& out) const {
        int64_t s = first_[x] + (cursor >> 32), j = cursor & 0xffffffff;
        for (; s < first_[x + 1]; ++s, j = 0) {
            const Segment& seg = segments_[s];
            const int64_t* row = r.data() + seg.base;
            const int64_t j0 = j;
            for (; j < seg.length; ++j)
                if (row[j] > 0 && want(seg.target + int32_t(j))) {
                    cursor = ((s - first_[x]) << 32) | j;
                    work += j - j0 + 1;
                    out = {seg.base + j, seg.reverse + j * seg.stride, seg.target + int32_t(j)};
                    return true;
                }
            work += j - j0;
        }
        cursor = (s - first_[x]) << 32;
        return false;
    }

    // f(x) for every x with residual capacity on the arc x -> y.
    template <class F>
    void for_each_into(int64_t y, int64_t& work, F&& f) const {
        for (int64_t s = first_[y]; s < first_[y + 1]; ++s) {
            const Segment& seg = segments_[s];
            work += seg.length;
            for (int64_t j = 0; j < seg.length; ++j)
                if (r[seg.reverse + j * seg.stride] > 0) f(seg.target + int32_t(j));
        }
    }

    int64_t strength(int64_t x) const {
        int64_t sum = 0;
        for (int64_t s = first_[x]; s < first_[x + 1]; ++s)
            for (int64_t j = 0; j < segments_[s].length; ++j) sum += r[segments_[s].base + j];
        return sum;
    }

    std::vector<int64_t> r;  // residual capacities

private:
    struct Segment {
        int64_t base, reverse, stride;  // reverse of the j-th arc is reverse + j * stride
        int32_t target, length;
    };
    const GraphView& g_;
    std::vector<int64_t> first_;
    std::vector<Segment> segments_;
};

// Compressed rows of the nonzero entries; parallel edges of overlapping blocks stay parallel.
class CsrArcs {
public:
    static constexpr const char* kName = "csr";
    explicit CsrArcs(const GraphView& g) : integral_(g.integral), first_(g.n + 1) {
        auto edges = [&](auto&& f) {  // f(x, y, w), x < y or any order for rectangular blocks, each edge once
            for (const BlockView& b : g.blocks)
                with_scalar(b.type, b.data, [&](auto* data) {
                    for (int64_t i = 0; i < b.rows; ++i)
                        for (int64_t j = b.symmetric ? i + 1 : 0; j < b.cols; ++j)
                            if (data[i * b.stride + j] != 0 && b.row0 + i != b.col0 + j)
                                f(b.row0 + i, b.col0 + j, data[i * b.stride + j]);
                });
            if (g.has_csr)
                with_scalar(g.csr.type, g.csr.data, [&](auto* data) {
                    for (int64_t x = 0; x < g.n; ++x)
                        for (int64_t p = g.csr.indptr[x]; p < g.csr.indptr[x + 1]; ++p)
                            if (g.csr.index(p) > x && data[p] != 0) f(x, g.csr.index(p), data[p]);
                });
        };
        edges([&](int64_t x, int64_t y, auto) { ++first_[x + 1], ++first_[y + 1]; });
        for (int64_t x = 0; x < g.n; ++x) first_[x + 1] += first_[x];
        const int64_t m = first_[g.n];
        arcs_.resize(m);
        r.assign(m, 0);
        if (integral_)
            iw_.resize(m);
        else
            w_.resize(m);
        std::vector<int64_t> at(first_.begin(), first_.end() - 1);
        edges([&](int64_t x, int64_t y, auto w) {
            const int64_t a = at[x]++, b = at[y]++;
            arcs_[a] = {b, int32_t(y)};
            arcs_[b] = {a, int32_t(x)};
            if (integral_)
                iw_[a] = iw_[b] = int64_t(w);
            else
                w_[a] = w_[b] = double(w);
        });
    }

    int64_t size() const { return int64_t(r.size()); }

    void fill(const Rounding& rounding) {
        const PowerOfTwo scale(rounding.exponent);
        for (size_t a = 0; a < r.size(); ++a) r[a] = integral_ ? iw_[a] : rounded(w_[a], scale, rounding.clip);
    }

    template <class Want>
    bool next(int64_t x, int64_t& cursor, int64_t& work, Want&& want, Arc& out) const {
        const int64_t begin = first_[x] + cursor, end = first_[x + 1];
        for (int64_t a = begin; a < end; ++a)
            if (r[a] > 0 && want(arcs_[a].target)) {
                work += a - begin + 1;
                cursor = a - first_[x];
                out = {a, arcs_[a].reverse, arcs_[a].target};
                return true;
            }
        work += end - begin;
        cursor = end - first_[x];
        return false;
    }

    template <class F>
    void for_each_into(int64_t y, int64_t& work, F&& f) const {
        work += first_[y + 1] - first_[y];
        for (int64_t a = first_[y]; a < first_[y + 1]; ++a)
            if (r[arcs_[a].reverse] > 0) f(arcs_[a].target);
    }

    int64_t strength(int64_t x) const {
        int64_t sum = 0;
        for (int64_t a = first_[x]; a < first_[x + 1]; ++a) sum += r[a];
        return sum;
    }

    std::vector<int64_t> r;

private:
    struct Entry {
        int64_t reverse;
        int32_t target;
    };
    bool integral_;
    std::vector<int64_t> first_;
    std::vector<Entry> arcs_;
    std::vector<double> w_;
    std::vector<int64_t> iw_;
};

// The arcs that a flow changed, so that the network can be put back to rest at the price of the flow, not of the
// network.
template <class Arcs>
class Journal {
public:
    explicit Journal(Arcs& arcs) : arcs_(arcs) {}
    void push(const Arc& a, int64_t amount) {
        arcs_.r[a.arc] -= amount;
        arcs_.r[a.reverse] += amount;
        changed_.push_back({a.arc, a.reverse});
    }
    void undo() {
        for (auto& [a, b] : changed_) {
            const int64_t c = (arcs_.r[a] + arcs_.r[b]) / 2;
            arcs_.r[a] = arcs_.r[b] = c;
        }
        changed_.clear();
    }

private:
    Arcs& arcs_;
    std::vector<std::pair<int64_t, int64_t>> changed_;
};

}  // namespace modcut
