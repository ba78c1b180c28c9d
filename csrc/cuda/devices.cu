#include <cuda_runtime.h>

#include "cuda/launch.cuh"

namespace modcut::cuda {

Devices devices() {
    Devices out;
    int driver = 0;
    cudaDriverGetVersion(&driver);  // 0 where no driver is installed, never an error
    if (driver == 0) return {"no_driver", "no NVIDIA driver is installed (the CPU part works)", {}};
    int count = 0;
    const cudaError_t code = cudaGetDeviceCount(&count);
    if (code == cudaErrorInsufficientDriver) {
        cudaGetLastError();
        int runtime = CUDART_VERSION;
        return {"driver_too_old",
                "the NVIDIA driver supports CUDA " + std::to_string(driver / 1000) + "." +
                    std::to_string(driver % 1000 / 10) + ", this build needs " + std::to_string(runtime / 1000) + "." +
                    std::to_string(runtime % 1000 / 10) + ": update the driver",
                {}};
    }
    if (code == cudaErrorNoDevice || (code == cudaSuccess && count == 0)) {
        cudaGetLastError();
        return {"no_device", "an NVIDIA driver is installed, but no device is visible (CUDA_VISIBLE_DEVICES?)", {}};
    }
    if (code != cudaSuccess) {
        cudaGetLastError();
        return {"error", std::string("cudaGetDeviceCount failed: ") + cudaGetErrorString(code), {}};
    }
    out.status = "ok";
    for (int i = 0; i < count; ++i) {
        cudaDeviceProp p;
        if (cudaGetDeviceProperties(&p, i) != cudaSuccess) {
            cudaGetLastError();
            continue;
        }
        out.devices.push_back(
            {p.name, std::to_string(p.major) + "." + std::to_string(p.minor), int64_t(p.totalGlobalMem)});
    }
    out.message = std::to_string(out.devices.size()) + " device(s)";
    return out;
}

}  // namespace modcut::cuda
