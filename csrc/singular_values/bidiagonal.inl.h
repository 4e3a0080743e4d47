// Matrix to upper bidiagonal form by Householder reflections from both sides, one pass over the matrix per step.
//
// The updates of a step stay pending, A -= u p^T + q v^T, until the next column is known (which needs that column of the update only).
// The pass then goes through panels of columns that fit the first-level cache. In a panel it updates each entry and forms z = A^T u
// for the new u; that yields the panel's part of the new row, r = (row of A) - tau u_k z, and with it the panel's part of A r. The
// right reflector's vector is r - beta e_1, so A v = A r - beta A e_1: no second pass, although v is known only after the first.
#pragma once
#include "singular_values/gram.inl.h"
#include "singular_values/reflector.inl.h"
#include "singular_values/tridiagonal.inl.h"

namespace sf::SF_ISA {
namespace {

constexpr int kPanelColumns = kLanes < 8 ? 8 : 16;
constexpr int kPanelVectors = kPanelColumns / kLanes;
constexpr int64_t kRowsInCache = 1024 / kPanelColumns;  // of two panels, with what else a sweep touches, in the first-level cache

// Pending updates and the new left vector, from the current row on.
struct PanelRows {
  const double *u, *q, *x;
  double* sums;  // a vector per row, its lanes to be added at the end
};

// Update: the panel a -= u p^T + q v^T, z = a^T x. Multiply: sums += a r for the panel before it, a - kPanelColumns.
template <bool Update, bool Multiply>
inline void sweep_panel(double* a, int64_t rows, int64_t lda, bool upwards, const PanelRows& of, const double* p, const double* v,
                        double* z, const double* r) {
  Vec pj[kPanelVectors], vj[kPanelVectors], zj[kPanelVectors], rj[kPanelVectors];
#pragma GCC unroll 4
  for (int c = 0; c < kPanelVectors; ++c) {
    if constexpr (Update) {
      pj[c] = load(p + c * kLanes);
      vj[c] = load(v + c * kLanes);
    }
    zj[c] = zeros();
    if constexpr (Multiply) rj[c] = load(r + c * kLanes);
  }
  const int64_t step = upwards ? -1 : 1;
  int64_t i = upwards ? rows - 1 : 0;
  a += i * lda;
  for (int64_t done = 0; done < rows; done += kChain) {
    for (int64_t left = rows - done < kChain ? rows - done : kChain; left > 0; --left, i += step, a += step * lda) {
      if constexpr (Update) {
        const Vec ui = broadcast(of.u[i]), qi = broadcast(of.q[i]), xi = broadcast(of.x[i]);
#pragma GCC unroll 4
        for (int c = 0; c < kPanelVectors; ++c) {
          const Vec entry = fnma(qi, vj[c], fnma(ui, pj[c], load(a + c * kLanes)));
          store(a + c * kLanes, entry);
          zj[c] = fma(entry, xi, zj[c]);
        }
      }
      if constexpr (Multiply) {
        Vec total = load(of.sums + i * kLanes);
#pragma GCC unroll 4
        for (int c = 0; c < kPanelVectors; ++c) total = fma(load(a + c * kLanes - kPanelColumns), rj[c], total);
        store(of.sums + i * kLanes, total);
      }
    }
    if constexpr (Update) {
#pragma GCC unroll 4
      for (int c = 0; c < kPanelVectors; ++c) {
        store(z + c * kLanes, done == 0 ? zj[c] : add(load(z + c * kLanes), zj[c]));
        zj[c] = zeros();
      }
    }
  }
}

// Sum of squares of a[from], ..., a[to - 1].
inline double sum_of_squares(const double* a, int64_t from, int64_t to) {
  Vec s0 = zeros(), s1 = zeros();
  for (; from + 2 * kLanes <= to; from += 2 * kLanes) {
    const Vec first = load(a + from), second = load(a + from + kLanes);
    s0 = fma(first, first, s0);
    s1 = fma(second, second, s1);
  }
  double total = sum(add(s0, s1));
  for (; from < to; ++from) total += a[from] * a[from];
  return total;
}

inline void bidiagonalize(double* a, int64_t m, int64_t n, int64_t lda, double* d, double* e, double* work) {
  if (n <= 0) return;
  const int64_t long_side = padded_columns(m), short_side = padded_columns(n);
  double *u = work, *q = u + long_side, *x = q + long_side, *column = x + long_side, *sums = column + long_side;
  double *p = sums + kLanes * long_side, *v = p + short_side, *next_p = v + short_side, *r = next_p + short_side;
  for (int64_t i = 0; i < (4 + kLanes) * long_side + 4 * short_side; ++i) work[i] = 0.0;
  const int64_t end = (n + kPanelColumns - 1) / kPanelColumns * kPanelColumns;
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = n; j < end; ++j) a[i * lda + j] = 0.0;
    x[i] = a[i * lda];
  }

  double below = sum_of_squares(x, 1, m);
  for (int64_t k = 0;; ++k) {  // x: the current column k from row k on; below: sum of squares from row k + 1 on
    const Reflector left = reflector(x[k], below);
    d[k] = left.beta;
    if (k == n - 1) return;
    x[k] = left.head;
    if (left.tau == 0.0)
      for (int64_t i = k + 1; i < m; ++i) x[i] = 0.0;

    // next_p = tau_l z, the row r = (row of A) - u_k next_p, and sums = A r.
    const int64_t rows = m - k, start = (k + 1) / kPanelColumns * kPanelColumns;
    double* row = a + k * lda;
    const Vec left_tau = broadcast(left.tau), head = broadcast(left.head);
    const PanelRows of{u + k, q + k, x + k, sums + k * kLanes};
    Vec squares = zeros(), products = zeros();
    const bool zigzag = rows > kRowsInCache;
    bool upwards = false;
    for (int64_t j = start; j < end; j += kPanelColumns, upwards = zigzag && !upwards) {
      if (j == start)
        sweep_panel<true, false>(row + j, rows, lda, upwards, of, p + j, v + j, next_p + j, r);
      else
        sweep_panel<true, true>(row + j, rows, lda, upwards, of, p + j, v + j, next_p + j, r + j - kPanelColumns);
      for (int c = 0; c < kPanelColumns; c += kLanes) {
        const Vec pj = mul(left_tau, load(next_p + j + c)), rj = fnma(head, pj, load(row + j + c));
        store(next_p + j + c, pj);
        store(r + j + c, rj);
        if (j != start) {
          squares = fma(rj, rj, squares);
          products = fma(pj, rj, products);
        }
      }
      if (j == start) {
        for (int64_t c = start; c <= k; ++c) r[c] = next_p[c] = 0.0;
        for (int64_t i = k + 1; i < m; ++i) column[i] = a[i * lda + k + 1];
      }
    }
    sweep_panel<false, true>(row + end, rows, lda, upwards, of, p, v, next_p, r + end - kPanelColumns);

    double right_of = sum(squares);
    for (int64_t j = k + 2; j < start + kPanelColumns; ++j) right_of += r[j] * r[j];
    const Reflector right = reflector(r[k + 1], right_of);
    e[k] = right.beta;
    r[k + 1] = right.head;
    if (right.tau == 0.0)
      for (int64_t j = k + 2; j < n; ++j) r[j] = 0.0;
    double cross = right.tau == 0.0 ? 0.0 : sum(products);
    for (int64_t j = k + 1; j < start + kPanelColumns; ++j) cross += next_p[j] * r[j];

    // q = tau_r (A v - cross u), A v = sums - beta A e_1, and the next column A e_1 - p_1 u - v_1 q, which takes the spent u's place.
    const Vec tau = broadcast(right.tau), beta = broadcast(right.beta), along_u = broadcast(cross);
    const Vec of_x = broadcast(next_p[k + 1]), of_q = broadcast(right.head);
    const int64_t group = (k + 1) / kLanes * kLanes;
    squares = zeros();
    for (int64_t i = group; i < m; i += kLanes) {
      Vec lanes[kLanes];
#pragma GCC unroll 8
      for (int l = 0; l < kLanes; ++l) {
        lanes[l] = load(sums + (i + l) * kLanes);
        store(sums + (i + l) * kLanes, zeros());
      }
      const Vec ci = load(column + i), xi = load(x + i);
      const Vec qi = mul(tau, fnma(along_u, xi, fnma(beta, ci, lane_sums(lanes))));
      const Vec ui = fnma(of_q, qi, fnma(of_x, xi, ci));
      store(q + i, qi);
      store(u + i, ui);
      if (i != group) squares = fma(ui, ui, squares);
    }
    for (int64_t i = group; i <= k; ++i) q[i] = u[i] = 0.0;
    below = sum(squares);
    for (int64_t i = k + 2; i < group + kLanes; ++i) below += u[i] * u[i];

    double* spent = u;
    u = x;
    x = spent;
    spent = p;
    p = next_p;
    next_p = spent;
    spent = v;
    v = r;
    r = spent;
  }
}

}  // namespace
}  // namespace sf::SF_ISA
