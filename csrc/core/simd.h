// Vectors of doubles for sources that are compiled once per instruction set: one name for each operation, its meaning per lane.
//
// kLanes is 8 (avx512), 4 (avx2) or 2 (baseline). fma(a, b, c) is a*b + c, rounded once where the instruction set can, twice in the
// baseline; results of different levels therefore differ by rounding, never those of different lanes. Everything here has internal
// linkage: nothing of it may be emitted as a weak symbol (see cmake/SfIsa.cmake).
#pragma once
#include <math.h>
#include <stdint.h>

#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#define SF_X86 1
#endif

#ifndef SF_ISA
#error "core/simd.h is for sources compiled per instruction set"
#endif

namespace sf::SF_ISA {
namespace {

#if defined(__AVX512F__)

constexpr int kLanes = 8;
using Vec = __m512d;
using Mask = __mmask8;
inline Vec load(const double* p) { return _mm512_loadu_pd(p); }
inline Vec load_float(const float* p) { return _mm512_cvtps_pd(_mm256_loadu_ps(p)); }
inline void store(double* p, Vec a) { _mm512_storeu_pd(p, a); }
inline Vec broadcast(double x) { return _mm512_set1_pd(x); }
inline Vec add(Vec a, Vec b) { return _mm512_add_pd(a, b); }
inline Vec sub(Vec a, Vec b) { return _mm512_sub_pd(a, b); }
inline Vec mul(Vec a, Vec b) { return _mm512_mul_pd(a, b); }
inline Vec div(Vec a, Vec b) { return _mm512_div_pd(a, b); }
inline Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_pd(a, b, c); }    // a*b + c
inline Vec fnma(Vec a, Vec b, Vec c) { return _mm512_fnmadd_pd(a, b, c); }  // c - a*b
inline Vec fms(Vec a, Vec b, Vec c) { return _mm512_fmsub_pd(a, b, c); }    // a*b - c
inline Vec square_root(Vec a) { return _mm512_sqrt_pd(a); }
inline Vec most(Vec a, Vec b) { return _mm512_max_pd(a, b); }  // b where either is NaN
inline Vec least(Vec a, Vec b) { return _mm512_min_pd(a, b); }
inline Vec magnitude(Vec a) { return _mm512_abs_pd(a); }
inline Vec with_sign(Vec size, Vec sign) {  // |size| with the sign of `sign`
  const __m512i top = _mm512_set1_epi64(INT64_MIN);
  return _mm512_castsi512_pd(_mm512_ternarylogic_epi64(top, _mm512_castpd_si512(sign), _mm512_castpd_si512(size), 0xCA));
}
inline Mask less(Vec a, Vec b) { return _mm512_cmp_pd_mask(a, b, _CMP_LT_OQ); }
inline Mask less_equal(Vec a, Vec b) { return _mm512_cmp_pd_mask(a, b, _CMP_LE_OQ); }
inline Mask equal(Vec a, Vec b) { return _mm512_cmp_pd_mask(a, b, _CMP_EQ_OQ); }
inline Mask both(Mask a, Mask b) { return static_cast<Mask>(a & b); }
inline Mask either(Mask a, Mask b) { return static_cast<Mask>(a | b); }
inline Mask without(Mask a, Mask b) { return static_cast<Mask>(a & ~b); }  // a and not b
inline Vec select(Mask m, Vec yes, Vec no) { return _mm512_mask_blend_pd(m, no, yes); }
inline unsigned bits(Mask m) { return m; }  // bit k: lane k
inline double sum(Vec a) {
  const __m256d h = _mm256_add_pd(_mm512_castpd512_pd256(a), _mm512_extractf64x4_pd(a, 1));
  const __m128d q = _mm_add_pd(_mm256_castpd256_pd128(h), _mm256_extractf128_pd(h, 1));
  return _mm_cvtsd_f64(_mm_add_sd(q, _mm_unpackhi_pd(q, q)));
}

#elif defined(__AVX2__)

constexpr int kLanes = 4;
using Vec = __m256d;
using Mask = __m256d;  // all ones or all zeros per lane
inline Vec load(const double* p) { return _mm256_loadu_pd(p); }
inline Vec load_float(const float* p) { return _mm256_cvtps_pd(_mm_loadu_ps(p)); }
inline void store(double* p, Vec a) { _mm256_storeu_pd(p, a); }
inline Vec broadcast(double x) { return _mm256_set1_pd(x); }
inline Vec add(Vec a, Vec b) { return _mm256_add_pd(a, b); }
inline Vec sub(Vec a, Vec b) { return _mm256_sub_pd(a, b); }
inline Vec mul(Vec a, Vec b) { return _mm256_mul_pd(a, b); }
inline Vec div(Vec a, Vec b) { return _mm256_div_pd(a, b); }
inline Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_pd(a, b, c); }
inline Vec fnma(Vec a, Vec b, Vec c) { return _mm256_fnmadd_pd(a, b, c); }
inline Vec fms(Vec a, Vec b, Vec c) { return _mm256_fmsub_pd(a, b, c); }
inline Vec square_root(Vec a) { return _mm256_sqrt_pd(a); }
inline Vec most(Vec a, Vec b) { return _mm256_max_pd(a, b); }
inline Vec least(Vec a, Vec b) { return _mm256_min_pd(a, b); }
inline Vec magnitude(Vec a) { return _mm256_andnot_pd(_mm256_set1_pd(-0.0), a); }
inline Vec with_sign(Vec size, Vec sign) {
  const Vec top = _mm256_set1_pd(-0.0);
  return _mm256_or_pd(_mm256_andnot_pd(top, size), _mm256_and_pd(top, sign));
}
inline Mask less(Vec a, Vec b) { return _mm256_cmp_pd(a, b, _CMP_LT_OQ); }
inline Mask less_equal(Vec a, Vec b) { return _mm256_cmp_pd(a, b, _CMP_LE_OQ); }
inline Mask equal(Vec a, Vec b) { return _mm256_cmp_pd(a, b, _CMP_EQ_OQ); }
inline Mask both(Mask a, Mask b) { return _mm256_and_pd(a, b); }
inline Mask either(Mask a, Mask b) { return _mm256_or_pd(a, b); }
inline Mask without(Mask a, Mask b) { return _mm256_andnot_pd(b, a); }
inline Vec select(Mask m, Vec yes, Vec no) { return _mm256_blendv_pd(no, yes, m); }
inline unsigned bits(Mask m) { return static_cast<unsigned>(_mm256_movemask_pd(m)); }
inline double sum(Vec a) {
  const __m128d q = _mm_add_pd(_mm256_castpd256_pd128(a), _mm256_extractf128_pd(a, 1));
  return _mm_cvtsd_f64(_mm_add_sd(q, _mm_unpackhi_pd(q, q)));
}

#elif defined(SF_X86)

constexpr int kLanes = 2;
using Vec = __m128d;
using Mask = __m128d;
inline Vec load(const double* p) { return _mm_loadu_pd(p); }
inline Vec load_float(const float* p) { return _mm_set_pd(p[1], p[0]); }
inline void store(double* p, Vec a) { _mm_storeu_pd(p, a); }
inline Vec broadcast(double x) { return _mm_set1_pd(x); }
inline Vec add(Vec a, Vec b) { return _mm_add_pd(a, b); }
inline Vec sub(Vec a, Vec b) { return _mm_sub_pd(a, b); }
inline Vec mul(Vec a, Vec b) { return _mm_mul_pd(a, b); }
inline Vec div(Vec a, Vec b) { return _mm_div_pd(a, b); }
inline Vec fma(Vec a, Vec b, Vec c) { return _mm_add_pd(_mm_mul_pd(a, b), c); }
inline Vec fnma(Vec a, Vec b, Vec c) { return _mm_sub_pd(c, _mm_mul_pd(a, b)); }
inline Vec fms(Vec a, Vec b, Vec c) { return _mm_sub_pd(_mm_mul_pd(a, b), c); }
inline Vec square_root(Vec a) { return _mm_sqrt_pd(a); }
inline Vec most(Vec a, Vec b) { return _mm_max_pd(a, b); }
inline Vec least(Vec a, Vec b) { return _mm_min_pd(a, b); }
inline Vec magnitude(Vec a) { return _mm_andnot_pd(_mm_set1_pd(-0.0), a); }
inline Vec with_sign(Vec size, Vec sign) {
  const Vec top = _mm_set1_pd(-0.0);
  return _mm_or_pd(_mm_andnot_pd(top, size), _mm_and_pd(top, sign));
}
inline Mask less(Vec a, Vec b) { return _mm_cmplt_pd(a, b); }
inline Mask less_equal(Vec a, Vec b) { return _mm_cmple_pd(a, b); }
inline Mask equal(Vec a, Vec b) { return _mm_cmpeq_pd(a, b); }
inline Mask both(Mask a, Mask b) { return _mm_and_pd(a, b); }
inline Mask either(Mask a, Mask b) { return _mm_or_pd(a, b); }
inline Mask without(Mask a, Mask b) { return _mm_andnot_pd(b, a); }
inline Vec select(Mask m, Vec yes, Vec no) { return _mm_or_pd(_mm_and_pd(m, yes), _mm_andnot_pd(m, no)); }
inline unsigned bits(Mask m) { return static_cast<unsigned>(_mm_movemask_pd(m)); }
inline double sum(Vec a) { return _mm_cvtsd_f64(_mm_add_sd(a, _mm_unpackhi_pd(a, a))); }

#else  // any other processor: the compiler makes of it what it can

constexpr int kLanes = 2;
struct Vec {
  double lane[kLanes];
};
struct Mask {
  bool lane[kLanes];
};
#define SF_EACH(Type, expression)                                \
  {                                                              \
    Type out;                                                    \
    for (int k = 0; k < kLanes; ++k) out.lane[k] = (expression); \
    return out;                                                  \
  }
inline Vec load(const double* p) SF_EACH(Vec, p[k]) inline Vec load_float(const float* p)
    SF_EACH(Vec, p[k]) inline void store(double* p, Vec a) {
  for (int k = 0; k < kLanes; ++k) p[k] = a.lane[k];
}
inline Vec broadcast(double x) SF_EACH(Vec, x) inline Vec add(Vec a, Vec b) SF_EACH(Vec, a.lane[k] + b.lane[k]) inline Vec sub(Vec a, Vec b)
    SF_EACH(Vec, a.lane[k] - b.lane[k]) inline Vec mul(Vec a, Vec b) SF_EACH(Vec, a.lane[k] * b.lane[k]) inline Vec div(Vec a, Vec b)
        SF_EACH(Vec, a.lane[k] / b.lane[k]) inline Vec fma(Vec a, Vec b, Vec c) SF_EACH(Vec, a.lane[k] * b.lane[k] + c.lane[k]) inline Vec
    fnma(Vec a, Vec b, Vec c) SF_EACH(Vec, c.lane[k] - a.lane[k] * b.lane[k]) inline Vec fms(Vec a, Vec b, Vec c)
        SF_EACH(Vec, a.lane[k] * b.lane[k] - c.lane[k]) inline Vec square_root(Vec a) SF_EACH(Vec, sqrt(a.lane[k])) inline Vec
    most(Vec a, Vec b) SF_EACH(Vec, a.lane[k] > b.lane[k] ? a.lane[k] : b.lane[k]) inline Vec least(Vec a, Vec b)
        SF_EACH(Vec, a.lane[k] < b.lane[k] ? a.lane[k] : b.lane[k]) inline Vec magnitude(Vec a) SF_EACH(Vec, fabs(a.lane[k])) inline Vec
    with_sign(Vec size, Vec sign) SF_EACH(Vec, copysign(size.lane[k], sign.lane[k])) inline Mask less(Vec a, Vec b)
        SF_EACH(Mask, a.lane[k] < b.lane[k]) inline Mask less_equal(Vec a, Vec b) SF_EACH(Mask, a.lane[k] <= b.lane[k]) inline Mask
    equal(Vec a, Vec b) SF_EACH(Mask, a.lane[k] == b.lane[k]) inline Mask both(Mask a, Mask b)
        SF_EACH(Mask, a.lane[k] && b.lane[k]) inline Mask either(Mask a, Mask b) SF_EACH(Mask, a.lane[k] || b.lane[k]) inline Mask
    without(Mask a, Mask b) SF_EACH(Mask, a.lane[k] && !b.lane[k]) inline Vec select(Mask m, Vec yes, Vec no)
        SF_EACH(Vec, m.lane[k] ? yes.lane[k] : no.lane[k]) inline unsigned bits(Mask m) {
  unsigned out = 0;
  for (int k = 0; k < kLanes; ++k) out |= static_cast<unsigned>(m.lane[k]) << k;
  return out;
}
inline double sum(Vec a) {
  double out = 0.0;
  for (int k = 0; k < kLanes; ++k) out += a.lane[k];
  return out;
}
#undef SF_EACH

#endif

inline bool any(Mask m) { return bits(m) != 0; }
inline Vec zeros() { return broadcast(0.0); }

}  // namespace
}  // namespace sf::SF_ISA
