// Codes of one byte times a scale, in vectors where the processor has them: left to itself, the compiler unrolls loops as short as these
// and then shuffles single bytes.
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#endif

namespace sf::SF_ISA {
namespace {

#if defined(__AVX512F__)

constexpr int kCodes = 16;
using Codes = __m512i;
using Values = __m512;
inline Codes load_codes(const uint8_t* p) { return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
inline Codes load_codes(const int8_t* p) { return _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
inline Values values_of(Codes x, int shift) { return _mm512_cvtepi32_ps(_mm512_sub_epi32(x, _mm512_set1_epi32(shift))); }
inline Values every(float x) { return _mm512_set1_ps(x); }
inline Values product(Values a, Values b) { return _mm512_mul_ps(a, b); }
inline Values sum(Values a, Values b) { return _mm512_add_ps(a, b); }
inline void store(float* p, Values x) { _mm512_storeu_ps(p, x); }

#elif defined(__AVX2__)

constexpr int kCodes = 8;
using Codes = __m256i;
using Values = __m256;
inline Codes load_codes(const uint8_t* p) { return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))); }
inline Codes load_codes(const int8_t* p) { return _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))); }
inline Values values_of(Codes x, int shift) { return _mm256_cvtepi32_ps(_mm256_sub_epi32(x, _mm256_set1_epi32(shift))); }
inline Values every(float x) { return _mm256_set1_ps(x); }
inline Values product(Values a, Values b) { return _mm256_mul_ps(a, b); }
inline Values sum(Values a, Values b) { return _mm256_add_ps(a, b); }
inline void store(float* p, Values x) { _mm256_storeu_ps(p, x); }

#elif defined(__x86_64__) || defined(_M_X64)

constexpr int kCodes = 4;
using Codes = __m128i;
using Values = __m128;
inline __m128i four_bytes(const void* p) {
  int x;
  memcpy(&x, p, sizeof x);
  return _mm_cvtsi32_si128(x);
}
inline Codes load_codes(const uint8_t* p) {
  const __m128i none = _mm_setzero_si128();
  return _mm_unpacklo_epi16(_mm_unpacklo_epi8(four_bytes(p), none), none);
}
inline Codes load_codes(const int8_t* p) {  // to the top of every 32 bits, and back down with the sign
  const __m128i none = _mm_setzero_si128();
  return _mm_srai_epi32(_mm_unpacklo_epi16(none, _mm_unpacklo_epi8(none, four_bytes(p))), 24);
}
inline Values values_of(Codes x, int shift) { return _mm_cvtepi32_ps(_mm_sub_epi32(x, _mm_set1_epi32(shift))); }
inline Values every(float x) { return _mm_set1_ps(x); }
inline Values product(Values a, Values b) { return _mm_mul_ps(a, b); }
inline Values sum(Values a, Values b) { return _mm_add_ps(a, b); }
inline void store(float* p, Values x) { _mm_storeu_ps(p, x); }

#else  // any other processor: the compiler makes of it what it can

constexpr int kCodes = 1;
using Codes = int32_t;
using Values = float;
inline Codes load_codes(const uint8_t* p) { return *p; }
inline Codes load_codes(const int8_t* p) { return *p; }
inline Values values_of(Codes x, int shift) { return static_cast<float>(x - shift); }
inline Values every(float x) { return x; }
inline Values product(Values a, Values b) { return a * b; }
inline Values sum(Values a, Values b) { return a + b; }
inline void store(float* p, Values x) { *p = x; }

#endif

// to = (from - kShift) * d; kCount a multiple of 16
template <int kCount, int kShift, class Code>
inline void times(const Code* from, float d, float* to) {
  const Values factor = every(d);
  for (int j = 0; j < kCount; j += kCodes) store(to + j, product(values_of(load_codes(from + j), kShift), factor));
}

// to = from * d + m
template <int kCount>
inline void times_and_add(const uint8_t* from, float d, float m, float* to) {
  const Values factor = every(d), offset = every(m);
  for (int j = 0; j < kCount; j += kCodes) store(to + j, sum(product(values_of(load_codes(from + j), 0), factor), offset));
}

}  // namespace
}  // namespace sf::SF_ISA
