// contract: numpy_kernels.orthogonalize, numpy_kernels.recombine
//
// Work and bytes. orthogonalize: three passes of the basis (one gives the dots, one subtracts them and takes dots again while a stripe of
// columns is in the second-level cache, one subtracts those), 8 t b flops a column. With b = 1 every pass is bound by memory: t rows of 20
// million floats at 25 GB/s take 64 ms for t = 20, the arithmetic on two cores some 20. recombine: one pass, 2 m q flops a column.
#pragma once
#include <cstdint>
#include <functional>

#include "core/dtype.h"
#include "core/isa.h"

namespace sf {

// Rows of n numbers that somebody else owns, `stride` numbers apart; f64, f32 or bf16.
struct Rows {
  void* data;
  DType dtype;
  std::int64_t n, stride;
};

struct KrylovOptions {
  Level level;
  int threads = 0;
  double relative = 0.0;
  std::int64_t room = 0;  // rows the basis may have
  // Adds up `count` numbers over all processes that hold columns, in place; empty where there is one.
  std::function<void(double* sums, std::int64_t count)> reduce;
};

// w: b rows of f64 or f32. floor [b]; coefficients [t + b][b]; kept [b].
void orthogonalize(const Rows& basis, std::int64_t t, const Rows& w, std::int64_t b, const double* floor, double* coefficients, bool* kept,
                   const KrylovOptions& options);

// s [m][q].
void recombine(const Rows& basis, std::int64_t m, const double* s, std::int64_t q, const Rows& into, const KrylovOptions& options);

// The loops, for a stripe of `cols` columns. x: the vectors' part as doubles, [b][ldx], ldx a multiple of 8.
struct Stripe {
  const void* rows;  // of the basis, at the stripe's first column
  DType dtype;
  std::int64_t count, stride, cols;
  double* x;
  std::int64_t b, ldx;
  bool near = false;  // the rows are in the second-level cache already
};

struct KrylovLoops {
  void (*load)(const void* from, DType dtype, std::int64_t cols, double* x);
  void (*save)(const double* x, std::int64_t cols, double factor, void* to, DType dtype);  // to = x * factor, rounded
  void (*subtract)(const Stripe& stripe, const double* c);                                 // x -= cᵀ rows, c [count][b]
  void (*dots)(const Stripe& stripe, double* out);                                         // out [count][b] = rows xᵀ
  void (*squares)(const Stripe& stripe, double* out);                                      // out [b]
  void (*combine)(const Stripe& stripe, const double* s);                                  // x = sᵀ rows, s [count][b]
};

}  // namespace sf
