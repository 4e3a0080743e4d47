// Loops over kLanes matrices at once, one matrix per lane of a vector; compiled once per instruction set.
#pragma once
#include <stdint.h>

#include "core/matrices.h"

namespace sf {

// Bidiagonals or tridiagonals of a whole batch: for each block of `lanes` matrices n vectors of diagonals and n of off-diagonals (the
// last one unused), vector k of block g at (g * n + k) * lanes.
struct LaneLoops {
  int lanes;

  // Copies matrices first .. first + lanes - 1 of `a` (zeros beyond the batch) to `to`, column by column, element (i, j) at
  // (j * rows + i) * lanes. exponents[lane]: the largest entry divided by 2^exponent is in [0.5, 1); what can over- or underflow when
  // squared (see scaled_when_packed) is divided at once. A matrix with a NaN or an infinity becomes zero and its exponent kNotFinite.
  void (*pack)(const Matrices& a, int64_t first, double* to, int* exponents);

  // Of rows first .. first + count - 1 of one matrix: the largest magnitude, NaN where an entry is NaN or infinite; and the rows, divided
  // by 2^exponent, to out.
  double (*largest_entry)(const Matrices& a, int64_t matrix, int64_t first, int64_t count);
  void (*load_rows)(const Matrices& a, int64_t matrix, int64_t first, int64_t count, int exponent, double* out, int64_t ld);

  // Divides the bidiagonals of matrices that were not scaled when packed.
  void (*rescale)(double* d, double* e, int64_t n, const int* exponents);

  // `blocks` (1 .. kMaxBlocks) blocks of packed matrices (m x n, m >= n, destroyed), one behind the other, to upper bidiagonals d, e.
  // work: 2 (m + n) vectors for each block.
  void (*bidiagonalize)(double* a, int64_t m, int64_t n, int blocks, double* d, double* e, double* work);

  // Bidiagonals (d, e) to the tridiagonals of B^T B as (diagonal, squared off-diagonal).
  void (*square)(const double* d, const double* e, int64_t n, double* diagonal, double* off2);

  // Eigenvalues of `blocks` (1 .. kMaxBlocks) blocks of symmetric tridiagonals, given as (diagonal, squared off-diagonal); both are
  // destroyed, the eigenvalues stand in `diagonal`, unordered, each to a few ulps of its matrix's largest. failed[block]: a bit for every
  // lane that did not converge.
  void (*root_free_qr)(double* diagonal, double* off2, int64_t n, int blocks, unsigned* failed);

  // Squared singular values of `blocks` (1 .. kMaxBlocks) blocks of upper bidiagonals, unordered, each value's root right to a few ulps of
  // its matrix's largest. work: 2 n vectors for each block. failed[block]: a bit for every lane that did not converge.
  void (*qd)(const double* d, const double* e, int64_t n, int blocks, double* values, double* work, unsigned* failed);

  // Singular values of one bidiagonal (arrays with the given stride) in s[0 .. n), ascending, by bisection to within 2^-53 of the
  // largest; work: 2 n doubles.
  void (*bisect)(const double* d, const double* e, int64_t stride, int64_t n, double* s, double* work);

  // Sorts each lane descending.
  void (*sort)(double* values, int64_t n, int blocks);

  // Square roots of a block's values (negative ones count as zero) times 2^exponents[lane], NaN for kNotFinite, to `used` rows of s.
  void (*finish)(double* values, int64_t n, const int* exponents, int used, double* s);
};

// Sums of squares of the other formats' entries neither overflow nor come near the thresholds for zero.
static inline bool scaled_when_packed(DType t) { return t == DType::f64; }

constexpr int kMaxBlocks = 4;
constexpr int kMostLanes = 8;
constexpr int kNotFinite = 1 << 30;

}  // namespace sf
