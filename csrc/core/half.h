// The 16-bit formats as floats, for sources that are compiled per instruction set.
#pragma once
#include <stdint.h>
#include <string.h>

#ifndef SF_ISA
#error "core/half.h is for sources compiled per instruction set"
#endif

namespace sf::SF_ISA {
namespace {

inline float float_of_bfloat16(uint16_t x) {
  const uint32_t wide = static_cast<uint32_t>(x) << 16;
  float out;
  memcpy(&out, &wide, sizeof out);
  return out;
}

// Exact for all 65536 values: normal numbers by moving the exponent, subnormal ones by one multiplication.
inline float float_of_float16(uint16_t x) {
  const uint32_t sign = static_cast<uint32_t>(x & 0x8000u) << 16, rest = x & 0x7fffu;
  uint32_t bits_out;
  float out;
  if (rest >= 0x7c00u) {
    bits_out = sign | 0x7f800000u | ((rest & 0x3ffu) << 13);
  } else if (rest >= 0x400u) {
    bits_out = sign | ((rest << 13) + (112u << 23));
  } else {
    const float size = static_cast<float>(rest) * 0x1p-24f;
    memcpy(&bits_out, &size, sizeof bits_out);
    bits_out |= sign;
  }
  memcpy(&out, &bits_out, sizeof out);
  return out;
}

}  // namespace
}  // namespace sf::SF_ISA
