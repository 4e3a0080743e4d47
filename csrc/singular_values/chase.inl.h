// Second stage: one step of a sweep of bulge chasing, on the blocks of a band where it lies.
//
// Blocks are column-major views into the band: entry (i, j) of the matrix is at i + j * (ld - 1) of the band's first entry. A step
// takes the reflector I - tau v v^T that has just been made in the block before:
//   symmetric D <- H D H (lower triangle),  B <- B H below it, and a new reflector that clears the first column of B but one entry;
//   general   D <- D H, a reflector from the left that clears its first column but one entry, applied to D and to B right of it,
//             and a new reflector that clears the first row of B but one entry.
#pragma once
#include "singular_values/product.inl.h"

namespace sf::SF_ISA {
namespace {

// Entries of the lower triangle in a block of kLanes columns on the diagonal.
struct DiagonalMasks {
  Mask with[kLanes], below[kLanes];  // column c: lanes >= c, lanes > c
  DiagonalMasks() {
    constexpr double kLane[8] = {0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0};
    const Vec lanes = load(kLane);
    for (int c = 0; c < kLanes; ++c) {
      with[c] = less(broadcast(c - 0.5), lanes);
      below[c] = less(broadcast(c + 0.5), lanes);
    }
  }
};

template <int kCount>
inline void sums(const Vec (&a)[kCount], double* out) {
#if defined(__AVX2__) && !defined(__AVX512F__)
  if constexpr (kCount == 4) {
    const __m256d x = _mm256_hadd_pd(a[0], a[1]), y = _mm256_hadd_pd(a[2], a[3]);
    store(out, add(_mm256_permute2f128_pd(x, y, 0x20), _mm256_permute2f128_pd(x, y, 0x31)));
    return;
  }
#endif
  for (int k = 0; k < kCount; ++k) out[k] = sum(a[k]);
}

// 1, 0, ..., 0
inline Vec unit() {
  double x[kLanes] = {1.0};
  return load(x);
}

template <int kB>
inline double dot(const double* x, const double* y) {
  Vec s[2] = {zeros(), zeros()};
  for (int r = 0; r < kB; r += 2 * kLanes) {
    s[0] = fma(load(x + r), load(y + r), s[0]);
    s[1] = fma(load(x + r + kLanes), load(y + r + kLanes), s[1]);
  }
  return sum(add(s[0], s[1]));
}

// x becomes v = (1, v'); see reflector() in band.inl.h, here for a whole block, in vectors throughout: a scalar store into what is
// loaded as a vector soon after would hold everything up.
template <int kB>
inline double block_reflector(const double* x, double* v, double& tau) {
  constexpr int kVecs = kB / kLanes;
  const Vec one = unit();
  const double alpha = x[0];
  Vec part[kVecs], square[2] = {zeros(), zeros()};
#pragma GCC unroll 16
  for (int k = 0; k < kVecs; ++k) {
    part[k] = load(x + k * kLanes);
    if (k == 0) part[k] = select(less(zeros(), one), zeros(), part[k]);
    square[k % 2] = fma(part[k], part[k], square[k % 2]);
  }
  const double below = sum(add(square[0], square[1]));
  if (!(below > kNothing)) {
#pragma GCC unroll 16
    for (int k = 0; k < kVecs; ++k) store(v + k * kLanes, k == 0 ? one : zeros());
    tau = 0.0;
    return alpha;
  }
  const double size = sqrt(alpha * alpha + below), beta = alpha > 0.0 ? -size : size;
  tau = (beta - alpha) / beta;
  const Vec scale = broadcast(1.0 / (alpha - beta));
#pragma GCC unroll 16
  for (int k = 0; k < kVecs; ++k) store(v + k * kLanes, fma(scale, part[k], k == 0 ? one : zeros()));
  return beta;
}

// z = B v.
template <int kB>
inline void times_vector(const double* block, int64_t ld, const double* v, double* z) {
  constexpr int kVecs = kB / kLanes <= 8 ? kB / kLanes : 8;
  for (int r = 0; r < kB; r += kVecs * kLanes) {
    Vec even[kVecs], odd[kVecs];  // two sums each: fewer waits
#pragma GCC unroll 8
    for (int k = 0; k < kVecs; ++k) even[k] = odd[k] = zeros();
    for (int c = 0; c < kB; c += 2) {
      const double* p = block + c * ld + r;
      const Vec x = broadcast(v[c]), y = broadcast(v[c + 1]);
#pragma GCC unroll 8
      for (int k = 0; k < kVecs; ++k) {
        even[k] = fma(x, load(p + k * kLanes), even[k]);
        if (kVecs < 8) odd[k] = fma(y, load(p + ld + k * kLanes), odd[k]);
      }
      if (kVecs < 8) continue;
#pragma GCC unroll 8
      for (int k = 0; k < kVecs; ++k) even[k] = fma(y, load(p + ld + k * kLanes), even[k]);
    }
#pragma GCC unroll 8
    for (int k = 0; k < kVecs; ++k) store(z + r + k * kLanes, add(even[k], odd[k]));
  }
}

// y = B^T u.
template <int kB>
inline void transposed_times_vector(const double* block, int64_t ld, const double* u, double* y) {
  for (int c = 0; c < kB; c += 4) {
    const double* p = block + c * ld;
    Vec s[4];
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) s[k] = zeros();
#pragma GCC unroll 16
    for (int r = 0; r < kB; r += kLanes) {
      const Vec x = load(u + r);
#pragma GCC unroll 4
      for (int k = 0; k < 4; ++k) s[k] = fma(x, load(p + k * ld + r), s[k]);
    }
    sums(s, y + c);
  }
}

// B -= u y^T + t v^T.
template <int kB>
inline void subtract_products(double* block, int64_t ld, const double* u, const double* y, const double* t, const double* v) {
  for (int c = 0; c < kB; c += 4) {
    double* p = block + c * ld;
    Vec of_u[4], of_t[4];
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) of_u[k] = broadcast(y[c + k]), of_t[k] = broadcast(v[c + k]);
#pragma GCC unroll 16
    for (int r = 0; r < kB; r += kLanes) {
      const Vec a = load(u + r), b = load(t + r);
#pragma GCC unroll 4
      for (int k = 0; k < 4; ++k) {
        double* at = p + k * ld + r;
        store(at, fnma(of_t[k], b, fnma(of_u[k], a, load(at))));
      }
    }
  }
}

// B <- (I - tau_u u u^T)(B - tau z v^T), z = B v.
template <int kB>
inline void both_sides(double* block, int64_t ld, const double* v, const double* z, double tau, const double* u, double tau_u) {
  constexpr int kColumns = 4;
  const double zu = dot<kB>(z, u);
  for (int c = 0; c < kB; c += kColumns) {
    double* p = block + c * ld;
    Vec s[kColumns];
    double t[kColumns];
#pragma GCC unroll 4
    for (int k = 0; k < kColumns; ++k) s[k] = zeros();
#pragma GCC unroll 16
    for (int r = 0; r < kB; r += kLanes) {
      const Vec x = load(u + r);
#pragma GCC unroll 4
      for (int k = 0; k < kColumns; ++k) s[k] = fma(x, load(p + k * ld + r), s[k]);
    }
    sums(s, t);
    Vec to_z[kColumns], to_u[kColumns];
#pragma GCC unroll 4
    for (int k = 0; k < kColumns; ++k) {
      const double scaled = tau * v[c + k];
      to_z[k] = broadcast(scaled);
      to_u[k] = broadcast(tau_u * (t[k] - scaled * zu));
    }
#pragma GCC unroll 16
    for (int r = 0; r < kB; r += kLanes) {
      const Vec x = load(z + r), y = load(u + r);
#pragma GCC unroll 4
      for (int k = 0; k < kColumns; ++k) {
        double* at = p + k * ld + r;
        store(at, fnma(to_u[k], y, fnma(to_z[k], x, load(at))));
      }
    }
  }
}

// y = D v from the lower triangle of D.
template <int kB>
inline void symmetric_times_vector(const double* block, int64_t ld, const double* v, const DiagonalMasks& masks, double* y) {
  constexpr int kVecs = kB / kLanes;
  Vec own[kVecs];
#pragma GCC unroll 16
  for (int g = 0; g < kVecs; ++g) own[g] = zeros();
#pragma GCC unroll 16
  for (int g = 0; g < kVecs; ++g) {
    const double* p = block + g * kLanes * ld;
    const Vec here = load(v + g * kLanes);
    Vec entry[kLanes], s[kLanes];
#pragma GCC unroll 8
    for (int k = 0; k < kLanes; ++k) {
      const Vec a = load(p + k * ld + g * kLanes);
      entry[k] = broadcast(v[g * kLanes + k]);
      own[g] = fma(select(masks.with[k], a, zeros()), entry[k], own[g]);
      s[k] = mul(select(masks.below[k], a, zeros()), here);
    }
#pragma GCC unroll 16
    for (int r = g + 1; r < kVecs; ++r) {
      const Vec x = load(v + r * kLanes);
#pragma GCC unroll 8
      for (int k = 0; k < kLanes; ++k) {
        const Vec a = load(p + k * ld + r * kLanes);
        own[r] = fma(a, entry[k], own[r]);
        s[k] = fma(a, x, s[k]);
      }
    }
    double t[kLanes];
    sums(s, t);
    store(y + g * kLanes, add(own[g], load(t)));
  }
}

// D -= v w^T + w v^T in the lower triangle.
template <int kB>
inline void symmetric_update(double* block, int64_t ld, const double* v, const double* w, const DiagonalMasks& masks) {
  for (int g = 0; g < kB; g += kLanes) {
    double* p = block + g * ld;
    Vec of_v[kLanes], of_w[kLanes];
    const Vec v_here = load(v + g), w_here = load(w + g);
#pragma GCC unroll 8
    for (int k = 0; k < kLanes; ++k) {
      of_v[k] = broadcast(v[g + k]);
      of_w[k] = broadcast(w[g + k]);
      double* at = p + k * ld + g;
      const Vec a = load(at);
      store(at, select(masks.with[k], fnma(v_here, of_w[k], fnma(w_here, of_v[k], a)), a));
    }
    for (int r = g + kLanes; r < kB; r += kLanes) {
      const Vec x = load(v + r), y = load(w + r);
#pragma GCC unroll 8
      for (int k = 0; k < kLanes; ++k) {
        double* at = p + k * ld + r;
        store(at, fnma(x, of_w[k], fnma(y, of_v[k], load(at))));
      }
    }
  }
}

// A cleared column: all that is left of it is its first entry.
template <int kB>
inline void store_entry(double* column, double x) {
  store(column, mul(broadcast(x), unit()));
  for (int r = kLanes; r < kB; r += kLanes) store(column + r, zeros());
}

template <int kB>
void symmetric_start(double* column, int64_t, double* v) {
  const double beta = block_reflector<kB>(column + 1, v, v[kB]);
  store_entry<kB>(column + 1, beta);
}

template <int kB>
void symmetric_step(double* block, int64_t ld, bool last, double* v) {
  const double tau = v[kB];
  const DiagonalMasks masks;
  const int64_t step = ld - 1;
  double *below = block + kB, z[kB], u[kB], y[kB], tau_u = 0.0, beta = 0.0;
  if (!last) {
    times_vector<kB>(below, step, v, z);
    const Vec of_z = broadcast(tau);  // v[0] = 1
    for (int r = 0; r < kB; r += kLanes) store(u + r, fnma(of_z, load(z + r), load(below + r)));
    beta = block_reflector<kB>(u, u, tau_u);
  }
  symmetric_times_vector<kB>(block, step, v, masks, y);
  const double half = 0.5 * tau * dot<kB>(v, y);
  for (int r = 0; r < kB; r += kLanes) store(y + r, mul(broadcast(tau), fnma(broadcast(half), load(v + r), load(y + r))));
  symmetric_update<kB>(block, step, v, y, masks);
  if (last) return;
  both_sides<kB>(below, step, v, z, tau, u, tau_u);
  store_entry<kB>(below, beta);
  for (int r = 0; r < kB; r += kLanes) store(v + r, load(u + r));
  v[kB] = tau_u;
}

template <int kB>
void general_start(double* diagonal, int64_t ld, double* v) {
  double* row = diagonal + ld - 1;
  for (int r = 0; r < kB; ++r) v[r] = row[r * (ld - 1)];
  const double beta = block_reflector<kB>(v, v, v[kB]);
  for (int r = 0; r < kB; ++r) row[r * (ld - 1)] = 0.0;
  row[0] = beta;
}

template <int kB>
void general_step(double* block, int64_t ld, bool last, double* v) {
  const int64_t step = ld - 1;
  const double tau = v[kB];
  double z[kB], u[kB], tau_u = 0.0;
  times_vector<kB>(block, step, v, z);
  const Vec of_z = broadcast(tau);  // v[0] = 1
  for (int r = 0; r < kB; r += kLanes) store(u + r, fnma(of_z, load(z + r), load(block + r)));
  double beta = block_reflector<kB>(u, u, tau_u);
  both_sides<kB>(block, step, v, z, tau, u, tau_u);
  store_entry<kB>(block, beta);
  if (last) return;
  double *right = block + kB * step, y[kB], t[kB];
  transposed_times_vector<kB>(right, step, u, y);
  for (int c = 0; c < kB; ++c) v[c] = right[c * step] - tau_u * y[c];  // u[0] = 1
  beta = block_reflector<kB>(v, v, v[kB]);
  times_vector<kB>(right, step, v, t);
  const Vec back = broadcast(tau_u * dot<kB>(y, v));
  for (int r = 0; r < kB; r += kLanes) {
    store(t + r, mul(broadcast(v[kB]), fnma(back, load(u + r), load(t + r))));
    store(y + r, mul(broadcast(tau_u), load(y + r)));
  }
  subtract_products<kB>(right, step, u, y, t, v);
  right[0] = beta;
  for (int c = 1; c < kB; ++c) right[c * step] = 0.0;
}

}  // namespace
}  // namespace sf::SF_ISA
