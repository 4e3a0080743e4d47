// Symmetric matrix to tridiagonal form by Householder reflections, one pass over the triangle per step.
//
// The last row is reduced first, so that what remains is always the leading block and its rows start aligned. The rank-2 update of a
// step, A -= v w^T + w v^T, stays pending until the next step's vector x is known (which needs one row of the update only); the pass
// then updates each entry and at once uses it twice for y = A x, as a_ij x_j in y_i and as a_ij x_i in y_j: every entry is loaded and
// stored once per step. Squares of kTileRows on the diagonal are kept whole, both triangles.
#pragma once
#include "singular_values/gram.inl.h"
#include "singular_values/reflector.inl.h"

namespace sf::SF_ISA {
namespace {

// Lane r of the result: the sum of the lanes of rows[r].
inline Vec lane_sums(const Vec* rows) {
#if defined(__AVX512F__)
  __m256d half[8];
  for (int r = 0; r < 8; ++r)
    half[r] = _mm256_add_pd(_mm512_maskz_extractf64x4_pd(0xF, rows[r], 0), _mm512_maskz_extractf64x4_pd(0xF, rows[r], 1));
  __m256d out[2];
  for (int r = 0; r < 2; ++r) {
    const __m256d low = _mm256_hadd_pd(half[4 * r], half[4 * r + 1]), high = _mm256_hadd_pd(half[4 * r + 2], half[4 * r + 3]);
    out[r] = _mm256_add_pd(_mm256_permute2f128_pd(low, high, 0x21), _mm256_blend_pd(low, high, 0xC));
  }
  return _mm512_maskz_insertf64x4(0xFF, _mm512_castpd256_pd512(out[0]), out[1], 1);
#elif defined(__AVX2__)
  const Vec low = _mm256_hadd_pd(rows[0], rows[1]), high = _mm256_hadd_pd(rows[2], rows[3]);
  return add(_mm256_permute2f128_pd(low, high, 0x21), _mm256_blend_pd(low, high, 0xC));
#elif defined(SF_X86)
  return add(_mm_unpacklo_pd(rows[0], rows[1]), _mm_unpackhi_pd(rows[0], rows[1]));
#else
  double out[kLanes];
  for (int r = 0; r < kLanes; ++r) out[r] = sum(rows[r]);
  return load(out);
#endif
}

// Rows 0..size: A -= v w^T + w v^T, y = A x. All vectors are zero from `size` to the end of its group of rows; y must be zero
// on entry and holds nothing of use there on return.
inline void update_and_multiply(double* g, int64_t size, int64_t n, int64_t ldg, const double* v, const double* w, const double* x,
                                double* y, double* spare_row) {
  for (int64_t i = 0; i < size; i += kTileRows) {
    double* row[kTileRows];
    Vec minus_v[kTileRows], minus_w[kTileRows], factor[kTileRows], sums[kTileRows];
#pragma GCC unroll 8
    for (int r = 0; r < kTileRows; ++r) {
      row[r] = i + r < n ? g + (i + r) * ldg : spare_row;
      minus_v[r] = broadcast(v[i + r]);
      minus_w[r] = broadcast(w[i + r]);
      factor[r] = broadcast(x[i + r]);
      sums[r] = zeros();
    }
    for (int64_t j = 0; j < i; j += kLanes) {
      const Vec vj = load(v + j), wj = load(w + j), xj = load(x + j);
      Vec yj = load(y + j);
#pragma GCC unroll 8
      for (int r = 0; r < kTileRows; ++r) {
        Vec a = load(row[r] + j);
        a = fnma(minus_v[r], wj, a);
        a = fnma(minus_w[r], vj, a);
        store(row[r] + j, a);
        sums[r] = fma(a, xj, sums[r]);
        yj = fma(a, factor[r], yj);
      }
      store(y + j, yj);
    }
    for (int64_t j = i; j < i + kTileRows; j += kLanes) {
      const Vec vj = load(v + j), wj = load(w + j), xj = load(x + j);
#pragma GCC unroll 8
      for (int r = 0; r < kTileRows; ++r) {
        Vec a = load(row[r] + j);
        a = fnma(minus_v[r], wj, a);
        a = fnma(minus_w[r], vj, a);
        store(row[r] + j, a);
        sums[r] = fma(a, xj, sums[r]);
      }
    }
    for (int r = 0; r < kTileRows; r += kLanes) store(y + i + r, add(load(y + i + r), lane_sums(sums + r)));
  }
}

// The squares on the diagonal from the lower triangle; zeros right of them in the last, incomplete group of rows.
inline void complete_squares(double* g, int64_t n, int64_t ldg) {
  for (int64_t i = 0; i < n; i += kTileRows) {
    for (int64_t r = i; r < i + kTileRows && r < n; ++r) {
      for (int64_t j = r + 1; j < i + kTileRows; ++j) g[r * ldg + j] = j < n ? g[j * ldg + r] : 0.0;
    }
  }
}

inline double dot(const double* a, const double* b, int64_t padded) {
  Vec s0 = zeros(), s1 = zeros();
  int64_t j = 0;
  for (; j + 2 * kLanes <= padded; j += 2 * kLanes) {
    s0 = fma(load(a + j), load(b + j), s0);
    s1 = fma(load(a + j + kLanes), load(b + j + kLanes), s1);
  }
  if (j < padded) s0 = fma(load(a + j), load(b + j), s0);
  return sum(add(s0, s1));
}

inline void tridiagonalize(double* g, int64_t n, int64_t ldg, double* d, double* e, double* work) {
  if (n <= 0) return;
  const int64_t padded = padded_columns(n);
  double *v = work, *w = v + padded, *x = w + padded, *y = x + padded, *spare_row = y + padded;
  for (int64_t j = 0; j < 5 * padded; ++j) work[j] = 0.0;
  complete_squares(g, n, ldg);

  // x: the current row `k`, fully updated, and then the reflector made of it.
  const double* last = g + (n - 1) * ldg;
  double rest = 0.0;
  for (int64_t j = 0; j < n; ++j) x[j] = last[j];
  for (int64_t j = 0; j + 2 < n; ++j) rest += x[j] * x[j];
  for (int64_t k = n - 1; k > 0; --k) {
    d[k] = x[k];
    x[k] = 0.0;
    const Reflector h = reflector(x[k - 1], rest);
    e[k - 1] = h.beta;
    x[k - 1] = h.head;
    if (h.tau == 0.0)
      for (int64_t j = 0; j < k - 1; ++j) x[j] = 0.0;

    const int64_t end = (k + kTileRows - 1) / kTileRows * kTileRows;
    for (int64_t j = 0; j < end; j += kLanes) store(y + j, zeros());
    update_and_multiply(g, k, n, ldg, v, w, x, y, spare_row);
    for (int64_t j = k; j < end; ++j) y[j] = 0.0;

    // w = tau y - (tau^2/2 y^T x) x, and the next row of A - x w^T - w x^T with its sum of squares, both in one sweep.
    const double half = 0.5 * h.tau * (h.tau * dot(x, y, end));
    const Vec tau_of = broadcast(h.tau), half_of = broadcast(half);
    const double w_head = h.tau * y[k - 1] - half * h.head;
    const Vec row_x = broadcast(h.head), row_w = broadcast(w_head);
    const double* row = g + (k - 1) * ldg;
    double* next = v;  // v is spent
    Vec squares = zeros();
    for (int64_t j = 0; j < end; j += kLanes) {
      const Vec xj = load(x + j), wj = fnma(half_of, xj, mul(tau_of, load(y + j)));
      store(w + j, wj);
      const Vec a = fnma(row_w, xj, fnma(row_x, wj, load(row + j)));
      store(next + j, a);
      if (j + kLanes <= k - 2) squares = fma(a, a, squares);
    }
    rest = sum(squares);
    for (int64_t j = k - 2 > 0 ? (k - 2) / kLanes * kLanes : 0; j < k - 2; ++j) rest += next[j] * next[j];
    for (int64_t j = k; j < end; ++j) next[j] = 0.0;
    v = x;
    x = next;
  }
  d[0] = x[0];
}

}  // namespace
}  // namespace sf::SF_ISA
