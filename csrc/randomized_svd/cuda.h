// contract: numpy_kernels.randomized_svd, the decomposition of the small factors, on device memory
#pragma once
#include <cstdint>

namespace sf {

// x: (batch, r, n) contiguous, finite, becomes u x, whose rows are orthogonal: singular values times right singular vectors, in no order.
// u: (batch, r, r) orthogonal; its columns are the left singular vectors' transposes: row i of u belongs to row i of x. done (batch): 1
// where the rows are orthogonal to rounding, else 0. All on device `device`. 1 <= r <= kMostJacobiRows. Runs on `stream` and returns
// without waiting. Throws std::runtime_error with the kernel's name, its launch and CUDA's words.
constexpr std::int64_t kMostJacobiRows = 256;
void jacobi_rows_cuda(double* x, std::int64_t batch, std::int64_t r, std::int64_t n, double* u, double* done, int device, void* stream);

}  // namespace sf
