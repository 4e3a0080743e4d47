// Stripes of columns are dealt out to a fixed number of blocks; each leaves its sums, which a second kernel adds up in their order.
#include "lanczos/cuda.h"

#include <cuda_runtime.h>

#include <algorithm>

#include "core/cuda_errors.h"
#include "core/require.h"
#include "lanczos/numerics.h"

namespace sf {
namespace {

constexpr int kThreads = 128;

struct Block {
  int rank, size;
  __device__ void sync() const { __syncthreads(); }
};

template <class Row, class Vector>
__global__ void __launch_bounds__(kThreads)
    sweep_kernel(const Row* v, std::int64_t ld, int t, Vector* w, std::int64_t n, const double* minus, bool dots, double* work) {
  extern __shared__ double memory[];
  const Block team{static_cast<int>(threadIdx.x), kThreads};
  double* here = nullptr;
  if (minus != nullptr) {
    here = memory + (t + 1) * kThreads;
    for (int j = team.rank; j < t; j += kThreads) here[j] = minus[j];
    __syncthreads();
  }
  team_sweeps(team, v, ld, t, w, n, here, memory, dots, blockIdx.x, gridDim.x, work + static_cast<std::int64_t>(blockIdx.x) * (t + 1));
}

__global__ void __launch_bounds__(kThreads) add_up_kernel(const double* work, std::int64_t blocks, int count, double* sums) {
  const int j = static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x);
  if (j >= count) return;
  double total = 0.0;
  for (std::int64_t b = 0; b < blocks; ++b) total += work[b * count + j];
  sums[j] = total;
}

template <class Row, class Vector>
void launch(const void* v, std::int64_t ld, int t, void* w, std::int64_t n, const double* minus, double* sums, double* work, bool dots,
            int device, cudaStream_t stream) {
  const auto blocks = static_cast<unsigned>(std::min(kSweepBlocks, (n + kStripe - 1) / kStripe));
  const std::size_t bytes = sizeof(double) * (static_cast<std::size_t>(t + 1) * kThreads + static_cast<std::size_t>(t));
  const auto kernel = sweep_kernel<Row, Vector>;
  allow_shared_memory(kernel, device, "sweep_kernel");
  kernel<<<blocks, kThreads, bytes, stream>>>(static_cast<const Row*>(v), ld, t, static_cast<Vector*>(w), n, minus, dots, work);
  cuda_launched("sweep_kernel", blocks, kThreads, bytes, device);
  const auto few = static_cast<unsigned>((t + 1 + kThreads - 1) / kThreads);
  add_up_kernel<<<few, kThreads, 0, stream>>>(work, blocks, t + 1, sums);
  cuda_launched("add_up_kernel", few, kThreads, 0, device);
}

template <class Row>
void launch_for(DType w_dtype, const void* v, std::int64_t ld, int t, void* w, std::int64_t n, const double* minus, double* sums,
                double* work, bool dots, int device, cudaStream_t stream) {
  if (w_dtype == DType::f64) {
    launch<Row, double>(v, ld, t, w, n, minus, sums, work, dots, device, stream);
  } else {
    launch<Row, float>(v, ld, t, w, n, minus, sums, work, dots, device, stream);
  }
}

}  // namespace

std::int64_t most_swept_rows(int device) {
  const auto room = static_cast<std::int64_t>(most_shared_bytes(device) / sizeof(double));
  return std::min(kMostSweptRows, (room - kThreads) / (kThreads + 1));  // see launch
}

void gram_schmidt_sweep_cuda(const void* v, DType v_dtype, std::int64_t ld, std::int64_t t, void* w, DType w_dtype, std::int64_t n,
                             const double* minus, double* sums, double* work, bool dots, int device, void* stream_handle) {
  require(t >= 0 && t <= kMostSweptRows && n >= 1, "v: more rows than a block has room for, or none");
  require(w_dtype == DType::f64 || w_dtype == DType::f32, "w: wanted float64 or float32");
  const DeviceGuard guard(device);
  const auto stream = static_cast<cudaStream_t>(stream_handle);
  const int rows = static_cast<int>(t);
  if (v_dtype == DType::f64) {
    launch_for<double>(w_dtype, v, ld, rows, w, n, minus, sums, work, dots, device, stream);
  } else if (v_dtype == DType::f32) {
    launch_for<float>(w_dtype, v, ld, rows, w, n, minus, sums, work, dots, device, stream);
  } else {
    require(v_dtype == DType::bf16, "v: wanted float64, float32 or bfloat16");
    launch_for<Bfloat16>(w_dtype, v, ld, rows, w, n, minus, sums, work, dots, device, stream);
  }
}

}  // namespace sf
