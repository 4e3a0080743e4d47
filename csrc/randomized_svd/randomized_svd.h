// contract: numpy_kernels.randomized_svd
//
// Work and bytes. A matrix is read 2 blocks times (krylov) or 2 n_iter + 2 times (subspace), each time for a product with `width` columns:
// 2 m n width flops for m n entries, which bounds the time from width = 16 on. What a block is made orthogonal to costs 8 (m + n) width
// flops for each column before it. Matrices are read in place where they have the working precision and unit stride along one side, else
// converted in panels that stay in the caches. A sketch is one more pass that only adds.
#pragma once
#include <cstdint>
#include <functional>

#include "core/isa.h"
#include "core/matrices.h"

namespace sf {

struct LowRankOptions {
  std::int64_t rank = 1;    // triplets wanted, at most min(rows, cols)
  std::int64_t width = 8;   // columns of a block, at most min(rows, cols)
  std::int64_t blocks = 1;  // of the basis; with tol as many as it takes
  bool krylov = false;      // the next block is A times the last one of the rows' basis, not A times new random vectors
  std::int64_t n_iter = 2;  // where not: A A^T this many times in each block
  double tol = 0.0;         // 0: none
  std::uint64_t seed = 0;
  // Where sketch > 0: instead of random vectors the leading right singular ones of S A, that is of `sketch` random combinations of the
  // longer side's rows (columns, where these are more), from a Krylov space of sketch_blocks blocks of sketch_width columns.
  std::int64_t sketch = 0, sketch_width = 0, sketch_blocks = 0;
  const double* omega = nullptr;  // (cols, width) instead of random vectors, for the first block
  Level level = Level::baseline;
  int threads = 0;  // 0: default_threads()
  std::function<bool()> interrupted{};
};

// Of each matrix: u (rows, rank), s (rank), vt (rank, cols) in working precision (see below), contiguous and filled with zeros by the
// caller.
struct LowRankResults {
  void *u, *s, *vt;
  double* error;
  std::int64_t* ranks;
  bool* reached;
};

// float64 matrices are worked on in double precision, the others in single precision.
inline bool works_in_double(DType t) { return t == DType::f64; }

// Throws Cancelled.
void randomized_svd(const Matrices& a, const LowRankOptions& options, const LowRankResults& out);

}  // namespace sf
