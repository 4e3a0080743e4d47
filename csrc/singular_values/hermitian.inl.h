// Complex matrices in two planes, real and imaginary parts: G += P^H P and Hermitian to real tridiagonal form.
//
// As the real ones (gram.inl.h, tridiagonal.inl.h), with A = H A H, H = I - tau v v^H, and pending A -= v w^H + w v^H. The off-diagonal
// that this leaves is complex; only its magnitude matters for the eigenvalues.
#pragma once
#include "singular_values/gram.inl.h"
#include "singular_values/tridiagonal.inl.h"

namespace sf::SF_ISA {
namespace {

inline void gram_complex(const double* p_re, const double* p_im, int64_t rows, int64_t ldp, int64_t n, double* g_re, double* g_im,
                         int64_t ldg) {
  for (int64_t k = 0; k < rows; k += kChain) {
    const int64_t depth = rows - k < kChain ? rows - k : kChain;
    const double *re = p_re + k * ldp, *im = p_im + k * ldp;
    add_gram_rows<false>(re, re, ldp, depth, n, g_re, ldg);
    add_gram_rows<false>(im, im, ldp, depth, n, g_re, ldg);
    add_gram_rows<false>(re, im, ldp, depth, n, g_im, ldg);
    add_gram_rows<true>(im, re, ldp, depth, n, g_im, ldg);
  }
}

struct Complex {
  double *re, *im;
};

struct ComplexReflector {
  double head_re, head_im, size, tau;  // size: the magnitude of what is left
};

inline ComplexReflector complex_reflector(double re, double im, double rest) {
  const double squared = re * re + im * im;
  if (!(rest > kNegligible)) return {0.0, 0.0, sqrt(squared), 0.0};
  const double size = sqrt(squared + rest);
  // An entry this small has no usable phase, nor any weight beside the rest.
  if (!(squared > 1e-80 * rest)) return {size, 0.0, size, 1.0 / (size * size)};
  const double magnitude_of_entry = sqrt(squared), stretch = 1.0 + size / magnitude_of_entry;
  return {re * stretch, im * stretch, size, 1.0 / (size * (size + magnitude_of_entry))};
}

// Columns j..j+kLanes of a group of rows: A -= v w^H + w v^H, the rows' sums += A x; Both: also y += A^H x.
template <bool Both>
inline void hermitian_tile(double* const* re, double* const* im, int64_t j, const Vec* of_row, const Complex& v, const Complex& w,
                           const Complex& x, const Complex& y, Vec* sums) {
  const Vec vr = load(v.re + j), vi = load(v.im + j), wr = load(w.re + j), wi = load(w.im + j);
  const Vec xr = load(x.re + j), xi = load(x.im + j);
  Vec yr = zeros(), yi = zeros();
  if constexpr (Both) {
    yr = load(y.re + j);
    yi = load(y.im + j);
  }
#pragma GCC unroll 8
  for (int r = 0; r < kTileRows; ++r) {
    const Vec* row = of_row + 6 * r;  // v, w, x of this row
    Vec ar = load(re[r] + j), ai = load(im[r] + j);
    ar = fnma(row[0], wr, ar);
    ai = fnma(row[1], wr, ai);
    ar = fnma(row[1], wi, ar);
    ai = fma(row[0], wi, ai);
    ar = fnma(row[2], vr, ar);
    ai = fnma(row[3], vr, ai);
    ar = fnma(row[3], vi, ar);
    ai = fma(row[2], vi, ai);
    store(re[r] + j, ar);
    store(im[r] + j, ai);
    sums[r] = fnma(ai, xi, fma(ar, xr, sums[r]));
    sums[kTileRows + r] = fma(ai, xr, fma(ar, xi, sums[kTileRows + r]));
    if constexpr (Both) {
      yr = fma(ai, row[5], fma(ar, row[4], yr));
      yi = fnma(ai, row[4], fma(ar, row[5], yi));
    }
  }
  if constexpr (Both) {
    store(y.re + j, yr);
    store(y.im + j, yi);
  }
}

inline void update_and_multiply_hermitian(const Complex& g, int64_t size, int64_t n, int64_t ldg, const Complex& v, const Complex& w,
                                          const Complex& x, const Complex& y, const Complex& spare_row) {
  for (int64_t i = 0; i < size; i += kTileRows) {
    double *re[kTileRows], *im[kTileRows];
    Vec of_row[6 * kTileRows], sums[2 * kTileRows];
#pragma GCC unroll 8
    for (int r = 0; r < kTileRows; ++r) {
      re[r] = i + r < n ? g.re + (i + r) * ldg : spare_row.re;
      im[r] = i + r < n ? g.im + (i + r) * ldg : spare_row.im;
      const double row[6] = {v.re[i + r], v.im[i + r], w.re[i + r], w.im[i + r], x.re[i + r], x.im[i + r]};
      for (int k = 0; k < 6; ++k) of_row[6 * r + k] = broadcast(row[k]);
      sums[r] = sums[kTileRows + r] = zeros();
    }
    for (int64_t j = 0; j < i; j += kLanes) hermitian_tile<true>(re, im, j, of_row, v, w, x, y, sums);
    for (int64_t j = i; j < i + kTileRows; j += kLanes) hermitian_tile<false>(re, im, j, of_row, v, w, x, y, sums);
    for (int r = 0; r < kTileRows; r += kLanes) {
      store(y.re + i + r, add(load(y.re + i + r), lane_sums(sums + r)));
      store(y.im + i + r, add(load(y.im + i + r), lane_sums(sums + kTileRows + r)));
    }
  }
}

// The squares on the diagonal made whole, as complete_squares does.
inline void complete_hermitian_squares(const Complex& g, int64_t n, int64_t ldg) {
  complete_squares(g.re, n, ldg);
  complete_squares(g.im, n, ldg);
  for (int64_t r = 0; r < n; ++r) {
    g.im[r * ldg + r] = 0.0;
    for (int64_t j = r + 1; j % kTileRows != 0; ++j) g.im[r * ldg + j] = -g.im[r * ldg + j];
  }
}

inline void tridiagonalize_complex(double* g_re, double* g_im, int64_t n, int64_t ldg, double* d, double* e, double* work) {
  if (n <= 0) return;
  const int64_t padded = padded_columns(n);
  const Complex g{g_re, g_im}, spare_row{work + 8 * padded, work + 9 * padded}, y{work + 6 * padded, work + 7 * padded};
  Complex v{work, work + padded}, x{work + 4 * padded, work + 5 * padded};
  const Complex w{work + 2 * padded, work + 3 * padded};
  for (int64_t j = 0; j < 10 * padded; ++j) work[j] = 0.0;
  complete_hermitian_squares(g, n, ldg);

  // x: the current column `k` above the diagonal, the conjugate of row k; then the reflector made of it.
  double rest = 0.0;
  for (int64_t j = 0; j < n; ++j) {
    x.re[j] = g_re[(n - 1) * ldg + j];
    x.im[j] = -g_im[(n - 1) * ldg + j];
  }
  for (int64_t j = 0; j + 2 < n; ++j) rest += x.re[j] * x.re[j] + x.im[j] * x.im[j];
  for (int64_t k = n - 1; k > 0; --k) {
    d[k] = x.re[k];
    x.re[k] = x.im[k] = 0.0;
    const ComplexReflector h = complex_reflector(x.re[k - 1], x.im[k - 1], rest);
    e[k - 1] = h.size;
    x.re[k - 1] = h.head_re;
    x.im[k - 1] = h.head_im;
    if (h.tau == 0.0)
      for (int64_t j = 0; j < k - 1; ++j) x.re[j] = x.im[j] = 0.0;

    const int64_t end = (k + kTileRows - 1) / kTileRows * kTileRows;
    for (int64_t j = 0; j < end; j += kLanes) {
      store(y.re + j, zeros());
      store(y.im + j, zeros());
    }
    update_and_multiply_hermitian(g, k, n, ldg, v, w, x, y, spare_row);
    for (int64_t j = k; j < end; ++j) y.re[j] = y.im[j] = 0.0;

    const double half = 0.5 * h.tau * (h.tau * (dot(x.re, y.re, end) + dot(x.im, y.im, end)));  // x^H y is real
    const Vec tau_of = broadcast(h.tau), half_of = broadcast(half);
    const Vec xr0 = broadcast(h.head_re), xi0 = broadcast(h.head_im);
    const Vec wr0 = broadcast(h.tau * y.re[k - 1] - half * h.head_re), wi0 = broadcast(h.tau * y.im[k - 1] - half * h.head_im);
    const double *row_re = g_re + (k - 1) * ldg, *row_im = g_im + (k - 1) * ldg;
    const Complex next = v;  // v is spent
    Vec squares = zeros();
    for (int64_t j = 0; j < end; j += kLanes) {
      const Vec xr = load(x.re + j), xi = load(x.im + j);
      const Vec wr = fnma(half_of, xr, mul(tau_of, load(y.re + j))), wi = fnma(half_of, xi, mul(tau_of, load(y.im + j)));
      store(w.re + j, wr);
      store(w.im + j, wi);
      const Vec re = fnma(wi0, xi, fnma(wr0, xr, fnma(xi0, wi, fnma(xr0, wr, load(row_re + j)))));
      const Vec im = fma(wr0, xi, fnma(wi0, xr, fma(xr0, wi, fnma(xi0, wr, load(row_im + j)))));
      store(next.re + j, re);
      store(next.im + j, sub(zeros(), im));
      if (j + kLanes <= k - 2) squares = fma(re, re, fma(im, im, squares));
    }
    rest = sum(squares);
    for (int64_t j = k - 2 > 0 ? (k - 2) / kLanes * kLanes : 0; j < k - 2; ++j) rest += next.re[j] * next.re[j] + next.im[j] * next.im[j];
    for (int64_t j = k; j < end; ++j) next.re[j] = next.im[j] = 0.0;
    v = x;
    x = next;
  }
  d[0] = x.re[0];
}

}  // namespace
}  // namespace sf::SF_ISA
