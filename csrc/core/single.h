// Vectors of floats, twice as many as core/simd.h's doubles; the same rules hold.
#pragma once
#include "core/simd.h"

namespace sf::SF_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int kSingles = 16;
using Singles = __m512;
inline void put_singles(float* p, Singles a) { _mm512_storeu_ps(p, a); }
inline Singles add_singles(Singles a, Singles b) { return _mm512_add_ps(a, b); }
inline Singles mul_singles(Singles a, Singles b) { return _mm512_mul_ps(a, b); }
inline Singles load_singles(const float* p) { return _mm512_loadu_ps(p); }
inline Singles broadcast_single(float x) { return _mm512_set1_ps(x); }
inline Singles fma_singles(Singles a, Singles b, Singles c) { return _mm512_fmadd_ps(a, b, c); }
inline void widen(Singles a, Vec* out) {
  out[0] = _mm512_cvtps_pd(_mm512_castps512_ps256(a));
  out[1] = _mm512_cvtps_pd(_mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(a), 1)));
}
inline void store_singles(float* p, const double* from) {
  _mm256_storeu_ps(p, _mm512_cvtpd_ps(_mm512_loadu_pd(from)));
  _mm256_storeu_ps(p + 8, _mm512_cvtpd_ps(_mm512_loadu_pd(from + 8)));
}
#elif defined(__AVX2__)
constexpr int kSingles = 8;
using Singles = __m256;
inline void put_singles(float* p, Singles a) { _mm256_storeu_ps(p, a); }
inline Singles add_singles(Singles a, Singles b) { return _mm256_add_ps(a, b); }
inline Singles mul_singles(Singles a, Singles b) { return _mm256_mul_ps(a, b); }
inline Singles load_singles(const float* p) { return _mm256_loadu_ps(p); }
inline Singles broadcast_single(float x) { return _mm256_set1_ps(x); }
inline Singles fma_singles(Singles a, Singles b, Singles c) { return _mm256_fmadd_ps(a, b, c); }
inline void widen(Singles a, Vec* out) {
  out[0] = _mm256_cvtps_pd(_mm256_castps256_ps128(a));
  out[1] = _mm256_cvtps_pd(_mm256_extractf128_ps(a, 1));
}
inline void store_singles(float* p, const double* from) {
  _mm_storeu_ps(p, _mm256_cvtpd_ps(_mm256_loadu_pd(from)));
  _mm_storeu_ps(p + 4, _mm256_cvtpd_ps(_mm256_loadu_pd(from + 4)));
}
#elif defined(SF_X86)
constexpr int kSingles = 4;
using Singles = __m128;
inline void put_singles(float* p, Singles a) { _mm_storeu_ps(p, a); }
inline Singles add_singles(Singles a, Singles b) { return _mm_add_ps(a, b); }
inline Singles mul_singles(Singles a, Singles b) { return _mm_mul_ps(a, b); }
inline Singles load_singles(const float* p) { return _mm_loadu_ps(p); }
inline Singles broadcast_single(float x) { return _mm_set1_ps(x); }
inline Singles fma_singles(Singles a, Singles b, Singles c) { return _mm_add_ps(_mm_mul_ps(a, b), c); }
inline void widen(Singles a, Vec* out) {
  out[0] = _mm_cvtps_pd(a);
  out[1] = _mm_cvtps_pd(_mm_movehl_ps(a, a));
}
inline void store_singles(float* p, const double* from) {
  for (int k = 0; k < kSingles; ++k) p[k] = static_cast<float>(from[k]);
}
#else
constexpr int kSingles = 4;
struct Singles {
  float lane[kSingles];
};
inline void put_singles(float* p, Singles a) {
  for (int k = 0; k < kSingles; ++k) p[k] = a.lane[k];
}
inline Singles add_singles(Singles a, Singles b) {
  for (int k = 0; k < kSingles; ++k) a.lane[k] += b.lane[k];
  return a;
}
inline Singles mul_singles(Singles a, Singles b) {
  for (int k = 0; k < kSingles; ++k) a.lane[k] *= b.lane[k];
  return a;
}
inline Singles load_singles(const float* p) { return {p[0], p[1], p[2], p[3]}; }
inline Singles broadcast_single(float x) { return {x, x, x, x}; }
inline Singles fma_singles(Singles a, Singles b, Singles c) {
  for (int k = 0; k < kSingles; ++k) c.lane[k] += a.lane[k] * b.lane[k];
  return c;
}
inline void widen(Singles a, Vec* out) {
  for (int k = 0; k < kSingles; ++k) out[k / kLanes].lane[k % kLanes] = static_cast<double>(a.lane[k]);
}
inline void store_singles(float* p, const double* from) {
  for (int k = 0; k < kSingles; ++k) p[k] = static_cast<float>(from[k]);
}
#endif

}  // namespace
}  // namespace sf::SF_ISA
