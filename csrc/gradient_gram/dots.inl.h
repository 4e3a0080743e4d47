// Products of rows where they lie: vectors run along the rows, so that nothing has to be packed.
#pragma once
#include <stdint.h>
#include <string.h>

#include "core/lanes.h"

namespace sf::SF_ISA {
namespace {

// The sums of the lanes of four vectors, each a tree, as doubles. What numbers of vectors lie side by side makes no difference to the sums.
#if defined(__AVX512F__)
inline __m256 halves(__m512 x) { return _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1)); }
inline __m256d halves(__m512d x) { return _mm256_add_pd(_mm512_castpd512_pd256(x), _mm512_extractf64x4_pd(x, 1)); }
#elif defined(__AVX2__)
inline __m256 halves(__m256 x) { return x; }
inline __m256d halves(__m256d x) { return x; }
#endif
#if defined(__AVX2__)
inline __m256d four_totals(Singles a, Singles b, Singles c, Singles d) {
  const __m256 sums = _mm256_hadd_ps(_mm256_hadd_ps(halves(a), halves(b)), _mm256_hadd_ps(halves(c), halves(d)));
  return _mm256_cvtps_pd(_mm_add_ps(_mm256_castps256_ps128(sums), _mm256_extractf128_ps(sums, 1)));
}
inline __m256d four_totals(Vec a, Vec b, Vec c, Vec d) {
  const __m256d one = _mm256_hadd_pd(halves(a), halves(b)), two = _mm256_hadd_pd(halves(c), halves(d));
  return _mm256_add_pd(_mm256_permute2f128_pd(one, two, 0x20), _mm256_permute2f128_pd(one, two, 0x31));
}
template <int Count>
inline void add_totals(double* to, __m256d found) {
  if constexpr (Count == 4) {
    _mm256_storeu_pd(to, _mm256_add_pd(_mm256_loadu_pd(to), found));
  } else {
    static_assert(Count == 1, "four or one");
    to[0] += _mm256_cvtsd_f64(found);
  }
}
#else
inline double total(Singles x) {
  float apart[kSingles];
  put(apart, x);
  for (int half = kSingles / 2; half > 0; half /= 2)
    for (int k = 0; k < half; ++k) apart[k] += apart[k + half];
  return static_cast<double>(apart[0]);
}
inline double total(Vec x) {
  double apart[kLanes], sum = 0.0;
  put(apart, x);
  for (const double term : apart) sum += term;
  return sum;
}
#endif

template <class T>
inline void ask_for(const T* p) {
#if defined(__GNUC__)
  __builtin_prefetch(p);
#endif
}

constexpr int kDotRows = kLanes == 8 ? 6 : 3, kDotCols = kLanes == 2 ? 3 : 4;  // sums in 32 or 16 registers

// Terms of a chunk: the lanes' chains are no longer than 120, and kDotRows + kDotCols rows of a chunk stay in the first-level cache.
template <class T>
constexpr int64_t kChunk = 120 * Lanes<T>::count * sizeof(T) < 2560 ? 120 * Lanes<T>::count : static_cast<int64_t>(2560 / sizeof(T));

template <class T, int Rows, int Cols>
SF_APART void dot_block(const T* a, int64_t a_step, const T* b, int64_t b_step, int64_t depth, const T* next, double* out, int64_t ld) {
  constexpr int64_t L = Lanes<T>::count;
  using Vector = typename Lanes<T>::Vector;
  Vector sums[Rows][Cols];
#pragma GCC unroll 6
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
    for (int c = 0; c < Cols; ++c) sums[r][c] = all(T{0});
  int64_t k = 0;
  for (; k + L <= depth; k += L) {
#pragma GCC unroll 4
    for (int c = 0; c < Cols; ++c) ask_for(next + c * b_step + k);
    Vector line[Cols];
#pragma GCC unroll 4
    for (int c = 0; c < Cols; ++c) line[c] = get(b + c * b_step + k);
#pragma GCC unroll 6
    for (int r = 0; r < Rows; ++r) {
      const Vector own = get(a + r * a_step + k);
#pragma GCC unroll 4
      for (int c = 0; c < Cols; ++c) accumulate(sums[r][c], own, line[c]);
    }
  }
#pragma GCC unroll 6
  for (int r = 0; r < Rows; ++r) {
#if defined(__AVX2__)
    constexpr int kLast = Cols - 1;  // every index a constant: the sums stay in registers
    add_totals<Cols>(out + r * ld, four_totals(sums[r][0], sums[r][1 < Cols ? 1 : kLast], sums[r][2 < Cols ? 2 : kLast], sums[r][kLast]));
#else
#pragma GCC unroll 4
    for (int c = 0; c < Cols; ++c) out[r * ld + c] += total(sums[r][c]);
#endif
  }
  if (k < depth) {
    T x[Rows * L] = {}, y[Cols * L] = {};
    for (int r = 0; r < Rows; ++r) memcpy(x + r * L, a + r * a_step + k, static_cast<size_t>(depth - k) * sizeof(T));
    for (int c = 0; c < Cols; ++c) memcpy(y + c * L, b + c * b_step + k, static_cast<size_t>(depth - k) * sizeof(T));
    dot_block<T, Rows, Cols>(x, L, y, L, L, y, out, ld);
  }
}

// next: rows that are wanted afterwards, kDotCols of them unless cols is less.
template <class T, int Rows>
void dot_columns(const T* a, const T* b, int64_t step, int64_t cols, int64_t depth, const T* next, double* out, int64_t ld) {
  int64_t c = 0;
  for (; c + kDotCols <= cols; c += kDotCols) {
    const T* const here = b + c * step;
    dot_block<T, Rows, kDotCols>(a, step, here, step, depth, c + 2 * kDotCols <= cols ? here + kDotCols * step : next, out + c, ld);
  }
  for (; c < cols; ++c) dot_block<T, Rows, 1>(a, step, b + c * step, step, depth, next, out + c, ld);
}

template <class T>
void dot(const T* a, const T* b, int64_t step, int64_t rows, int64_t cols, int64_t depth, int64_t diagonal, double* out, int64_t ld) {
  for (int64_t k = 0; k < depth; k += kChunk<T>, a += kChunk<T>, b += kChunk<T>) {
    const int64_t here = depth - k < kChunk<T> ? depth - k : kChunk<T>;
    const auto until = [&](int64_t last) { return last + diagonal + 1 < cols ? last + diagonal + 1 : cols; };
    int64_t r = 0;
    for (; r + kDotRows <= rows; r += kDotRows) {
      const T* const next = r + kDotRows + kDotCols <= rows ? a + (r + kDotRows) * step : b;
      dot_columns<T, kDotRows>(a + r * step, b, step, until(r + kDotRows - 1), here, next, out + r * ld, ld);
    }
    for (; r + 2 <= rows; r += 2) dot_columns<T, 2>(a + r * step, b, step, until(r + 1), here, b, out + r * ld, ld);
    for (; r < rows; ++r) dot_columns<T, 1>(a + r * step, b, step, until(r), here, b, out + r * ld, ld);
  }
}

}  // namespace
}  // namespace sf::SF_ISA
