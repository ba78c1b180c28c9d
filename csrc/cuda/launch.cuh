// What every launcher uses: the right device for the call, restored afterwards; errors as sentences that name the call.
#pragma once
#include <cuda_runtime.h>

#include <string>

#include "cuda/device.hpp"

namespace modcut::cuda {

inline void check(cudaError_t code, const char* call) {
    if (code == cudaSuccess) return;
    cudaGetLastError();  // clear: the next call starts clean
    throw Error(std::string(call) + " failed: " + cudaGetErrorString(code) + " (" + cudaGetErrorName(code) + ")");
}

class DeviceGuard {
public:
    explicit DeviceGuard(int device) {
        check(cudaGetDevice(&before_), "cudaGetDevice");
        if (device != before_) check(cudaSetDevice(device), "cudaSetDevice");
        switched_ = device != before_;
    }
    ~DeviceGuard() {
        if (switched_) cudaSetDevice(before_);
    }
    DeviceGuard(const DeviceGuard&) = delete;
    DeviceGuard& operator=(const DeviceGuard&) = delete;

private:
    int before_ = 0;
    bool switched_ = false;
};

}  // namespace modcut::cuda
