// Third stage: Sturm counts of a symmetric tridiagonal matrix at many shifts, without divisions.
//
// p_i = (d_i - x) p_{i-1} - e_{i-1}^2 p_{i-2} are the leading minors of T - x I; the number of sign changes is that of eigenvalues below x
// (Barth, Martin & Wilkinson 1967), and the computed signs are the exact ones of a matrix within a few eps of T. Growth is taken out
// every kScaleSteps steps, by powers of two. Squares e^2 come with a floor (kSturmFloor) that keeps the sequence from ending in zeros:
// where p_i = 0 the next minor has the sign opposite to the last one, whichever sign the zero has.
#pragma once
#include <string.h>

#include "singular_values/product.inl.h"

namespace sf::SF_ISA {
namespace {

constexpr int kScaleSteps = 8;  // |p| falls by no more than 2^-850 over these and four more, whatever the matrix

#if defined(__AVX512F__)
using Counts = __m512i;
inline Counts no_counts() { return _mm512_setzero_si512(); }
inline Counts count_change(Counts n, Vec a, Vec b) {
  return _mm512_add_epi64(n, _mm512_srli_epi64(_mm512_xor_si512(_mm512_castpd_si512(a), _mm512_castpd_si512(b)), 63));
}
inline Counts exponent_field(Vec a) { return _mm512_and_si512(_mm512_castpd_si512(a), _mm512_set1_epi64(0x7FF0000000000000)); }
inline Counts add_field(Counts n, Counts field) { return _mm512_add_epi64(n, _mm512_srli_epi64(field, 52)); }
inline Vec reciprocal(Counts field) { return _mm512_castsi512_pd(_mm512_sub_epi64(_mm512_set1_epi64(0x7FE0000000000000), field)); }
inline void store_counts(int64_t* p, Counts n) { _mm512_storeu_si512(p, n); }
#elif defined(__AVX2__)
using Counts = __m256i;
inline Counts no_counts() { return _mm256_setzero_si256(); }
inline Counts count_change(Counts n, Vec a, Vec b) {
  return _mm256_add_epi64(n, _mm256_srli_epi64(_mm256_castpd_si256(_mm256_xor_pd(a, b)), 63));
}
inline Counts exponent_field(Vec a) { return _mm256_and_si256(_mm256_castpd_si256(a), _mm256_set1_epi64x(0x7FF0000000000000)); }
inline Counts add_field(Counts n, Counts field) { return _mm256_add_epi64(n, _mm256_srli_epi64(field, 52)); }
inline Vec reciprocal(Counts field) { return _mm256_castsi256_pd(_mm256_sub_epi64(_mm256_set1_epi64x(0x7FE0000000000000), field)); }
inline void store_counts(int64_t* p, Counts n) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), n); }
#elif defined(SF_X86)
using Counts = __m128i;
inline Counts no_counts() { return _mm_setzero_si128(); }
inline Counts count_change(Counts n, Vec a, Vec b) { return _mm_add_epi64(n, _mm_srli_epi64(_mm_castpd_si128(_mm_xor_pd(a, b)), 63)); }
inline Counts exponent_field(Vec a) { return _mm_and_si128(_mm_castpd_si128(a), _mm_set1_epi64x(0x7FF0000000000000)); }
inline Counts add_field(Counts n, Counts field) { return _mm_add_epi64(n, _mm_srli_epi64(field, 52)); }
inline Vec reciprocal(Counts field) { return _mm_castsi128_pd(_mm_sub_epi64(_mm_set1_epi64x(0x7FE0000000000000), field)); }
inline void store_counts(int64_t* p, Counts n) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), n); }
#else
struct Counts {
  uint64_t lane[kLanes];
};
inline Counts no_counts() { return Counts{}; }
inline void words(Vec a, uint64_t* out) {
  double x[kLanes];
  store(x, a);
  memcpy(out, x, sizeof x);
}
inline Counts count_change(Counts n, Vec a, Vec b) {
  uint64_t x[kLanes], y[kLanes];
  words(a, x);
  words(b, y);
  for (int k = 0; k < kLanes; ++k) n.lane[k] += (x[k] ^ y[k]) >> 63;
  return n;
}
inline Counts exponent_field(Vec a) {
  Counts out;
  words(a, out.lane);
  for (int k = 0; k < kLanes; ++k) out.lane[k] &= 0x7FF0000000000000u;
  return out;
}
inline Counts add_field(Counts n, Counts field) {
  for (int k = 0; k < kLanes; ++k) n.lane[k] += field.lane[k] >> 52;
  return n;
}
inline Vec reciprocal(Counts field) {
  double x[kLanes];
  for (int k = 0; k < kLanes; ++k) field.lane[k] = 0x7FE0000000000000u - field.lane[k];
  memcpy(x, field.lane, sizeof x);
  return load(x);
}
inline void store_counts(int64_t* p, Counts n) { memcpy(p, n.lane, sizeof n.lane); }
#endif

template <int kVecs>
struct SturmState {
  Vec shift[kVecs], before[kVecs], now[kVecs];
  Counts changes[kVecs];
};

template <bool kDiagonal, int kVecs>
inline void sturm_step(SturmState<kVecs>& s, double d, double e2) {
  const Vec off = broadcast(e2), diagonal = kDiagonal ? broadcast(d) : zeros();
#pragma GCC unroll 8
  for (int v = 0; v < kVecs; ++v) {
    const Vec next = fms(kDiagonal ? sub(diagonal, s.shift[v]) : s.shift[v], s.now[v], mul(off, s.before[v]));
    s.changes[v] = count_change(s.changes[v], next, s.now[v]);
    s.before[v] = s.now[v];
    s.now[v] = next;
  }
}

// kVecs vectors of shifts at a time. The minor p_n at each shift is value * 2^exponent.
template <bool kDiagonal, int kVecs>
inline void sturm_vectors(const double* d, const double* e2, int64_t n, const double* x, int64_t* counts, double* value,
                          int64_t* exponents) {
  SturmState<kVecs> s;
  Counts fields[kVecs];
#pragma GCC unroll 8
  for (int v = 0; v < kVecs; ++v) {
    s.shift[v] = kDiagonal ? load(x + v * kLanes) : sub(zeros(), load(x + v * kLanes));
    s.before[v] = zeros();
    s.now[v] = broadcast(1.0);
    s.changes[v] = fields[v] = no_counts();
  }
  int64_t scalings = 0, i = 0;
  for (; i + kScaleSteps <= n; i += kScaleSteps, ++scalings) {
    // the scale is that of some steps ago: nothing waits for it
    Vec scale[kVecs];
#pragma GCC unroll 8
    for (int k = 0; k < kScaleSteps; ++k) {
      sturm_step<kDiagonal, kVecs>(s, kDiagonal ? d[i + k] : 0.0, e2[i + k]);
      if (k != kScaleSteps - 4) continue;
#pragma GCC unroll 8
      for (int v = 0; v < kVecs; ++v) {
        const Counts field = exponent_field(most(magnitude(s.before[v]), magnitude(s.now[v])));
        fields[v] = add_field(fields[v], field);
        scale[v] = reciprocal(field);
      }
    }
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v) {
      s.before[v] = mul(scale[v], s.before[v]);
      s.now[v] = mul(scale[v], s.now[v]);
    }
  }
  for (; i < n; ++i) sturm_step<kDiagonal, kVecs>(s, kDiagonal ? d[i] : 0.0, e2[i]);
#pragma GCC unroll 8
  for (int v = 0; v < kVecs; ++v) {
    store_counts(counts + v * kLanes, s.changes[v]);
    store_counts(exponents + v * kLanes, fields[v]);
    store(value + v * kLanes, s.now[v]);
    for (int k = 0; k < kLanes; ++k) {
      // an exponent of its own, so that exponents can be compared
      int own = 0;
      value[v * kLanes + k] = frexp(value[v * kLanes + k], &own);
      exponents[v * kLanes + k] += own - 1023 * scalings;
    }
  }
}

template <bool kDiagonal>
inline void sturm_all(const double* d, const double* e2, int64_t n, const double* x, int64_t shifts, int64_t* counts, double* value,
                      int64_t* exponents) {
  constexpr int kVecs = kLanes == 8 ? 6 : 4;
  int64_t i = 0;
  for (; i + kVecs * kLanes <= shifts; i += kVecs * kLanes) {
    sturm_vectors<kDiagonal, kVecs>(d, e2, n, x + i, counts + i, value + i, exponents + i);
  }
  for (; i + 2 * kLanes <= shifts; i += 2 * kLanes) {
    sturm_vectors<kDiagonal, 2>(d, e2, n, x + i, counts + i, value + i, exponents + i);
  }
  for (; i < shifts; i += kLanes) sturm_vectors<kDiagonal, 1>(d, e2, n, x + i, counts + i, value + i, exponents + i);
}

void sturm(const double* d, const double* e2, int64_t n, const double* x, int64_t shifts, int64_t* counts, double* value,
           int64_t* exponents) {
  if (d != nullptr) {
    sturm_all<true>(d, e2, n, x, shifts, counts, value, exponents);
  } else {
    sturm_all<false>(d, e2, n, x, shifts, counts, value, exponents);
  }
}

}  // namespace
}  // namespace sf::SF_ISA
