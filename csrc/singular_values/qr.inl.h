// R of a tall matrix whose rows come in panels: R <- R of the QR decomposition of [R; P].
//
// Householder reflectors in blocks of kBlock columns. A reflector for column j has one entry in R (its head, in row j) and a full column
// in P, so that R stays triangular and the cost is that of P's rows only. The block's columns are copied into slabs, rows x kSlab each,
// row-major; a slab is factored with one sweep over its rows per reflector, and block reflectors I - V T V^T (compact WY form, reflectors
// unscaled) are applied by register tiles to strips of columns, packed into first-level cache one after another.
#pragma once
#include <string.h>

#include "singular_values/gram.inl.h"
#include "singular_values/reflector.inl.h"

namespace sf::SF_ISA {
namespace {

constexpr int kSlab = 8;
constexpr int kSlabVectors = kSlab / kLanes;
constexpr int kBlock = 32;
constexpr int kStrip = kTileVectors * kLanes;  // columns treated together

struct BlockReflector {
  double t[kBlock * kBlock];  // upper triangular
  double head[kBlock];
};

// a's rows: row -= a_j s (where Update), and on return dots = sum over rows of a_next row (with the updated row).
template <bool Update>
inline void sweep_slab(double* a, int64_t rows, int64_t j, int64_t next, const double* s, double* dots) {
  Vec sj[kSlabVectors], total[kSlabVectors];
#pragma GCC unroll 4
  for (int c = 0; c < kSlabVectors; ++c) {
    sj[c] = load(s + c * kLanes);
    total[c] = zeros();
  }
  for (int64_t from = 0; from < rows; from += kChain) {
    const int64_t to = rows - from < kChain ? rows : from + kChain;
    Vec even[kSlabVectors], odd[kSlabVectors];
#pragma GCC unroll 4
    for (int c = 0; c < kSlabVectors; ++c) even[c] = odd[c] = zeros();
    int64_t i = from;
    for (; i + 1 < to; i += 2, a += 2 * kSlab) {
      const Vec a0 = broadcast(a[j]), a1 = broadcast(a[kSlab + j]);
      Vec first[kSlabVectors], second[kSlabVectors];
#pragma GCC unroll 4
      for (int c = 0; c < kSlabVectors; ++c) {
        first[c] = load(a + c * kLanes);
        second[c] = load(a + kSlab + c * kLanes);
        if constexpr (Update) {
          first[c] = fnma(a0, sj[c], first[c]);
          second[c] = fnma(a1, sj[c], second[c]);
          store(a + c * kLanes, first[c]);
          store(a + kSlab + c * kLanes, second[c]);
        }
      }
      const Vec b0 = broadcast(a[next]), b1 = broadcast(a[kSlab + next]);
#pragma GCC unroll 4
      for (int c = 0; c < kSlabVectors; ++c) {
        even[c] = fma(b0, first[c], even[c]);
        odd[c] = fma(b1, second[c], odd[c]);
      }
    }
    if (i < to) {
      const Vec a0 = broadcast(a[j]);
#pragma GCC unroll 4
      for (int c = 0; c < kSlabVectors; ++c) store(a + c * kLanes, fnma(a0, sj[c], load(a + c * kLanes)));
      const Vec b0 = broadcast(a[next]);
#pragma GCC unroll 4
      for (int c = 0; c < kSlabVectors; ++c) even[c] = fma(b0, load(a + c * kLanes), even[c]);
    }
#pragma GCC unroll 4
    for (int c = 0; c < kSlabVectors; ++c) total[c] = add(total[c], add(even[c], odd[c]));
  }
#pragma GCC unroll 4
  for (int c = 0; c < kSlabVectors; ++c) store(dots + c * kLanes, total[c]);
}

// QR of [r; a] for `columns` <= kSlab columns: a becomes the reflectors, t (leading dimension kBlock) and head their block form.
inline void factor_slab(double* a, int64_t rows, int64_t columns, double* r, int64_t ldr, double* t, double* head) {
  double s[kSlab] = {}, dots[kSlab];
  sweep_slab<false>(a, rows, 0, 0, s, dots);
  for (int64_t j = 0; j < columns; ++j) {
    double* row = r + j * ldr;
    const Reflector h = reflector(row[j], dots[j]);
    row[j] = h.beta;
    head[j] = h.head;
    if (h.tau == 0.0)
      for (int64_t i = 0; i < rows; ++i) a[i * kSlab + j] = 0.0;
    for (int64_t l = j + 1; l < columns; ++l) {
      s[l] = h.tau * (h.head * row[l] + dots[l]);
      row[l] -= h.head * s[l];
    }
    for (int64_t l = 0; l < j; ++l) {
      double product = 0.0;
      for (int64_t k = l; k < j; ++k) product += t[l * kBlock + k] * dots[k];
      t[l * kBlock + j] = -h.tau * product;
    }
    t[j * kBlock + j] = h.tau;
    s[j] = 0.0;
    if (j + 1 < columns) sweep_slab<true>(a, rows, j, j + 1, s, dots);
  }
}

template <int Rows>
inline void add_strip_products(const double* a, const double* strip, int64_t ldstrip, int64_t vectors, int64_t depth, double* c) {
  if (vectors == 3)
    add_outer_products<Rows, 3>(a, kSlab, strip, ldstrip, depth, c, kStrip);
  else if (vectors == 2)
    add_outer_products<Rows, 2>(a, kSlab, strip, ldstrip, depth, c, kStrip);
  else
    add_outer_products<Rows, 1>(a, kSlab, strip, ldstrip, depth, c, kStrip);
}

// out (Rows x Vectors) = in - V w: v points to the rows in the first slab.
template <int Rows, int Vectors>
inline void subtract_products(const double* v, int64_t slabs, int64_t slab_size, const double* w, const double* in, int64_t ldin,
                              double* out, int64_t ldout) {
  Vec sums[Rows][Vectors];
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 3
    for (int c = 0; c < Vectors; ++c) sums[r][c] = load(in + r * ldin + c * kLanes);
  for (int64_t s = 0; s < slabs; ++s, v += slab_size) {
    for (int k = 0; k < kSlab; ++k, w += kStrip) {
      Vec row[Vectors];
#pragma GCC unroll 3
      for (int c = 0; c < Vectors; ++c) row[c] = load(w + c * kLanes);
#pragma GCC unroll 8
      for (int r = 0; r < Rows; ++r) {
        const Vec factor = broadcast(v[r * kSlab + k]);
#pragma GCC unroll 3
        for (int c = 0; c < Vectors; ++c) sums[r][c] = fnma(factor, row[c], sums[r][c]);
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 3
    for (int c = 0; c < Vectors; ++c) store(out + r * ldout + c * kLanes, sums[r][c]);
}

template <int Vectors>
inline void subtract_from_rows(const double* v, int64_t slabs, int64_t rows, const double* w, const double* in, int64_t ldin, double* out,
                               int64_t ldout) {
  int64_t i = 0;
  for (; i + kTileRows <= rows; i += kTileRows) {
    for (int r = 0; r < kTileRows; ++r) {  // the next strip
      __builtin_prefetch(out + (i + r) * ldout + kStrip);
      __builtin_prefetch(out + (i + r) * ldout + 2 * kStrip - 1);
    }
    subtract_products<kTileRows, Vectors>(v + i * kSlab, slabs, rows * kSlab, w, in + i * ldin, ldin, out + i * ldout, ldout);
  }
  for (; i < rows; ++i) subtract_products<1, Vectors>(v + i * kSlab, slabs, rows * kSlab, w, in + i * ldin, ldin, out + i * ldout, ldout);
}

// [r; strip] <- (I - V T V^T)^T [r; strip] for a strip of up to kTileVectors vectors of columns; the strip's result goes to out.
// r has `reflectors` rows; v consists of `slabs` slabs.
inline void apply_block(const double* v, int64_t slabs, int64_t rows, const double* t, const double* head, int64_t reflectors, double* r,
                        int64_t ldr, const double* strip, int64_t ldstrip, int64_t vectors, double* out, int64_t ldout) {
  alignas(64) double w[kBlock * kStrip], tw[kBlock * kStrip];
  const int64_t width = vectors * kLanes, size = slabs * kSlab;
  for (int64_t i = 0; i < size; ++i)
    for (int64_t j = 0; j < width; j += kLanes) {
      store(w + i * kStrip + j, i < reflectors ? mul(broadcast(head[i]), load(r + i * ldr + j)) : zeros());
      store(tw + i * kStrip + j, zeros());
    }
  for (int64_t k = 0; k < rows; k += kChain) {
    const int64_t depth = rows - k < kChain ? rows - k : kChain;
    for (int64_t i = 0; i < size; i += kTileRows)
      add_strip_products<kTileRows>(v + (i / kSlab * rows + k) * kSlab + i % kSlab, strip + k * ldstrip, ldstrip, vectors, depth,
                                    w + i * kStrip);
  }
  for (int64_t i = 0; i < size; i += kTileRows) {
    if (vectors == 3)
      add_outer_products<kTileRows, 3>(t + i, kBlock, w, kStrip, i + kTileRows, tw + i * kStrip, kStrip);
    else if (vectors == 2)
      add_outer_products<kTileRows, 2>(t + i, kBlock, w, kStrip, i + kTileRows, tw + i * kStrip, kStrip);
    else
      add_outer_products<kTileRows, 1>(t + i, kBlock, w, kStrip, i + kTileRows, tw + i * kStrip, kStrip);
  }
  for (int64_t i = 0; i < reflectors; ++i)
    for (int64_t j = 0; j < width; j += kLanes)
      store(r + i * ldr + j, fnma(broadcast(head[i]), load(tw + i * kStrip + j), load(r + i * ldr + j)));
  if (vectors == 3)
    subtract_from_rows<3>(v, slabs, rows, tw, strip, ldstrip, out, ldout);
  else if (vectors == 2)
    subtract_from_rows<2>(v, slabs, rows, tw, strip, ldstrip, out, ldout);
  else
    subtract_from_rows<1>(v, slabs, rows, tw, strip, ldstrip, out, ldout);
}

// out (kSlab entries) = a (1 x depth) b (depth x kSlab).
inline void row_times_slab(const double* a, int64_t depth, const double* b, int64_t ldb, double* out) {
  Vec total[kSlabVectors];
#pragma GCC unroll 4
  for (int c = 0; c < kSlabVectors; ++c) total[c] = zeros();
  for (int64_t k = 0; k < depth; ++k)
#pragma GCC unroll 4
    for (int c = 0; c < kSlabVectors; ++c) total[c] = fma(broadcast(a[k]), load(b + k * ldb + c * kLanes), total[c]);
#pragma GCC unroll 4
  for (int c = 0; c < kSlabVectors; ++c) store(out + c * kLanes, total[c]);
}

// t's part right of slab s's diagonal square: -T_before (V_before^T V_s) T_s.
inline void join_slab(const double* v, int64_t s, int64_t rows, double* t) {
  alignas(64) double cross[kBlock * kSlab] = {}, product[kBlock * kSlab];
  const int64_t before = s * kSlab;
  const double* slab = v + s * rows * kSlab;
  for (int64_t k = 0; k < rows; k += kChain) {
    const int64_t depth = rows - k < kChain ? rows - k : kChain;
    for (int64_t i = 0; i < before; i += kTileRows)
      add_outer_strip<kTileRows>(v + (i / kSlab * rows + k) * kSlab + i % kSlab, kSlab, slab + k * kSlab, kSlab, depth, cross + i * kSlab,
                                 kSlab, kSlabVectors);
  }
  for (int64_t i = 0; i < before; ++i) row_times_slab(t + i * kBlock + i, before - i, cross + i * kSlab, kSlab, product + i * kSlab);
  for (int64_t i = 0; i < before; ++i) {
    double* out = t + i * kBlock + before;
    row_times_slab(product + i * kSlab, kSlab, t + before * kBlock + before, kBlock, out);
    for (int64_t l = 0; l < kSlab; l += kLanes) store(out + l, sub(zeros(), load(out + l)));
  }
}

// Slabs `to`..`end` -= the effect of the reflectors of slabs `from`..`to`, whose t is complete; r: the rows from `from` on, all columns of
// the block.
inline void apply_slabs(double* v, int64_t from, int64_t to, int64_t end, int64_t rows, double* r, int64_t ldr, const BlockReflector& h) {
  constexpr int kStep = kSlabVectors < 2 ? 1 : 2;
  const int64_t first = from * kSlab;
  for (int64_t column = to * kSlab; column < end * kSlab; column += kStep * kLanes) {
    double* strip = v + column / kSlab * kSlab * rows + column % kSlab;
    apply_block(v + first * rows, to - from, rows, h.t + first * kBlock + first, h.head + first, (to - from) * kSlab,
                r + first * ldr + column, ldr, strip, kSlab, kStep, strip, kSlab);
  }
}

// QR of the block's own columns: [r; v] for v's slabs, `columns` columns in all. Slabs by twos, then the two halves.
inline void factor_block(double* v, int64_t rows, int64_t columns, double* r, int64_t ldr, BlockReflector& h) {
  memset(&h, 0, sizeof h);
  const int64_t slabs = (columns + kSlab - 1) / kSlab;
  for (int64_t s = 0; s < slabs; ++s) {
    const int64_t first = s * kSlab, left = columns - first < kSlab ? columns - first : kSlab;
    factor_slab(v + first * rows, rows, left, r + first * ldr + first, ldr, h.t + first * kBlock + first, h.head + first);
    if (s > 0) join_slab(v, s, rows, h.t);
    if (s % 2 == 0 && s + 1 < slabs) apply_slabs(v, s, s + 1, s + 2, rows, r, ldr, h);
    if (s == 1) apply_slabs(v, 0, 2, slabs, rows, r, ldr, h);
  }
}

template <int Vectors>
inline void copy_rows(const double* from, int64_t ldfrom, int64_t rows, double* to, int64_t ldto) {
  for (int64_t i = 0; i < rows; ++i, from += ldfrom, to += ldto)
#pragma GCC unroll 4
    for (int c = 0; c < Vectors; ++c) store(to + c * kLanes, load(from + c * kLanes));
}

// The block's columns into slabs, zeros beyond the last column.
inline void copy_block(const double* p, int64_t ldp, int64_t rows, int64_t columns, double* v) {
  for (int64_t c = 0; c < columns; c += kSlab, v += kSlab * rows) {
    copy_rows<kSlabVectors>(p + c, ldp, rows, v, kSlab);
    for (int64_t j = columns - c; j < kSlab; ++j)
      for (int64_t i = 0; i < rows; ++i) v[i * kSlab + j] = 0.0;
  }
}

inline void qr_append(double* r, int64_t n, int64_t ldr, double* p, int64_t rows, int64_t ldp, double* work) {
  BlockReflector h;
  double *v = work, *packed = work + kBlock * rows;
  for (int64_t c = 0; c < n; c += kBlock) {
    const int64_t columns = n - c < kBlock ? n - c : kBlock, slabs = (columns + kSlab - 1) / kSlab;
    copy_block(p + c, ldp, rows, columns, v);
    factor_block(v, rows, columns, r + c * ldr + c, ldr, h);
    for (int64_t column = c + kBlock; column < n; column += kStrip) {
      const int64_t left = (n - column + kLanes - 1) / kLanes, vectors = left < kTileVectors ? left : kTileVectors;
      if (vectors == 3)
        copy_rows<3>(p + column, ldp, rows, packed, kStrip);
      else if (vectors == 2)
        copy_rows<2>(p + column, ldp, rows, packed, kStrip);
      else
        copy_rows<1>(p + column, ldp, rows, packed, kStrip);
      apply_block(v, slabs, rows, h.t, h.head, columns, r + c * ldr + column, ldr, packed, kStrip, vectors, p + column, ldp);
    }
  }
}

}  // namespace
}  // namespace sf::SF_ISA
