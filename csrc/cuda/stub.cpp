// The GPU part's symbols where no CUDA compiler was found: calls say so, importing never fails.
#include "cuda/device.hpp"

namespace modcut::cuda {

Devices devices() {
    return {"not_compiled", "this build of modcut has no CUDA part: build with nvcc on PATH (MODCUT_CUDA=ON)", {}};
}

namespace {
[[noreturn]] void missing(const char* name) {
    throw Error(std::string(name) + " needs a build with CUDA: build modcut with nvcc on PATH (MODCUT_CUDA=ON)");
}
}  // namespace

void degree(const DegreeArgs&) { missing("degree_cuda"); }
BatchPlan gomory_hu_batch_plan(BatchType, int64_t, int64_t, int) { missing("gomory_hu_batch_plan"); }
void gomory_hu_batch(const BatchArgs&) { missing("gomory_hu_batch_cuda"); }

}  // namespace modcut::cuda
