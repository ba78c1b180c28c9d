// share_pass and share_shrink: the fused modularity kernels on lists of weight matrices.
#include "bind/share.hpp"

#include <string>
#include <vector>

#include "bind/arrays.hpp"
#include "core/share.hpp"

namespace py = pybind11;

namespace modcut::bind {
namespace {

struct Inputs {
    std::vector<Array> weights, grads;  // grads: empty, or one per weight with null data where there is none
    std::vector<int64_t> taps;
    Array scales, row_labels, col_labels, row_weights;
    int64_t rows = 0, cols = 0;
    int k = 0, threads = 1;
};

void check_layout(const Array& a, const std::string& name) {
    const bool row_major = a.shape[1] <= 1 || a.strides[1] == 1, col_major = a.shape[0] <= 1 || a.strides[0] == 1;
    const int64_t outer = row_major ? a.strides[0] : a.strides[1], inner = row_major ? a.shape[1] : a.shape[0];
    if ((!row_major && !col_major) || (a.size() > 0 && outer < inner))
        throw py::value_error(name + " must have contiguous rows or contiguous columns");
}

Inputs read(const py::list& weights, const py::list& grads, const py::list& taps, const py::object& scales,
            const py::object& row_labels, const py::object& col_labels, const py::object& row_weights, int64_t k,
            int64_t threads) {
    Inputs in;
    if (k < 1 || k > 255) throw py::value_error("k must be between 1 and 255, got " + std::to_string(k));
    if (threads < 1 || threads > 1024)
        throw py::value_error("threads must be between 1 and 1024, got " + std::to_string(threads));
    in.k = int(k), in.threads = int(threads);
    if (py::len(taps) != weights.size()) throw py::value_error("taps must have one entry per weight");
    if (!grads.empty() && grads.size() != weights.size())
        throw py::value_error("grads must be empty or have one entry per weight");
    for (size_t i = 0; i < weights.size(); ++i) {
        const std::string at = "[" + std::to_string(i) + "]";
        Array w = view(weights[i], "weights" + at, 2, {Kind::f32, Kind::f64, Kind::bf16});
        check_layout(w, "weights" + at);
        if (i && w.kind != in.weights[0].kind) throw py::type_error("weights must all have one dtype");
        const int64_t t = taps[i].cast<int64_t>();
        if (t < 1 || w.shape[1] % t != 0)
            throw py::value_error("taps" + at + " must divide the columns (" + std::to_string(w.shape[1]) + "), got " +
                                  std::to_string(t));
        Array g;
        if (!grads.empty() && !py::object(grads[i]).is_none()) {
            g = view(grads[i], "grads" + at, 2, {w.kind});
            if (g.shape != w.shape || (w.size() > 0 && g.strides != w.strides))
                throw py::value_error("grads" + at + " must have the shape and strides of its weight");
        }
        in.rows += w.shape[0], in.cols += w.shape[1] / t;
        in.weights.push_back(std::move(w)), in.grads.push_back(std::move(g)), in.taps.push_back(t);
    }
    const Kind sum = !in.weights.empty() && in.weights[0].kind == Kind::f64 ? Kind::f64 : Kind::f32;
    in.scales = vector_of(scales, "scales", in.cols, {sum});
    in.row_labels = vector_of(row_labels, "row_labels", in.rows, {Kind::u8});
    in.col_labels = vector_of(col_labels, "col_labels", in.cols, {Kind::u8});
    in.row_weights = vector_of(row_weights, "row_weights", in.rows, {sum});
    for (const Array* a : {&in.row_labels, &in.col_labels}) {
        const auto* p = static_cast<const uint8_t*>(a->data);
        for (int64_t i = 0; i < a->shape[0]; ++i)
            if (p[i] >= k && p[i] != leak::kNoLabel)
                throw py::value_error("labels must be below k (" + std::to_string(k) + ") or 255, got " +
                                      std::to_string(p[i]));
    }
    return in;
}

template <class T, class A>
double execute(const Inputs& in, const Array* leaks, const Array* strengths, bool shrink, bool add_to) {
    std::vector<leak::Matrix<T, A>> matrices;
    int64_t row = 0, col = 0;
    for (size_t i = 0; i < in.weights.size(); ++i) {
        const Array& w = in.weights[i];
        leak::Matrix<T, A> m;
        m.w = static_cast<T*>(w.data);
        m.grad = static_cast<T*>(in.grads[i].data);
        m.rows = w.shape[0], m.cols = w.shape[1];
        m.transposed = !(w.shape[1] <= 1 || w.strides[1] == 1);
        m.stride = m.transposed ? w.strides[1] : w.strides[0];
        m.taps = in.taps[i];
        m.scale = static_cast<const A*>(in.scales.data) + col;
        m.row_label = static_cast<const uint8_t*>(in.row_labels.data) + row;
        m.col_label = static_cast<const uint8_t*>(in.col_labels.data) + col;
        m.row_weight = static_cast<const A*>(in.row_weights.data) + row;
        if (leaks) m.leak = static_cast<A*>(leaks->data) + row;
        if (strengths) m.strength = static_cast<A*>(strengths->data) + row;
        row += m.rows, col += m.cols / m.taps;
        if (m.rows && m.cols)
            matrices.push_back(m);
        else
            for (int64_t r = 0; r < m.rows; ++r) {  // no columns: not live
                if (m.leak) m.leak[r] = 0;
                if (m.strength) m.strength[r] = 0;
            }
    }
    leak::run(matrices, in.k, shrink, add_to, in.threads);
    double value = 0;
    if (leaks) {
        const A* l = static_cast<const A*>(leaks->data);
        const A* a = static_cast<const A*>(in.row_weights.data);
        for (int64_t i = 0; i < in.rows; ++i) value += double(l[i]) * double(a[i]);
    }
    return value;
}

double run(const Inputs& in, const Array* leaks, const Array* strengths, bool shrink, bool add_to) {
    if (in.weights.empty()) return 0;
    switch (in.weights[0].kind) {
        case Kind::f64:
            return execute<double, double>(in, leaks, strengths, shrink, add_to);
        case Kind::bf16:
            return execute<leak::bf16, float>(in, leaks, strengths, shrink, add_to);
        default:
            return execute<float, float>(in, leaks, strengths, shrink, add_to);
    }
}

double share_pass(const py::list& weights, const py::list& grads, const py::list& taps, const py::object& scales,
                  const py::object& row_labels, const py::object& col_labels, const py::object& row_weights,
                  const py::object& leak_out, const py::object& strength_out, int64_t k, bool accumulate,
                  int64_t threads) {
    const Inputs in = read(weights, grads, taps, scales, row_labels, col_labels, row_weights, k, threads);
    const Kind sum = in.scales.kind;
    const Array leaks = vector_of(leak_out, "leak_out", in.rows, {sum});
    const Array strengths = vector_of(strength_out, "strength_out", in.rows, {sum});
    py::gil_scoped_release release;
    return run(in, &leaks, &strengths, false, accumulate);
}

void share_shrink(const py::list& weights, const py::list& taps, const py::object& scales, const py::object& row_labels,
                  const py::object& col_labels, const py::object& row_steps, int64_t k, int64_t threads) {
    const Inputs in = read(weights, py::list(), taps, scales, row_labels, col_labels, row_steps, k, threads);
    py::gil_scoped_release release;
    run(in, nullptr, nullptr, true, false);
}

}  // namespace

void register_share(py::module_& m) {
    using namespace py::literals;
    m.def("share_pass", &share_pass, "weights"_a, "grads"_a, "taps"_a, "scales"_a, "row_labels"_a, "col_labels"_a,
          "row_weights"_a, "leak_out"_a, "strength_out"_a, "k"_a, "accumulate"_a, "threads"_a);
    m.def("share_shrink", &share_shrink, "weights"_a, "taps"_a, "scales"_a, "row_labels"_a, "col_labels"_a,
          "row_steps"_a, "k"_a, "threads"_a);
}

}  // namespace modcut::bind
