// S A for a sparse S: every row of A is added to, or taken from, one row of each of kParts parts of the result.
#pragma once
#include "randomized_svd/product.inl.h"

namespace sf::SF_ISA {
namespace {

template <class T>
void scatter(const T* a, int64_t lda, int64_t rows, int64_t cols, const uint32_t* places, T* sums, int64_t ldsums) {
  constexpr int L = Lanes<T>::count;
  const T signs[2] = {T{1}, T{-1}};
  for (int64_t i = 0; i < rows; ++i, a += lda, places += kParts) {
    T* to[kParts];
    T sign[kParts];
    typename Lanes<T>::Vector factor[kParts];
#pragma GCC unroll 4
    for (int t = 0; t < kParts; ++t) {
      to[t] = sums + static_cast<int64_t>(places[t] >> 1) * ldsums;
      sign[t] = signs[places[t] & 1];
      factor[t] = all(sign[t]);
    }
    int64_t j = 0;
    for (; j + L <= cols; j += L) {
      const auto x = get(a + j);
#pragma GCC unroll 4
      for (int t = 0; t < kParts; ++t) put(to[t] + j, multiply_add(factor[t], x, get(to[t] + j)));
    }
    for (; j < cols; ++j)
      for (int t = 0; t < kParts; ++t) to[t][j] += sign[t] * a[j];
  }
}

template <class T>
void turn(const T* a, int64_t lda, int64_t rows, int64_t cols, T* to, int64_t ldto) {
  constexpr int64_t kSide = 8;
  for (int64_t i = 0; i < rows; i += kSide) {
    const int64_t high = rows - i < kSide ? rows - i : kSide;
    for (int64_t j = 0; j < cols; ++j)
      for (int64_t r = 0; r < high; ++r) to[j * ldto + i + r] = a[(i + r) * lda + j];
  }
}

}  // namespace
}  // namespace sf::SF_ISA
