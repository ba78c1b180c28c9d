// The GPU part's symbols where no CUDA compiler was found: calls say so, importing never fails.
#include "cuda/device.hpp"

namespace modcut::cuda {

Devices devices() {
    return {"not_compiled", "this build of modcut has no CUDA part: build with nvcc on PATH (MODCUT_CUDA=ON)", {}};
}

void degree(const DegreeArgs&) {
    throw Error("degree_cuda needs a build with CUDA: build modcut with nvcc on PATH (MODCUT_CUDA=ON)");
}

}  // namespace modcut::cuda
