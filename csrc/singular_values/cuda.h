// contract: numpy_kernels.singular_values, the part that follows the Gram matrices: eigenvalues of a batch of symmetric matrices, on device
// memory
#pragma once
#include <cstdint>

namespace sf {

// a: (batch, n, n) symmetric, all entries, finite, destroyed; values (batch, n), descending; both on device `device`. 1 <= n <=
// kMostEigenvalues. Errors are those of a backward stable reduction: a small multiple of n eps times the largest magnitude. Runs on
// `stream` and returns without waiting. Throws std::runtime_error with the kernel's name, its launch and CUDA's words.
constexpr std::int64_t kMostEigenvalues = 512;
void symmetric_eigenvalues_cuda(double* a, std::int64_t batch, std::int64_t n, double* values, int device, void* stream);

// The same of symmetric bands: entry (i, j), j <= i <= j + width, at [j, i - j] of each (batch, n, 2 width); zeros behind them; destroyed.
// 1 <= width <= kMostBandWidth, 1 <= n <= most_band_rows(width, device). work: (batch, 2 n) doubles.
constexpr std::int64_t kMostBandWidth = 64, kMostBandRows = 1 << 15;
std::int64_t most_band_rows(std::int64_t width, int device);  // for whose reflectors a block of the device has room
void band_eigenvalues_cuda(double* band, std::int64_t batch, std::int64_t n, std::int64_t width, double* work, double* values, int device,
                           void* stream);

}  // namespace sf
