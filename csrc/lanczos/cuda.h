// contract: numpy_kernels.orthogonalize, the sweeps of the basis that it is made of, on device memory
#pragma once
#include <cstdint>

#include "core/dtype.h"

namespace sf {

// Rows of a sweep that a block has room for beside others; more are left to who calls.
constexpr std::int64_t kMostSweptRows = 160;
std::int64_t most_swept_rows(int device);  // that many at most, for whose sums a block of the device has room
// Blocks of a sweep, whatever the device has: with it the order of the sums, and their bits, stay the same.
constexpr std::int64_t kSweepBlocks = 512;

// w -= minusᵀ v where `minus` is not null, then sums[j] = <row j, w>, j < t (with `dots`), and sums[t] = <w, w>, in float64. v: t rows of n
// numbers, f64, f32 or bf16, ld apart; w: n numbers, f64 or f32; minus (t,), sums (t + 1,), work (kSweepBlocks (t + 1),) float64; all on
// device `device`. Runs on `stream` and returns without waiting. Throws std::runtime_error with the kernel's name, its launch and CUDA's
// words.
void gram_schmidt_sweep_cuda(const void* v, DType v_dtype, std::int64_t ld, std::int64_t t, void* w, DType w_dtype, std::int64_t n,
                             const double* minus, double* sums, double* work, bool dots, int device, void* stream);

}  // namespace sf
