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

}  // namespace sf
