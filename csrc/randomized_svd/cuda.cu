// One block for every matrix, a warp for each pair of rows: in shared memory where the matrix fits, else where it lies.
#include "randomized_svd/cuda.h"

#include <cuda_runtime.h>

#include <algorithm>

#include "core/cuda_errors.h"
#include "core/require.h"
#include "randomized_svd/numerics.h"

namespace sf {
namespace {

constexpr int kWarp = 32, kMostWarps = 16;

struct Warps {
  int group, groups, lane, lanes;
  __device__ void sync() const { __syncthreads(); }
  __device__ double lane_sum(double x) const {
    for (int k = kWarp / 2; k > 0; k /= 2) x += __shfl_xor_sync(0xFFFFFFFFu, x, k);
    return x;
  }
};

template <bool kShared>
__global__ void __launch_bounds__(kWarp* kMostWarps, 1) jacobi_kernel(double* x, int r, std::int64_t n, double* u, double* done) {
  extern __shared__ double memory[];
  const int rank = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  const Warps team{rank / kWarp, threads / kWarp, rank % kWarp, kWarp};
  double* const matrix = x + static_cast<std::int64_t>(blockIdx.x) * r * n;
  double* const turned = u + static_cast<std::int64_t>(blockIdx.x) * r * r;
  bool settled = false;
  if (kShared) {
    double* const here = memory + kMostWarps;
    double* const here_u = here + r * n;
    for (std::int64_t i = rank; i < r * n; i += threads) here[i] = matrix[i];
    __syncthreads();
    settled = team_jacobi(team, here, n, r, n, here_u, memory);
    for (std::int64_t i = rank; i < r * n; i += threads) matrix[i] = here[i];
    for (int i = rank; i < r * r; i += threads) turned[i] = here_u[i];
  } else {
    settled = team_jacobi(team, matrix, n, r, n, turned, memory);
  }
  if (rank == 0) done[blockIdx.x] = settled ? 1.0 : 0.0;
}

}  // namespace

void jacobi_rows_cuda(double* x, std::int64_t batch, std::int64_t r, std::int64_t n, double* u, double* done, int device,
                      void* stream_handle) {
  require(r >= 1 && r <= kMostJacobiRows && n >= 1, "x: wanted matrices of 1 to 256 rows");
  if (batch == 0) return;
  const DeviceGuard guard(device);
  const auto stream = static_cast<cudaStream_t>(stream_handle);
  const std::size_t most = most_shared_bytes(device);
  const std::size_t flags = sizeof(double) * kMostWarps, whole = flags + sizeof(double) * static_cast<std::size_t>(r * (n + r));
  const bool fits = n <= (std::int64_t{1} << 20) && whole <= most;
  const std::size_t bytes = fits ? whole : flags;
  const auto kernel = fits ? jacobi_kernel<true> : jacobi_kernel<false>;
  allow_shared_memory(kernel, device, "jacobi_kernel");
  const auto threads = static_cast<unsigned>(kWarp * std::clamp<std::int64_t>((r + 1) / 2, 1, kMostWarps));
  const auto blocks = static_cast<unsigned>(batch);
  kernel<<<blocks, threads, bytes, stream>>>(x, static_cast<int>(r), n, u, done);
  cuda_launched("jacobi_kernel", blocks, threads, bytes, device);
}

}  // namespace sf
