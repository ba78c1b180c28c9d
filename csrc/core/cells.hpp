// The vertices cut at every border of a block: ranges ("cells") such that between two of them either all pairs lie in a
// few dense pieces, or there is no edge. A network's layers, seen from its blocks alone.
#pragma once
#include <algorithm>
#include <cstdint>
#include <map>
#include <utility>
#include <vector>

#include "core/views.hpp"

namespace modcut {

// Entry (i, j) of a pair of cells is entry (row + i, col + j) of the block, or (row + j, col + i) when transposed.
struct Piece {
    const BlockView* block = nullptr;
    int64_t row = 0, col = 0;
    bool transposed = false;
};

struct CellPair {
    int32_t a = 0, b = 0;  // rows, columns
    std::vector<Piece> pieces;
};

struct Cells {
    std::vector<int64_t> begin;  // [count + 1]
    std::vector<CellPair> pairs;
    int32_t count = 0;
    int64_t size(int32_t c) const { return begin[c + 1] - begin[c]; }
};

// `g` must outlive the result. No cells when there would be more than `limit`, or beside CSR rows.
inline Cells cells_of(const GraphView& g, int32_t limit = 2048) {
    Cells out;
    if (g.has_csr) return out;
    std::vector<int64_t> at{0, g.n};
    for (const BlockView& b : g.blocks) {
        at.insert(at.end(), {b.row0, b.row0 + b.rows, b.col0, b.col0 + b.cols});
    }
    std::sort(at.begin(), at.end());
    at.erase(std::unique(at.begin(), at.end()), at.end());
    if (g.n == 0 || int64_t(at.size()) - 1 > limit) return out;
    out.begin = at;
    out.count = int32_t(at.size()) - 1;
    auto cell_at = [&](int64_t x) { return int32_t(std::lower_bound(at.begin(), at.end(), x) - at.begin()); };
    std::map<std::pair<int32_t, int32_t>, size_t> known;
    for (const BlockView& block : g.blocks) {
        const int32_t a1 = cell_at(block.row0 + block.rows), b1 = cell_at(block.col0 + block.cols);
        for (int32_t a = cell_at(block.row0); a < a1; ++a)
            for (int32_t b = block.symmetric ? a : cell_at(block.col0); b < b1; ++b) {
                const auto key = std::minmax(a, b);
                const auto [found, fresh] = known.try_emplace(std::make_pair(key.first, key.second), out.pairs.size());
                if (fresh) out.pairs.push_back({a, b, {}});  // the first piece is never transposed
                CellPair& pair = out.pairs[found->second];
                const Piece piece{&block, at[a] - block.row0, at[b] - block.col0, pair.a != a};
                pair.pieces.push_back(piece);
                if (a == b && !block.symmetric) {  // [i, j] and [j, i] are two weights of one pair
                    pair.pieces.push_back(piece);
                    pair.pieces.back().transposed = true;
                }
            }
    }
    return out;
}

namespace detail {

inline void add_piece(const Piece& p, int64_t i0, int64_t rows, int64_t cols, double* out, bool first) {
    const BlockView& b = *p.block;
    with_scalar(b.type, b.data, [&](auto* data) {
        if (!p.transposed) {
            for (int64_t i = 0; i < rows; ++i) {
                const auto* row = data + (p.row + i0 + i) * b.stride + p.col;
                double* o = out + i * cols;
                if (first)
                    for (int64_t j = 0; j < cols; ++j) o[j] = double(row[j]);
                else
                    for (int64_t j = 0; j < cols; ++j) o[j] += double(row[j]);
            }
            return;
        }
        constexpr int64_t T = 16;
        for (int64_t j0 = 0; j0 < cols; j0 += T)
            for (int64_t r = 0; r < rows; r += T)
                for (int64_t j = j0; j < std::min(j0 + T, cols); ++j) {
                    const auto* col = data + (p.row + j) * b.stride + p.col + i0;
                    for (int64_t i = r; i < std::min(r + T, rows); ++i) {
                        const double w = double(col[i]);
                        double& o = out[i * cols + j];
                        o = first ? w : o + w;
                    }
                }
    });
}

}  // namespace detail

// f(row, i) for rows [i0, i1) of a pair: `row` points at the pair's b.size weights of vertex begin[a] + i, as float,
// double or int64 where one piece holds them, as double where pieces add up. The diagonal of a cell with itself is what
// the input says: the caller leaves it out.
template <class F>
void for_each_row(const Cells& cells, const CellPair& pair, int64_t i0, int64_t i1, std::vector<double>& scratch,
                  F&& f) {
    const Piece& p = pair.pieces.front();
    if (pair.pieces.size() == 1) {
        with_scalar(p.block->type, p.block->data, [&](auto* data) {
            for (int64_t i = i0; i < i1; ++i) f(data + (p.row + i) * p.block->stride + p.col, i);
        });
        return;
    }
    constexpr int64_t kRows = 32;
    const int64_t cols = cells.size(pair.b);
    scratch.resize(size_t(kRows * cols));
    for (int64_t i = i0; i < i1; i += kRows) {
        const int64_t rows = std::min(kRows, i1 - i);
        for (size_t k = 0; k < pair.pieces.size(); ++k)
            detail::add_piece(pair.pieces[k], i, rows, cols, scratch.data(), k == 0);
        for (int64_t r = 0; r < rows; ++r) f(const_cast<const double*>(scratch.data() + r * cols), i + r);
    }
}

}  // namespace modcut
