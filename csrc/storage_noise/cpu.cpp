#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <utility>
#include <vector>

#include "core/parallel.h"
#include "storage_noise/storage_noise.h"

namespace sf {

SF_LEVEL_TABLE(StorageNoiseLoops, storage_noise_loops)

namespace {

constexpr std::int64_t kTileEntries = 1 << 16;
constexpr std::int64_t kLeastRows = 128;   // of a tile: its column sums are a small part of it
constexpr std::int64_t kMostChunks = 256;  // of rows, so that all column sums are a small part of the matrix
constexpr std::int64_t kShortRow = 16;
constexpr std::int64_t kOutOfRange = 300;  // sums of 4^exponent that are this far from 4^0 may have lost something

const void* entry_address(const Entries& w, std::int64_t i, std::int64_t j) {
  return static_cast<const char*>(w.data) + (i * w.row_stride + j * w.col_stride) * size_of(w.dtype);
}

bool finite(const Entries& w, std::int64_t i, std::int64_t j) {
  const void* at = entry_address(w, i, j);
  if (w.dtype == DType::f64) {
    double x;
    std::memcpy(&x, at, sizeof x);
    return std::isfinite(x);
  }
  if (w.dtype == DType::f32) {
    float x;
    std::memcpy(&x, at, sizeof x);
    return std::isfinite(x);
  }
  std::uint16_t x;
  std::memcpy(&x, at, sizeof x);
  const std::uint16_t top = w.dtype == DType::f16 ? 0x7c00 : 0x7f80;
  return (x & top) != top;
}

// Exponent of the largest of a few float64 entries, so that sums of 4^exponent relative to it stay in range.
std::int64_t exponent_guess(const Entries& w) {
  double largest = 0.0;
  for (int k = 0; k < 64; ++k) {
    double x;
    std::memcpy(&x, entry_address(w, k * 7919 % w.rows, k * 104729 % w.cols), sizeof x);
    if (std::isfinite(x)) largest = std::max(largest, std::abs(x));
  }
  return largest > 0.0 ? std::ilogb(largest) : 0;
}

// Results of all tiles, in the order that the matrix's shape gives them.
struct Tiled {
  std::int64_t rows, cols, chunk, row_chunks, col_chunks;
  std::vector<double> row_sums, column_sums;              // [col_chunks][rows], [row_chunks][cols]
  std::vector<std::uint8_t> row_nonzero, column_nonzero;  // alike
  std::vector<TileCounts> counts;

  explicit Tiled(const Entries& w) : rows(w.rows), cols(w.cols) {
    const std::int64_t width = std::min(cols, kTileCols);
    chunk = std::max({kLeastRows, (kTileEntries + width - 1) / width, (rows + kMostChunks - 1) / kMostChunks});
    row_chunks = (rows + chunk - 1) / chunk;
    col_chunks = (cols + kTileCols - 1) / kTileCols;
    row_sums.resize(static_cast<std::size_t>(col_chunks * rows));
    column_sums.resize(static_cast<std::size_t>(row_chunks * cols));
    row_nonzero.resize(row_sums.size());
    column_nonzero.resize(column_sums.size());
    counts.resize(static_cast<std::size_t>(row_chunks * col_chunks));
  }

  Tile tile(const Entries& w, std::int64_t r, std::int64_t c, std::int64_t floor, std::int64_t shift) {
    const std::int64_t i = r * chunk, j = c * kTileCols;
    Entries part = w;
    part.data = entry_address(w, i, j);
    part.rows = std::min(chunk, rows - i);
    part.cols = std::min(kTileCols, cols - j);
    return {part,
            floor,
            shift,
            row_sums.data() + c * rows + i,
            column_sums.data() + r * cols + j,
            row_nonzero.data() + c * rows + i,
            column_nonzero.data() + r * cols + j};
  }
};

// Largest sum over `parts` slices of `count` partial sums each, and how many are of zeros only.
std::pair<double, std::int64_t> largest_sum(const std::vector<double>& sums, const std::vector<std::uint8_t>& nonzero, std::int64_t parts,
                                            std::int64_t count) {
  double largest = 0.0;
  std::int64_t zeros = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    double sum = 0.0;
    bool any = false;
    for (std::int64_t p = 0; p < parts; ++p) {
      sum += sums[static_cast<std::size_t>(p * count + i)];
      any = any || nonzero[static_cast<std::size_t>(p * count + i)] != 0;
    }
    largest = std::max(largest, sum);
    zeros += !any;
  }
  return {largest, zeros};
}

void first_bad(const Entries& w, const Tiled& tiled, EntryCounts& out) {
  for (std::int64_t r = 0; r < tiled.row_chunks; ++r) {
    std::int64_t bad = 0;
    for (std::int64_t c = 0; c < tiled.col_chunks; ++c) bad += tiled.counts[static_cast<std::size_t>(r * tiled.col_chunks + c)].bad;
    if (bad == 0) continue;
    for (std::int64_t i = r * tiled.chunk; i < std::min(w.rows, (r + 1) * tiled.chunk); ++i) {
      for (std::int64_t j = 0; j < w.cols; ++j) {
        if (!finite(w, i, j)) {
          out.bad_row = i;
          out.bad_col = j;
          return;
        }
      }
    }
  }
}

}  // namespace

EntryCounts storage_noise(Entries w, std::int64_t floor, Level level, int threads, const std::function<bool()>& interrupted) {
  EntryCounts out;
  if (w.rows == 0 || w.cols == 0) {
    out.top = floor;
    out.zero_rows = w.rows;
    out.zero_columns = w.cols;
    return out;
  }
  // Rows are read along memory, unless they are too short for the vectors.
  const bool along_columns = std::abs(w.row_stride) < std::abs(w.col_stride);
  const bool swapped = along_columns ? w.rows >= std::min(kShortRow, w.cols) : w.cols < std::min(kShortRow, w.rows);
  const Entries as_given = w;
  if (swapped) {
    std::swap(w.rows, w.cols);
    std::swap(w.row_stride, w.col_stride);
  }
  const bool wide = w.dtype == DType::f64;
  const std::int64_t bias = wide ? 1023 : 127, field = wide ? 52 : 23;
  const StorageNoiseLoops& loops = storage_noise_loops(level);
  Tiled tiled(w);
  std::int64_t unit = wide ? std::max(exponent_guess(w), floor) : 0;  // sums are of 4^(exponent - unit)
  while (true) {
    parallel_for(
        tiled.row_chunks * tiled.col_chunks, threads,
        [&](std::int64_t t) {
          loops.examine(tiled.tile(w, t / tiled.col_chunks, t % tiled.col_chunks, floor + bias, 1023 - 2 * (bias + unit)),
                        &tiled.counts[static_cast<std::size_t>(t)]);
        },
        interrupted);
    std::uint64_t largest = 0;
    for (const TileCounts& c : tiled.counts) largest = std::max(largest, c.largest);
    // The exponent field of a subnormal number is 0, below any floor.
    out.top = std::max(static_cast<std::int64_t>(largest >> field) - bias, floor);
    if (!wide || std::abs(out.top - unit) <= kOutOfRange || largest >> field == 2047) break;
    unit = out.top;
  }
  std::int64_t last_bit = field, last_place = kNoPlace;
  for (const TileCounts& c : tiled.counts) {
    out.bad += c.bad;
    out.nonzero += c.nonzero;
    if (c.last_bit < last_bit) {
      last_bit = c.last_bit;
      out.with_last_bit = 0;
    }
    if (c.last_bit == last_bit) out.with_last_bit += c.with_last_bit;
    if (c.last_place < last_place) {
      last_place = c.last_place;
      out.with_last_place = 0;
    }
    if (c.last_place == last_place) out.with_last_place += c.with_last_place;
  }
  if (out.bad > 0) {
    EntryCounts only_bad;
    only_bad.bad = out.bad;
    if (swapped) {
      Tiled whole(as_given);  // one that says nothing: every row is looked at
      for (TileCounts& c : whole.counts) c.bad = 1;
      first_bad(as_given, whole, only_bad);
    } else {
      first_bad(as_given, tiled, only_bad);
    }
    return only_bad;
  }
  out.precision = field + 1 - last_bit;
  out.last_place = last_place == kNoPlace ? 0 : last_place - bias - field - bias;
  const auto [row_sum, zero_rows] = largest_sum(tiled.row_sums, tiled.row_nonzero, tiled.col_chunks, w.rows);
  const auto [column_sum, zero_columns] = largest_sum(tiled.column_sums, tiled.column_nonzero, tiled.row_chunks, w.cols);
  const int relative = static_cast<int>(2 * (unit - out.top));
  out.row_sum = std::ldexp(row_sum, relative);
  out.column_sum = std::ldexp(column_sum, relative);
  out.zero_rows = zero_rows;
  out.zero_columns = zero_columns;
  if (swapped) {
    std::swap(out.row_sum, out.column_sum);
    std::swap(out.zero_rows, out.zero_columns);
  }
  return out;
}

}  // namespace sf
