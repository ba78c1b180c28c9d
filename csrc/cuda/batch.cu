// Cut trees of many small dense graphs: one block per graph, thousands of trees in one launch (core/small_tree.hpp).
//
// What the pulses stream lies in shared memory where it fits (n <= 232 in float32 and int32 on sm_90, 195 on sm_80),
// else in the caller's workspace, one piece per resident block, small enough to stay in the L2 cache at n = 256.
#include "core/small_tree.hpp"
#include "cuda/block_team.cuh"
#include "cuda/launch.cuh"

namespace modcut::cuda {
namespace {

constexpr int kMostThreads = 512;

template <class W, bool kShared>
__global__ void __launch_bounds__(kMostThreads, 1)
    small_trees(const W* __restrict__ w, int64_t b, int64_t n, int64_t apart, int64_t pitch, int64_t* parent,
                double* weight, double* lower, int64_t* status, char* workspace) {
    extern __shared__ int64_t shared[];
    using R = small::Residual<W>;
    BlockTeam team;
    const int64_t stride = small::stride_of<BlockTeam>(n), large = small::Memory<R>::large(n, stride);
    char* at = kShared ? reinterpret_cast<char*>(shared) + small::Memory<R>::little(n, stride)
                       : workspace + int64_t(blockIdx.x) * large;
    const small::Memory<R> memory(at, shared, n, stride);
    for (int64_t i = blockIdx.x; i < b; i += gridDim.x) {
        small::cut_tree(team, w + i * apart, pitch, n, memory,
                        {parent + i * n, weight + i * n, lower + i * n, status + i * small::kStatus},
                        [] { return false; });
        team.sync();
    }
}

int threads_for(int64_t n) { return int(n < kMostThreads ? (n + 31) / 32 * 32 : kMostThreads); }

template <class W>
BatchPlan plan(int64_t b, int64_t n) {
    using R = small::Residual<W>;
    const int64_t stride = small::stride_of<BlockTeam>(n);
    const int64_t large = small::Memory<R>::large(n, stride), little = small::Memory<R>::little(n, stride);
    int device = 0, most = 0, processors = 0, resident = 0;
    check(cudaGetDevice(&device), "cudaGetDevice");
    check(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), "cudaDeviceGetAttribute");
    check(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device), "cudaDeviceGetAttribute");
    BatchPlan p;
    p.shared = large + little <= most;
    p.shared_bytes = p.shared ? large + little : little;
    const auto prepare = [&](auto* kernel) {
        check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(p.shared_bytes)),
              "cudaFuncSetAttribute of small_trees");
        check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, kernel, threads_for(n), size_t(p.shared_bytes)),
              "cudaOccupancyMaxActiveBlocksPerMultiprocessor of small_trees");
    };
    if (p.shared)
        prepare(small_trees<W, true>);
    else
        prepare(small_trees<W, false>);
    const int64_t slots = int64_t(processors) * (resident > 0 ? resident : 1);
    p.blocks = b < slots ? b : slots;
    p.workspace = p.shared ? 0 : p.blocks * large;
    return p;
}

template <class W>
void launch(const BatchArgs& a) {
    const BatchPlan p = plan<W>(a.b, a.n);
    if (a.workspace_bytes < p.workspace)
        throw Error("gomory_hu_batch_cuda needs a workspace of " + std::to_string(p.workspace) + " bytes, got " +
                    std::to_string(a.workspace_bytes));
    const decltype(&small_trees<W, true>) kernel = p.shared ? &small_trees<W, true> : &small_trees<W, false>;
    kernel<<<unsigned(p.blocks), threads_for(a.n), size_t(p.shared_bytes), reinterpret_cast<cudaStream_t>(a.stream)>>>(
        static_cast<const W*>(a.weight), a.b, a.n, a.apart, a.pitch, a.parent, a.weight_out, a.lower, a.status,
        static_cast<char*>(a.workspace));
    check(cudaGetLastError(), "launch of small_trees");
}

template <class F>
auto with_type(BatchType type, F&& f) {
    switch (type) {
        case BatchType::f32:
            return f(float{});
        case BatchType::f64:
            return f(double{});
        case BatchType::i32:
            return f(int32_t{});
        default:
            return f(int64_t{});
    }
}

}  // namespace

BatchPlan gomory_hu_batch_plan(BatchType type, int64_t b, int64_t n, int device) {
    if (b == 0 || n == 0) return {};
    DeviceGuard guard(device);
    return with_type(type, [&](auto zero) { return plan<decltype(zero)>(b, n); });
}

void gomory_hu_batch(const BatchArgs& args) {
    if (args.b == 0 || args.n == 0) return;
    DeviceGuard guard(args.device);
    with_type(args.type, [&](auto zero) { launch<decltype(zero)>(args); });
}

}  // namespace modcut::cuda
