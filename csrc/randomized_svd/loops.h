// Products with thin matrices and a small singular value decomposition, compiled once per instruction set. They know nothing of threads.
//
// A thin matrix is row-major with a leading dimension that is a multiple of `lanes`; what stands in its rows behind its width is zero, or
// read and written without meaning. Every sum is closed after kChain terms and added to those before, in this order, whatever part of a
// result a call computes: parts and threads change no bit.
#pragma once
#include <stdint.h>

#include "core/dtype.h"
#include "core/isa.h"

namespace sf {

static constexpr int64_t kChain = 256;  // rounding errors of one long chain would grow with its length
static constexpr int kParts = 4;        // of a sparse sketch

template <class T>
struct ProductLoops {
  int64_t lanes;

  // y (rows x width) += a (rows x depth) x (depth x width).
  void (*rows)(const T* a, int64_t lda, int64_t rows, int64_t depth, const T* x, int64_t ldx, int64_t width, T* y, int64_t ldy);
  // z (cols x width) += a^T x for `rows` <= kChain rows of a and x.
  void (*columns)(const T* a, int64_t lda, int64_t rows, int64_t cols, const T* x, int64_t ldx, int64_t width, T* z, int64_t ldz);
  // The same for the bits of bfloat16; none in double precision.
  void (*rows_of_bfloat16)(const uint16_t* a, int64_t lda, int64_t rows, int64_t depth, const T* x, int64_t ldx, int64_t width, T* y,
                           int64_t ldy);
  void (*columns_of_bfloat16)(const uint16_t* a, int64_t lda, int64_t rows, int64_t cols, const T* x, int64_t ldx, int64_t width, T* z,
                              int64_t ldz);
  // total (count) += part (count)
  void (*add)(const T* part, int64_t count, T* total);
  // Sum of squares, in double precision.
  double (*squares)(const T* a, int64_t lda, int64_t rows, int64_t cols);
  // A part of a strided matrix of any format, times `scale`.
  void (*convert)(const void* from, DType dtype, int64_t row_stride, int64_t col_stride, int64_t rows, int64_t cols, double scale, T* to,
                  int64_t ldto);
  // Asks for rows of `bytes` bytes each to be brought nearer. (Never inlined: GCC takes a function that does nothing else for one without
  // effect.)
  void (*fetch)(const char* from, int64_t stride, int64_t rows, int64_t bytes);
  // A thin matrix as doubles.
  void (*widen)(const T* from, int64_t rows, int64_t ld, double* to);
  // Row i of a (rows x cols) is added to the rows places[4 i + t] / 2 of sums, t = 0 ... 3, or subtracted where that number is odd.
  void (*scatter)(const T* a, int64_t lda, int64_t rows, int64_t cols, const uint32_t* places, T* sums, int64_t ldsums);
  // to (cols x rows) = a^T
  void (*turn)(const T* a, int64_t lda, int64_t rows, int64_t cols, T* to, int64_t ldto);
};

struct LowRankLoops {
  int64_t lanes;  // of a double
  ProductLoops<float> single;
  ProductLoops<double> twice;

  // One sweep of one-sided Jacobi rotations over all pairs of the 2 h columns of x (rows x 2 h, row-major), h a multiple of `lanes`. work:
  // 2 h doubles. Returns whether a pair with a larger cosine than `cosine` was met.
  bool (*jacobi)(double* x, int64_t rows, int64_t h, double cosine, double* work);
};

}  // namespace sf
