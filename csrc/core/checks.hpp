// Checks of the input's structure that need a look at the entries. Values are checked by degrees().
#pragma once
#include <algorithm>
#include <string>
#include <vector>

#include "core/views.hpp"

namespace modcut {

inline void check_structure(const GraphView& g) {
    for (size_t k = 0; k < g.blocks.size(); ++k) {
        const BlockView& b = g.blocks[k];
        if (!b.symmetric) continue;
        with_scalar(b.type, b.data, [&](auto* data) {
            constexpr int64_t T = 32;
            for (int64_t i0 = 0; i0 < b.rows; i0 += T)
                for (int64_t j0 = 0; j0 <= i0; j0 += T) {
                    bool same = true;
                    const int64_t i1 = std::min(i0 + T, b.rows), j1 = std::min(j0 + T, b.rows);
                    for (int64_t i = i0; i < i1; ++i)
                        for (int64_t j = j0; j < j1; ++j) same &= data[i * b.stride + j] == data[j * b.stride + i];
                    if (same) continue;
                    for (int64_t i = i0; i < i1; ++i)
                        for (int64_t j = j0; j < j1; ++j) {
                            const auto x = data[i * b.stride + j], y = data[j * b.stride + i];
                            if (i != j && x == x && y == y && x != y)  // NaN is degrees()' to report
                                throw InputError("blocks[" + std::to_string(k) +
                                                 "] is declared symmetric, but entries [" + std::to_string(i) + ", " +
                                                 std::to_string(j) + "] and its mirror differ");
                        }
                }
        });
    }
    if (!g.has_csr) return;
    const CsrView& c = g.csr;
    auto at = [](int64_t x, int64_t y) { return "csr[" + std::to_string(x) + ", " + std::to_string(y) + "]"; };
    if (c.indptr[0] != 0 || c.indptr[g.n] != c.nnz)
        throw InputError("csr indptr must start at 0 and end at the number of entries");
    for (int64_t x = 0; x < g.n; ++x)
        if (c.indptr[x + 1] < c.indptr[x])
            throw InputError("csr indptr must not decrease, but does at row " + std::to_string(x));
    for (int64_t x = 0; x < g.n; ++x)
        for (int64_t p = c.indptr[x]; p < c.indptr[x + 1]; ++p) {
            if (c.index(p) < 0 || c.index(p) >= g.n)
                throw InputError("csr indices must be between 0 and n-1 (" + std::to_string(g.n - 1) + "), got " +
                                 std::to_string(c.index(p)) + " in row " + std::to_string(x));
            if (p > c.indptr[x] && c.index(p) <= c.index(p - 1))
                throw InputError(
                    "csr columns must increase strictly in each row (sum duplicates and sort first), but row " +
                    std::to_string(x) + " does not");
        }
    // Rows are sorted, so walking all rows in order meets the mirrors of row y in its own order.
    std::vector<int64_t> next(c.indptr, c.indptr + g.n);
    with_scalar(c.type, c.data, [&](auto* data) {
        for (int64_t x = 0; x < g.n; ++x)
            for (int64_t p = c.indptr[x]; p < c.indptr[x + 1]; ++p) {
                const int64_t y = c.index(p);
                const int64_t q = next[y]++;
                if (q >= c.indptr[y + 1] || c.index(q) != x)
                    throw InputError("csr must be symmetric, but the mirror of " + at(x, y) + " is missing");
                if (data[p] == data[p] && data[q] == data[q] && data[p] != data[q])
                    throw InputError("csr must be symmetric, but " + at(x, y) + " and its mirror differ");
            }
    });
}

}  // namespace modcut
