// One block for every matrix: in shared memory where the matrix fits, else where it lies, which is the second-level cache for a while. The
// work is numerics.h's, so that the same code runs in the tests of the CPU.
#include "singular_values/cuda.h"

#include <cuda_runtime.h>

#include "core/cuda_errors.h"
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

// Threads for a matrix: one for each row as far as that goes.
int threads_for(int n) { return n <= 32 ? 32 : n <= 64 ? 64 : n <= 128 ? 128 : n <= 256 ? 256 : 512; }

}  // namespace

void symmetric_eigenvalues_cuda(double* a, std::int64_t batch, std::int64_t n_rows, double* values, int device, void* stream_handle) {
  if (batch == 0 || n_rows == 0) return;
  const DeviceGuard guard(device);
  const auto stream = static_cast<cudaStream_t>(stream_handle);
  const int n = static_cast<int>(n_rows), threads = threads_for(n);
  int most = 0;
  cuda_check(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), "asking for the shared memory of a block");
  const std::size_t beside = vector_bytes(n, threads), with_matrix = beside + sizeof(double) * static_cast<std::size_t>(n) * shared_ld(n);
  const bool fits = with_matrix <= static_cast<std::size_t>(most);
  const std::size_t bytes = fits ? with_matrix : beside;
  const auto kernel = fits ? eigenvalues_kernel<true> : eigenvalues_kernel<false>;
  cuda_check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)),
             "shared memory of eigenvalues_kernel");
  const auto blocks = static_cast<unsigned>(batch);
  kernel<<<blocks, static_cast<unsigned>(threads), bytes, stream>>>(a, n, values);
  cuda_launched("eigenvalues_kernel", blocks, static_cast<unsigned>(threads), bytes, device);
}

}  // namespace sf
