// Cut trees of batches: checks of arrays here, core/small_tree.hpp run by cpu and cuda.
#include "bind/batch.hpp"

#include <string>

#include "bind/arrays.hpp"
#include "bind/poll.hpp"
#include "cpu/batch.hpp"
#include "cuda/device.hpp"

namespace py = pybind11;
using namespace py::literals;

namespace modcut::bind {
namespace {

constexpr int64_t kMostVertices = 4096;

struct Batch {
    Array w;
    int64_t b, n, apart, pitch;
};

Batch batch_of(const py::object& weights, bool cuda) {
    Array w = view(weights, "weights", 3, {Kind::f32, Kind::f64, Kind::i32, Kind::i64}, cuda);
    const int64_t b = w.shape[0], n = w.shape[1];
    if (w.shape[2] != n)
        throw py::value_error("weights must have shape [b, n, n], got [" + std::to_string(b) + ", " +
                              std::to_string(n) + ", " + std::to_string(w.shape[2]) + "]");
    if (n > kMostVertices)
        throw py::value_error("weights must have at most " + std::to_string(kMostVertices) +
                              " vertices per graph, got " + std::to_string(n));
    if (w.size() > 0 && n > 1 && w.strides[2] != 1)
        throw py::value_error("weights must have contiguous rows, got column stride " + std::to_string(w.strides[2]));
    return {w, b, n, w.strides[0], w.strides[1]};
}

Array table(const py::object& capsule, const std::string& name, int64_t rows, int64_t cols, Kind kind,
            const Array& like, bool cuda) {
    const Array a = view(capsule, name, 2, {kind}, cuda);
    if (a.shape[0] != rows || a.shape[1] != cols)
        throw py::value_error(name + " must have shape [" + std::to_string(rows) + ", " + std::to_string(cols) +
                              "], got [" + std::to_string(a.shape[0]) + ", " + std::to_string(a.shape[1]) + "]");
    if (a.size() > 0 && ((cols > 1 && a.strides[1] != 1) || (rows > 1 && a.strides[0] != cols)))
        throw py::value_error(name + " must be contiguous");
    if (cuda && a.device.device_id != like.device.device_id)
        throw py::value_error(name + " must be on device " + std::to_string(like.device.device_id) +
                              ", where weights are, got device " + std::to_string(a.device.device_id));
    return a;
}

cpu::BatchOut outputs(const Batch& g, const py::object& parent, const py::object& weight, const py::object& lower,
                      const py::object& status, bool cuda) {
    return {static_cast<int64_t*>(table(parent, "parent_out", g.b, g.n, Kind::i64, g.w, cuda).data),
            static_cast<double*>(table(weight, "weight_out", g.b, g.n, Kind::f64, g.w, cuda).data),
            static_cast<double*>(table(lower, "lower_out", g.b, g.n, Kind::f64, g.w, cuda).data),
            static_cast<int64_t*>(table(status, "status_out", g.b, small::kStatus, Kind::i64, g.w, cuda).data)};
}

cuda::BatchType type_of(Kind k) {
    return k == Kind::f32   ? cuda::BatchType::f32
           : k == Kind::f64 ? cuda::BatchType::f64
           : k == Kind::i32 ? cuda::BatchType::i32
                            : cuda::BatchType::i64;
}

void gomory_hu_batch_cpu(const py::object& weights, const py::object& parent, const py::object& weight,
                         const py::object& lower, const py::object& status, int64_t threads) {
    const Batch g = batch_of(weights, false);
    const cpu::BatchOut out = outputs(g, parent, weight, lower, status, false);
    if (threads < 1 || threads > 1024)
        throw py::value_error("threads must be between 1 and 1024, got " + std::to_string(threads));
    py::gil_scoped_release release;
    SignalPoll poll;
    const auto run = [&](auto* w) { cpu::gomory_hu_batch(w, g.b, g.n, g.apart, g.pitch, out, int(threads), poll); };
    switch (g.w.kind) {
        case Kind::f32:
            return run(static_cast<const float*>(g.w.data));
        case Kind::f64:
            return run(static_cast<const double*>(g.w.data));
        case Kind::i32:
            return run(static_cast<const int32_t*>(g.w.data));
        default:
            return run(static_cast<const int64_t*>(g.w.data));
    }
}

py::dict gomory_hu_batch_plan(const py::object& weights) {
#if !defined(MODCUT_CUDA_TOOLKIT)
    cuda::gomory_hu_batch_plan({}, 0, 0, 0);  // says what is missing
#endif
    const Batch g = batch_of(weights, true);
    const cuda::BatchPlan p = cuda::gomory_hu_batch_plan(type_of(g.w.kind), g.b, g.n, g.w.device.device_id);
    return py::dict("blocks"_a = p.blocks, "shared_bytes"_a = p.shared_bytes, "workspace"_a = p.workspace,
                    "shared"_a = p.shared);
}

void gomory_hu_batch_cuda(const py::object& weights, const py::object& parent, const py::object& weight,
                          const py::object& lower, const py::object& status, const py::object& workspace,
                          int64_t stream) {
#if !defined(MODCUT_CUDA_TOOLKIT)
    cuda::gomory_hu_batch({});  // says what is missing
#endif
    const Batch g = batch_of(weights, true);
    const cpu::BatchOut out = outputs(g, parent, weight, lower, status, true);
    const Array lent = vector_of(workspace, "workspace", -1, {Kind::u8}, true);
    if (lent.device.device_id != g.w.device.device_id)
        throw py::value_error("workspace must be on the device of weights");
    if (reinterpret_cast<uintptr_t>(lent.data) % 8 != 0) throw py::value_error("workspace must be aligned to 8 bytes");
    py::gil_scoped_release release;
    cuda::gomory_hu_batch({g.w.data, type_of(g.w.kind), g.b, g.n, g.apart, g.pitch, out.parent, out.weight, out.lower,
                           out.status, lent.data, lent.shape[0], g.w.device.device_id, uintptr_t(stream)});
}

}  // namespace

void register_batch(py::module_& m) {
    m.def("gomory_hu_batch_cpu", &gomory_hu_batch_cpu, "weights"_a, "parent_out"_a, "weight_out"_a, "lower_out"_a,
          "status_out"_a, "threads"_a);
    m.def("gomory_hu_batch_plan", &gomory_hu_batch_plan, "weights"_a);
    m.def("gomory_hu_batch_cuda", &gomory_hu_batch_cuda, "weights"_a, "parent_out"_a, "weight_out"_a, "lower_out"_a,
          "status_out"_a, "workspace"_a, "stream"_a);
}

}  // namespace modcut::bind
