// Register-blocked products of small dense blocks: the inner kernels of everything here that runs at the speed of a matrix product.
//
// A block of the result is kRows x (kVecs vectors); one operand is read as scalars, the other as vectors along its rows, so that
// neither has to be transposed first:  C(r, :) op= sum_k a(r, k) b(k, :).
#pragma once
#include "core/simd.h"

namespace sf::SF_ISA {
namespace {

// Result blocks held in registers: kStripRows x kStripVecs for updates, kWideRows x kWideVecs for products with thin matrices.
constexpr int kStripVecs = 3;
constexpr int kStripRows = kLanes == 2 ? 3 : kLanes;
constexpr int kPackWidth = kStripVecs * kLanes;  // rows or columns in one packed panel
constexpr int kWideVecs = 2;
constexpr int kWideRows = kLanes == 8 ? 12 : 6;

constexpr double kNothing = 1e-250;  // a sum of squares below this is that of rounding errors of rounding errors: taken as zero

enum class Into { set, add, subtract };

// a(r, k) at a[r * a_row + k * a_step]; one of the two strides is 1 and known to the compiler.
template <int kRows, int kVecs, bool kRowsAdjacent>
inline void multiply_block(Vec (&acc)[kRows][kVecs], int64_t depth, const double* a, int64_t a_stride, const double* b, int64_t b_step) {
  for (int64_t k = 0; k < depth; ++k) {
    Vec line[kVecs];
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v) line[v] = load(b + v * kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const Vec x = broadcast(kRowsAdjacent ? a[r] : a[r * a_stride]);
#pragma GCC unroll 8
      for (int v = 0; v < kVecs; ++v) acc[r][v] = fma(x, line[v], acc[r][v]);
    }
    a += kRowsAdjacent ? a_stride : 1;
    b += b_step;
  }
}

template <int kRows, int kVecs>
inline void clear_block(Vec (&acc)[kRows][kVecs]) {
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v) acc[r][v] = zeros();
  }
}

template <Into kInto, int kRows, int kVecs>
inline void store_block(const Vec (&acc)[kRows][kVecs], double* c, int64_t ldc) {
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v) {
      double* at = c + r * ldc + v * kLanes;
      if constexpr (kInto == Into::set) {
        store(at, acc[r][v]);
      } else if constexpr (kInto == Into::add) {
        store(at, add(load(at), acc[r][v]));
      } else {
        store(at, sub(load(at), acc[r][v]));
      }
    }
  }
}

// The same, but no more than `rows` rows: there is nothing to write to below them.
template <Into kInto, int kRows, int kVecs>
inline void store_rows(const Vec (&acc)[kRows][kVecs], int64_t rows, double* c, int64_t ldc) {
  if (rows >= kRows) {
    store_block<kInto>(acc, c, ldc);
    return;
  }
  double all[kRows * kVecs * kLanes];
  store_block<Into::set>(acc, all, kVecs * kLanes);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t j = 0; j < kVecs * kLanes; ++j) {
      const double x = all[r * kVecs * kLanes + j];
      c[r * ldc + j] = kInto == Into::set ? x : kInto == Into::add ? c[r * ldc + j] + x : c[r * ldc + j] - x;
    }
  }
}

inline void prefetch_line(const double* p) {
#if defined(SF_X86)
  _mm_prefetch(reinterpret_cast<const char*>(p), _MM_HINT_T0);
#else
  (void)p;
#endif
}

// Rows of C op= rows of A times B. Sums are closed every kDepth terms: entries of equal sign and size (a matrix of ones, a common mean)
// let the rounding errors of a sum grow like the number of its terms.
constexpr int64_t kDepth = 72;

template <Into kInto, bool kRowsAdjacent, int kRows, int kVecs>
inline void multiply_rows(int64_t depth, const double* a, int64_t a_stride, const double* b, int64_t b_step, double* c, int64_t ldc) {
  constexpr Into kThen = kInto == Into::set ? Into::add : kInto;
  for (int64_t k = 0; k < depth || k == 0; k += kDepth) {
    Vec acc[kRows][kVecs];
    clear_block(acc);
    const int64_t here = depth - k < kDepth ? depth - k : kDepth;
    multiply_block<kRows, kVecs, kRowsAdjacent>(acc, here, a + k * (kRowsAdjacent ? a_stride : 1), a_stride, b + k * b_step, b_step);
    if (k == 0) {
      store_block<kInto>(acc, c, ldc);
    } else {
      store_block<kThen>(acc, c, ldc);
    }
  }
}

// C (rows x cols) op= A (rows x depth) B (depth x cols), cols a multiple of kLanes; B and C row-major, A as in multiply_block.
template <Into kInto, bool kRowsAdjacent, int kVecs>
inline void multiply_columns(int64_t rows, int64_t depth, const double* a, int64_t a_stride, const double* b, int64_t b_step, double* c,
                             int64_t ldc) {
  const int64_t a_row = kRowsAdjacent ? 1 : a_stride;
  int64_t r = 0;
  for (; r + kWideRows <= rows; r += kWideRows) {
    multiply_rows<kInto, kRowsAdjacent, kWideRows, kVecs>(depth, a + r * a_row, a_stride, b, b_step, c + r * ldc, ldc);
  }
  for (; r + 4 <= rows; r += 4) multiply_rows<kInto, kRowsAdjacent, 4, kVecs>(depth, a + r * a_row, a_stride, b, b_step, c + r * ldc, ldc);
  for (; r + 2 <= rows; r += 2) multiply_rows<kInto, kRowsAdjacent, 2, kVecs>(depth, a + r * a_row, a_stride, b, b_step, c + r * ldc, ldc);
  for (; r < rows; ++r) multiply_rows<kInto, kRowsAdjacent, 1, kVecs>(depth, a + r * a_row, a_stride, b, b_step, c + r * ldc, ldc);
}

template <Into kInto, bool kRowsAdjacent>
inline void multiply(int64_t rows, int64_t cols, int64_t depth, const double* a, int64_t a_stride, const double* b, int64_t b_step,
                     double* c, int64_t ldc) {
  int64_t j = 0;
  for (; j + kWideVecs * kLanes <= cols; j += kWideVecs * kLanes) {
    multiply_columns<kInto, kRowsAdjacent, kWideVecs>(rows, depth, a, a_stride, b + j, b_step, c + j, ldc);
  }
  for (; j < cols; j += kLanes) multiply_columns<kInto, kRowsAdjacent, 1>(rows, depth, a, a_stride, b + j, b_step, c + j, ldc);
}

// to (cols x rows) = the transpose of from (rows x cols).
inline void transpose(const double* from, int64_t rows, int64_t cols, int64_t ld_from, double* to, int64_t ld_to) {
  int64_t whole = 0;
#if defined(__AVX2__)
  whole = rows / 4 * 4;
  for (int64_t r = 0; r < whole; r += 4) {
    const double* p = from + r * ld_from;
    int64_t c = 0;
    for (; c + 4 <= cols; c += 4) {
      const __m256d x0 = _mm256_loadu_pd(p + c), x1 = _mm256_loadu_pd(p + ld_from + c);
      const __m256d x2 = _mm256_loadu_pd(p + 2 * ld_from + c), x3 = _mm256_loadu_pd(p + 3 * ld_from + c);
      const __m256d lo01 = _mm256_unpacklo_pd(x0, x1), hi01 = _mm256_unpackhi_pd(x0, x1);
      const __m256d lo23 = _mm256_unpacklo_pd(x2, x3), hi23 = _mm256_unpackhi_pd(x2, x3);
      double* q = to + c * ld_to + r;
      _mm256_storeu_pd(q, _mm256_permute2f128_pd(lo01, lo23, 0x20));
      _mm256_storeu_pd(q + ld_to, _mm256_permute2f128_pd(hi01, hi23, 0x20));
      _mm256_storeu_pd(q + 2 * ld_to, _mm256_permute2f128_pd(lo01, lo23, 0x31));
      _mm256_storeu_pd(q + 3 * ld_to, _mm256_permute2f128_pd(hi01, hi23, 0x31));
    }
    for (; c < cols; ++c) {
      for (int64_t k = 0; k < 4; ++k) to[c * ld_to + r + k] = p[k * ld_from + c];
    }
  }
#endif
  for (int64_t r = whole; r < rows; ++r) {
    const double* p = from + r * ld_from;
    for (int64_t c = 0; c < cols; ++c) to[c * ld_to + r] = p[c];
  }
}

}  // namespace
}  // namespace sf::SF_ISA
