// Strengths of a block: row and column sums of |W|, in float64.
//
// Rows: one block of threads per row, a fixed tree. Columns: a block of threads owns 32 columns and walks down all rows
// in eight interleaved lanes that are added in order, so no atomics and the same bits every time. W is read twice.
#include "cuda/block_team.cuh"
#include "cuda/launch.cuh"

namespace modcut::cuda {
namespace {

constexpr int kRowThreads = 256;
constexpr int kColumns = 32, kLanes = 8;

template <class T>
__global__ void __launch_bounds__(kRowThreads)
    row_sums(const T* __restrict__ w, int64_t rows, int64_t cols, int64_t stride, double* __restrict__ out) {
    __shared__ double scratch[kRowThreads];
    BlockTeam team;
    for (int64_t i = blockIdx.x; i < rows; i += gridDim.x) {
        const T* row = w + i * stride;
        double s = 0;
        for (int64_t j = team.rank(); j < cols; j += team.size()) s += fabs(double(row[j]));
        s = block_sum(team, s, scratch);
        if (team.rank() == 0) out[i] = s;
        team.sync();  // scratch is reused by the next row
    }
}

template <class T>
__global__ void __launch_bounds__(kColumns* kLanes)
    column_sums(const T* __restrict__ w, int64_t rows, int64_t cols, int64_t stride, double* __restrict__ out) {
    __shared__ double part[kLanes][kColumns];
    const int64_t j = int64_t(blockIdx.x) * kColumns + threadIdx.x;
    double s = 0;
    if (j < cols)
        for (int64_t i = threadIdx.y; i < rows; i += kLanes) s += fabs(double(w[i * stride + j]));
    part[threadIdx.y][threadIdx.x] = s;
    __syncthreads();
    if (threadIdx.y == 0 && j < cols) {
        for (int k = 1; k < kLanes; ++k) s += part[k][threadIdx.x];
        out[j] = s;
    }
}

template <class T>
void launch(const DegreeArgs& a) {
    const auto stream = reinterpret_cast<cudaStream_t>(a.stream);
    const auto* w = static_cast<const T*>(a.weight);
    if (a.rows > 0) {
        const unsigned grid = unsigned(a.rows < 65535 ? a.rows : 65535);
        row_sums<T><<<grid, kRowThreads, 0, stream>>>(w, a.rows, a.cols, a.stride, a.row_out);
        check(cudaGetLastError(), "launch of row_sums");
    }
    if (a.cols > 0) {
        const unsigned grid = unsigned((a.cols + kColumns - 1) / kColumns);
        column_sums<T><<<grid, dim3(kColumns, kLanes), 0, stream>>>(w, a.rows, a.cols, a.stride, a.col_out);
        check(cudaGetLastError(), "launch of column_sums");
    }
}

}  // namespace

void degree(const DegreeArgs& args) {
    DeviceGuard guard(args.device);
    if (args.single)
        launch<float>(args);
    else
        launch<double>(args);
}

}  // namespace modcut::cuda
