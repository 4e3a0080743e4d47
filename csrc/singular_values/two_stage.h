// Values of large matrices: dense -> band -> (tri- or bidiagonal) -> bisection; Gram matrices of up to 512 columns without the band.
//
// The first stage works on tiles that stay in the L2 cache and does all its work as matrix products (Bischof, Lang & Sun 2000); the
// second chases the bulges of many sweeps behind one another (Lang 1993); the third is bisection on Sturm counts. A team of threads
// works on one matrix. Results depend on the matrix and the level alone, not on the number of threads, bit for bit.
//
// Matrices are row-major float64 as dense.h wants them; the padding columns may be read and written, whatever they hold. Entries are
// finite and scaled by the caller (largest magnitude about 1, of a Gram matrix within 2^80 of it): what is below 1e-125 may be taken as
// zero.
#pragma once
#include <cstdint>
#include <functional>

#include "core/isa.h"

namespace sf {

struct TwoStageSeconds {
  double gram = 0, panels = 0, passes = 0, chase = 0, bisection = 0;
};

struct TwoStageOptions {
  Level level = Level::baseline;
  int threads = 0;                      // of the team; 1 inside a task of parallel_for
  std::function<bool()> interrupted{};  // asked about every 100 ms on the calling thread; Cancelled is thrown
  TwoStageSeconds* seconds = nullptr;   // added to, where given
  bool single = false;                  // gram: products in single precision
  std::int64_t band = 0;                // width of the band: 16, 32, or 0 to choose by n
};

// Rows [first, first + count) of a matrix as float64 to out, row-major. Called from all threads of the team.
using RowSource = std::function<void(std::int64_t first, std::int64_t count, double* out, std::int64_t ld_out)>;

// G = A^T A for A (m x n): the lower triangle; what stands right of the diagonal is overwritten.
void gram(const RowSource& rows, std::int64_t m, std::int64_t n, double* g, std::int64_t ldg, const TwoStageOptions& options);

// Eigenvalues, descending, of the symmetric G given by its lower triangle; G is destroyed. Errors: a few sqrt(n) eps |lambda_1|.
void symmetric_eigenvalues(double* g, std::int64_t n, std::int64_t ldg, double* values, const TwoStageOptions& options);

// Singular values, descending, of A (n x n); A is destroyed. Errors: a few sqrt(n) eps s_1.
void square_singular_values(double* a, std::int64_t n, std::int64_t lda, double* values, const TwoStageOptions& options);

}  // namespace sf
