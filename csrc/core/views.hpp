// What a caller hands in: blocks and CSR rows as raw pointers. Nothing here owns memory.
#pragma once
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

namespace modcut {

enum class Scalar : uint8_t { f32, f64, i64 };

// Entry (i, j) is the strength of the edge between vertices row0 + i and col0 + j.
struct BlockView {
    const void* data = nullptr;
    Scalar type = Scalar::f64;
    int64_t rows = 0, cols = 0, stride = 0;  // stride of a row, in elements
    int64_t row0 = 0, col0 = 0;
    bool symmetric = false;  // square, row0 == col0, every edge twice
};

struct CsrView {
    const int64_t* indptr = nullptr;  // [n + 1]
    const void* indices = nullptr;    // [m] int32 or int64
    bool wide = false;                // indices are int64
    const void* data = nullptr;       // [m]
    Scalar type = Scalar::f64;
    int64_t nnz = 0;
    int64_t index(int64_t p) const {
        return wide ? static_cast<const int64_t*>(indices)[p] : static_cast<const int32_t*>(indices)[p];
    }
};

struct GraphView {
    int64_t n = 0;
    std::vector<BlockView> blocks;
    bool has_csr = false;
    CsrView csr;
    bool integral = false;   // every capacity is int64
    bool single = false;     // some capacity is float32: the exactness tolerance follows
    bool magnitude = false;  // entries of blocks are signed and stand for |w|: for glance() and for_each_entry() only
};

struct InputError : std::runtime_error {
    using std::runtime_error::runtime_error;
};
struct Interrupted {};

// Called every few thousand steps of a long loop; may throw Interrupted.
struct Poll {
    virtual ~Poll() = default;
    virtual void check() {}
};

template <class F>
decltype(auto) with_scalar(Scalar type, const void* data, F&& f) {
    switch (type) {
        case Scalar::f32:
            return f(static_cast<const float*>(data));
        case Scalar::f64:
            return f(static_cast<const double*>(data));
        default:
            return f(static_cast<const int64_t*>(data));
    }
}

// f(y, w) for every stored entry of row x of the graph (both directions of rectangular blocks, zeros included, loops
// not).
template <class F>
void for_each_entry(const GraphView& g, int64_t x, F&& f) {
    auto entries = [&](auto value) {
        for (const BlockView& b : g.blocks) {
            with_scalar(b.type, b.data, [&](auto* data) {
                if (x >= b.row0 && x < b.row0 + b.rows) {
                    auto* row = data + (x - b.row0) * b.stride;
                    for (int64_t j = 0; j < b.cols; ++j)
                        if (b.col0 + j != x) f(b.col0 + j, value(row[j]));
                }
                if (!b.symmetric && x >= b.col0 && x < b.col0 + b.cols) {
                    auto* col = data + (x - b.col0);
                    for (int64_t i = 0; i < b.rows; ++i)
                        if (b.row0 + i != x) f(b.row0 + i, value(col[i * b.stride]));
                }
            });
        }
    };
    if (g.magnitude)
        entries([](auto w) { return w < 0 ? -w : w; });
    else
        entries([](auto w) { return w; });
    if (g.has_csr) {
        with_scalar(g.csr.type, g.csr.data, [&](auto* data) {
            for (int64_t p = g.csr.indptr[x]; p < g.csr.indptr[x + 1]; ++p) {
                int64_t y = g.csr.index(p);
                if (y != x) f(y, data[p]);
            }
        });
    }
}

}  // namespace modcut
