// In the place of CUDA's own header: the .cu sources, their launches rewritten by build.py, run on the CPU. Blocks come one after the
// other; the threads of a block are threads of the CPU, a barrier for all of them and one for each warp. Shared memory is full of NaN
// before. Only what the sources use is here. SF_SHARED_BYTES in the environment: the shared memory of a block, to try kernels that find too
// little.
#pragma once
#include <algorithm>
#include <barrier>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#define __host__
#define __device__
#define __global__
#define __launch_bounds__(...)

using cudaError_t = int;
using cudaStream_t = void*;
constexpr int cudaSuccess = 0, cudaErrorInvalidValue = 1;
constexpr int cudaDevAttrMaxSharedMemoryPerBlockOptin = 97, cudaFuncAttributeMaxDynamicSharedMemorySize = 8;

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

inline thread_local dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace on_cpu {

inline int shared_bytes() {
  const char* given = std::getenv("SF_SHARED_BYTES");
  return given == nullptr ? 227 << 10 : std::atoi(given);
}

struct Block {
  std::barrier<> all;
  std::vector<std::unique_ptr<std::barrier<>>> warps;
  std::vector<double> lanes;         // what lanes hand to each other
  std::unique_ptr<double[]> shared;  // as many as were asked for, so that an address sanitizer sees one too far
};

inline thread_local Block* block;
inline thread_local int status = cudaSuccess;

inline void launch(dim3 grid, unsigned threads, std::size_t bytes, cudaStream_t stream, const std::function<void()>& kernel) {
  const char* wanted = std::getenv("SF_STREAM");
  const bool elsewhere = wanted != nullptr && stream != reinterpret_cast<cudaStream_t>(std::atoll(wanted));
  if (elsewhere || threads == 0 || threads > 1024 || bytes > static_cast<std::size_t>(shared_bytes()) || grid.y > 65535) {
    status = cudaErrorInvalidValue;
    return;
  }
  for (unsigned b = 0; b < grid.x * grid.y; ++b) {
    Block here{std::barrier<>(threads), {}, std::vector<double>(threads), std::make_unique<double[]>(bytes / sizeof(double))};
    std::fill_n(here.shared.get(), bytes / sizeof(double), std::nan(""));
    for (unsigned w = 0; 32 * w < threads; ++w) here.warps.push_back(std::make_unique<std::barrier<>>(std::min(32u, threads - 32 * w)));
    std::vector<std::thread> team;
    for (unsigned t = 0; t < threads; ++t) {
      team.emplace_back([&, t] {
        threadIdx = dim3(t), blockIdx = dim3(b % grid.x, b / grid.x), blockDim = dim3(threads), gridDim = grid;
        block = &here;
        kernel();
      });
    }
    for (std::thread& t : team) t.join();
  }
}

}  // namespace on_cpu

inline void __syncthreads() { on_cpu::block->all.arrive_and_wait(); }
inline void __syncwarp() { on_cpu::block->warps[threadIdx.x / 32]->arrive_and_wait(); }
inline double __shfl_xor_sync(unsigned, double x, int other) {
  on_cpu::block->lanes[threadIdx.x] = x;
  __syncwarp();
  const double theirs = on_cpu::block->lanes[threadIdx.x ^ static_cast<unsigned>(other)];
  __syncwarp();
  return theirs;
}

inline const char* cudaGetErrorString(cudaError_t) { return "invalid argument"; }
inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
inline cudaError_t cudaGetDeviceCount(int* count) { return *count = 1, cudaSuccess; }
inline cudaError_t cudaGetLastError() { return std::exchange(on_cpu::status, cudaSuccess); }
inline cudaError_t cudaDeviceGetAttribute(int* value, int, int) { return *value = on_cpu::shared_bytes(), cudaSuccess; }
template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel, int, int bytes) {
  return bytes > on_cpu::shared_bytes() ? cudaErrorInvalidValue : cudaSuccess;
}
