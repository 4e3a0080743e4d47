// Products of packed panels, and the sums of outer products that make a layer's own gradients.
#pragma once
#include <string.h>

#include "core/lanes.h"
#include "gradient_gram/dots.inl.h"
#include "gradient_gram/gradient_gram.h"

namespace sf::SF_ISA {
namespace {

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
void pack(const T* const* rows, int64_t count, int64_t cols, int64_t room, T* to) {
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
    for (; r < room; ++r)
      for (int64_t h = k; h < end; ++h) to[h * W + r] = T{0};
  }
}

// sums += over `depth` lines of a (Rows numbers each) and b (Vecs vectors each).
template <class T, int Rows, int Vecs, class Put>
inline void outer_products(const T* a, int64_t a_step, const T* b, int64_t b_step, int64_t depth, const Put& put_away) {
  typename Lanes<T>::Vector sums[Rows][Vecs];
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 3
    for (int v = 0; v < Vecs; ++v) sums[r][v] = all(T{0});
  for (int64_t k = 0; k < depth; ++k, a += a_step, b += b_step) {
    typename Lanes<T>::Vector line[Vecs];
#pragma GCC unroll 3
    for (int v = 0; v < Vecs; ++v) line[v] = get(b + v * Lanes<T>::count);
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
      const auto x = all(a[r]);
#pragma GCC unroll 3
      for (int v = 0; v < Vecs; ++v) accumulate(sums[r][v], x, line[v]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 3
    for (int v = 0; v < Vecs; ++v) put_away(r, v, sums[r][v]);
}

template <class T, int Vecs>
SF_APART void multiply_rows(const T* a, const T* b, int64_t depth, double* out) {
  constexpr int64_t W = tile_width<T>;
  outer_products<T, kRows, Vecs>(a, W, b, W, depth, [&](int r, int v, auto sum) { add_doubles(out + r * W + v * Lanes<T>::count, sum); });
}

template <class T>
void multiply(const T* a, const T* b, int64_t depth, int64_t rows, const int64_t* cols, double* out) {
  constexpr int64_t W = tile_width<T>;
  static_assert(W % kRows == 0 && W / kRows <= 8, "panels hold whole blocks of rows");
  static_assert(kVecs == 3, "a case for each number of vectors");
  for (int64_t k = 0; k < depth; k += kChain) {
    const int64_t here = depth - k < kChain ? depth - k : kChain;
    for (int64_t s = 0; s < rows; s += kRows) {
      const T* const as = a + k * W + s;
      const T* const bs = b + k * W;
      const int64_t vecs = (cols[s / kRows] + Lanes<T>::count - 1) / Lanes<T>::count;
      if (vecs >= 3) {
        multiply_rows<T, 3>(as, bs, here, out + s * W);
      } else if (vecs == 2) {
        multiply_rows<T, 2>(as, bs, here, out + s * W);
      } else if (vecs == 1) {
        multiply_rows<T, 1>(as, bs, here, out + s * W);
      }
    }
  }
}

// out (+)= sum over positions of a(t, r) b(t, :), some vectors of columns; out's rows are ld apart.
template <class T, int Rows, int Vecs>
SF_APART void outer_rows(const T* a, int64_t a_stride, const T* b, int64_t b_stride, int64_t positions, bool add_to, T* out, int64_t ld) {
  T before[Rows][Vecs * Lanes<T>::count];
  for (int r = 0; add_to && r < Rows; ++r) memcpy(before[r], out + r * ld, sizeof before[r]);
  outer_products<T, Rows, Vecs>(a, a_stride, b, b_stride, positions,
                                [&](int r, int v, auto sum) { put(out + r * ld + v * Lanes<T>::count, sum); });
  for (int r = 0; add_to && r < Rows; ++r)
    for (int c = 0; c < Vecs * Lanes<T>::count; ++c) out[r * ld + c] += before[r][c];
}

template <class T, int Vecs>
void outer_columns(const T* a, int64_t a_stride, const T* b, int64_t b_stride, int64_t positions, int64_t rows, bool add_to, T* out,
                   int64_t ld) {
  int64_t r = 0;
  for (; r + kRows <= rows; r += kRows) outer_rows<T, kRows, Vecs>(a + r, a_stride, b, b_stride, positions, add_to, out + r * ld, ld);
  for (; r + 2 <= rows; r += 2) outer_rows<T, 2, Vecs>(a + r, a_stride, b, b_stride, positions, add_to, out + r * ld, ld);
  for (; r < rows; ++r) outer_rows<T, 1, Vecs>(a + r, a_stride, b, b_stride, positions, add_to, out + r * ld, ld);
}

template <class T>
void outer(const T* a, int64_t a_stride, const T* b, int64_t b_stride, int64_t positions, int64_t rows, int64_t cols, T* out) {
  constexpr int64_t L = Lanes<T>::count;
  static_assert(kVecs == 3, "a case for each number of vectors");
  const int64_t whole = cols / L * L, rest = cols - whole;
  T line[kChain * L];
  T sum[kRows * L];
  for (int64_t t = 0; t < positions; t += kChain) {
    const int64_t here = positions - t < kChain ? positions - t : kChain;
    const T* const at = a + t * a_stride;
    const T* const bt = b + t * b_stride;
    int64_t c = 0;
    for (; c + 3 * L <= whole; c += 3 * L) outer_columns<T, 3>(at, a_stride, bt + c, b_stride, here, rows, t > 0, out + c, cols);
    if (c + 2 * L <= whole) {
      outer_columns<T, 2>(at, a_stride, bt + c, b_stride, here, rows, t > 0, out + c, cols);
    } else if (c < whole) {
      outer_columns<T, 1>(at, a_stride, bt + c, b_stride, here, rows, t > 0, out + c, cols);
    }
    if (rest == 0) continue;
    for (int64_t h = 0; h < here; ++h) {
      for (c = 0; c < rest; ++c) line[h * L + c] = bt[h * b_stride + whole + c];
      for (c = rest; c < L; ++c) line[h * L + c] = T{0};
    }
    for (int64_t r = 0; r < rows; r += kRows) {
      const int64_t some = rows - r < kRows ? rows - r : kRows;
      outer_columns<T, 1>(at + r, a_stride, line, L, here, some, false, sum, L);
      for (int64_t i = 0; i < some; ++i)
        for (c = 0; c < rest; ++c) {
          T* const to = out + (r + i) * cols + whole + c;
          *to = t == 0 ? sum[i * L + c] : *to + sum[i * L + c];
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
