// Block formats, one block at a time: its codes are gathered as bytes, then every run is multiplied by its scale. The layouts are told in
// numpy_decode.py. No instruction set changes a bit: every product of a scale and a code is exact, what is rounded is rounded once.
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "core/half.h"
#include "decode/codes.inl.h"
#include "decode/decode.h"

namespace sf::SF_ISA {
namespace {

inline float half_at(const uint8_t* p, bool big_endian) {
  const unsigned x = big_endian ? p[0] << 8 | p[1] : p[1] << 8 | p[0];
  return float_of_float16(static_cast<uint16_t>(x));
}

inline float float_at(const uint8_t* p, bool big_endian) {
  uint32_t x = 0;
  for (int k = 0; k < 4; ++k) x |= static_cast<uint32_t>(p[k]) << 8 * (big_endian ? 3 - k : k);
  float out;
  memcpy(&out, &x, sizeof out);
  return out;
}

// Eight codes together: bytes of a word, whose shifts leave their neighbours' bits where a mask takes them away.
constexpr uint64_t kOnes = UINT64_C(0x0101010101010101);

inline uint64_t word_at(const uint8_t* p) {
  uint64_t x;
  memcpy(&x, p, sizeof x);
  return x;
}

inline void put(uint8_t* p, uint64_t x) { memcpy(p, &x, sizeof x); }

// Of kRun bytes first the low nibbles, then the high ones.
template <int kRun>
inline void nibbles(const uint8_t* from, uint8_t* to) {
  for (int j = 0; j < kRun; j += 8) {
    const uint64_t x = word_at(from + j);
    put(to + j, x & 15 * kOnes);
    put(to + kRun + j, x >> 4 & 15 * kOnes);
  }
}

// Of 32 bytes the lowest kBits of each, then the next, and so on, as bits kPlace and above of the codes, which hold those below.
template <int kBits, int kPlace>
inline void layers(const uint8_t* from, uint8_t* to) {
  for (int j = 0; j < 32; j += 8) {
    const uint64_t x = word_at(from + j);
    for (int k = 0; k < 8 / kBits; ++k) {
      uint8_t* const at = to + 32 * k + j;
      const uint64_t bits = (x >> kBits * k & ((1 << kBits) - 1) * kOnes) << kPlace;
      put(at, kPlace == 0 ? bits : word_at(at) | bits);
    }
  }
}

// Of every format: gather() writes the codes of one block, the scales of its runs, and the offsets where kOffsets; shift is what codes lie
// above their numbers.

struct Q4_0 {
  static constexpr int kElements = 32, kRuns = 1, kShift = 8;
  static constexpr bool kOffsets = false;
  static void gather(const uint8_t* b, bool big, uint8_t* q, float* scales, float*) {
    nibbles<16>(b + 2, q);
    scales[0] = half_at(b, big);
  }
};

struct Q4_1 {
  static constexpr int kElements = 32, kRuns = 1, kShift = 0;
  static constexpr bool kOffsets = true;
  static void gather(const uint8_t* b, bool big, uint8_t* q, float* scales, float* offsets) {
    nibbles<16>(b + 4, q);
    scales[0] = half_at(b, big);
    offsets[0] = half_at(b + 2, big);
  }
};

// Q5_0 and Q5_1: a 32-bit number with the fifth bits, the nibbles behind it. Eight bits are spread over eight bytes, each then not 0 where
// its bit is set: adding 127 carries that to the byte's top.
inline void five_bits(const uint8_t* b, bool big, uint8_t* q) {
  constexpr uint8_t kBits[8] = {1, 2, 4, 8, 16, 32, 64, 128};
  const uint64_t each = word_at(kBits);
  for (int k = 0; k < 4; ++k) {
    const uint64_t spread = b[big ? 3 - k : k] * kOnes & each;
    const uint64_t four = word_at(b + 4 + 8 * (k % 2)) >> 4 * (k / 2) & 15 * kOnes;
    put(q + 8 * k, four | ((spread + 127 * kOnes) >> 3 & 16 * kOnes));
  }
}

struct Q5_0 {
  static constexpr int kElements = 32, kRuns = 1, kShift = 16;
  static constexpr bool kOffsets = false;
  static void gather(const uint8_t* b, bool big, uint8_t* q, float* scales, float*) {
    five_bits(b + 2, big, q);
    scales[0] = half_at(b, big);
  }
};

struct Q5_1 {
  static constexpr int kElements = 32, kRuns = 1, kShift = 0;
  static constexpr bool kOffsets = true;
  static void gather(const uint8_t* b, bool big, uint8_t* q, float* scales, float* offsets) {
    five_bits(b + 4, big, q);
    scales[0] = half_at(b, big);
    offsets[0] = half_at(b + 2, big);
  }
};

struct Q2_K {
  static constexpr int kElements = 256, kRuns = 16, kShift = 0;
  static constexpr bool kOffsets = true;
  static void gather(const uint8_t* b, bool big, uint8_t* q, float* scales, float* offsets) {
    layers<2, 0>(b + 16, q);
    layers<2, 0>(b + 48, q + 128);
    const float d = half_at(b + 80, big), m = half_at(b + 82, big);
    uint8_t both[32];
    nibbles<16>(b, both);
    times<16, 0>(both, d, scales);
    times<16, 0>(both + 16, -m, offsets);
  }
};

struct Q3_K {
  static constexpr int kElements = 256, kRuns = 16, kShift = 4;
  static constexpr bool kOffsets = false;
  static void gather(const uint8_t* b, bool big, uint8_t* q, float* scales, float*) {
    layers<2, 0>(b + 32, q);
    layers<2, 0>(b + 64, q + 128);
    layers<1, 2>(b, q);
    uint8_t s[16];
    nibbles<8>(b + 96, s);
    for (int k = 0; k < 4; ++k) {
      for (int j = 0; j < 4; ++j) s[4 * k + j] |= static_cast<uint8_t>((b[104 + j] >> 2 * k & 3) << 4);
    }
    const float d = half_at(b + 108, big);
    times<16, 32>(s, d, scales);
  }
};

// Q4_K and Q5_K: scales and offsets of 8 runs from 12 bytes.
inline void six_bit_pairs(const uint8_t* b, bool big, float* scales, float* offsets) {
  uint32_t first, second, third;
  memcpy(&first, b + 4, 4);
  memcpy(&second, b + 8, 4);
  memcpy(&third, b + 12, 4);
  constexpr uint32_t kFour = 0x01010101u;
  const uint32_t s[4] = {first & 63 * kFour, (third & 15 * kFour) | (first >> 6 & 3 * kFour) << 4};
  const uint32_t t[4] = {second & 63 * kFour, (third >> 4 & 15 * kFour) | (second >> 6 & 3 * kFour) << 4};
  uint8_t codes[kMostRuns] = {};  // eight of them in use
  memcpy(codes, s, sizeof s);
  times<kMostRuns, 0>(codes, half_at(b, big), scales);
  memcpy(codes, t, sizeof t);
  times<kMostRuns, 0>(codes, -half_at(b + 2, big), offsets);
}

struct Q4_K {
  static constexpr int kElements = 256, kRuns = 8, kShift = 0;
  static constexpr bool kOffsets = true;
  static void gather(const uint8_t* b, bool big, uint8_t* q, float* scales, float* offsets) {
    for (int k = 0; k < 4; ++k) nibbles<32>(b + 16 + 32 * k, q + 64 * k);
    six_bit_pairs(b, big, scales, offsets);
  }
};

struct Q5_K {
  static constexpr int kElements = 256, kRuns = 8, kShift = 0;
  static constexpr bool kOffsets = true;
  static void gather(const uint8_t* b, bool big, uint8_t* q, float* scales, float* offsets) {
    for (int k = 0; k < 4; ++k) nibbles<32>(b + 48 + 32 * k, q + 64 * k);
    layers<1, 4>(b + 16, q);
    six_bit_pairs(b, big, scales, offsets);
  }
};

struct Q6_K {
  static constexpr int kElements = 256, kRuns = 16, kShift = 32;
  static constexpr bool kOffsets = false;
  static void gather(const uint8_t* b, bool big, uint8_t* q, float* scales, float*) {
    for (int k = 0; k < 2; ++k) {
      nibbles<64>(b + 64 * k, q + 128 * k);
      layers<2, 4>(b + 128 + 32 * k, q + 128 * k);
    }
    const float d = half_at(b + 208, big);
    times<16, 0>(reinterpret_cast<const int8_t*>(b + 192), d, scales);
  }
};

// kBlocks blocks: what was written as words is read as vectors, which waits less the longer ago it was written.
template <class Format, int kBlocks>
inline void decode_some(const CodeBlocks& blocks, int64_t first) {
  constexpr int kRuns = Format::kRuns * kBlocks, kRun = Format::kElements / Format::kRuns;
  uint8_t q[kBlocks * Format::kElements];
  float scales[kMostRuns], offsets[kMostRuns];
  for (int k = 0; k < kBlocks; ++k) {
    const uint8_t* const raw = blocks.raw + (first + k) * blocks.stride;
    Format::gather(raw, blocks.big_endian, q + k * Format::kElements, scales + k * Format::kRuns, offsets + k * Format::kRuns);
  }
  float* const out = blocks.out + first * Format::kElements;
  for (int r = 0; r < kRuns; ++r) {
    if constexpr (Format::kOffsets) {
      times_and_add<kRun>(q + kRun * r, scales[r], offsets[r], out + kRun * r);
    } else {
      times<kRun, Format::kShift>(q + kRun * r, scales[r], out + kRun * r);
    }
  }
  if (blocks.steps == nullptr) return;
  float* const steps = blocks.steps + first * Format::kRuns;
  for (int r = 0; r < kRuns; ++r) steps[r] = fabsf(scales[r]);
}

template <class Format>
void decode_blocks(const CodeBlocks& blocks) {
  constexpr int kTogether = kMostElements / Format::kElements;
  int64_t i = 0;
  for (; i + kTogether <= blocks.count; i += kTogether) decode_some<Format, kTogether>(blocks, i);
  for (; i < blocks.count; ++i) decode_some<Format, 1>(blocks, i);
}

// Q8_0 and Q8_K: signed bytes behind the scale.
template <int kElements, int kScaleBytes>
void decode_bytes(const CodeBlocks& blocks) {
  for (int64_t i = 0; i < blocks.count; ++i) {
    const uint8_t* const b = blocks.raw + i * blocks.stride;
    const float d = kScaleBytes == 2 ? half_at(b, blocks.big_endian) : float_at(b, blocks.big_endian);
    times<kElements, 0>(reinterpret_cast<const int8_t*>(b + kScaleBytes), d, blocks.out + i * kElements);
    if (blocks.steps != nullptr) blocks.steps[i] = fabsf(d);
  }
}

}  // namespace
}  // namespace sf::SF_ISA
