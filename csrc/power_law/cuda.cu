// Every start is one block that evaluates its whole tail: the n^2/2 exponentials that branch and bound saves on the CPU are
// cheaper here than divergent threads. The numbers are those of numerics.h, so the maxima are the CPU's, bit for bit.
#include <cuda_runtime.h>

#include "core/cuda_errors.h"
#include "power_law/cuda.h"
#include "power_law/numerics.h"

namespace sf {
namespace {

constexpr int kThreads = 128;

__global__ void gaps_kernel(const double* x, std::int64_t total, double* gap) {
  const std::int64_t i = blockIdx.x * static_cast<std::int64_t>(blockDim.x) + threadIdx.x;
  if (i + 1 < total) gap[i] = log_ratio(x[i], x[i + 1]);  // the gap between two spectra is never read
}

// One thread per spectrum: the running sums are sequential by definition, and short beside what follows.
__global__ void prepare_kernel(const std::int64_t* offsets, std::int64_t n_spectra, double* hi, double* lo, double* slope, double* alpha,
                               double* D) {
  const std::int64_t s = blockIdx.x * static_cast<std::int64_t>(blockDim.x) + threadIdx.x;
  if (s >= n_spectra) return;
  const std::int64_t begin = offsets[s], n = offsets[s + 1] - begin;
  if (n == 0) return;
  hi += begin, lo += begin, slope += begin, alpha += begin, D += begin;
  PairSum run{0.0, 0.0};
  hi[0] = lo[0] = 0.0;
  for (std::int64_t j = 1; j < n; ++j) {
    run = accumulate(run, slope[j - 1]);
    hi[j] = run.hi;
    lo[j] = run.lo;
  }
  PairSum sum{0.0, 0.0};
  for (std::int64_t i = n - 2; i >= 0; --i) {
    sum = accumulate(sum, mul(static_cast<double>(n - 1 - i), slope[i]));
    slope[i] = tail_slope(static_cast<double>(n - i), sum);
    alpha[i] = add(1.0, slope[i]);
  }
  slope[n - 1] = alpha[n - 1] = D[n - 1] = NAN;
}

// The spectrum that value i belongs to: the last s with offsets[s] <= i.
__device__ std::int64_t spectrum_of(const std::int64_t* offsets, std::int64_t n_spectra, std::int64_t i) {
  std::int64_t low = 0, high = n_spectra;
  while (high - low > 1) {
    const std::int64_t middle = (low + high) / 2;
    (offsets[middle] <= i ? low : high) = middle;
  }
  return low;
}

__global__ void deviations_kernel(const std::int64_t* offsets, std::int64_t n_spectra, const double* hi, const double* lo,
                                  const double* slope, double* D) {
  const std::int64_t i = blockIdx.x;
  const std::int64_t end = offsets[spectrum_of(offsets, n_spectra, i) + 1];
  if (i + 1 >= end) return;  // the last value starts no tail
  if (!(slope[i] < HUGE_VAL)) {
    if (threadIdx.x == 0) D[i] = NAN;
    return;
  }
  const double inv_n = div(1.0, static_cast<double>(end - i));
  double largest = 0.0;
  for (std::int64_t j = i + threadIdx.x; j < end; j += kThreads) {
    const double F = model_cdf(model_exponent(slope[i], hi[i], lo[i], hi[j], lo[j]));
    const double d = fabs(deviation(F, static_cast<double>(j - i), inv_n));
    largest = d > largest ? d : largest;
  }
  __shared__ double shared[kThreads];
  shared[threadIdx.x] = largest;
  for (int half = kThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half && shared[threadIdx.x + half] > shared[threadIdx.x]) shared[threadIdx.x] = shared[threadIdx.x + half];
  }
  if (threadIdx.x == 0) D[i] = shared[0];
}

// First index of the smallest D of each spectrum; one block each.
__global__ void best_kernel(const std::int64_t* offsets, const double* D, std::int64_t* best) {
  const std::int64_t begin = offsets[blockIdx.x], n = offsets[blockIdx.x + 1] - begin;
  double least = HUGE_VAL;
  std::int64_t at = -1;
  for (std::int64_t i = threadIdx.x; i < n - 1; i += kThreads) {
    if (D[begin + i] < least) {  // false for NaN
      least = D[begin + i];
      at = i;
    }
  }
  __shared__ double leasts[kThreads];
  __shared__ std::int64_t ats[kThreads];
  leasts[threadIdx.x] = least;
  ats[threadIdx.x] = at;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int k = 1; k < kThreads; ++k) {
    if (leasts[k] < least || (leasts[k] == least && ats[k] >= 0 && ats[k] < at)) {
      least = leasts[k];
      at = ats[k];
    }
  }
  best[blockIdx.x] = at;
}

unsigned blocks_for(std::int64_t items) { return static_cast<unsigned>((items + kThreads - 1) / kThreads); }

}  // namespace

int cuda_device_count(const char** why) {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  *why = status == cudaSuccess ? "" : cudaGetErrorString(status);
  return status == cudaSuccess ? count : 0;
}

void power_law_cuda(const double* values, const std::int64_t* offsets, std::int64_t total, std::int64_t n_spectra, double* alpha, double* D,
                    std::int64_t* best, double* work, int device, void* stream_handle) {
  if (n_spectra == 0) return;
  const DeviceGuard guard(device);
  const auto stream = static_cast<cudaStream_t>(stream_handle);
  double *hi = work, *lo = work + total, *slope = work + 2 * total;
  if (total > 0) {
    gaps_kernel<<<blocks_for(total), kThreads, 0, stream>>>(values, total, slope);
    cuda_launched("gaps_kernel", blocks_for(total), kThreads, 0, device);
    prepare_kernel<<<blocks_for(n_spectra), kThreads, 0, stream>>>(offsets, n_spectra, hi, lo, slope, alpha, D);
    cuda_launched("prepare_kernel", blocks_for(n_spectra), kThreads, 0, device);
    deviations_kernel<<<static_cast<unsigned>(total), kThreads, 0, stream>>>(offsets, n_spectra, hi, lo, slope, D);
    cuda_launched("deviations_kernel", static_cast<unsigned>(total), kThreads, 0, device);
  }
  best_kernel<<<static_cast<unsigned>(n_spectra), kThreads, 0, stream>>>(offsets, D, best);
  cuda_launched("best_kernel", static_cast<unsigned>(n_spectra), kThreads, 0, device);
}

}  // namespace sf
