// One CUDA block as a Team (core/team.hpp): rank = thread, sync = __syncthreads, any = __syncthreads_or.
#pragma once

namespace modcut::cuda {

struct BlockTeam {
    static constexpr int kTile = 1;
    __device__ int rank() const { return int(threadIdx.x); }
    __device__ int size() const { return int(blockDim.x); }
    __device__ void sync() { __syncthreads(); }
    __device__ bool any(bool x) { return __syncthreads_or(x) != 0; }
};

// Sum over the block in a fixed tree: the same bits every time. `scratch` holds size() doubles; size() is a power of
// two.
__device__ inline double block_sum(BlockTeam& team, double x, double* scratch) {
    scratch[team.rank()] = x;
    team.sync();
    for (int half = team.size() / 2; half > 0; half /= 2) {
        if (team.rank() < half) scratch[team.rank()] += scratch[team.rank() + half];
        team.sync();
    }
    return scratch[0];
}

}  // namespace modcut::cuda
