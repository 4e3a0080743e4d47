// contract: numpy_kernels.gradient_gram
//
// Work, with R = n T rows: "positions" R^2 (p + q) flops (half of all pairs, each twice a product), "gradients" 2 n T p q for the gradients
// and n^2 p q for their Gram matrix, "rows" n^2 p. All of it is register-blocked products, bound by arithmetic: 512 samples of a layer 1024
// x 1024 are 0.54 GFLOP, 2 ms at 260 GFLOP/s in single precision, and read 4 MB. What is multiplied lies packed, in panels of tile_width()
// rows, but for gradients made here: rows of numbers, whose products are taken along them.
#pragma once
#include <cstdint>
#include <functional>

#include "core/dtype.h"
#include "core/isa.h"

namespace sf {

// (samples, positions, width) numbers, f64 or f32, of which the last axis is contiguous.
struct Positions {
  const void* data = nullptr;
  DType dtype = DType::f32;
  std::int64_t samples = 0, positions = 1, width = 0;
  std::int64_t sample_stride = 0, position_stride = 0;
};

// One side of the product: activations and output gradients; second.data null: rows, which are multiplied by themselves.
struct GramSide {
  Positions first, second;
};

enum class GramAlgorithm { positions, gradients };

struct GramOptions {
  Level level;
  int threads = 0;
  const double* times = nullptr;  // of rows: what each product is multiplied by, in the place it has in gram
  std::function<bool()> interrupted;
};

// gram (left.samples, right.samples), rows ld apart, += ...; same: right is left, and the whole symmetric matrix is written.
void gradient_gram(const GramSide& left, const GramSide& right, bool same, GramAlgorithm algorithm, double* gram, std::int64_t ld,
                   const GramOptions& options);

// The loops for one number format. A panel holds `width` rows side by side: [depth][width], rows that are missing being zero.
template <class T>
struct GramLoops {
  std::int64_t width, vectors, row_block;  // vectors: of a line of a panel
  // rows[count] -> `room` rows of a panel side by side, columns [0, cols), with zeros for rows that are missing
  void (*pack)(const T* const* rows, std::int64_t count, std::int64_t cols, std::int64_t room, T* to);
  // out [width][width] += a bᵀ of two panels, of a the first `rows` at least, in blocks of row_block; of b the first cols[block] at least;
  // short sums in T are added up as doubles
  void (*multiply)(const T* a, const T* b, std::int64_t depth, std::int64_t rows, const std::int64_t* cols, double* out);
  // out [rows][cols] = sum over positions of a(t, r) b(t, c), rows one behind the other
  void (*outer)(const T* a, std::int64_t a_stride, const T* b, std::int64_t b_stride, std::int64_t positions, std::int64_t rows,
                std::int64_t cols, T* out);
  // out [rows][cols], rows ld apart, += products of the rows of a and of b, `step` apart, where they lie; of row r only those in columns up
  // to r + diagonal are wanted. Short sums in T are added up as doubles.
  void (*dot)(const T* a, const T* b, std::int64_t step, std::int64_t rows, std::int64_t cols, std::int64_t depth, std::int64_t diagonal,
              double* out, std::int64_t ld);
  // sums [width] += over the rows [from, to) of x times y, entry by entry, [width][width] both
  void (*sum_rows)(const double* x, const double* y, std::int64_t from, std::int64_t to, double* sums);
};

}  // namespace sf
