// First stage: the passes over the trailing matrix, and what is done with thin matrices between them.
#pragma once
#include "singular_values/product.inl.h"
#include "singular_values/two_stage_loops.h"

namespace sf::SF_ISA {
namespace {

static_assert(kBandStrip % kPackWidth == 0 && kBandTile % kBandStrip == 0, "strips begin where a panel of a pack begins");

template <bool kPaired, int kVecs>
inline void update_rows(const double* pack_i, const double* pack_j, int64_t b, int64_t rows, double* t, int64_t ldt) {
  Vec acc[kStripRows][kVecs];
  clear_block(acc);
  if (kPaired) {
    multiply_block<kStripRows, kVecs, true>(acc, 2 * b, pack_i, kPackWidth, pack_j, kPackWidth);
  } else {
    const int64_t half = b * kPackWidth;  // from V to W
    multiply_block<kStripRows, kVecs, true>(acc, b, pack_i, kPackWidth, pack_j + half, kPackWidth);
    multiply_block<kStripRows, kVecs, true>(acc, b, pack_i + half, kPackWidth, pack_j, kPackWidth);
  }
  store_rows<Into::subtract>(acc, rows, t, ldt);
}

// `lower`: of a block on the diagonal only what the lower triangle needs.
template <bool kPaired>
inline void update_block(const BandTile& x, bool lower) {
  const int64_t panel = 2 * x.b * kPackWidth;
  for (int64_t j = 0; j < x.cols; j += kPackWidth) {
    const double* pack_j = x.pack_cols + j / kPackWidth * panel;
    const int64_t vecs = x.cols - j >= kPackWidth ? kStripVecs : (x.cols - j + kLanes - 1) / kLanes;
    for (int64_t i = lower ? j : 0; i < x.rows; i += kStripRows) {
      const double* pack_i = x.pack_rows + i / kPackWidth * panel + i % kPackWidth;
      double* t = x.t + i * x.ldt + j;
      if (vecs == 3) {
        update_rows<kPaired, 3>(pack_i, pack_j, x.b, x.rows - i, t, x.ldt);
      } else if (vecs == 2) {
        update_rows<kPaired, 2>(pack_i, pack_j, x.b, x.rows - i, t, x.ldt);
      } else {
        update_rows<kPaired, 1>(pack_i, pack_j, x.b, x.rows - i, t, x.ldt);
      }
    }
  }
}

void update(const BandTile& tile) { update_block<false>(tile, false); }
void update_paired(const BandTile& tile) { update_block<true>(tile, false); }

// Y += T Z (or T^T Z) by blocks of columns of Z; every block of columns also asks for a part of the rows of `next`.
template <bool kTransposed>
inline void multiply_ahead(const BandTile& x, const double* z, double* y) {
  const int64_t ld = thin_ld(x.b), step = kWideVecs * kLanes, parts = (x.b + step - 1) / step;
  const int64_t rows = kTransposed ? x.cols : x.rows, depth = kTransposed ? x.rows : x.cols;
  for (int64_t c = 0; c < x.b; c += step) {
    if (x.next != nullptr) {
      const int64_t part = c / step;
      for (int64_t i = x.rows * part / parts; i < x.rows * (part + 1) / parts; ++i) {
        for (int64_t j = 0; j < x.cols; j += 8) prefetch_line(x.next + i * x.ldt + j);
      }
    }
    multiply<Into::add, kTransposed>(rows, x.b - c < step ? x.b - c : step, depth, x.t, x.ldt, z + c, ld, y + c, ld);
  }
}

void symmetric_tile(const BandTile& x) {
  const int64_t ld = thin_ld(x.b);
  if (x.pack_rows != nullptr) update_block<false>(x, false);
  multiply_ahead<false>(x, x.thin_cols, x.sum_rows);
  multiply<Into::add, true>(x.cols, x.b, x.rows, x.t, x.ldt, x.thin_rows, ld, x.sum_cols, ld);
}

void general_tile(const BandTile& x) {
  if (x.pack_rows != nullptr) update_block<true>(x, false);
  multiply_ahead<true>(x, x.thin_rows, x.sum_cols);
}

void product_tile(const BandTile& x) { multiply_ahead<false>(x, x.thin_cols, x.sum_rows); }

void symmetric_diagonal(const BandTile& x) {
  const int64_t ld = thin_ld(x.b);
  if (x.pack_rows != nullptr) update_block<false>(x, true);
  for (int64_t i = 1; i < x.rows; ++i) {
    for (int64_t j = 0; j < i; ++j) x.t[j * x.ldt + i] = x.t[i * x.ldt + j];
  }
  multiply<Into::add, false>(x.rows, x.b, x.cols, x.t, x.ldt, x.thin_cols, ld, x.sum_rows, ld);
}

// v = (1, v'), tau with (I - tau v v^T) x = (beta, 0); x becomes v, tau 0 where x is zero below its first entry.
inline double reflector(double* x, int64_t n, double& tau) {
  Vec square[4] = {zeros(), zeros(), zeros(), zeros()};
  int64_t i = 1;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes) {
    for (int k = 0; k < 4; ++k) {
      const Vec a = load(x + i + k * kLanes);
      square[k] = fma(a, a, square[k]);
    }
  }
  double below = sum(add(add(square[0], square[1]), add(square[2], square[3])));
  for (; i < n; ++i) below += x[i] * x[i];
  const double alpha = x[0];
  x[0] = 1.0;
  if (!(below > kNothing)) {
    for (i = 1; i < n; ++i) x[i] = 0.0;
    tau = 0.0;
    return alpha;
  }
  const double size = sqrt(alpha * alpha + below), beta = alpha > 0.0 ? -size : size;
  tau = (beta - alpha) / beta;
  const double scale = 1.0 / (alpha - beta);
  for (i = 1; i < n; ++i) x[i] *= scale;
  return beta;
}

// Columns [first, end) of C: from -= v (tau v^T from), rows of them `rows`; four columns share each load of v.
inline void apply_reflector(const double* v, double tau, int64_t rows, double* c, int64_t ldc, int64_t count) {
  for (int64_t j = 0; j < count; j += 4) {
    const int64_t at[4] = {j, j + 1 < count ? j + 1 : j, j + 2 < count ? j + 2 : j, j + 3 < count ? j + 3 : j};
    double *c0 = c + at[0] * ldc, *c1 = c + at[1] * ldc, *c2 = c + at[2] * ldc, *c3 = c + at[3] * ldc;
    double w0 = 0.0, w1 = 0.0, w2 = 0.0, w3 = 0.0;
    int64_t i = 0;
    while (i + kLanes <= rows) {
      const int64_t end = i + kDepth * kLanes + kLanes <= rows ? i + kDepth * kLanes : rows;  // sums closed now and then: see kDepth
      Vec s0 = zeros(), s1 = s0, s2 = s0, s3 = s0;
      for (; i + kLanes <= end; i += kLanes) {
        const Vec x = load(v + i);
        s0 = fma(x, load(c0 + i), s0);
        s1 = fma(x, load(c1 + i), s1);
        s2 = fma(x, load(c2 + i), s2);
        s3 = fma(x, load(c3 + i), s3);
      }
      w0 += sum(s0), w1 += sum(s1), w2 += sum(s2), w3 += sum(s3);
    }
    for (; i < rows; ++i) w0 += v[i] * c0[i], w1 += v[i] * c1[i], w2 += v[i] * c2[i], w3 += v[i] * c3[i];
    w0 *= tau, w1 *= tau, w2 *= tau, w3 *= tau;
    const double w[4] = {w0, w1, w2, w3};
    if (count - j < 4) {
      for (int64_t k = 0; k < count - j; ++k) {
        double* column = c + (j + k) * ldc;
        for (i = 0; i + kLanes <= rows; i += kLanes) store(column + i, fnma(broadcast(w[k]), load(v + i), load(column + i)));
        for (; i < rows; ++i) column[i] -= w[k] * v[i];
      }
      return;
    }
    const Vec b0 = broadcast(w0), b1 = broadcast(w1), b2 = broadcast(w2), b3 = broadcast(w3);
    for (i = 0; i + kLanes <= rows; i += kLanes) {
      const Vec x = load(v + i);
      store(c0 + i, fnma(b0, x, load(c0 + i)));
      store(c1 + i, fnma(b1, x, load(c1 + i)));
      store(c2 + i, fnma(b2, x, load(c2 + i)));
      store(c3 + i, fnma(b3, x, load(c3 + i)));
    }
    for (; i < rows; ++i) c0[i] -= w0 * v[i], c1[i] -= w1 * v[i], c2[i] -= w2 * v[i], c3[i] -= w3 * v[i];
  }
}

void reflector_triangle(const double* s, const double* tau, int64_t b, double* t) {
  for (int64_t k = 0; k < b * b; ++k) t[k] = 0.0;
  for (int64_t j = 0; j < b; ++j) {
    // column j above the diagonal: -tau_j T S(:, j), by columns of T so far
    t[j * b + j] = tau[j];
    for (int64_t i = 0; i < j; ++i) {
      double x = 0.0;
      for (int64_t k = i; k < j; ++k) x += t[i * b + k] * s[k * b + j];
      t[i * b + j] = -tau[j] * x;
    }
  }
}

// Columns in groups of kPanelColumns: those of a group one after another, column-major in `work`; then, as products, the columns right
// of them.
void panel_qr(double* c, int64_t rows, int64_t b, double* r, double* tau, double* work) {
  const int64_t ld = thin_ld(b), ldw = (rows + 7) / 8 * 8 + 8, k = kPanelColumns;
  double *square = work + k * ldw, *t = square + k * k, *w = t + k * k, *w2 = w + k * b;
  for (int64_t i = 0; i < b * b; ++i) r[i] = 0.0;
  for (int64_t first = 0; first < b; first += k) {
    for (int64_t i = 0; i < first && i < rows; ++i) {
      for (int64_t j = first; j < first + k; ++j) {
        r[j * b + i] = c[i * ld + j];
        c[i * ld + j] = 0.0;
      }
    }
    const int64_t left = rows - first, after = b - first - k;
    for (int64_t j = 0; j < k; ++j) tau[first + j] = 0.0;
    if (left <= 0) continue;
    double* block = c + first * ld + first;
    transpose(block, left, k, ld, work, ldw);
    for (int64_t j = 0; j < k && j < left; ++j) {
      double* column = work + j * ldw;
      for (int64_t i = 0; i < j; ++i) {
        r[(first + j) * b + first + i] = column[i];
        column[i] = 0.0;
      }
      r[(first + j) * b + first + j] = reflector(column + j, left - j, tau[first + j]);
      if (tau[first + j] != 0.0) apply_reflector(column + j, tau[first + j], left - j, column + ldw + j, ldw, k - j - 1);
    }
    for (int64_t j = left; j < k; ++j) {  // more columns than rows
      for (int64_t i = 0; i < left; ++i) {
        r[(first + j) * b + first + i] = work[j * ldw + i];
        work[j * ldw + i] = 0.0;
      }
    }
    transpose(work, k, left, ldw, block, ld);
    if (after == 0) continue;
    multiply<Into::set, true>(k, k, left, block, ld, block, ld, square, k);
    reflector_triangle(square, tau + first, k, t);
    multiply<Into::set, true>(k, after, left, block, ld, block + k, ld, w, b);
    multiply<Into::set, true>(k, after, k, t, k, w, b, w2, b);
    multiply<Into::subtract, false>(left, after, k, block, ld, w2, b, block + k, ld);
  }
}

void thin_gram(const double* a, const double* b_thin, int64_t rows, int64_t b, bool fresh, double* c) {
  const int64_t ld = thin_ld(b);
  if (fresh) {
    multiply<Into::set, true>(b, b, rows, a, ld, b_thin, ld, c, b);
  } else {
    multiply<Into::add, true>(b, b, rows, a, ld, b_thin, ld, c, b);
  }
}

void update_factors(const double* s, const double* t, int64_t b, double* m, double* work) {
  for (int64_t k = 0; k < b * b; ++k) m[k] = t[k];
  multiply<Into::set, false>(b, b, b, s, b, t, b, work, b);
  multiply<Into::set, true>(b, b, b, t, b, work, b, m + b * b, b);
  for (int64_t k = 0; k < b * b; ++k) m[b * b + k] *= -0.5;
}

void paired_factors(const double* s, const double* t, int64_t b, double* m) {
  for (int64_t k = 0; k < b * b; ++k) m[k] = t[k];
  multiply<Into::set, false>(b, b, b, s, b, t, b, m + b * b, b);
  for (int64_t k = 0; k < b * b; ++k) m[b * b + k] = -m[b * b + k];
}

// P (cols x b) = the transpose of: b rows of A minus V Z^T.
void subtract_reflected(const double* a, int64_t lda, const double* v, const double* z, int64_t cols, int64_t b, double* p, double* work) {
  const int64_t ld = thin_ld(b);
  transpose(a, b, cols, lda, p, ld);
  transpose(v, b, b, ld, work, b);
  multiply<Into::subtract, false>(cols, b, b, z, ld, work, b, p, ld);
}

void add_sums(double* total, int64_t stride, int64_t count, int64_t size) {
  for (int64_t i = 0; i < size; i += kLanes) {  // thin matrices: their size is a multiple of 8
    Vec all = load(total + i);
    for (int64_t k = 1; k <= count; ++k) all = add(all, load(total + k * stride + i));
    store(total + i, all);
  }
}

void combine(const double* y, const double* v, const double* m, int64_t rows, int64_t b, double* out) {
  const int64_t ld = thin_ld(b);
  multiply<Into::set, false>(rows, b, b, y, ld, m, b, out, ld);
  if (v != nullptr) multiply<Into::add, false>(rows, b, b, v, ld, m + b * b, b, out, ld);
}

}  // namespace
}  // namespace sf::SF_ISA
