// Checked views of DLPack capsules. Whatever a caller passes ends in a view that is safe to read or a
// ValueError/TypeError.
#pragma once
#include <pybind11/pybind11.h>

#include <string>
#include <vector>

#include "bind/dlpack.hpp"
#include "core/views.hpp"

namespace modcut::bind {

enum class Kind { f32, f64, bf16, i32, i64, u8 };

struct Array {
    void* data = nullptr;
    Kind kind = Kind::f64;
    std::vector<int64_t> shape, strides;
    DLDevice device{1, 0};
    int64_t size() const {
        int64_t n = 1;
        for (int64_t s : shape) n *= s;
        return n;
    }
};

Array view(const pybind11::handle& capsule, const std::string& name, int ndim, std::initializer_list<Kind> kinds,
           bool cuda = false);
// A contiguous vector of exactly n entries.
Array vector_of(const pybind11::handle& capsule, const std::string& name, int64_t n, std::initializer_list<Kind> kinds,
                bool cuda = false);
GraphView graph(int64_t n, const pybind11::list& blocks, const pybind11::object& csr);

}  // namespace modcut::bind
