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

}  // namespace modcut::cuda
