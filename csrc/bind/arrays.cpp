#include "bind/arrays.hpp"

#include <cstdint>
#include <limits>

namespace py = pybind11;

namespace modcut::bind {
namespace {

const char* kind_name(Kind k) {
    switch (k) {
        case Kind::f32:
            return "float32";
        case Kind::f64:
            return "float64";
        case Kind::bf16:
            return "bfloat16";
        case Kind::i32:
            return "int32";
        case Kind::i64:
            return "int64";
        default:
            return "uint8 or bool";
    }
}
int64_t kind_bytes(Kind k) {
    return k == Kind::u8 ? 1 : k == Kind::bf16 ? 2 : k == Kind::f32 || k == Kind::i32 ? 4 : 8;
}

std::string dtype_name(DLDataType t) {
    static const char* const codes[] = {"int", "uint", "float", "opaque", "bfloat", "complex", "bool"};
    const std::string base = t.code < 7 ? codes[t.code] : "dtype code " + std::to_string(t.code) + " of bits ";
    return base + std::to_string(t.bits) + (t.lanes == 1 ? "" : "x" + std::to_string(t.lanes));
}

bool match(DLDataType t, Kind k) {
    if (t.lanes != 1) return false;
    switch (k) {
        case Kind::f32:
            return t.code == 2 && t.bits == 32;
        case Kind::f64:
            return t.code == 2 && t.bits == 64;
        case Kind::bf16:
            return t.code == 4 && t.bits == 16;
        case Kind::i32:
            return t.code == 0 && t.bits == 32;
        case Kind::i64:
            return t.code == 0 && t.bits == 64;
        default:
            return (t.code == 1 || t.code == 6) && t.bits == 8;
    }
}

std::string shape_text(const DLTensor& t) {
    std::string s = "[";
    for (int i = 0; i < t.ndim; ++i) s += (i ? ", " : "") + std::to_string(t.shape[i]);
    return s + "]";
}

}  // namespace

Array view(const py::handle& capsule, const std::string& name, int ndim, std::initializer_list<Kind> kinds, bool cuda) {
    if (!PyCapsule_CheckExact(capsule.ptr()))
        throw py::type_error(name + " must be a DLPack capsule, got " +
                             std::string(py::str(py::type::handle_of(capsule).attr("__name__"))));
    const char* capsule_name = PyCapsule_GetName(capsule.ptr());
    if (PyErr_Occurred()) PyErr_Clear();
    if (!capsule_name || std::string(capsule_name) != "dltensor")
        throw py::value_error(
            name + " must be a DLPack capsule named 'dltensor', got " +
            (capsule_name ? "'" + std::string(capsule_name) + "' (already consumed?)" : "an unnamed capsule"));
    auto* managed = static_cast<DLManagedTensor*>(PyCapsule_GetPointer(capsule.ptr(), "dltensor"));
    if (!managed) {
        PyErr_Clear();
        throw py::value_error(name + " is an empty capsule");
    }
    const DLTensor& t = managed->dl_tensor;
    if (t.ndim != ndim)
        throw py::value_error(name + " must have " + std::to_string(ndim) + " dimensions, got " +
                              std::to_string(t.ndim));
    if (!t.shape) throw py::value_error(name + " has no shape");
    Array a;
    bool known = false;
    std::string allowed;
    for (Kind k : kinds) {
        allowed += (allowed.empty() ? "" : " or ") + std::string(kind_name(k));
        if (match(t.dtype, k)) a.kind = k, known = true;
    }
    if (!known) throw py::type_error(name + " must be " + allowed + ", got " + dtype_name(t.dtype));
    const bool on_cuda = t.device.device_type == 2 || t.device.device_type == 13;
    const bool on_cpu = t.device.device_type == 1 || t.device.device_type == 3;
    if (cuda ? !on_cuda : !on_cpu)
        throw py::value_error(name + " must be on " + (cuda ? "a CUDA device" : "the CPU") +
                              ", got DLPack device type " + std::to_string(t.device.device_type));
    a.device = t.device;
    int64_t elements = 1;
    for (int i = 0; i < ndim; ++i) {
        if (t.shape[i] < 0) throw py::value_error(name + " has a negative size: " + shape_text(t));
        if (t.shape[i] != 0 && elements > (int64_t(1) << 46) / t.shape[i])
            throw py::value_error(name + " is too large: " + shape_text(t));
        elements *= t.shape[i];
        a.shape.push_back(t.shape[i]);
    }
    a.strides.resize(ndim);
    int64_t expected = 1;
    for (int i = ndim; i-- > 0;) {
        a.strides[i] = t.strides ? t.strides[i] : expected;
        if (a.shape[i] > 1 && (a.strides[i] < 0 || a.strides[i] > (int64_t(1) << 46)))
            throw py::value_error(name + " must not have negative or huge strides");
        expected *= a.shape[i];
    }
    if (elements > 0 && !t.data)
        throw py::value_error(name + " has a null pointer and " + std::to_string(elements) +
                              " elements (a fake or meta tensor?)");
    if (t.data) a.data = static_cast<char*>(t.data) + t.byte_offset;
    if (reinterpret_cast<uintptr_t>(a.data) % uintptr_t(kind_bytes(a.kind)) != 0)
        throw py::value_error(name + " is not aligned to its element size");
    return a;
}

Array vector_of(const py::handle& capsule, const std::string& name, int64_t n, std::initializer_list<Kind> kinds,
                bool cuda) {
    Array a = view(capsule, name, 1, kinds, cuda);
    if (n >= 0 && a.shape[0] != n)
        throw py::value_error(name + " must have shape [" + std::to_string(n) + "], got [" +
                              std::to_string(a.shape[0]) + "]");
    if (a.shape[0] > 1 && a.strides[0] != 1)
        throw py::value_error(name + " must be contiguous, got stride " + std::to_string(a.strides[0]));
    return a;
}

namespace {
Scalar scalar_of(Kind k) { return k == Kind::f32 ? Scalar::f32 : k == Kind::f64 ? Scalar::f64 : Scalar::i64; }
}  // namespace

GraphView graph(int64_t n, const py::list& blocks, const py::object& csr) {
    if (n < 0 || n > std::numeric_limits<int32_t>::max())
        throw py::value_error("n must be between 0 and 2147483647, got " + std::to_string(n));
    GraphView g;
    g.n = n;
    int floats = 0, ints = 0;
    auto kind = [&](Kind k) {
        (k == Kind::i64 ? ints : floats) += 1;
        g.single |= k == Kind::f32;
    };
    for (size_t k = 0; k < blocks.size(); ++k) {
        const std::string name = "blocks[" + std::to_string(k) + "]";
        py::object item = blocks[k];
        if (!py::isinstance<py::tuple>(item) || py::len(item) != 4)
            throw py::type_error(name + " must be a tuple (capsule, row_offset, col_offset, symmetric)");
        py::tuple parts = item.cast<py::tuple>();
        Array a = view(parts[0], name, 2, {Kind::f32, Kind::f64, Kind::i64});
        if (a.size() > 0 && a.shape[1] > 1 && a.strides[1] != 1)
            throw py::value_error(name + " must have contiguous rows, got column stride " +
                                  std::to_string(a.strides[1]));
        if (a.size() > 0 && a.shape[0] > 1 && a.strides[0] < a.shape[1])
            throw py::value_error(name + " must not have overlapping rows (row stride " + std::to_string(a.strides[0]) +
                                  ", " + std::to_string(a.shape[1]) + " columns)");
        BlockView b;
        b.data = a.data, b.type = scalar_of(a.kind), b.rows = a.shape[0], b.cols = a.shape[1], b.stride = a.strides[0];
        try {
            b.row0 = parts[1].cast<int64_t>(), b.col0 = parts[2].cast<int64_t>(), b.symmetric = parts[3].cast<bool>();
        } catch (const py::cast_error&) {
            throw py::type_error(name + " must be a tuple (capsule, int row_offset, int col_offset, bool symmetric)");
        }
        if (b.row0 < 0 || b.rows > n - b.row0 || b.col0 < 0 || b.cols > n - b.col0)
            throw py::value_error(name + " reaches beyond the " + std::to_string(n) + " vertices: rows " +
                                  std::to_string(b.row0) + " + " + std::to_string(b.rows) + ", columns " +
                                  std::to_string(b.col0) + " + " + std::to_string(b.cols));
        if (b.symmetric && (b.rows != b.cols || b.row0 != b.col0))
            throw py::value_error(name + " is declared symmetric, so it must be square with equal offsets");
        kind(a.kind);
        if (b.rows > 0 && b.cols > 0) g.blocks.push_back(b);
    }
    if (!csr.is_none()) {
        if (!py::isinstance<py::tuple>(csr) || py::len(csr) != 3)
            throw py::type_error("csr must be None or a tuple (indptr, indices, data)");
        py::tuple parts = csr.cast<py::tuple>();
        Array indptr = vector_of(parts[0], "csr indptr", n + 1, {Kind::i64});
        Array indices = vector_of(parts[1], "csr indices", -1, {Kind::i32, Kind::i64});
        Array data = vector_of(parts[2], "csr data", indices.shape[0], {Kind::f32, Kind::f64, Kind::i64});
        g.has_csr = true;
        g.csr.indptr = static_cast<const int64_t*>(indptr.data);
        g.csr.indices = indices.data, g.csr.wide = indices.kind == Kind::i64;
        g.csr.data = data.data, g.csr.type = scalar_of(data.kind), g.csr.nnz = indices.shape[0];
        kind(data.kind);
    }
    if (floats && ints) throw py::type_error("capacities must be all floats or all int64, got both");
    g.integral = ints > 0;
    return g;
}

}  // namespace modcut::bind
