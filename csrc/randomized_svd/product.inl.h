// Products of a matrix that is read once, in place, with thin ones that stay in the caches. The matrix is read as scalars that are spread
// over the vectors, the thin matrix and the result as vectors along their rows: neither has to be packed or transposed.
#pragma once
#include <string.h>

#include "core/lanes.h"
#include "randomized_svd/convert.inl.h"
#include "randomized_svd/loops.h"

namespace sf::SF_ISA {
namespace {

// An entry in all lanes. One of bfloat16 is taken from the pair of which it is the low or the high half, as the upper 16 bits of a float.
enum class Half { none, low, high };  // none: there is no pair to take it from
template <Half kHalf>
inline Singles spread(const float* a) {
  return all(*a);
}
template <Half kHalf>
inline Vec spread(const double* a) {
  return all(*a);
}
template <Half kHalf>
inline Singles spread(const uint16_t* a) {
  if constexpr (kHalf == Half::none) {
    return all(float_of_bfloat16(*a));
  } else {
#if defined(__AVX512F__) || defined(__AVX2__)
    int32_t pair;
    memcpy(&pair, kHalf == Half::high ? a - 1 : a, sizeof pair);
#if defined(__AVX512F__)
    const __m512i x = _mm512_set1_epi32(pair);
    return _mm512_castsi512_ps(kHalf == Half::high ? _mm512_and_si512(x, _mm512_set1_epi32(INT32_MIN >> 15)) : _mm512_slli_epi32(x, 16));
#else
    const __m256i x = _mm256_set1_epi32(pair);
    return _mm256_castsi256_ps(kHalf == Half::high ? _mm256_and_si256(x, _mm256_set1_epi32(INT32_MIN >> 15)) : _mm256_slli_epi32(x, 16));
#endif
#else
    return all(float_of_bfloat16(*a));
#endif
  }
}

// Keeps the compiler from loading a pair once for both halves, or many pairs in advance: it would have no registers left for the sums.
template <class E>
inline void forget_pair() noexcept {
#if defined(__GNUC__)
  if constexpr (sizeof(E) == sizeof(uint16_t)) asm volatile("" ::: "memory");
#endif
}

constexpr int64_t kTogether = 64;  // rows of the matrix that are added to a result at a time

constexpr int64_t kAhead = 128;  // bytes along each row that are fetched in advance

// Rows of the matrix in a register tile with this many vectors.
constexpr int tile_rows(int vectors) { return vectors == 1 ? 8 : vectors == 2 ? 6 : 4; }

// sums += (the entries of column a of a matrix) (row x)
template <Half kHalf, class T, class E, class Vector, int Rows, int Vectors>
inline void add_products(Vector (&sums)[Rows][Vectors], const E* a, int64_t lda, const T* x) {
  Vector line[Vectors];
#pragma GCC unroll 3
  for (int v = 0; v < Vectors; ++v) line[v] = get(x + v * Lanes<T>::count);
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r) {
    const Vector factor = spread<kHalf>(a + r * lda);
#pragma GCC unroll 3
    for (int v = 0; v < Vectors; ++v) accumulate(sums[r][v], factor, line[v]);
    forget_pair<E>();
  }
}

// Not inlined: among several in one function the compiler has no registers left for the sums.
template <class T, class E, int Rows, int Vectors>
#if defined(__GNUC__)
__attribute__((noinline))
#endif
void rows_tile(const E* a, int64_t lda, int64_t depth, const T* x, int64_t ldx, T* y, int64_t ldy) {
  constexpr int L = Lanes<T>::count;
  typename Lanes<T>::Vector sums[Rows][Vectors];
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 3
    for (int v = 0; v < Vectors; ++v) sums[r][v] = all(T{0});
  constexpr int kLine = 64 / sizeof(E);
  int64_t k = 0;
  for (; k + kLine <= depth; k += kLine) {
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) __builtin_prefetch(a + (Rows + r) * lda + k);  // for the next tile
    for (int64_t h = k; h < k + kLine; h += 2) {
      add_products<Half::low>(sums, a + h, lda, x);
      add_products<Half::high>(sums, a + h + 1, lda, x + ldx);
      x += 2 * ldx;
    }
  }
  for (; k < depth; ++k, x += ldx) add_products<Half::none>(sums, a + k, lda, x);
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 3
    for (int v = 0; v < Vectors; ++v) put(y + r * ldy + v * L, plus(get(y + r * ldy + v * L), sums[r][v]));
}

// All rows times `Vectors` vectors of x.
template <class T, class E, int Vectors>
inline void rows_strip(const E* a, int64_t lda, int64_t rows, int64_t depth, const T* x, int64_t ldx, T* y, int64_t ldy) {
  constexpr int R = tile_rows(Vectors);
  int64_t i = 0;
  for (; i + R <= rows; i += R) rows_tile<T, E, R, Vectors>(a + i * lda, lda, depth, x, ldx, y + i * ldy, ldy);
  for (; i + 2 <= rows; i += 2) rows_tile<T, E, 2, Vectors>(a + i * lda, lda, depth, x, ldx, y + i * ldy, ldy);
  for (; i < rows; ++i) rows_tile<T, E, 1, Vectors>(a + i * lda, lda, depth, x, ldx, y + i * ldy, ldy);
}

template <class T, class E>
void rows_product(const E* a, int64_t lda, int64_t rows, int64_t depth, const T* x, int64_t ldx, int64_t width, T* y, int64_t ldy) {
  constexpr int L = Lanes<T>::count;
  const int64_t vectors = (width + L - 1) / L;
  for (int64_t k = 0; k < depth; k += kChain) {
    const int64_t here = depth - k < kChain ? depth - k : kChain;
    const E* ak = a + k;
    const T* xk = x + k * ldx;
    int64_t v = 0;
    for (; vectors - v > 4 || vectors - v == 3; v += 3) rows_strip<T, E, 3>(ak, lda, rows, here, xk + v * L, ldx, y + v * L, ldy);
    for (; vectors - v >= 2; v += 2) rows_strip<T, E, 2>(ak, lda, rows, here, xk + v * L, ldx, y + v * L, ldy);
    if (v < vectors) rows_strip<T, E, 1>(ak, lda, rows, here, xk + v * L, ldx, y + v * L, ldy);
  }
}

template <class T, class E, int Cols, int Vectors>
inline void columns_tile(const E* a, int64_t lda, int64_t rows, const T* x, int64_t ldx, T* z, int64_t ldz) {
  constexpr int L = Lanes<T>::count;
  typename Lanes<T>::Vector sums[Cols][Vectors];
#pragma GCC unroll 8
  for (int c = 0; c < Cols; ++c)
#pragma GCC unroll 3
    for (int v = 0; v < Vectors; ++v) sums[c][v] = get(z + c * ldz + v * L);
  for (int64_t i = 0; i < rows; ++i, a += lda, x += ldx) {
    __builtin_prefetch(a + kAhead / sizeof(E));
    typename Lanes<T>::Vector line[Vectors];
#pragma GCC unroll 3
    for (int v = 0; v < Vectors; ++v) line[v] = get(x + v * L);
#pragma GCC unroll 4
    for (int c = 0; c + 1 < Cols; c += 2) {
      const auto even = spread<Half::low>(a + c);
#pragma GCC unroll 3
      for (int v = 0; v < Vectors; ++v) accumulate(sums[c][v], even, line[v]);
      forget_pair<E>();
      const auto odd = spread<Half::high>(a + c + 1);
#pragma GCC unroll 3
      for (int v = 0; v < Vectors; ++v) accumulate(sums[c + 1][v], odd, line[v]);
      forget_pair<E>();
    }
    if constexpr (Cols % 2 == 1) {
      const auto factor = spread<Half::none>(a + Cols - 1);
#pragma GCC unroll 3
      for (int v = 0; v < Vectors; ++v) accumulate(sums[Cols - 1][v], factor, line[v]);
    }
  }
#pragma GCC unroll 8
  for (int c = 0; c < Cols; ++c)
#pragma GCC unroll 3
    for (int v = 0; v < Vectors; ++v) put(z + c * ldz + v * L, sums[c][v]);
}

template <class T, class E, int Vectors>
inline void columns_strip(const E* a, int64_t lda, int64_t rows, int64_t cols, const T* x, int64_t ldx, T* z, int64_t ldz) {
  constexpr int C = tile_rows(Vectors);
  int64_t j = 0;
  for (; j + C <= cols; j += C) columns_tile<T, E, C, Vectors>(a + j, lda, rows, x, ldx, z + j * ldz, ldz);
  for (; j + 2 <= cols; j += 2) columns_tile<T, E, 2, Vectors>(a + j, lda, rows, x, ldx, z + j * ldz, ldz);
  for (; j < cols; ++j) columns_tile<T, E, 1, Vectors>(a + j, lda, rows, x, ldx, z + j * ldz, ldz);
}

template <class T, class E>
void columns_product(const E* a, int64_t lda, int64_t rows, int64_t cols, const T* x, int64_t ldx, int64_t width, T* z, int64_t ldz) {
  constexpr int L = Lanes<T>::count;
  const int64_t vectors = (width + L - 1) / L;
  for (int64_t i = 0; i < rows; i += kTogether, a += kTogether * lda, x += kTogether * ldx) {
    const int64_t here = rows - i < kTogether ? rows - i : kTogether;
    int64_t v = 0;
    for (; vectors - v > 4 || vectors - v == 3; v += 3) columns_strip<T, E, 3>(a, lda, here, cols, x + v * L, ldx, z + v * L, ldz);
    for (; vectors - v >= 2; v += 2) columns_strip<T, E, 2>(a, lda, here, cols, x + v * L, ldx, z + v * L, ldz);
    if (v < vectors) columns_strip<T, E, 1>(a, lda, here, cols, x + v * L, ldx, z + v * L, ldz);
  }
}

template <class T>
void add_to(const T* part, int64_t count, T* total) {
  for (int64_t i = 0; i < count; ++i) total[i] += part[i];
}

inline Vec wide(const double* p) { return load(p); }
inline Vec wide(const float* p) { return load_float(p); }

template <class T>
double squares(const T* a, int64_t lda, int64_t rows, int64_t cols) {
  Vec sums[4] = {zeros(), zeros(), zeros(), zeros()};
  double rest = 0.0;
  for (int64_t i = 0; i < rows; ++i, a += lda) {
    int64_t j = 0;
    for (; j + 4 * kLanes <= cols; j += 4 * kLanes) {
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) {
        const Vec x = wide(a + j + v * kLanes);
        sums[v] = fma(x, x, sums[v]);
      }
    }
    for (; j < cols; ++j) rest += static_cast<double>(a[j]) * static_cast<double>(a[j]);
  }
  return sum(add(add(sums[0], sums[1]), add(sums[2], sums[3]))) + rest;
}

void widen_single(const float* from, int64_t rows, int64_t ld, double* to) {
  for (int64_t i = 0; i < rows * ld; i += kLanes) store(to + i, load_float(from + i));
}
void widen_double(const double* from, int64_t rows, int64_t ld, double* to) {
  memcpy(to, from, static_cast<size_t>(rows * ld) * sizeof(double));
}

}  // namespace
}  // namespace sf::SF_ISA
