// Thin matrices, and a large one that is multiplied with them by a team of threads.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "core/buffer.h"
#include "core/matrices.h"
#include "core/team.h"
#include "randomized_svd/loops.h"

namespace sf {

template <class T>
const ProductLoops<T>& product_loops(const LowRankLoops& loops) {
  if constexpr (sizeof(T) == sizeof(float)) {
    return loops.single;
  } else {
    return loops.twice;
  }
}

inline std::int64_t parts_of(std::int64_t n, std::int64_t size) { return (n + size - 1) / size; }

// rows x width, row-major; padding columns are zero where they are factors of a product.
template <class T>
struct Thin {
  Thin() = default;
  Thin(std::int64_t rows_, std::int64_t width_, std::int64_t lanes)
      : rows(rows_), width(width_), ld(parts_of(width_, lanes) * lanes), x(std::max<std::int64_t>(rows_ * ld, 1)) {}
  void clear(std::int64_t first, std::int64_t count) const {
    std::memset(x + first * ld, 0, static_cast<std::size_t>(count * ld) * sizeof(T));
  }
  T* row(std::int64_t i) const { return x + i * ld; }

  std::int64_t rows = 0, width = 0, ld = 0;
  Buffer<T> x;
};

// A, scaled by a power of two, as what multiplies.
template <class T>
class Source {
 public:
  Source(const Matrices& batch, std::int64_t index, const LowRankLoops& loops, Team& team)
      : loops_(product_loops<T>(loops)), team_(team), a_(batch) {
    const std::int64_t offset = index * batch.batch_stride;
    const auto size = size_of(batch.dtype);
    a_.data = static_cast<const char*>(batch.data) + offset * size;
    flipped_ = std::abs(a_.row_stride) < std::abs(a_.col_stride);
    if (flipped_) {
      std::swap(a_.rows, a_.cols);
      std::swap(a_.row_stride, a_.col_stride);
    }
    working_ = size == static_cast<std::int64_t>(sizeof(T)) && a_.col_stride == 1;
    bfloat16_ = batch.dtype == DType::bf16 && loops_.rows_of_bfloat16 && a_.col_stride == 1;
  }

  void set_scale(double scale) { scale_ = scale; }

  // y = A x, or A^T x; with `squares` also the sum of the squares of A's entries.
  void multiply(bool transposed, const Thin<T>& x, const Thin<T>& y, double* squares = nullptr) const {
    team_.check();
    if (transposed == flipped_) {
      rows(x, y, squares);
    } else {
      columns(x, y);
      if (squares) *squares = sum_of_squares();
    }
  }

  // sums = S A for the sparse S of ProductLoops::scatter, in strips of columns whose sums stay in the L2 cache.
  void sketch(const std::uint32_t* places, const Thin<T>& sums) const {
    team_.check();
    const std::int64_t m = flipped_ ? a_.cols : a_.rows, n = flipped_ ? a_.rows : a_.cols;
    const std::int64_t room = kSums / static_cast<std::int64_t>(sizeof(T)) / sums.rows / 16 * 16;
    const std::int64_t share = parts_of(parts_of(n, team_.size()), 16) * 16;
    const std::int64_t strip = flipped_ ? 16 : std::min(share, std::clamp<std::int64_t>(room, 32, 256)), at_once = flipped_ ? kChain : 16;
    std::vector<Buffer<T>> scratch(static_cast<std::size_t>(team_.size()));
    team_.each(parts_of(n, strip), [&](std::int64_t p, int rank) {
      const std::int64_t j = p * strip, width = std::min(strip, n - j);
      Buffer<T>& work = scratch[static_cast<std::size_t>(rank)];
      if (!work.get()) work = Buffer<T>(sums.rows * strip + 2 * at_once * strip);
      T *const sum = work.get(), *const panel = sum + sums.rows * strip, *const turned = panel + at_once * strip;
      std::memset(sum, 0, static_cast<std::size_t>(sums.rows * strip) * sizeof(T));
      const bool there = working_ && scale_ == 1.0;
      for (std::int64_t i = 0; i < m; i += at_once) {
        const std::int64_t count = std::min(at_once, m - i);
        if (flipped_) {
          if (!there) convert(j, i, width, count, scale_, panel, at_once);
          fetch(j, i + 2 * at_once, width, at_once);
          loops_.turn(there ? at<T>(j, i) : panel, there ? a_.row_stride : at_once, width, count, turned, strip);
          loops_.scatter(turned, strip, count, width, places + i * kParts, sum, strip);
        } else {
          if (!there) convert(i, j, count, width, scale_, panel, strip);
          fetch(i + 2 * at_once, j, at_once, width);
          loops_.scatter(there ? at<T>(i, j) : panel, there ? a_.row_stride : strip, count, width, places + i * kParts, sum, strip);
        }
      }
      for (std::int64_t i = 0; i < sums.rows; ++i) std::copy(sum + i * strip, sum + i * strip + width, sums.row(i) + j);
    });
  }

  // Largest magnitude of an entry, before it is scaled; NaN where one is NaN or infinite.
  double largest() const {
    Buffer<T> line(kChain);
    double top = 0.0;
    for (std::int64_t i = 0; i < a_.rows; ++i) {
      for (std::int64_t j = 0; j < a_.cols; j += kChain) {
        const std::int64_t width = std::min(kChain, a_.cols - j);
        convert(i, j, 1, width, 1.0, line.get(), kChain);
        for (std::int64_t c = 0; c < width; ++c) {
          const double size = std::abs(static_cast<double>(line[c]));
          if (!std::isfinite(size)) return std::nan("");
          top = std::max(top, size);
        }
      }
    }
    return top;
  }

  // Sum of the squares of A - left right, left (rows, r), right (r, cols).
  double residual(const Thin<T>& left, const Thin<T>& right) const {
    Matrices a = a_;
    if (flipped_) {
      std::swap(a.rows, a.cols);
      std::swap(a.row_stride, a.col_stride);
    }
    const std::int64_t parts = parts_of(a.rows, kRows);
    std::vector<double> sums(static_cast<std::size_t>(parts));
    team_.each(parts, [&](std::int64_t p, int) {
      const std::int64_t i = p * kRows, count = std::min(kRows, a.rows - i);
      Thin<T> rest(count, right.ld, 1), minus(count, left.ld, 1);
      const char* from = static_cast<const char*>(a.data) + i * a.row_stride * size_of(a.dtype);
      rest.clear(0, count);
      loops_.convert(from, a.dtype, a.row_stride, a.col_stride, count, a.cols, scale_, rest.x.get(), rest.ld);
      for (std::int64_t k = 0; k < count * left.ld; ++k) minus.x[k] = -left.row(i)[k];
      loops_.rows(minus.x.get(), left.ld, count, left.width, right.x.get(), right.ld, right.width, rest.x.get(), rest.ld);
      sums[static_cast<std::size_t>(p)] = loops_.squares(rest.x.get(), rest.ld, count, a.cols);
    });
    double total = 0.0;
    for (const double s : sums) total += s;
    return total;
  }

 private:
  static constexpr std::int64_t kRows = 48;       // a multiple of all tiles' rows
  static constexpr std::int64_t kFew = 12;        // of them converted at a time, likewise a multiple of most
  static constexpr std::int64_t kNarrow = 8;      // columns of a product for which bfloat16 is not worth converting
  static constexpr std::int64_t kStrip = 1024;    // columns of A^T x done together, or less
  static constexpr std::int64_t kAtOnce = 32;     // rows converted at a time for them,
  static constexpr std::int64_t kAcross = 64;     // and columns: all in the L1 cache,
  static constexpr std::int64_t kNext = 256;      // and so far ahead they are fetched
  static constexpr std::int64_t kSums = 1 << 19;  // bytes of sums of rows in work together

  // Whether products with so many columns read the matrix as it is.
  bool in_place(std::int64_t width) const { return (working_ || (bfloat16_ && width <= kNarrow)) && scale_ == 1.0; }

  template <class E>
  const E* at(std::int64_t i, std::int64_t j) const {
    return static_cast<const E*>(a_.data) + i * a_.row_stride + j;
  }

  void convert(std::int64_t i, std::int64_t j, std::int64_t count, std::int64_t width, double scale, T* to, std::int64_t ld) const {
    const char* from = static_cast<const char*>(a_.data) + (i * a_.row_stride + j * a_.col_stride) * size_of(a_.dtype);
    loops_.convert(from, a_.dtype, a_.row_stride, a_.col_stride, count, width, scale, to, ld);
  }

  // Of the squares of a part of at most kChain columns, in the order of what is converted for a product.
  double sum_of_squares(std::int64_t i, std::int64_t j, std::int64_t count, std::int64_t width) const {
    const bool there = working_ && scale_ == 1.0;
    Local<T, kFew * kChain> panel(kFew * kChain);
    double sum = 0.0;
    for (std::int64_t r = 0; r < count; r += kFew) {
      const std::int64_t few = std::min(kFew, count - r);
      if (!there) convert(i + r, j, few, width, scale_, panel.get(), kChain);
      sum += there ? loops_.squares(at<T>(i + r, j), a_.row_stride, few, width) : loops_.squares(panel.get(), kChain, few, width);
    }
    return sum;
  }

  // Asks for a part that is converted next, while there is work on another.
  void fetch(std::int64_t i, std::int64_t j, std::int64_t count, std::int64_t width) const {
    if (i >= a_.rows || j >= a_.cols || a_.col_stride != 1) return;
    const auto size = size_of(a_.dtype);
    loops_.fetch(static_cast<const char*>(a_.data) + (i * a_.row_stride + j) * size, a_.row_stride * size, std::min(count, a_.rows - i),
                 std::min(width, a_.cols - j) * size);
  }

  // Copies of x by at most three vectors of columns, each with its rows side by side, so that what a product reads fits the L1 cache; none
  // where x is no wider.
  struct Strip {
    std::int64_t first;
    Thin<T> x;
  };
  std::vector<Strip> strips_of(const Thin<T>& x) const {
    std::vector<Strip> out;
    const std::int64_t vectors = x.ld / loops_.lanes;
    for (std::int64_t v = 0, few = 3; vectors > 3 && v < vectors; v += few) {
      few = vectors - v == 4 ? 2 : std::min<std::int64_t>(3, vectors - v);
      const std::int64_t first = v * loops_.lanes;
      Strip& strip = out.emplace_back(Strip{first, Thin<T>(x.rows, std::min(few * loops_.lanes, x.width - first), loops_.lanes)});
      for (std::int64_t i = 0; i < x.rows; ++i) std::copy(x.row(i) + first, x.row(i) + first + strip.x.ld, strip.x.row(i));
    }
    return out;
  }

  void rows(const Thin<T>& x, const Thin<T>& y, double* squares) const {
    const std::vector<Strip> strips = strips_of(x);
    const auto product = [&](const auto& rows_of, const auto* from, std::int64_t stride, std::int64_t i, std::int64_t count, std::int64_t k,
                             std::int64_t depth) {
      if (strips.empty()) rows_of(from, stride, count, depth, x.row(k), x.ld, x.width, y.row(i), y.ld);
      for (const Strip& s : strips) rows_of(from, stride, count, depth, s.x.row(k), s.x.ld, s.x.width, y.row(i) + s.first, y.ld);
    };
    const std::int64_t parts = parts_of(a_.rows, kRows);
    std::vector<double> sums(squares ? static_cast<std::size_t>(parts) : 0);
    std::vector<Buffer<T>> scratch(in_place(x.width) ? 0 : static_cast<std::size_t>(team_.size()));
    team_.each(parts, [&](std::int64_t p, int rank) {
      const std::int64_t i = p * kRows, count = std::min(kRows, a_.rows - i);
      y.clear(i, count);
      double sum = 0.0;
      if (in_place(x.width)) {
        for (std::int64_t k = 0; k < a_.cols; k += kChain) {
          const std::int64_t depth = std::min(kChain, a_.cols - k);
          if (working_) {
            product(loops_.rows, at<T>(i, k), a_.row_stride, i, count, k, depth);
          } else {
            product(loops_.rows_of_bfloat16, at<std::uint16_t>(i, k), a_.row_stride, i, count, k, depth);
          }
          if (squares) sum += sum_of_squares(i, k, count, depth);  // now that they are near
        }
        if (squares) sums[static_cast<std::size_t>(p)] = sum;
        return;
      }
      Buffer<T>& panel = scratch[static_cast<std::size_t>(rank)];
      if (!panel.get()) panel = Buffer<T>(kFew * kChain);
      for (std::int64_t k = 0; k < a_.cols; k += kChain) {
        const std::int64_t depth = std::min(kChain, a_.cols - k);
        double part = 0.0;
        for (std::int64_t r = 0; r < count; r += kFew) {
          const std::int64_t few = std::min(kFew, count - r);
          convert(i + r, k, few, depth, scale_, panel.get(), kChain);
          if (k + kChain < a_.cols) {
            fetch(i + r, k + kChain, few, kChain);
          } else {
            fetch(i + r + kRows, 0, kFew, kChain);
          }
          if (squares) part += loops_.squares(panel.get(), kChain, few, depth);
          product(loops_.rows, panel.get(), kChain, i + r, few, k, depth);
        }
        sum += part;
      }
      if (squares) sums[static_cast<std::size_t>(p)] = sum;
    });
    if (squares) {
      *squares = 0.0;
      for (const double s : sums) *squares += s;
    }
  }

  void columns(const Thin<T>& x, const Thin<T>& z) const {
    std::int64_t parts = parts_of(a_.cols, kStrip);
    parts = parts_of(parts, team_.size()) * team_.size();
    const std::int64_t strip = parts_of(parts_of(a_.cols, parts), 16) * 16;
    const bool direct = in_place(x.width);
    const std::int64_t room = (direct && a_.rows <= kChain ? 0 : strip * z.ld) + (direct ? 0 : kAcross * kAtOnce);
    std::vector<Buffer<T>> scratch(static_cast<std::size_t>(team_.size()));
    team_.each(parts_of(a_.cols, strip), [&](std::int64_t p, int rank) {
      const std::int64_t j = p * strip, width = std::min(strip, a_.cols - j);
      Buffer<T>& work = scratch[static_cast<std::size_t>(rank)];
      if (!work.get() && room > 0) work = Buffer<T>(room);
      T *const sum = work.get(), *const panel = direct ? nullptr : work + strip * z.ld;
      z.clear(j, width);
      for (std::int64_t i = 0; i < a_.rows; i += kChain) {
        const std::int64_t depth = std::min(kChain, a_.rows - i);
        T* const to = i == 0 ? z.row(j) : sum;
        if (i > 0) std::memset(sum, 0, static_cast<std::size_t>(width * z.ld) * sizeof(T));
        if (direct && working_) {
          loops_.columns(at<T>(i, j), a_.row_stride, depth, width, x.row(i), x.ld, x.width, to, z.ld);
        } else if (direct) {
          loops_.columns_of_bfloat16(at<std::uint16_t>(i, j), a_.row_stride, depth, width, x.row(i), x.ld, x.width, to, z.ld);
        } else {
          for (std::int64_t r = 0; r < depth; r += kAtOnce) {
            const std::int64_t count = std::min(kAtOnce, depth - r);
            for (std::int64_t c = 0; c < width; c += kAcross) {
              const std::int64_t across = std::min(kAcross, width - c);
              convert(i + r, j + c, count, across, scale_, panel, kAcross);
              if (c + kNext < width) {
                fetch(i + r, j + c + kNext, count, kAcross);
              } else {
                fetch(i + r + kAtOnce, j + (c + kNext) % (parts_of(width, kAcross) * kAcross), kAtOnce, kAcross);
              }
              loops_.columns(panel, kAcross, count, across, x.row(i + r), x.ld, x.width, to + c * z.ld, z.ld);
            }
          }
        }
        if (i > 0) loops_.add(sum, width * z.ld, z.row(j));
      }
    });
  }

  double sum_of_squares() const {
    std::vector<double> sums(static_cast<std::size_t>(parts_of(a_.rows, kRows)));
    team_.each(parts_of(a_.rows, kRows), [&](std::int64_t p, int) {
      const std::int64_t i = p * kRows;
      for (std::int64_t k = 0; k < a_.cols; k += kChain)
        sums[static_cast<std::size_t>(p)] += sum_of_squares(i, k, std::min(kRows, a_.rows - i), std::min(kChain, a_.cols - k));
    });
    double total = 0.0;
    for (const double s : sums) total += s;
    return total;
  }

  const ProductLoops<T>& loops_;
  Team& team_;
  Matrices a_;  // of one matrix, in the order of its memory
  bool flipped_ = false, working_ = false, bfloat16_ = false;
  double scale_ = 1.0;
};

}  // namespace sf
