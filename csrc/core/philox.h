// Random numbers from counters; contract: spectral_fast/kernels/counters.py, bit for bit.
#pragma once
#include <stdint.h>

#include "core/hd.h"

namespace sf {

// Four words of Philox4x32-10 (Salmon, Moraes, Dror & Shaw 2011) for block `block` of (seed, stream).
SF_HD static inline void philox(uint64_t seed, uint64_t stream, uint64_t block, uint32_t* out) {
  uint32_t c[4] = {(uint32_t)block, (uint32_t)(block >> 32), (uint32_t)stream, (uint32_t)(stream >> 32)};
  uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = 0xD2511F53ull * c[0], p1 = 0xCD9E8D57ull * c[2];
    const uint32_t n0 = (uint32_t)(p1 >> 32) ^ c[1] ^ k0, n2 = (uint32_t)(p0 >> 32) ^ c[3] ^ k1;
    c[1] = (uint32_t)p1;
    c[3] = (uint32_t)p0;
    c[0] = n0;
    c[2] = n2;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  for (int i = 0; i < 4; ++i) out[i] = c[i];
}

// Signs of entries first ... first + count - 1 of (seed, stream): put(i, negative) for i = 0 ... count - 1.
template <class Put>
static inline void rademacher(uint64_t seed, uint64_t stream, int64_t first, int64_t count, const Put& put) {
  uint32_t words[4];
  int64_t known = -1;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t at = first + i;
    if (at / 128 != known) {
      known = at / 128;
      philox(seed, stream, (uint64_t)known, words);
    }
    put(i, ((words[at / 32 % 4] >> (at % 32)) & 1u) != 0);
  }
}

// Entry i of (seed, stream), uniform in (-1, 1).
static inline double uniform(uint64_t seed, uint64_t stream, int64_t i) {
  uint32_t words[4];
  philox(seed, stream, (uint64_t)(i / 4), words);
  return (words[i % 4] + 0.5) * 0x1p-31 - 1.0;
}

}  // namespace sf
