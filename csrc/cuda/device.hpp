// What the GPU part offers, the same with and without nvcc: csrc/cuda/*.cu or csrc/cuda/stub.cpp.
#pragma once
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

namespace modcut::cuda {

struct Device {
    std::string name, capability;
    int64_t memory_bytes;
};
struct Devices {
    std::string status, message;  // "ok" | "not_compiled" | "no_driver" | "driver_too_old" | "no_device" | "error"
    std::vector<Device> devices;
};
Devices devices();

struct Error : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// row_out[i] = sum_j |w_ij|, col_out[j] = sum_i |w_ij|, in float64, on `stream` of `device`. Deterministic, no atomics.
struct DegreeArgs {
    const void* weight;  // [rows, cols], float32 or float64
    bool single;
    int64_t rows, cols, stride;
    double* row_out;  // [rows]
    double* col_out;  // [cols]
    int device;
    uintptr_t stream;
};
void degree(const DegreeArgs& args);

// Cut trees of b dense graphs of n vertices each, on `stream` of `device` (core/small_tree.hpp): what parent,
// weight_out, lower and status hold is the same to the bit as on a CPU. Makes no allocation and waits for nothing.
enum class BatchType { f32, f64, i32, i64 };
struct BatchPlan {
    int64_t blocks = 0, shared_bytes = 0;
    int64_t workspace = 0;  // bytes that the caller has to lend; 0 where a graph fits a block's shared memory
    bool shared = true;
};
BatchPlan gomory_hu_batch_plan(BatchType type, int64_t b, int64_t n, int device);
struct BatchArgs {
    const void* weight;  // [b, n, n], `apart` entries from graph to graph, `pitch` from row to row
    BatchType type;
    int64_t b, n, apart, pitch;
    int64_t* parent;     // [b, n]
    double* weight_out;  // [b, n]
    double* lower;       // [b, n]
    int64_t* status;     // [b, 4]
    void* workspace;
    int64_t workspace_bytes;
    int device;
    uintptr_t stream;
};
void gomory_hu_batch(const BatchArgs& args);

}  // namespace modcut::cuda
