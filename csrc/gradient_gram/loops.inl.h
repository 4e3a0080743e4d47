// Products of packed panels, and the sums of outer products that make a layer's own gradients.
#pragma once
#include <string.h>

#include "core/single.h"
#include "gradient_gram/gradient_gram.h"

namespace sf::SF_ISA {
namespace {

template <class T>
struct Lanes;
template <>
struct Lanes<float> {
  using Vector = Singles;
  static constexpr int count = kSingles;
};
template <>
struct Lanes<double> {
  using Vector = Vec;
  static constexpr int count = kLanes;
};

inline Singles take(const float* p) { return load_singles(p); }
inline Vec take(const double* p) { return load(p); }
inline void give(float* p, Singles a) { put_singles(p, a); }
inline void give(double* p, Vec a) { store(p, a); }
inline Singles plus(Singles a, Singles b) { return add_singles(a, b); }
inline Vec plus(Vec a, Vec b) { return add(a, b); }
inline Singles spread(float x) { return broadcast_single(x); }
inline Vec spread(double x) { return broadcast(x); }
// sum += a b, where the sum is: left to itself the compiler moves sums from register to register, and some to memory and back.
inline void accumulate(Singles& sum, Singles a, Singles b) {
#if defined(__GNUC__) && defined(__AVX2__)
  asm("vfmadd231ps %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
#else
  sum = fma_singles(a, b, sum);
#endif
}
inline void accumulate(Vec& sum, Vec a, Vec b) {
#if defined(__GNUC__) && defined(__AVX2__)
  asm("vfmadd231pd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
#else
  sum = fma(a, b, sum);
#endif
}
inline void add_doubles(double* to, Vec a) { store(to, add(load(to), a)); }
inline void add_doubles(double* to, Singles a) {
  Vec two[2];
  widen(a, two);
  add_doubles(to, two[0]);
  add_doubles(to + kLanes, two[1]);
}

constexpr int kVecs = 3;
constexpr int kRows = kLanes == 2 ? 3 : kLanes;  // 3 x 3, 4 x 3 or 8 x 3 sums in 16 or 32 registers
constexpr int64_t kChain = 128;  // terms of a sum in its own precision; two panels of as many rows are in the first-level cache

template <class T>
constexpr int64_t tile_width = kVecs * Lanes<T>::count;

template <class T>
void pack(const T* const* rows, int64_t count, int64_t cols, T* to) {
  constexpr int64_t W = tile_width<T>;
  constexpr int64_t kTogether = 64 / static_cast<int64_t>(sizeof(T));  // a cache line of each row
  int64_t k = 0;
  for (; k < cols; k += kTogether) {
    const int64_t end = k + kTogether < cols ? k + kTogether : cols;
    int64_t r = 0;
#if defined(__AVX2__)
    if constexpr (sizeof(T) == sizeof(float)) {
      for (; r + 8 <= count; r += 8) {
        int64_t h = k;
        for (; h + 8 <= end; h += 8) {
          __m256 x[8], y[8];
          for (int i = 0; i < 8; ++i) x[i] = _mm256_loadu_ps(rows[r + i] + h);
          for (int i = 0; i < 8; i += 2) {
            y[i] = _mm256_unpacklo_ps(x[i], x[i + 1]);
            y[i + 1] = _mm256_unpackhi_ps(x[i], x[i + 1]);
          }
          for (int i = 0; i < 8; i += 4) {
            x[i] = _mm256_shuffle_ps(y[i], y[i + 2], 0x44);
            x[i + 1] = _mm256_shuffle_ps(y[i], y[i + 2], 0xEE);
            x[i + 2] = _mm256_shuffle_ps(y[i + 1], y[i + 3], 0x44);
            x[i + 3] = _mm256_shuffle_ps(y[i + 1], y[i + 3], 0xEE);
          }
          for (int i = 0; i < 4; ++i) {
            _mm256_storeu_ps(to + (h + i) * W + r, _mm256_permute2f128_ps(x[i], x[i + 4], 0x20));
            _mm256_storeu_ps(to + (h + 4 + i) * W + r, _mm256_permute2f128_ps(x[i], x[i + 4], 0x31));
          }
        }
        for (; h < end; ++h)
          for (int i = 0; i < 8; ++i) to[h * W + r + i] = rows[r + i][h];
      }
    }
#endif
    for (; r < count; ++r)
      for (int64_t h = k; h < end; ++h) to[h * W + r] = rows[r][h];
    for (; r < W; ++r)
      for (int64_t h = k; h < end; ++h) to[h * W + r] = T{0};
  }
}

// Not inlined: among several in one function the compiler has no registers left for the sums.
template <class T, int Rows>
#if defined(__GNUC__)
__attribute__((noinline))
#endif
void multiply_rows(const T* a, const T* b, int64_t depth, double* out) {
  constexpr int64_t W = tile_width<T>;
  typename Lanes<T>::Vector sums[Rows][kVecs];
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 3
    for (int v = 0; v < kVecs; ++v) sums[r][v] = spread(T{0});
  for (int64_t k = 0; k < depth; ++k, a += W, b += W) {
    typename Lanes<T>::Vector line[kVecs];
#pragma GCC unroll 3
    for (int v = 0; v < kVecs; ++v) line[v] = take(b + v * Lanes<T>::count);
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
      const auto x = spread(a[r]);
#pragma GCC unroll 3
      for (int v = 0; v < kVecs; ++v) accumulate(sums[r][v], x, line[v]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 3
    for (int v = 0; v < kVecs; ++v) add_doubles(out + r * W + v * Lanes<T>::count, sums[r][v]);
}

template <class T>
void multiply(const T* a, const T* b, int64_t depth, int64_t rows, double* out) {
  constexpr int64_t W = tile_width<T>;
  static_assert(W % kRows == 0, "panels hold whole blocks of rows");
  for (int64_t k = 0; k < depth; k += kChain) {
    const int64_t here = depth - k < kChain ? depth - k : kChain;
    for (int64_t s = 0; s < rows; s += kRows) multiply_rows<T, kRows>(a + k * W + s, b + k * W, here, out + s * W);
  }
}

// out (+)= sum over positions of a(t, r) b(t, :), one panel's width of columns; out's rows are ld apart.
template <class T, int Rows>
#if defined(__GNUC__)
__attribute__((noinline))
#endif
void outer_rows(const T* a, int64_t a_stride, const T* b, int64_t b_stride, int64_t positions, bool add_to, T* out, int64_t ld) {
  typename Lanes<T>::Vector sums[Rows][kVecs];
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 3
    for (int v = 0; v < kVecs; ++v) sums[r][v] = spread(T{0});
  for (int64_t t = 0; t < positions; ++t, a += a_stride, b += b_stride) {
    typename Lanes<T>::Vector line[kVecs];
#pragma GCC unroll 3
    for (int v = 0; v < kVecs; ++v) line[v] = take(b + v * Lanes<T>::count);
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
      const auto x = spread(a[r]);
#pragma GCC unroll 3
      for (int v = 0; v < kVecs; ++v) accumulate(sums[r][v], x, line[v]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 3
    for (int v = 0; v < kVecs; ++v) {
      T* const to = out + r * ld + v * Lanes<T>::count;
      give(to, add_to ? plus(take(to), sums[r][v]) : sums[r][v]);
    }
}

template <class T>
void outer_columns(const T* a, int64_t a_stride, const T* b, int64_t b_stride, int64_t positions, int64_t rows, bool add_to, T* out,
                   int64_t ld) {
  int64_t r = 0;
  for (; r + kRows <= rows; r += kRows) outer_rows<T, kRows>(a + r, a_stride, b, b_stride, positions, add_to, out + r * ld, ld);
  for (; r + 2 <= rows; r += 2) outer_rows<T, 2>(a + r, a_stride, b, b_stride, positions, add_to, out + r * ld, ld);
  for (; r < rows; ++r) outer_rows<T, 1>(a + r, a_stride, b, b_stride, positions, add_to, out + r * ld, ld);
}

template <class T>
void outer(const T* a, int64_t a_stride, const T* b, int64_t b_stride, int64_t positions, int64_t rows, int64_t cols, T* out) {
  constexpr int64_t W = tile_width<T>;
  const int64_t whole = cols / W * W, rest = cols - whole;
  T line[kChain * W];
  T sum[kRows * W];
  for (int64_t t = 0; t < positions; t += kChain) {
    const int64_t here = positions - t < kChain ? positions - t : kChain;
    const T* const at = a + t * a_stride;
    const T* const bt = b + t * b_stride;
    for (int64_t c = 0; c < whole; c += W) outer_columns<T>(at, a_stride, bt + c, b_stride, here, rows, t > 0, out + c, cols);
    if (rest == 0) continue;
    for (int64_t h = 0; h < here; ++h) {
      for (int64_t c = 0; c < rest; ++c) line[h * W + c] = bt[h * b_stride + whole + c];
      for (int64_t c = rest; c < W; ++c) line[h * W + c] = T{0};
    }
    for (int64_t r = 0; r < rows; r += kRows) {
      const int64_t some = rows - r < kRows ? rows - r : kRows;
      outer_columns<T>(at + r, a_stride, line, W, here, some, false, sum, W);
      for (int64_t i = 0; i < some; ++i)
        for (int64_t c = 0; c < rest; ++c) {
          T* const to = out + (r + i) * cols + whole + c;
          *to = t == 0 ? sum[i * W + c] : *to + sum[i * W + c];
        }
    }
  }
}

template <class T>
void sum_rows(const double* x, const double* y, int64_t from, int64_t to, double* sums) {
  constexpr int64_t W = tile_width<T>;
  static_assert(W % kLanes == 0, "whole vectors of doubles");
  for (int64_t r = from; r < to; ++r)
    for (int64_t c = 0; c < W; c += kLanes) store(sums + c, fma(load(x + r * W + c), load(y + r * W + c), load(sums + c)));
}

}  // namespace
}  // namespace sf::SF_ISA
