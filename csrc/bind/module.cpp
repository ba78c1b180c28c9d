// modcut._native: the functions of python/modcut/_native.pyi. Checks here; algorithms in core, run by cpu and cuda.
#include <pybind11/pybind11.h>

#include <chrono>
#include <cstring>
#include <memory>
#include <string>

#include "bind/arrays.hpp"
#include "bind/batch.hpp"
#include "bind/poll.hpp"
#include "bind/share.hpp"
#include "cpu/cut.hpp"
#include "cuda/device.hpp"

namespace py = pybind11;
using namespace py::literals;

namespace modcut::bind {
namespace {

std::string text_of(const py::handle& value, const std::string& name) {
    Py_ssize_t size = 0;
    const char* text = PyUnicode_Check(value.ptr()) ? PyUnicode_AsUTF8AndSize(value.ptr(), &size) : nullptr;
    if (text) return {text, size_t(size)};
    PyErr_Clear();  // a lone surrogate has no UTF-8
    throw py::type_error(name + " must be a string");
}

cpu::Settings settings_of(const py::dict& d, const GraphView& g) {
    cpu::Settings s;
    for (auto item : d) {
        const std::string key = text_of(item.first, "every key of settings");
        const py::handle value = item.second;
        auto text = [&] { return text_of(value, "settings['" + key + "']"); };
        auto whole = [&] {
            if (!PyLong_Check(value.ptr())) throw py::type_error("settings['" + key + "'] must be an integer");
            int overflow = 0;
            const long long v = PyLong_AsLongLongAndOverflow(value.ptr(), &overflow);
            if (overflow) throw py::value_error("settings['" + key + "'] is out of range");
            return v;
        };
        if (key == "certificates") {
            s.certificates = py::bool_(py::reinterpret_borrow<py::object>(value));
        } else if (key == "flows") {
            s.flows = py::bool_(py::reinterpret_borrow<py::object>(value));
        } else if (key == "threads") {
            const long long t = whole();
            if (t < 1 || t > 1024)
                throw py::value_error("settings['threads'] must be between 1 and 1024, got " + std::to_string(t));
            s.threads = int(t);
        } else if (key == "seed") {
            whole();
        } else if (key == "eps") {
            if (!PyFloat_Check(value.ptr()) && !PyLong_Check(value.ptr()))
                throw py::type_error("settings['eps'] must be a number");
            s.eps = value.cast<double>();
            if (!(s.eps >= 0 && s.eps <= 1))
                throw py::value_error("settings['eps'] must be in [0, 1], got " + std::to_string(s.eps));
        } else if (key == "repairs") {
            const long long r = whole();
            if (r < 0) throw py::value_error("settings['repairs'] must not be negative, got " + std::to_string(r));
            s.repairs = r;
        } else if (key == "reductions") {
            s.reductions = py::bool_(py::reinterpret_borrow<py::object>(value));
        } else if (key == "representation") {
            const std::string v = text();
            if (v != "auto" && v != "block" && v != "csr")
                throw py::value_error("settings['representation'] must be 'auto', 'block' or 'csr', got '" + v + "'");
            s.representation = v == "block" ? 1 : v == "csr" ? 2 : 0;
            if (s.representation == 1 && g.has_csr)
                throw py::value_error("settings['representation'] cannot be 'block' for csr input");
        } else if (key == "flow") {
            const std::string v = text();
            if (v != "auto" && v != "augment" && v != "push_relabel")
                throw py::value_error("settings['flow'] must be 'auto', 'augment' or 'push_relabel', got '" + v + "'");
            s.kind = v == "augment"        ? FlowKind::augment
                     : v == "push_relabel" ? FlowKind::push_relabel
                                           : FlowKind::automatic;
        } else {
            throw py::value_error(
                "unknown setting '" + key +
                "': known are certificates, flows, threads, seed, eps, repairs, reductions, representation, flow");
        }
    }
    return s;
}

double since(std::chrono::steady_clock::time_point start) {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

py::dict max_flow(int64_t n, const py::list& blocks, const py::object& csr, int64_t s, int64_t t,
                  const py::object& side_out, const py::dict& settings) {
    const GraphView g = graph(n, blocks, csr);
    const cpu::Settings set = settings_of(settings, g);
    auto vertex = [n](const char* name, int64_t v) {
        if (v < 0 || v >= n)
            throw py::value_error(std::string(name) + " must be a vertex between 0 and " + std::to_string(n - 1) +
                                  ", got " + std::to_string(v));
    };
    vertex("s", s), vertex("t", t);
    if (s == t) throw py::value_error("s and t must be different vertices, got " + std::to_string(s) + " twice");
    const Array side = vector_of(side_out, "side_out", n, {Kind::u8});
    const auto start = std::chrono::steady_clock::now();
    FlowReport r;
    {
        py::gil_scoped_release release;
        SignalPoll poll;
        r = cpu::max_flow(g, s, t, static_cast<uint8_t*>(side.data), set, poll);
    }
    py::object value = g.integral ? py::object(py::int_(r.value.integer)) : py::object(py::float_(r.value.value));
    py::object lower = g.integral ? py::object(py::int_(r.lower_int)) : py::object(py::float_(r.lower));
    return py::dict("value"_a = value, "lower"_a = lower, "exact"_a = r.exact, "pulses"_a = r.phases, "work"_a = r.work,
                    "representation"_a = r.representation, "flow"_a = r.push_relabel ? "push_relabel" : "augment",
                    "seconds"_a = since(start));
}

py::dict gomory_hu(int64_t n, const py::list& blocks, const py::object& csr, const py::object& parent_out,
                   const py::object& weight_out, const py::object& lower_out, const py::object& certified_out,
                   const py::dict& settings) {
    const GraphView g = graph(n, blocks, csr);
    const cpu::Settings set = settings_of(settings, g);
    const TreeOut out{static_cast<int64_t*>(vector_of(parent_out, "parent_out", n, {Kind::i64}).data),
                      static_cast<double*>(vector_of(weight_out, "weight_out", n, {Kind::f64}).data),
                      static_cast<double*>(vector_of(lower_out, "lower_out", n, {Kind::f64}).data),
                      static_cast<uint8_t*>(vector_of(certified_out, "certified_out", n, {Kind::u8}).data)};
    const auto start = std::chrono::steady_clock::now();
    TreeReport r;
    {
        py::gil_scoped_release release;
        SignalPoll poll;
        r = cpu::gomory_hu(g, out, set, poll);
    }
    return py::dict("flows"_a = r.flows, "certified"_a = r.certified, "passes"_a = r.passes, "seconds"_a = since(start),
                    "seconds_certificates"_a = r.seconds_certificates, "root"_a = r.root, "exact"_a = r.exact,
                    "gap"_a = r.gap, "nontrivial"_a = r.nontrivial, "nu"_a = r.nu.nu,
                    "nu_proof"_a = name_of(r.nu.proof), "components"_a = r.components,
                    "representation"_a = r.representation, "fallbacks"_a = r.fallbacks, "repairs"_a = r.repairs,
                    "reduced"_a = r.reduced);
}

double settle_tree(int64_t n, const py::list& blocks, const py::object& csr, const py::object& parent,
                   const py::object& weight, const py::object& lower, const py::object& certified,
                   const py::dict& settings) {
    const GraphView g = graph(n, blocks, csr);
    const cpu::Settings set = settings_of(settings, g);
    const TreeOut tree{static_cast<int64_t*>(vector_of(parent, "parent", n, {Kind::i64}).data),
                       static_cast<double*>(vector_of(weight, "weight", n, {Kind::f64}).data),
                       static_cast<double*>(vector_of(lower, "lower", n, {Kind::f64}).data),
                       static_cast<uint8_t*>(vector_of(certified, "certified", n, {Kind::u8}).data)};
    py::gil_scoped_release release;
    SignalPoll poll;
    return cpu::settle_tree(g, tree, set, poll);
}

py::dict recertify(int64_t n, const py::list& blocks, const py::object& guess, const py::object& anchor, bool magnitude,
                   const py::object& parent_out, const py::object& weight_out, const py::object& lower_out,
                   const py::object& certified_out, const py::dict& settings) {
    GraphView g = graph(n, blocks, py::none());
    if (magnitude && g.integral) throw py::type_error("magnitude must be False for int64 capacities");
    g.magnitude = magnitude;
    const cpu::Settings set = settings_of(settings, g);
    const Array d = vector_of(guess, "guess", n, {Kind::f64});
    const TreeOut out{static_cast<int64_t*>(vector_of(parent_out, "parent_out", n, {Kind::i64}).data),
                      static_cast<double*>(vector_of(weight_out, "weight_out", n, {Kind::f64}).data),
                      static_cast<double*>(vector_of(lower_out, "lower_out", n, {Kind::f64}).data),
                      static_cast<uint8_t*>(vector_of(certified_out, "certified_out", n, {Kind::u8}).data)};
    Anchor before;
    if (!anchor.is_none()) {
        if (!py::isinstance<py::tuple>(anchor) || py::len(anchor) != 3)
            throw py::type_error("anchor must be None or a tuple (blocks, strengths, nu)");
        const py::tuple parts = anchor.cast<py::tuple>();
        if (!py::isinstance<py::list>(parts[0]) || !PyFloat_Check(py::object(parts[2]).ptr()))
            throw py::type_error("anchor must be a tuple (list of blocks, strengths, float nu)");
        before.blocks = graph(n, parts[0].cast<py::list>(), py::none()).blocks;
        before.d = static_cast<const double*>(vector_of(parts[1], "anchor strengths", n, {Kind::f64}).data);
        before.nu = parts[2].cast<double>();
        bool alike = before.blocks.size() == g.blocks.size() && before.nu >= 0 && before.nu <= 2;
        for (size_t k = 0; alike && k < g.blocks.size(); ++k) {
            const BlockView &a = g.blocks[k], &b = before.blocks[k];
            alike = a.type == b.type && a.rows == b.rows && a.cols == b.cols && a.row0 == b.row0 && a.col0 == b.col0 &&
                    a.symmetric == b.symmetric;
        }
        if (!alike) throw py::value_error("anchor must have the blocks of the graph, and nu in [0, 2]");
    }
    const auto start = std::chrono::steady_clock::now();
    Recheck r;
    {
        py::gil_scoped_release release;
        SignalPoll poll;
        r = cpu::recertify(g, static_cast<const double*>(d.data), anchor.is_none() ? nullptr : &before, out, set, poll);
    }
    py::dict by;
    for (int code = 0; code < 16; ++code)
        if (r.by[code]) by[py::int_(code)] = r.by[code];
    return py::dict("made"_a = r.made, "star"_a = r.star, "by"_a = by, "flows"_a = r.tree.flows,
                    "certified"_a = r.tree.certified, "root"_a = r.tree.root, "exact"_a = r.tree.exact,
                    "gap"_a = r.tree.gap, "nontrivial"_a = r.tree.nontrivial, "components"_a = r.tree.components,
                    "nu"_a = r.tree.nu.nu, "nu_proof"_a = name_of(r.tree.nu.proof), "passes"_a = r.tree.passes,
                    "seconds"_a = since(start));
}

py::dict global_cut(int64_t n, const py::list& blocks, const py::object& csr, const py::object& side_out,
                    const py::dict& settings) {
    const GraphView g = graph(n, blocks, csr);
    const cpu::Settings set = settings_of(settings, g);
    if (n < 2) throw py::value_error("n must be at least 2, got " + std::to_string(n));
    const Array side = vector_of(side_out, "side_out", n, {Kind::u8});
    const auto start = std::chrono::steady_clock::now();
    GlobalReport r;
    {
        py::gil_scoped_release release;
        SignalPoll poll;
        r = cpu::global_cut(g, static_cast<uint8_t*>(side.data), set, poll);
    }
    py::object value = g.integral ? py::object(py::int_(r.value.integer)) : py::object(py::float_(r.value.value));
    py::object lower = g.integral ? py::object(py::int_(r.lower_int)) : py::object(py::float_(r.lower));
    return py::dict("value"_a = value, "lower"_a = lower, "exact"_a = r.exact, "rounds"_a = r.rounds, "work"_a = r.work,
                    "seconds"_a = since(start));
}

void cut_values(int64_t n, const py::list& blocks, const py::object& csr, const py::object& labels,
                const py::object& out, const py::dict& settings) {
    const GraphView g = graph(n, blocks, csr);
    settings_of(settings, g);
    const Array l = vector_of(labels, "labels", n, {Kind::i64});
    const Array o = vector_of(out, "out", -1, {Kind::f64});
    if (o.shape[0] >= int64_t(1) << 31)  // no such array exists; sums of that many labels would not fit in memory
        throw py::value_error("out must have fewer than 2^31 entries, got " + std::to_string(o.shape[0]));
    py::gil_scoped_release release;
    SignalPoll poll;
    cpu::cut_values(g, static_cast<const int64_t*>(l.data), o.shape[0], static_cast<double*>(o.data), poll);
}

void degree_cpu(int64_t n, const py::list& blocks, const py::object& csr, const py::object& out,
                const py::dict& settings) {
    const GraphView g = graph(n, blocks, csr);
    const cpu::Settings set = settings_of(settings, g);
    const Array o = vector_of(out, "out", n, {Kind::f64});
    py::gil_scoped_release release;
    cpu::degree(g, static_cast<double*>(o.data), set);
}

void degree_cuda(const py::object& block, const py::object& row_out, const py::object& col_out, int64_t stream) {
#if !defined(MODCUT_CUDA_TOOLKIT)
    cuda::degree({});  // says what is missing, before any check of arrays that cannot be on a device
#endif
    const Array w = view(block, "block", 2, {Kind::f32, Kind::f64}, true);
    if (w.shape[1] > 1 && w.strides[1] != 1) throw py::value_error("block must have contiguous rows");
    const Array r = vector_of(row_out, "row_out", w.shape[0], {Kind::f64}, true);
    const Array c = vector_of(col_out, "col_out", w.shape[1], {Kind::f64}, true);
    if (r.device.device_id != w.device.device_id || c.device.device_id != w.device.device_id)
        throw py::value_error("block, row_out and col_out must be on one device");
    py::gil_scoped_release release;
    cuda::degree({w.data, w.kind == Kind::f32, w.shape[0], w.shape[1], w.strides[0], static_cast<double*>(r.data),
                  static_cast<double*>(c.data), w.device.device_id, uintptr_t(stream)});
}

py::dict devices() {
    const cuda::Devices d = cuda::devices();
    py::list list;
    for (const auto& x : d.devices)
        list.append(py::dict("name"_a = x.name, "capability"_a = x.capability, "memory_bytes"_a = x.memory_bytes));
    return py::dict("status"_a = d.status, "message"_a = d.message, "devices"_a = list);
}

py::dict info() {
#if defined(MODCUT_CUDA_TOOLKIT)
    const py::object toolkit = py::str(MODCUT_CUDA_TOOLKIT);
    const std::string archs = MODCUT_CUDA_ARCHS;
#else
    const py::object toolkit = py::none();
    const std::string archs;
#endif
    return py::dict("version"_a = MODCUT_VERSION, "compiler"_a = __VERSION__, "build_type"_a = MODCUT_BUILD_TYPE,
                    "cuda_compiled"_a = !toolkit.is_none(), "cuda_toolkit"_a = toolkit, "cuda_archs"_a = archs);
}

}  // namespace
}  // namespace modcut::bind

PYBIND11_MODULE(_native, m) {
    namespace b = modcut::bind;
    m.doc() = "The compiled part of modcut; see _native.pyi for the contract.";
    py::register_exception_translator([](std::exception_ptr p) {
        try {
            if (p) std::rethrow_exception(p);
        } catch (const modcut::InputError& e) {
            PyErr_SetString(PyExc_ValueError, e.what());
        } catch (const modcut::cuda::Error& e) {
            PyErr_SetString(PyExc_RuntimeError, e.what());
        }
    });
    b::register_share(m);
    b::register_batch(m);
    m.def("info", &b::info);
    m.def("devices", &b::devices);
    m.def("max_flow", &b::max_flow, "n"_a, "blocks"_a, "csr"_a, "s"_a, "t"_a, "side_out"_a, "settings"_a);
    m.def("gomory_hu", &b::gomory_hu, "n"_a, "blocks"_a, "csr"_a, "parent_out"_a, "weight_out"_a, "lower_out"_a,
          "certified_out"_a, "settings"_a);
    m.def("recertify", &b::recertify, "n"_a, "blocks"_a, "guess"_a, "anchor"_a, "magnitude"_a, "parent_out"_a,
          "weight_out"_a, "lower_out"_a, "certified_out"_a, "settings"_a);
    m.def("global_cut", &b::global_cut, "n"_a, "blocks"_a, "csr"_a, "side_out"_a, "settings"_a);
    m.def("settle_tree", &b::settle_tree, "n"_a, "blocks"_a, "csr"_a, "parent"_a, "weight"_a, "lower"_a, "certified"_a,
          "settings"_a);
    m.def("cut_values", &b::cut_values, "n"_a, "blocks"_a, "csr"_a, "labels"_a, "out"_a, "settings"_a);
    m.def("degree_cpu", &b::degree_cpu, "n"_a, "blocks"_a, "csr"_a, "out"_a, "settings"_a);
    m.def("degree_cuda", &b::degree_cuda, "block"_a, "row_out"_a, "col_out"_a, "stream"_a);
}
