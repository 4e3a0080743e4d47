// G += P^T P, lower triangle, by register tiles.
//
// A tile is kTileRows rows of G by up to three vectors of columns: per row of P it takes kTileRows broadcasts and three loads for
// 3 kTileRows multiply-adds. A group of kTileRows rows of G needs its columns up to the diagonal, a whole number of vectors, so
// that only the tile on the diagonal does work twice. P is taken in blocks of rows that stay in the first-level cache.
#pragma once
#include "core/simd.h"
#include "singular_values/dense.h"

namespace sf::SF_ISA {
namespace {

constexpr int kTileRows = kLanes < 4 ? 4 : kLanes;  // rows of a register tile: a multiple of the lanes
constexpr int kTileVectors = 3;

// Terms summed up one after another before their sum is added to those of the terms before: rounding errors of sums of equal terms
// do not cancel, so that one chain over all rows would lose digits in proportion to their number.
constexpr int64_t kChain = 128;

// c (Rows x Vectors*kLanes) += a^T b, or -= where Subtract, over `depth` rows, whose sum is formed first: a's entries (k, 0..Rows) and b's
// vectors (k, 0..Vectors*kLanes).
template <int Rows, int Vectors, bool Subtract = false>
inline void add_outer_products(const double* a, int64_t lda, const double* b, int64_t ldb, int64_t depth, double* c, int64_t ldc) {
  Vec sums[Rows][Vectors];
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 3
    for (int v = 0; v < Vectors; ++v) sums[r][v] = zeros();
  for (int64_t k = 0; k < depth; ++k, a += lda, b += ldb) {
    Vec row[Vectors];
#pragma GCC unroll 3
    for (int v = 0; v < Vectors; ++v) row[v] = load(b + v * kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
      const Vec factor = broadcast(a[r]);
#pragma GCC unroll 3
      for (int v = 0; v < Vectors; ++v) sums[r][v] = fma(factor, row[v], sums[r][v]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 3
    for (int v = 0; v < Vectors; ++v) {
      const Vec before = load(c + r * ldc + v * kLanes);
      store(c + r * ldc + v * kLanes, Subtract ? sub(before, sums[r][v]) : add(before, sums[r][v]));
    }
}

// The same for `vectors` vectors in all: threes, and at the end twos rather than a single one, which would wait for its own sums.
template <int Rows, bool Subtract = false>
inline void add_outer_strip(const double* a, int64_t lda, const double* b, int64_t ldb, int64_t depth, double* c, int64_t ldc,
                            int64_t vectors) {
  int64_t at = 0;
  for (; vectors - at > 4 || vectors - at == 3; at += 3)
    add_outer_products<Rows, 3, Subtract>(a, lda, b + at * kLanes, ldb, depth, c + at * kLanes, ldc);
  for (; vectors - at >= 2; at += 2) add_outer_products<Rows, 2, Subtract>(a, lda, b + at * kLanes, ldb, depth, c + at * kLanes, ldc);
  if (at < vectors) add_outer_products<Rows, 1, Subtract>(a, lda, b + at * kLanes, ldb, depth, c + at * kLanes, ldc);
}

// Lower triangle of g += a^T b, or -= where Subtract, over `depth` rows.
template <bool Subtract>
inline void add_gram_rows(const double* a, const double* b, int64_t ldp, int64_t depth, int64_t n, double* g, int64_t ldg) {
  for (int64_t i = 0; i < n; i += kTileRows) {
    const int64_t vectors = (i + kTileRows) / kLanes;
    if (i + kTileRows <= n) {
      add_outer_strip<kTileRows, Subtract>(a + i, ldp, b, ldp, depth, g + i * ldg, ldg, vectors);
    } else {
      for (int64_t r = i; r < n; ++r) add_outer_strip<1, Subtract>(a + r, ldp, b, ldp, depth, g + r * ldg, ldg, vectors);
    }
  }
}

inline void gram(const double* p, int64_t rows, int64_t ldp, int64_t n, double* g, int64_t ldg) {
  for (int64_t k = 0; k < rows; k += kChain) {
    const int64_t depth = rows - k < kChain ? rows - k : kChain;
    add_gram_rows<false>(p + k * ldp, p + k * ldp, ldp, depth, n, g, ldg);
  }
}

}  // namespace
}  // namespace sf::SF_ISA
