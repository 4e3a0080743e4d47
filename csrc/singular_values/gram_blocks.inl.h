// P^T P at the speed of a matrix product, in blocks of rows of the result.
#pragma once
#include "singular_values/product.inl.h"

namespace sf::SF_ISA {
namespace {

constexpr int64_t kGramInner = 1536 / kPackWidth;  // depth of one pass: a panel of each operand takes 12 KB of the L1 cache

void pack_transposed(const double* p, int64_t rows, int64_t ldp, int64_t n, int64_t k, int64_t depth, double* pack) {
  for (int64_t j = 0; j < n; j += kPackWidth) {
    double* to = pack + j * depth + k * kPackWidth;
    for (int64_t i = 0; i < rows; ++i, to += kPackWidth) {
      const double* from = p + i * ldp + j;
      if (j + kPackWidth <= n) {
        for (int v = 0; v < kStripVecs; ++v) store(to + v * kLanes, load(from + v * kLanes));
      } else {
        for (int c = 0; c < kPackWidth; ++c) to[c] = j + c < n ? from[c] : 0.0;
      }
    }
  }
}

// One block of kStripRows x (kVecs vectors) of a result that has `rows` rows left.
template <Into kInto, int kVecs>
inline void gram_block(const double* a, const double* b, int64_t depth, int64_t rows, double* c, int64_t ldc) {
  Vec acc[kStripRows][kVecs];
  clear_block(acc);
  multiply_block<kStripRows, kVecs, true>(acc, depth, a, kPackWidth, b, kPackWidth);
  store_rows<kInto>(acc, rows, c, ldc);
}

template <Into kInto>
inline void gram_panels(const double* pack, int64_t depth, int64_t from, int64_t to, int64_t n, int64_t panel_i, int64_t panel_j, double* g,
                        int64_t ldg) {
  const double* b = pack + panel_j * depth * kPackWidth + from * kPackWidth;
  const int64_t j = panel_j * kPackWidth, vecs = n - j >= kPackWidth ? kStripVecs : (n - j + kLanes - 1) / kLanes;
  for (int64_t s = 0; s < kPackWidth && panel_i * kPackWidth + s < n; s += kStripRows) {
    const int64_t i = panel_i * kPackWidth + s;
    const double* a = pack + panel_i * depth * kPackWidth + from * kPackWidth + s;
    double* c = g + i * ldg + j;
    if (vecs == 3) {
      gram_block<kInto, 3>(a, b, to - from, n - i, c, ldg);
    } else if (vecs == 2) {
      gram_block<kInto, 2>(a, b, to - from, n - i, c, ldg);
    } else {
      gram_block<kInto, 1>(a, b, to - from, n - i, c, ldg);
    }
  }
}

void gram(const double* pack, int64_t depth, int64_t n, int64_t first, int64_t end, bool fresh, double* g, int64_t ldg) {
  for (int64_t panel_j = 0; panel_j < end; ++panel_j) {
    for (int64_t k = 0; k < depth; k += kGramInner) {
      const int64_t to = k + kGramInner < depth ? k + kGramInner : depth;
      for (int64_t panel_i = panel_j > first ? panel_j : first; panel_i < end; ++panel_i) {
        if (fresh && k == 0) {
          gram_panels<Into::set>(pack, depth, k, to, n, panel_i, panel_j, g, ldg);
        } else {
          gram_panels<Into::add>(pack, depth, k, to, n, panel_i, panel_j, g, ldg);
        }
      }
      if (k != 0 || panel_j + 1 >= end) continue;
      // the entries that the next panel of columns will be added to, while there is still work on this one
      for (int64_t i = first * kPackWidth; i < end * kPackWidth && i < n; ++i) prefetch_line(g + i * ldg + (panel_j + 2) * kPackWidth - 1);
    }
  }
}

}  // namespace
}  // namespace sf::SF_ISA
