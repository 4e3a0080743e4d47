// P^T P with products in single precision, for accuracy "fast": twice the lanes of a double. Sums are closed every kSingleDepth terms and
// added up as doubles, so that the error of an entry is at most kSingleDepth 2^-24 |P|^T |P|.
#pragma once
#include "core/single.h"
#include "singular_values/product.inl.h"

namespace sf::SF_ISA {
namespace {

constexpr int kSingleWidth = kStripVecs * kSingles;  // rows or columns in one packed panel
constexpr int64_t kSingleDepth = 64;

void pack_transposed_single(const double* p, int64_t rows, int64_t ldp, int64_t n, int64_t k, int64_t depth, float* pack) {
  for (int64_t j = 0; j < n; j += kSingleWidth) {
    float* to = pack + j * depth + k * kSingleWidth;
    for (int64_t i = 0; i < rows; ++i, to += kSingleWidth) {
      const double* from = p + i * ldp + j;
      if (j + kSingleWidth <= n) {
        for (int v = 0; v < kSingleWidth; v += kSingles) store_singles(to + v, from + v);
      } else {
        for (int c = 0; c < kSingleWidth; ++c) to[c] = j + c < n ? static_cast<float>(from[c]) : 0.0f;
      }
    }
  }
}

// kStripRows rows times one panel of columns; the result has `rows` rows and `cols` columns left.
template <Into kInto>
inline void single_block(const float* a, const float* b, int64_t depth, int64_t rows, int64_t cols, double* c, int64_t ldc) {
  Singles acc[kStripRows][kStripVecs];
#pragma GCC unroll 16
  for (int r = 0; r < kStripRows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < kStripVecs; ++v) acc[r][v] = broadcast_single(0.0f);
  }
  for (int64_t k = 0; k < depth; ++k, a += kSingleWidth, b += kSingleWidth) {
    Singles line[kStripVecs];
#pragma GCC unroll 8
    for (int v = 0; v < kStripVecs; ++v) line[v] = load_singles(b + v * kSingles);
#pragma GCC unroll 16
    for (int r = 0; r < kStripRows; ++r) {
      const Singles x = broadcast_single(a[r]);
#pragma GCC unroll 8
      for (int v = 0; v < kStripVecs; ++v) acc[r][v] = fma_singles(x, line[v], acc[r][v]);
    }
  }
  const bool whole = rows >= kStripRows && cols >= kSingleWidth;
  double part[kSingleWidth];
  for (int r = 0; r < kStripRows && r < rows; ++r) {
    double* to = whole ? c + r * ldc : part;
    for (int v = 0; v < kStripVecs; ++v) {
      Vec two[2];
      widen(acc[r][v], two);
      for (int h = 0; h < 2; ++h) {
        double* at = to + v * kSingles + h * kLanes;
        store(at, kInto == Into::set || !whole ? two[h] : add(load(at), two[h]));
      }
    }
    for (int64_t j = 0; !whole && j < kSingleWidth && j < cols; ++j)
      c[r * ldc + j] = kInto == Into::set ? part[j] : c[r * ldc + j] + part[j];
  }
}

// As gram() of gram_blocks.inl.h.
void gram_single(const float* pack, int64_t depth, int64_t n, int64_t first, int64_t end, bool fresh, double* g, int64_t ldg) {
  for (int64_t panel_j = 0; panel_j < end; ++panel_j) {
    for (int64_t k = 0; k < depth; k += kSingleDepth) {
      const int64_t here = k + kSingleDepth < depth ? kSingleDepth : depth - k;
      for (int64_t panel_i = panel_j > first ? panel_j : first; panel_i < end; ++panel_i) {
        const float* b = pack + (panel_j * depth + k) * kSingleWidth;
        for (int64_t s = 0; s < kSingleWidth && panel_i * kSingleWidth + s < n; s += kStripRows) {
          const int64_t i = panel_i * kSingleWidth + s, j = panel_j * kSingleWidth;
          const float* a = pack + (panel_i * depth + k) * kSingleWidth + s;
          if (fresh && k == 0) {
            single_block<Into::set>(a, b, here, n - i, n - j, g + i * ldg + j, ldg);
          } else {
            single_block<Into::add>(a, b, here, n - i, n - j, g + i * ldg + j, ldg);
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace sf::SF_ISA
