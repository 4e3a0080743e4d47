// One block for every matrix: in shared memory where the matrix fits, else where it lies, which is the second-level cache for a while. The
// work is numerics.h's, so that the same code runs in the tests of the CPU.
#include "singular_values/cuda.h"

#include <cuda_runtime.h>

#include <algorithm>

#include "core/cuda_errors.h"
#include "core/require.h"
#include "singular_values/chase_numerics.h"
#include "singular_values/numerics.h"

namespace sf {
namespace {

struct Block {
  int rank, size;
  double* scratch;
  __device__ void sync() const { __syncthreads(); }
};

// An odd distance between rows: threads that read one column each, or one row, meet no bank twice.
__host__ __device__ inline int shared_ld(int n) { return n | 1; }

std::size_t vector_bytes(int n, int threads) { return sizeof(double) * (7 * static_cast<std::size_t>(n) + threads + kSums); }

template <bool kShared>
__global__ void __launch_bounds__(512) eigenvalues_kernel(double* a, int n, double* values) {
  extern __shared__ double memory[];
  Block team{static_cast<int>(threadIdx.x), static_cast<int>(blockDim.x), memory};
  double* vectors = memory + blockDim.x + kSums;
  double* matrix = a + static_cast<std::int64_t>(blockIdx.x) * n * n;
  std::int64_t ld = n;
  if (kShared) {
    double* here = vectors + 7 * n;
    ld = shared_ld(n);
    for (int i = team.rank; i < n * n; i += team.size) here[(i / n) * ld + i % n] = matrix[i];
    matrix = here;
    __syncthreads();
  }
  team_eigenvalues(team, matrix, ld, n, vectors, values + static_cast<std::int64_t>(blockIdx.x) * n);
}

constexpr int kWarp = 32, kChaseWarps = 16, kValueThreads = 128;

struct Warps {
  int group, groups, lane, lanes;
  __device__ void sync() const { __syncthreads(); }
  __device__ void lane_sync() const { __syncwarp(); }
  __device__ double lane_sum(double x) const {
    for (int k = kWarp / 2; k > 0; k /= 2) x += __shfl_xor_sync(0xFFFFFFFFu, x, k);
    return x;
  }
};

// A block for every band, a warp for each sweep under way. work: d (n), then e2 (n), of every matrix.
__global__ void __launch_bounds__(kWarp* kChaseWarps, 1) chase_kernel(double* band, int n, int width, double* work) {
  extern __shared__ double memory[];
  const int rank = static_cast<int>(threadIdx.x);
  const Warps team{rank / kWarp, kChaseWarps, rank % kWarp, kWarp};
  const TeamBand a{band + static_cast<std::int64_t>(blockIdx.x) * n * 2 * width, n, width};
  double* const d = work + static_cast<std::int64_t>(blockIdx.x) * 2 * n;
  team_chase(team, a, memory + kChaseWarps * 2 * width, memory, d, d + n);
}

// A thread for every value: those of matrix blockIdx.y.
__global__ void __launch_bounds__(kValueThreads) tridiagonal_values_kernel(const double* work, int n, double* values) {
  const double* const d = work + static_cast<std::int64_t>(blockIdx.y) * 2 * n;
  const double* const e2 = d + n;
  __shared__ double bounds[3];
  if (threadIdx.x == 0) tridiagonal_bounds(d, e2, n, &bounds[0], &bounds[1], &bounds[2]);
  __syncthreads();
  const int r = static_cast<int>(blockIdx.x * kValueThreads + threadIdx.x);
  if (r < n) values[static_cast<std::int64_t>(blockIdx.y) * n + n - 1 - r] = bisect(d, e2, n, r, bounds[0], bounds[1], bounds[2]);
}

// Threads for a matrix: one for each row as far as that goes.
int threads_for(int n) { return n <= 32 ? 32 : n <= 64 ? 64 : n <= 128 ? 128 : n <= 256 ? 256 : 512; }

}  // namespace

void symmetric_eigenvalues_cuda(double* a, std::int64_t batch, std::int64_t n_rows, double* values, int device, void* stream_handle) {
  if (batch == 0 || n_rows == 0) return;
  const DeviceGuard guard(device);
  const auto stream = static_cast<cudaStream_t>(stream_handle);
  const int n = static_cast<int>(n_rows), threads = threads_for(n);
  const std::size_t most = most_shared_bytes(device);
  const std::size_t beside = vector_bytes(n, threads), with_matrix = beside + sizeof(double) * static_cast<std::size_t>(n) * shared_ld(n);
  const bool fits = with_matrix <= most;
  const std::size_t bytes = fits ? with_matrix : beside;
  const auto kernel = fits ? eigenvalues_kernel<true> : eigenvalues_kernel<false>;
  allow_shared_memory(kernel, device, "eigenvalues_kernel");
  const auto blocks = static_cast<unsigned>(batch);
  kernel<<<blocks, static_cast<unsigned>(threads), bytes, stream>>>(a, n, values);
  cuda_launched("eigenvalues_kernel", blocks, static_cast<unsigned>(threads), bytes, device);
}

std::int64_t most_band_rows(std::int64_t width, int device) {
  const auto room = static_cast<std::int64_t>(most_shared_bytes(device) / sizeof(double)) - kChaseWarps * 2 * width;
  const std::int64_t slots = room / (width + 1);  // see team_chase_slots
  return std::min(kMostBandRows, std::max<std::int64_t>(0, 2 * (slots - 2) - 1) * width);
}

void band_eigenvalues_cuda(double* band, std::int64_t batch, std::int64_t n_rows, std::int64_t width, double* work, double* values,
                           int device, void* stream_handle) {
  require(width >= 1 && width <= kMostBandWidth && n_rows >= 1 && n_rows <= most_band_rows(width, device),
          "band: wanted 1 to 64 diagonals, and as many rows as most_band_rows says");
  if (batch == 0) return;
  const DeviceGuard guard(device);
  const auto stream = static_cast<cudaStream_t>(stream_handle);
  const int n = static_cast<int>(n_rows);
  const std::size_t bytes =
      sizeof(double) * static_cast<std::size_t>(team_chase_slots(n, static_cast<int>(width)) * (width + 1) + kChaseWarps * 2 * width);
  allow_shared_memory(chase_kernel, device, "chase_kernel");
  const auto matrices = static_cast<unsigned>(batch);
  chase_kernel<<<matrices, kWarp * kChaseWarps, bytes, stream>>>(band, n, static_cast<int>(width), work);
  cuda_launched("chase_kernel", matrices, kWarp * kChaseWarps, bytes, device);
  constexpr std::int64_t kMostAtOnce = 65535;  // blocks along the second side of a grid
  for (std::int64_t first = 0; first < batch; first += kMostAtOnce) {
    const dim3 blocks(static_cast<unsigned>((n + kValueThreads - 1) / kValueThreads),
                      static_cast<unsigned>(batch - first < kMostAtOnce ? batch - first : kMostAtOnce));
    tridiagonal_values_kernel<<<blocks, kValueThreads, 0, stream>>>(work + first * 2 * n, n, values + first * n);
    cuda_launched("tridiagonal_values_kernel", blocks.x * blocks.y, kValueThreads, 0, device);
  }
}

}  // namespace sf
