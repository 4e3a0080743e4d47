// Codes of one byte times a scale, in vectors where the processor has them: left to itself, the compiler unrolls loops as short as these
// and then shuffles single bytes.
#include <stdint.h>
#include <string.h>

#include "core/single.h"

namespace sf::SF_ISA {
namespace {

// kSingles codes, less `shift`, as floats.
#if defined(__AVX512F__)

inline Singles floats_of(__m512i x, int shift) { return _mm512_cvtepi32_ps(_mm512_sub_epi32(x, _mm512_set1_epi32(shift))); }
inline Singles load_codes(const uint8_t* p, int shift) {
  return floats_of(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))), shift);
}
inline Singles load_codes(const int8_t* p, int shift) {
  return floats_of(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))), shift);
}

#elif defined(__AVX2__)

inline Singles floats_of(__m256i x, int shift) { return _mm256_cvtepi32_ps(_mm256_sub_epi32(x, _mm256_set1_epi32(shift))); }
inline Singles load_codes(const uint8_t* p, int shift) {
  return floats_of(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))), shift);
}
inline Singles load_codes(const int8_t* p, int shift) {
  return floats_of(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))), shift);
}

#elif defined(SF_X86)

inline Singles floats_of(__m128i x, int shift) { return _mm_cvtepi32_ps(_mm_sub_epi32(x, _mm_set1_epi32(shift))); }
inline __m128i four_bytes(const void* p) {
  int x;
  memcpy(&x, p, sizeof x);
  return _mm_cvtsi32_si128(x);
}
inline Singles load_codes(const uint8_t* p, int shift) {
  const __m128i none = _mm_setzero_si128();
  return floats_of(_mm_unpacklo_epi16(_mm_unpacklo_epi8(four_bytes(p), none), none), shift);
}
inline Singles load_codes(const int8_t* p, int shift) {  // to the top of every 32 bits, and back down with the sign
  const __m128i none = _mm_setzero_si128();
  return floats_of(_mm_srai_epi32(_mm_unpacklo_epi16(none, _mm_unpacklo_epi8(none, four_bytes(p))), 24), shift);
}

#else  // any other processor: the compiler makes of it what it can

template <class Code>
inline Singles load_codes(const Code* p, int shift) {
  Singles x;
  for (int k = 0; k < kSingles; ++k) x.lane[k] = static_cast<float>(p[k] - shift);
  return x;
}

#endif

// to = (from - kShift) * d; kCount a multiple of 16
template <int kCount, int kShift, class Code>
inline void times(const Code* from, float d, float* to) {
  const Singles factor = broadcast_single(d);
  for (int j = 0; j < kCount; j += kSingles) put_singles(to + j, mul_singles(load_codes(from + j, kShift), factor));
}

// to = from * d + m
template <int kCount>
inline void times_and_add(const uint8_t* from, float d, float m, float* to) {
  const Singles factor = broadcast_single(d), offset = broadcast_single(m);
  for (int j = 0; j < kCount; j += kSingles) put_singles(to + j, add_singles(mul_singles(load_codes(from + j, 0), factor), offset));
}

}  // namespace
}  // namespace sf::SF_ISA
