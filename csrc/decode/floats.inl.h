// Floats of 8 and 16 bits, one by one, without a branch: what the compiler makes vectors of.
#include <stdint.h>
#include <string.h>

#include "decode/decode.h"

#if defined(__F16C__)
#include <immintrin.h>
#endif

namespace sf::SF_ISA {
namespace {

inline uint32_t bits_of_float(float x) {
  uint32_t u;
  memcpy(&u, &x, sizeof u);
  return u;
}

// The float32 bits of a small format's magnitude bits m. kFraction: bits of its significand field. Subnormal numbers are whole multiples
// of a power of two.
template <int kFraction, int kBias>
inline uint32_t widened(uint32_t m) {
  constexpr uint32_t kUnit = static_cast<uint32_t>(127 + 1 - kBias - kFraction) << 23;  // bits of the smallest subnormal number
  float unit;
  memcpy(&unit, &kUnit, sizeof unit);
  const uint32_t normal = (m << (23 - kFraction)) + (static_cast<uint32_t>(127 - kBias) << 23);
  const uint32_t subnormal = bits_of_float(static_cast<float>(static_cast<int32_t>(m)) * unit);
  return m < (1u << kFraction) ? subnormal : normal;
}

constexpr uint32_t kInfinity = 0x7f800000u, kNaN = 0x7fc00000u;

struct Float16 {
  using Bits = uint16_t;
  static uint32_t decode(uint32_t x) {
    const uint32_t m = x & 0x7fffu;
    const uint32_t top = kInfinity | (m & 0x3ffu) << 13;
    return (x & 0x8000u) << 16 | (m >= 0x7c00u ? top : widened<10, 15>(m));
  }
};

struct BFloat16 {
  using Bits = uint16_t;
  static uint32_t decode(uint32_t x) { return x << 16; }
};

struct E4M3Fn {
  using Bits = uint8_t;
  static uint32_t decode(uint32_t x) {
    const uint32_t m = x & 0x7fu;
    return (x & 0x80u) << 24 | (m == 0x7fu ? kNaN : widened<3, 7>(m));
  }
};

struct E5M2 {
  using Bits = uint8_t;
  static uint32_t decode(uint32_t x) {
    const uint32_t m = x & 0x7fu;
    const uint32_t top = m == 0x7cu ? kInfinity : kNaN;
    return (x & 0x80u) << 24 | (m >= 0x7cu ? top : widened<2, 15>(m));
  }
};

struct E4M3Fnuz {
  using Bits = uint8_t;
  static uint32_t decode(uint32_t x) { return x == 0x80u ? kNaN : (x & 0x80u) << 24 | widened<3, 8>(x & 0x7fu); }
};

struct E5M2Fnuz {
  using Bits = uint8_t;
  static uint32_t decode(uint32_t x) { return x == 0x80u ? kNaN : (x & 0x80u) << 24 | widened<2, 16>(x & 0x7fu); }
};

// The number at `from`, in the machine's order or the other one.
template <class Bits>
inline uint32_t load_bits(const uint8_t* from, bool swapped) {
  Bits x;
  memcpy(&x, from, sizeof x);
  if constexpr (sizeof x == 2) return swapped ? static_cast<uint16_t>(x << 8 | x >> 8) : x;
  return x;
}

inline bool machine_is_big_endian() {
  const uint16_t one = 1;
  uint8_t first;
  memcpy(&first, &one, 1);
  return first == 0;
}

template <class Format>
inline void decode_run(const uint8_t* __restrict from, int64_t stride, int64_t count, bool swapped, float* __restrict to) {
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t bits = Format::decode(load_bits<typename Format::Bits>(from + i * stride, swapped));
    memcpy(to + i, &bits, sizeof bits);
  }
}

template <class Format>
void decode_floats(const CodeBlocks& b) {
  constexpr int64_t kSize = sizeof(typename Format::Bits);
  if (kSize == 2 && b.big_endian != machine_is_big_endian()) {
    if (b.stride == kSize) return decode_run<Format>(b.raw, kSize, b.count, true, b.out);
    return decode_run<Format>(b.raw, b.stride, b.count, true, b.out);
  }
  if (b.stride != kSize) return decode_run<Format>(b.raw, b.stride, b.count, false, b.out);
  decode_run<Format>(b.raw, kSize, b.count, false, b.out);
}

#if defined(__F16C__)
template <>
void decode_floats<Float16>(const CodeBlocks& b) {
  int64_t i = 0;
  if (b.stride == 2) {
    const __m128i swap = _mm_setr_epi8(1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14);
    for (; i + 8 <= b.count; i += 8) {
      __m128i x = _mm_loadu_si128(reinterpret_cast<const __m128i*>(b.raw + 2 * i));
      if (b.big_endian) x = _mm_shuffle_epi8(x, swap);
      _mm256_storeu_ps(b.out + i, _mm256_cvtph_ps(x));
    }
  }
  decode_run<Float16>(b.raw + i * b.stride, b.stride, b.count - i, b.big_endian, b.out + i);
}
#endif

}  // namespace
}  // namespace sf::SF_ISA
