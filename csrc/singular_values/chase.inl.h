// Second stage: one step of a sweep of bulge chasing, on the blocks of a band where it lies.
//
// Blocks are column-major views into the band: entry (i, j) of the matrix is at i + j * (ld - 1) of the band's first entry. A step
// takes the reflector I - tau v v^T that has just been made in the block before:
//   symmetric D <- H D H (lower triangle),  B <- B H below it, and a new reflector that clears the first column of B but one entry.
#pragma once
#include "singular_values/product.inl.h"

namespace sf::SF_ISA {
namespace {

// Entries of the lower triangle in a block of kLanes columns on the diagonal.
struct DiagonalMasks {
  Mask with[kLanes], below[kLanes];  // column c: lanes >= c, lanes > c
  DiagonalMasks() {
    double lane[kLanes];
    for (int k = 0; k < kLanes; ++k) lane[k] = k;
    const Vec lanes = load(lane);
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

template <int kB>
inline double dot(const double* x, const double* y) {
  Vec s[2] = {zeros(), zeros()};
  for (int r = 0; r < kB; r += 2 * kLanes) {
    s[0] = fma(load(x + r), load(y + r), s[0]);
    s[1] = fma(load(x + r + kLanes), load(y + r + kLanes), s[1]);
  }
  return sum(add(s[0], s[1]));
}

// x becomes v = (1, v'); see reflector() in band.inl.h, here for a whole block.
template <int kB>
inline double block_reflector(double* x, double& tau) {
  const double alpha = x[0];
  x[0] = 0.0;
  const double below = dot<kB>(x, x);
  if (!(below > kNothing)) {
    for (int r = 0; r < kB; ++r) x[r] = 0.0;
    x[0] = 1.0;
    tau = 0.0;
    return alpha;
  }
  const double size = sqrt(alpha * alpha + below), beta = alpha > 0.0 ? -size : size;
  tau = (beta - alpha) / beta;
  const Vec scale = broadcast(1.0 / (alpha - beta));
  for (int r = 0; r < kB; r += kLanes) store(x + r, mul(scale, load(x + r)));
  x[0] = 1.0;
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
  for (int r = 0; r < kB; r += kLanes) store(y + r, zeros());
  for (int g = 0; g < kB; g += kLanes) {
    const double* p = block + g * ld;
    const Vec here = load(v + g);
    Vec own = load(y + g), entry[kLanes], s[kLanes];
#pragma GCC unroll 8
    for (int k = 0; k < kLanes; ++k) {
      const Vec a = load(p + k * ld + g);
      entry[k] = broadcast(v[g + k]);
      own = fma(select(masks.with[k], a, zeros()), entry[k], own);
      s[k] = mul(select(masks.below[k], a, zeros()), here);
    }
    for (int r = g + kLanes; r < kB; r += kLanes) {
      const Vec x = load(v + r);
      Vec sum_r = load(y + r);
#pragma GCC unroll 8
      for (int k = 0; k < kLanes; ++k) {
        const Vec a = load(p + k * ld + r);
        sum_r = fma(a, entry[k], sum_r);
        s[k] = fma(a, x, s[k]);
      }
      store(y + r, sum_r);
    }
    double t[kLanes];
    sums(s, t);
    store(y + g, add(own, load(t)));
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

template <int kB>
void symmetric_start(double* column, int64_t, double* v) {
  for (int r = 0; r < kB; ++r) v[r] = column[1 + r];
  const double beta = block_reflector<kB>(v, v[kB]);
  for (int r = 0; r < kB; ++r) column[1 + r] = 0.0;
  column[1] = beta;
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
    beta = block_reflector<kB>(u, tau_u);
  }
  symmetric_times_vector<kB>(block, step, v, masks, y);
  const double half = 0.5 * tau * dot<kB>(v, y);
  for (int r = 0; r < kB; r += kLanes) store(y + r, mul(broadcast(tau), fnma(broadcast(half), load(v + r), load(y + r))));
  symmetric_update<kB>(block, step, v, y, masks);
  if (last) return;
  both_sides<kB>(below, step, v, z, tau, u, tau_u);
  below[0] = beta;
  for (int r = 1; r < kB; ++r) below[r] = 0.0;
  for (int r = 0; r < kB; r += kLanes) store(v + r, load(u + r));
  v[kB] = tau_u;
}

}  // namespace
}  // namespace sf::SF_ISA
