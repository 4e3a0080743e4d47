// What all matrices of a batch share.
#pragma once
#include "core/philox.h"
#include "randomized_svd/randomized_svd.h"
#include "randomized_svd/thin.h"

namespace sf {

// Streams of the counters: test matrices (block by block), columns in place of those that vanish, places and signs of a sparse sketch.
inline constexpr std::uint64_t kTest = 0, kLeftFill = std::uint64_t{2} << 32, kRightFill = std::uint64_t{3} << 32,
                               kSparse = std::uint64_t{4} << 32;

template <class T>
struct Precision;
template <>
struct Precision<float> {
  static constexpr double least = 0x1p-60, most = 0x1p60;  // sums of squares of matrices that need no scaling
  static constexpr double room = 0x1p-18;                  // what sums of squares of products in this precision are uncertain by
  static constexpr double drowned = 1e-4;                  // share of |A|^2 below which what is left is formed, not subtracted
  static constexpr double cosine = 1e-7;                   // at most, between columns that count as orthogonal
};
template <>
struct Precision<double> {
  static constexpr double least = 0x1p-300, most = 0x1p300;
  static constexpr double room = 64 * 0x1p-52;
  static constexpr double drowned = 1e-11;
  static constexpr double cosine = 1e-14;
};

template <class T>
Thin<T> test_matrix(const LowRankOptions& o, std::int64_t n, std::int64_t width, std::uint64_t stream, std::int64_t lanes) {
  Thin<T> out(n, width, lanes);
  out.clear(0, n);
  if (width == n && !o.omega) {  // the whole space: no chance is taken
    for (std::int64_t i = 0; i < n; ++i) out.row(i)[i] = T{1};
  } else if (o.omega) {
    for (std::int64_t i = 0; i < n * width; ++i) out.row(i / width)[i % width] = static_cast<T>(o.omega[i]);
  } else {
    rademacher(o.seed, stream, 0, n * width,
               [&](std::int64_t i, bool negative) { out.row(i / width)[i % width] = negative ? T{-1} : T{1}; });
  }
  return out;
}

// For every one of `rows` rows one of the o.sketch / kParts places in each part, and a sign.
inline std::vector<std::uint32_t> sparse_places(const LowRankOptions& o, std::int64_t rows) {
  static_assert(kParts == 4, "as many as there are words in a block of the counters");
  const auto part = static_cast<std::uint32_t>(o.sketch / kParts);
  std::vector<std::uint32_t> out(static_cast<std::size_t>(rows * kParts));
  for (std::int64_t i = 0; i < rows; ++i) {
    std::uint32_t words[kParts];
    philox(o.seed, kSparse, static_cast<std::uint64_t>(i), words);
    for (std::uint32_t t = 0; t < kParts; ++t) {
      const auto place = static_cast<std::uint32_t>((std::uint64_t{words[t] >> 1} * part) >> 31);
      out[static_cast<std::size_t>(i) * kParts + t] = 2 * (t * part + place) + (words[t] & 1u);
    }
  }
  return out;
}

inline Matrices transposed(Matrices a) {
  std::swap(a.rows, a.cols);
  std::swap(a.row_stride, a.col_stride);
  return a;
}

template <class T>
struct Shared {
  const bool turned;  // a is what was given, transposed
  const Matrices a;
  const LowRankOptions& options;
  const LowRankResults& out;
  const LowRankLoops& loops;
  std::vector<std::uint32_t> places;  // see ProductLoops::scatter
  Thin<T> omega;

  Shared(const Matrices& a_, const LowRankOptions& o, const LowRankResults& out_, const LowRankLoops& loops_)
      : turned(o.sketch > 0 && a_.rows < a_.cols),
        a(turned ? transposed(a_) : a_),
        options(o),
        out(out_),
        loops(loops_),
        places(o.sketch > 0 ? sparse_places(o, a.rows) : std::vector<std::uint32_t>()),
        omega(o.sketch > 0 ? Thin<T>()
                           : test_matrix<T>(o, a.cols, o.width, o.tol > 0.0 ? kTest + 1 : kTest, product_loops<T>(loops).lanes)) {}
};

}  // namespace sf
