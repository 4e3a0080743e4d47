// contract: numpy_kernels.storage_noise
//
// Work and bytes. Every entry is read once, in the format it is stored in: about 45 vector instructions for 8 entries of 4 bytes (32 of 8),
// which keep pace with memory. Row and column sums of a tile stay in L1.
#pragma once
#include <cstdint>
#include <functional>

#include "core/dtype.h"
#include "core/isa.h"

namespace sf {

// A matrix that somebody else owns; strides in elements, of any sign.
struct Entries {
  const void* data;
  DType dtype;
  std::int64_t rows, cols, row_stride, col_stride;
};

// The fields of numpy_kernels.EntryCounts.
struct EntryCounts {
  std::int64_t bad = 0, bad_row = -1, bad_col = -1;
  std::int64_t zero_rows = 0, zero_columns = 0, nonzero = 0;
  std::int64_t top = 0, precision = 1, with_last_bit = 0, last_place = 0, with_last_place = 0;
  double row_sum = 0.0, column_sum = 0.0;
};

// floor: at least the exponent of the smallest normal number (float32's for the formats below float64). Throws Cancelled.
EntryCounts storage_noise(Entries w, std::int64_t floor, Level level, int threads, const std::function<bool()>& interrupted);

// What the loops find in one tile. Exponents are those of the carrier, float32 or float64, with its bias.
struct TileCounts {
  std::uint64_t largest;  // magnitude bits of the largest entry
  std::int64_t bad, nonzero;
  int last_bit;  // of the significand field, its width where no bit is set in it
  std::int64_t with_last_bit;
  std::int64_t last_place;  // exponent of the lowest bit set in any entry, plus twice the bias and the width of the field
  std::int64_t with_last_place;
};

constexpr std::int64_t kTileCols = 512;
constexpr std::int64_t kNoPlace = 1 << 20;  // of a tile of zeros

struct Tile {
  Entries w;  // of at most kTileCols columns
  // An entry of biased exponent e counts 2^(2 max(e, floor) + shift) in the sums, as a double's biased exponent; below 2^-1000 it counts as
  // that.
  std::int64_t floor, shift;
  double *row_sums, *column_sums;              // [rows], [cols]
  std::uint8_t *row_nonzero, *column_nonzero;  // 1 where an entry is not zero
};

struct StorageNoiseLoops {
  void (*examine)(const Tile& tile, TileCounts* out);
};

}  // namespace sf
