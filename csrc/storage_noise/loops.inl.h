// One tile of a matrix, row by row, on the bits of its entries: everything but the sums is integer arithmetic, and the sums are of powers
// of two added in an order that no instruction set changes.
#include <string.h>

#include "core/half.h"
#include "core/simd.h"
#include "storage_noise/storage_noise.h"

namespace sf::SF_ISA {
namespace {

struct Narrow {  // float32, and what widens to it without loss
  using Float = float;
  using Bits = uint32_t;
  using Int = int32_t;
  static constexpr int kField = 23, kBias = 127;
};

struct Wide {
  using Float = double;
  using Bits = uint64_t;
  using Int = int64_t;
  static constexpr int kField = 52, kBias = 1023;
};

template <class C>
struct Masks {
  using U = typename C::Bits;
  static constexpr U kFraction = (U{1} << C::kField) - 1;
  static constexpr U kMagnitude = static_cast<U>(~U{0}) >> 1;
  static constexpr U kInfinity = kMagnitude & ~kFraction;
  static constexpr U kLarge = static_cast<U>(C::kBias + C::kField) << C::kField;  // 2^kField: from there on a unit is the last bit
};

template <class To, class From>
inline To as(From x) {
  static_assert(sizeof(To) == sizeof(From));
  To out;
  memcpy(&out, &x, sizeof out);
  return out;
}

// Place of the lowest bit of a number of these magnitude bits, plus kBias + kField. Adding an integer below 2^(kField + 1) to the bits of
// 2^kField makes the sum of the two, and the difference that integer itself as a float: its exponent says which bit it was.
template <class C>
inline typename C::Int place_of(typename C::Bits v) {
  using U = typename C::Bits;
  using F = typename C::Float;
  using M = Masks<C>;
  const U significand = (v & M::kFraction) | (U{1} << C::kField);
  const U low = significand & (U{0} - significand);
  const F unit = as<F>(static_cast<U>(M::kLarge + low)) - as<F>(M::kLarge);
  const U field = v >> C::kField;
  return static_cast<typename C::Int>((as<U>(unit) >> C::kField) + (field > 0 ? field : U{1}));
}

// The bits of `count` entries: where they lie, or in `to`.
inline const uint32_t* load_row(const Entries& w, int64_t row, int64_t count, uint32_t* to) {
  const int64_t stride = w.col_stride;
  if (w.dtype == DType::f32) {
    const uint32_t* x = static_cast<const uint32_t*>(w.data) + row * w.row_stride;
    if (stride == 1) return x;
    for (int64_t j = 0; j < count; ++j) to[j] = x[j * stride];
    return to;
  }
  const uint16_t* x = static_cast<const uint16_t*>(w.data) + row * w.row_stride;
  if (w.dtype == DType::bf16) {
    if (stride == 1) {
      for (int64_t j = 0; j < count; ++j) to[j] = static_cast<uint32_t>(x[j]) << 16;
    } else {
      for (int64_t j = 0; j < count; ++j) to[j] = static_cast<uint32_t>(x[j * stride]) << 16;
    }
    return to;
  }
  int64_t j = 0;
#if defined(__F16C__)
  if (stride == 1) {
    for (; j + 8 <= count; j += 8) {
      const __m256 eight = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x + j)));
      _mm256_storeu_ps(reinterpret_cast<float*>(to + j), eight);
    }
  }
#endif
  for (; j < count; ++j) to[j] = as<uint32_t>(float_of_float16(x[j * stride]));
  return to;
}

inline const uint64_t* load_row(const Entries& w, int64_t row, int64_t count, uint64_t* to) {
  const uint64_t* x = static_cast<const uint64_t*>(w.data) + row * w.row_stride;
  if (w.col_stride == 1) return x;
  for (int64_t j = 0; j < count; ++j) to[j] = x[j * w.col_stride];
  return to;
}

// Adds 4^exponent of every entry to the column sums, and writes them to `terms`.
inline void add_terms(const Tile& tile, const uint32_t* row, int64_t count, double* columns, double* terms) {
  const uint32_t floor = static_cast<uint32_t>(tile.floor), shift = static_cast<uint32_t>(tile.shift);
  for (int64_t j = 0; j < count; ++j) {
    const uint32_t field = (row[j] & Masks<Narrow>::kMagnitude) >> Narrow::kField;
    const uint32_t exponent = 2 * static_cast<uint32_t>(static_cast<int32_t>(field) > static_cast<int32_t>(floor) ? field : floor) + shift;
    terms[j] = as<double>(static_cast<uint64_t>(exponent << 20) << 32);
    columns[j] += terms[j];
  }
}

inline void add_terms(const Tile& tile, const uint64_t* row, int64_t count, double* columns, double* terms) {
  constexpr int64_t kLeast = 23;  // 2^-1000
  for (int64_t j = 0; j < count; ++j) {
    const int64_t field = static_cast<int64_t>((row[j] & Masks<Wide>::kMagnitude) >> Wide::kField);
    const int64_t exponent = 2 * (field > tile.floor ? field : tile.floor) + tile.shift;
    terms[j] = as<double>(static_cast<uint64_t>(exponent > kLeast ? exponent : kLeast) << 52);
    columns[j] += terms[j];
  }
}

// Sum of a multiple of 8 terms, eight partial sums whatever the vectors' width.
inline double sum_of(const double* terms, int64_t count) {
  constexpr int kParts = 8 / kLanes;
  Vec part[kParts];
  for (int k = 0; k < kParts; ++k) part[k] = zeros();
  for (int64_t j = 0; j < count; j += 8) {
    for (int k = 0; k < kParts; ++k) part[k] = add(part[k], load(terms + j + k * kLanes));
  }
  double s[8];
  for (int k = 0; k < kParts; ++k) store(s + k * kLanes, part[k]);
  return ((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7]));
}

template <class C>
void examine_as(const Tile& tile, TileCounts* out) {
  using U = typename C::Bits;
  using I = typename C::Int;
  using M = Masks<C>;
  const int64_t rows = tile.w.rows, cols = tile.w.cols, padded = (cols + 7) / 8 * 8;
  U buffer[kTileCols], seen[kTileCols];
  double columns[kTileCols], terms[kTileCols];
  for (int64_t j = 0; j < padded; ++j) {
    seen[j] = 0;
    columns[j] = terms[j] = 0.0;
  }
  U largest = 0;
  int64_t bad = 0, nonzero = 0, with_last_bit = 0, with_last_place = 0;
  int last_bit = C::kField;
  I last_place = static_cast<I>(kNoPlace);
  for (int64_t i = 0; i < rows; ++i) {
    const U* const row = load_row(tile.w, i, cols, buffer);
    // Most rows hold nothing lower than those before them: how many entries reach the lowest places known so far is counted at once.
    U all = 0;
    I top = 0, lowest = static_cast<I>(kNoPlace), here = 0, bits = 0, places = 0;
    for (int64_t j = 0; j < cols; ++j) {
      const U v = row[j] & M::kMagnitude;
      const I place = v == 0 ? static_cast<I>(kNoPlace) : place_of<C>(v);
      seen[j] |= v;
      all |= v;
      top = static_cast<I>(v) > top ? static_cast<I>(v) : top;
      here += v != 0;
      bits += static_cast<I>((v >> last_bit) & 1);
      lowest = place < lowest ? place : lowest;
      places += place == last_place;
    }
    const U fraction = all & M::kFraction;
    if ((fraction & ((U{1} << last_bit) - 1)) != 0) {  // a lower bit than any before
      last_bit = 0;
      while (((fraction >> last_bit) & 1) == 0) ++last_bit;
      bits = 0;
      for (int64_t j = 0; j < cols; ++j) bits += static_cast<I>((row[j] >> last_bit) & 1);
      with_last_bit = 0;
    }
    if (lowest < last_place) {
      last_place = lowest;
      places = 0;
      for (int64_t j = 0; j < cols; ++j) {
        const U v = row[j] & M::kMagnitude;
        places += v != 0 && place_of<C>(v) == last_place;
      }
      with_last_place = 0;
    }
    with_last_bit += bits;
    with_last_place += places;
    nonzero += here;
    if (static_cast<U>(top) >= M::kInfinity) {
      for (int64_t j = 0; j < cols; ++j) bad += (row[j] & M::kMagnitude) >= M::kInfinity;
    }
    largest = static_cast<U>(top) > largest ? static_cast<U>(top) : largest;
    add_terms(tile, row, cols, columns, terms);
    tile.row_sums[i] = sum_of(terms, padded);
    tile.row_nonzero[i] = all != 0;
  }
  for (int64_t j = 0; j < cols; ++j) {
    tile.column_sums[j] = columns[j];
    tile.column_nonzero[j] = seen[j] != 0;
  }
  *out = {
      largest, bad, nonzero, last_bit, last_bit < C::kField ? with_last_bit : 0, last_place, last_place < kNoPlace ? with_last_place : 0};
}

void examine(const Tile& tile, TileCounts* out) {
  if (tile.w.dtype == DType::f64) {
    examine_as<Wide>(tile, out);
  } else {
    examine_as<Narrow>(tile, out);
  }
}

}  // namespace
}  // namespace sf::SF_ISA
