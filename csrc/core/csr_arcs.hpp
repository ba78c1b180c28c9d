// The residual network of compressed rows: 8 bytes an arc beside its residual, targets read in order.
#pragma once
#include <algorithm>
#include <limits>
#include <string>
#include <type_traits>
#include <vector>

#include "core/residual.hpp"

namespace modcut {

// Entries of the given rows (zeros and loops keep their place, without capacity), or the nonzero entries of blocks;
// parallel edges of overlapping blocks stay parallel.
class CsrArcs {
public:
    static constexpr const char* kName = "csr";
    static constexpr bool kBits = false;
    static constexpr double kPatience = 2;

    struct Arc {
        int64_t arc;
        int32_t target;
    };

    explicit CsrArcs(const GraphView& g) : g_(g), first_(g.n + 1) {
        if (g.blocks.empty() && g.has_csr)
            from_rows();
        else
            from_edges();
        r_.assign(arcs_.size(), 0);
        for (int64_t x = 0; x < g.n && sorted_; ++x)
            for (int64_t a = first_[x] + 1; a < first_[x + 1]; ++a) sorted_ &= arcs_[a - 1].target <= arcs_[a].target;
    }

    int64_t size() const { return int64_t(r_.size()); }

    void fill(const Rounding& rounding) {
        const PowerOfTwo scale(rounding.exponent);
        made_entries += size();
        if (!iw_.empty()) {
            r_ = iw_;
        } else if (!w_.empty()) {
            for (size_t a = 0; a < r_.size(); ++a) r_[a] = rounded(w_[a], scale, rounding.clip);
        } else if (g_.has_csr) {
            with_scalar(g_.csr.type, g_.csr.data, [&](auto* data) {
                for (size_t a = 0; a < r_.size(); ++a) r_[a] = rounded(data[a], scale, rounding.clip);
            });
            for (int64_t a : loops_) r_[a] = 0;
        }
    }

    template <class Want>
    bool next(int64_t x, int64_t& cursor, int64_t& work, const uint64_t*, Want&& want, Arc& out) const {
        const int64_t begin = first_[x] + cursor, end = first_[x + 1];
        for (int64_t a = begin; a < end; ++a)
            if (r_[a] > 0 && want(arcs_[a].target)) {
                work += a - begin + 1;
                cursor = a - first_[x];
                out = {a, arcs_[a].target};
                return true;
            }
        work += end - begin;
        cursor = end - first_[x];
        return false;
    }

    bool find(int64_t x, int64_t y, int64_t& work, Arc& out) const {
        auto a = arcs_.begin() + first_[x];
        const auto end = arcs_.begin() + first_[x + 1];
        if (sorted_) a = std::lower_bound(a, end, y, [](const Entry& e, int64_t v) { return e.target < v; });
        for (work += 4; a != end && (a->target == y || !sorted_); ++a, ++work)
            if (a->target == y && r_[a - arcs_.begin()] > 0) {
                out = {a - arcs_.begin(), int32_t(y)};
                return true;
            }
        return false;
    }

    template <class Want, class F>
    void for_each_into(int64_t y, int64_t& work, const uint64_t*, Want&& want, F&& f) const {
        work += first_[y + 1] - first_[y];
        for (int64_t a = first_[y]; a < first_[y + 1]; ++a)  // residuals of reverse arcs lie far apart: asked for last
            if (want(arcs_[a].target) && r_[arcs_[a].reverse] > 0) f(arcs_[a].target);
    }

    int64_t strength(int64_t x) const {
        int64_t sum = 0;
        for (int64_t a = first_[x]; a < first_[x + 1]; ++a) sum += r_[a];
        return sum;
    }

    int64_t residual(const Arc& a) const { return r_[a.arc]; }

    void push(const Arc& a, int64_t amount) {
        const int32_t back = arcs_[a.arc].reverse;
        r_[a.arc] -= amount;
        r_[back] += amount;
        changed_.push_back({int32_t(a.arc), back});
    }

    void undo() {
        for (auto& [a, b] : changed_) r_[a] = r_[b] = (r_[a] + r_[b]) / 2;
        changed_.clear();
    }

    int64_t made_entries = 0;  // work of filling, in arcs

private:
    struct Entry {
        int32_t reverse, target;
    };

    void resize(int64_t arcs) {
        if (arcs > std::numeric_limits<int32_t>::max())
            throw InputError("sparse graphs must have fewer than 2^31 entries, got " + std::to_string(arcs));
        arcs_.resize(size_t(arcs));
    }

    // Rows are sorted and symmetric, so walking all rows in order meets the mirrors of row y in its own order.
    void from_rows() {
        const CsrView& c = g_.csr;
        std::copy(c.indptr, c.indptr + g_.n + 1, first_.begin());
        resize(c.nnz);
        std::vector<int32_t> at(size_t(g_.n));
        for (int64_t x = 0; x < g_.n; ++x) at[x] = int32_t(first_[x]);
        auto walk = [&](auto* columns) {
            for (int64_t x = 0; x < g_.n; ++x)
                for (int64_t a = first_[x]; a < first_[x + 1]; ++a) {
                    const int64_t y = columns[a];
                    arcs_[a] = {at[y]++, int32_t(y)};
                    if (y == x) loops_.push_back(a);
                }
        };
        c.wide ? walk(static_cast<const int64_t*>(c.indices)) : walk(static_cast<const int32_t*>(c.indices));
    }

    void from_edges() {
        auto edges = [&](auto&& f) {  // f(x, y, w), each edge once
            for (const BlockView& b : g_.blocks)
                with_scalar(b.type, b.data, [&](auto* data) {
                    for (int64_t i = 0; i < b.rows; ++i)
                        for (int64_t j = b.symmetric ? i + 1 : 0; j < b.cols; ++j)
                            if (data[i * b.stride + j] != 0 && b.row0 + i != b.col0 + j)
                                f(b.row0 + i, b.col0 + j, data[i * b.stride + j]);
                });
            if (g_.has_csr)
                with_scalar(g_.csr.type, g_.csr.data, [&](auto* data) {
                    for (int64_t x = 0; x < g_.n; ++x)
                        for (int64_t p = g_.csr.indptr[x]; p < g_.csr.indptr[x + 1]; ++p)
                            if (g_.csr.index(p) > x && data[p] != 0) f(x, g_.csr.index(p), data[p]);
                });
        };
        edges([&](int64_t x, int64_t y, auto) { ++first_[x + 1], ++first_[y + 1]; });
        for (int64_t x = 0; x < g_.n; ++x) first_[x + 1] += first_[x];
        resize(first_[g_.n]);
        if (g_.integral)
            iw_.resize(arcs_.size());
        else
            w_.resize(arcs_.size());
        std::vector<int64_t> at(first_.begin(), first_.end() - 1);
        edges([&](int64_t x, int64_t y, auto w) {
            const int64_t a = at[x]++, b = at[y]++;
            arcs_[a] = {int32_t(b), int32_t(y)};
            arcs_[b] = {int32_t(a), int32_t(x)};
            if (g_.integral)
                iw_[a] = iw_[b] = int64_t(w);
            else
                w_[a] = w_[b] = double(w);
        });
    }

    const GraphView& g_;
    std::vector<int64_t> first_;
    std::vector<Entry> arcs_;
    std::vector<int64_t> r_;
    std::vector<int64_t> loops_;
    std::vector<double> w_;  // of edges out of blocks
    std::vector<int64_t> iw_;
    std::vector<std::pair<int32_t, int32_t>> changed_;
    bool sorted_ = true;
};

}  // namespace modcut
