#include "gradient_gram/gradient_gram.h"

#include <algorithm>
#include <cstddef>
#include <memory>
#include <type_traits>
#include <vector>

#include "core/buffer.h"
#include "core/parallel.h"
#include "core/scratch.h"

namespace sf {

SF_LEVEL_TABLE(GramLoops<float>, gram_single_loops)
SF_LEVEL_TABLE(GramLoops<double>, gram_double_loops)

namespace {

constexpr std::int64_t kBlockRows = 96;         // rows of a block, at least: what is packed of two blocks stays in the second-level cache
constexpr std::int64_t kStripeBytes = 1 << 25;  // packed at a time on each side
// Of the layer's gradients, made at a time: what the sums over 128 positions read of both factors stays in the first-level cache.
constexpr std::int64_t kTileRows = 64, kTileColumns = 72;
// Products of them that one task makes, at most: what it reads of both sides in a chunk of columns stays in the second-level cache.
constexpr std::int64_t kMostRows = 96, kMostColumns = 48;
constexpr std::int64_t kRowColumns = 1024;  // of rows that are packed at a time
constexpr std::int64_t kTogether = 8;       // panels that one task multiplies by another, at most
constexpr std::int64_t kMostBlocks = 8;     // of rows in a panel

// Parts of at most about `most` of `all`, as equal as multiples of `step` can be.
std::int64_t even(std::int64_t all, std::int64_t most, std::int64_t step) {
  const std::int64_t parts = (all + most - 1) / most, each = (all + parts - 1) / parts;
  return std::min(all, (each + step - 1) / step * step);
}

template <class T>
class Gram {
 public:
  Gram(bool same, double* gram, std::int64_t ld, const GramOptions& options) : same_(same), gram_(gram), ld_(ld), options_(options) {
    if constexpr (std::is_same_v<T, float>) {
      loops_ = &gram_single_loops(options.level);
    } else {
      loops_ = &gram_double_loops(options.level);
    }
    width_ = loops_->width;
    lanes_ = width_ / loops_->vectors;
  }

  // Pairs of positions: the products of both factors, block by block, multiplied and summed over the positions of each pair of samples.
  void positions(const GramSide& left, const GramSide& right) {
    const std::int64_t row_bytes = (left.first.width + left.second.width) * static_cast<std::int64_t>(sizeof(T));
    const std::int64_t step_left = stripe(left, row_bytes), step_right = stripe(right, row_bytes);
    for (std::int64_t i = 0; i < left.first.samples; i += step_left) {
      const Blocks rows = pack_blocks(left, i, std::min(step_left, left.first.samples - i));
      for (std::int64_t j = 0; j < right.first.samples && !(same_ && j > i); j += step_right) {
        if (same_ && j == i) {
          pairs(rows, rows, true);
        } else {
          pairs(rows, pack_blocks(right, j, std::min(step_right, right.first.samples - j)), false);
        }
      }
    }
  }

  // The layer's own gradients, some columns at a time, and their Gram matrix.
  void gradients(const GramSide& left, const GramSide& right) {
    const std::int64_t p = left.first.width, q = left.second.width;
    // vectors run along the factor whose columns fill them better, the wider one where both do as well
    const auto filled = [&](std::int64_t cols) { return (cols + width_ - 1) / width_ * width_ * 1024 / cols; };
    const bool turned = filled(p) != filled(q) ? filled(p) < filled(q) : p > q;
    const std::int64_t inner = turned ? p : q, outer = turned ? q : p;
    const std::int64_t rows = even(outer, kTileRows, loops_->row_block), cols = even(inner, kTileColumns, inner < width_ ? lanes_ : width_);
    const std::int64_t step = spaced(rows * cols);
    KeptBuffer<T> here(left.first.samples * step), there(same_ ? 1 : right.first.samples * step);
    for (std::int64_t r = 0; r < outer; r += rows)
      for (std::int64_t c = 0; c < inner; c += cols) {
        const Tile tile{r, std::min(rows, outer - r), c, std::min(cols, inner - c), turned};
        write_gradients(left, tile, here.get(), step);
        if (!same_) write_gradients(right, tile, there.get(), step);
        dots(here.get(), left.first.samples, same_ ? here.get() : there.get(), right.first.samples, step, tile.rows * tile.cols);
      }
  }

  // Gradients that are there already: one factor only, and no positions.
  void rows(const Positions& left, const Positions& right) {
    const std::int64_t cols = std::min(left.width, kRowColumns);
    KeptBuffer<T> here(panels(left.samples) * width_ * cols), there(same_ ? 1 : panels(right.samples) * width_ * cols);
    for (std::int64_t c = 0; c < left.width; c += cols) {
      const std::int64_t some = std::min(cols, left.width - c);
      pack_columns(left, c, some, here.get());
      if (!same_) pack_columns(right, c, some, there.get());
      products(here.get(), left.samples, same_ ? here.get() : there.get(), right.samples, some);
    }
  }

  // The lower triangle's mirror image above it, a few lines of the cache at a time.
  void mirror(std::int64_t n) {
    constexpr std::int64_t kSide = 16;
    for (std::int64_t i = 0; i < n; i += kSide)
      for (std::int64_t j = 0; j <= i; j += kSide)
        for (std::int64_t c = j; c < std::min(n, j + kSide); ++c)
          for (std::int64_t r = std::max(i, c + 1); r < std::min(n, i + kSide); ++r) gram_[c * ld_ + r] = gram_[r * ld_ + c];
  }

 private:
  struct Tile {
    std::int64_t r, rows, c, cols;
    bool turned;
  };

  // Samples [first, first + samples) in blocks, each a whole number of panels.
  struct Blocks {
    std::int64_t first, samples, each, positions;
    std::int64_t panels;  // of a block
    std::shared_ptr<KeptBuffer<T>> one, two;
    std::int64_t p, q;
    std::int64_t count() const { return (samples + each - 1) / each; }
  };

  std::int64_t panels(std::int64_t rows) const { return (rows + width_ - 1) / width_; }

  // Rows of so many numbers lie so far apart: whole lines of the cache, and not all in the same places of it.
  std::int64_t spaced(std::int64_t numbers) const {
    constexpr std::int64_t kLine = 64 / static_cast<std::int64_t>(sizeof(T));
    const std::int64_t lines = (numbers + kLine - 1) / kLine;
    return (lines % 16 == 0 ? lines + 1 : lines) * kLine;
  }

  static const T* row(const Positions& x, std::int64_t sample, std::int64_t position) {
    return static_cast<const T*>(x.data) + sample * x.sample_stride + position * x.position_stride;
  }

  std::int64_t samples_of_block(std::int64_t positions) const {
    const std::int64_t least = std::max<std::int64_t>(1, (kBlockRows + positions - 1) / positions);
    std::int64_t best = least, waste = panels(least * positions) * width_ * 1000 / (least * positions);
    for (std::int64_t s = least + 1; s <= 2 * least; ++s) {
      const std::int64_t here = panels(s * positions) * width_ * 1000 / (s * positions);
      if (here < waste) best = s, waste = here;
    }
    return best;
  }

  std::int64_t stripe(const GramSide& side, std::int64_t row_bytes) const {
    const std::int64_t each = samples_of_block(side.first.positions);
    return std::max(each, kStripeBytes / std::max<std::int64_t>(1, row_bytes * side.first.positions) / each * each);
  }

  template <class Task>
  void over(std::int64_t tasks, const Task& task) {
    parallel_for(tasks, options_.threads, task, options_.interrupted);
  }

  Blocks pack_blocks(const GramSide& side, std::int64_t first, std::int64_t samples) {
    Blocks b{first,
             samples,
             std::min(samples, samples_of_block(side.first.positions)),
             side.first.positions,
             0,
             nullptr,
             nullptr,
             side.first.width,
             side.second.width};
    b.panels = panels(b.each * b.positions);
    const std::int64_t all = b.count() * b.panels;
    b.one = std::make_shared<KeptBuffer<T>>(all * width_ * b.p);
    b.two = std::make_shared<KeptBuffer<T>>(all * width_ * b.q);
    over(all, [&](std::int64_t panel) {
      const std::int64_t block = panel / b.panels, start = panel % b.panels * width_;
      const std::int64_t end = std::min(b.each, samples - block * b.each) * b.positions;
      pack_rows(side.first, first + block * b.each, start, end, b.one->get() + panel * width_ * b.p);
      pack_rows(side.second, first + block * b.each, start, end, b.two->get() + panel * width_ * b.q);
    });
    return b;
  }

  // Rows [start, start + width) of a block that has `end` rows and begins at `sample`.
  void pack_rows(const Positions& x, std::int64_t sample, std::int64_t start, std::int64_t end, T* to) {
    std::vector<const T*> rows;
    for (std::int64_t r = start; r < std::min(end, start + width_); ++r) rows.push_back(row(x, sample + r / x.positions, r % x.positions));
    loops_->pack(rows.data(), static_cast<std::int64_t>(rows.size()), x.width, width_, to);
  }

  void pairs(const Blocks& left, const Blocks& right, bool triangle) {
    struct Pair {
      std::int64_t i, j;
    };
    std::vector<Pair> tasks;
    for (std::int64_t i = 0; i < left.count(); ++i)
      for (std::int64_t j = 0; j < (triangle ? i + 1 : right.count()); ++j) tasks.push_back({i, j});
    KeptScratch scratch(static_cast<std::size_t>(2 * width_ * width_ + width_));
    over(static_cast<std::int64_t>(tasks.size()), [&](std::int64_t task) {
      const KeptScratch::Lease lease(scratch);
      const Pair& pair = tasks[static_cast<std::size_t>(task)];
      block_pair(left, pair.i, right, pair.j, triangle && pair.i == pair.j, lease.data());
    });
  }

  void block_pair(const Blocks& left, std::int64_t i, const Blocks& right, std::int64_t j, bool triangle, double* work) {
    double* const x = work;
    double* const y = x + width_ * width_;
    double* const sums = y + width_ * width_;
    const std::int64_t rows = std::min(left.each, left.samples - i * left.each) * left.positions;
    const std::int64_t cols = std::min(right.each, right.samples - j * right.each) * right.positions;
    const std::int64_t first_row = left.first + i * left.each, first_col = right.first + j * right.each;
    for (std::int64_t pj = 0; pj * width_ < cols; ++pj)
      for (std::int64_t pi = 0; pi * width_ < rows; ++pi) {
        // of a block with itself only samples at or below the diagonal are wanted
        const std::int64_t last_sample = (std::min(rows, (pi + 1) * width_) - 1) / left.positions;
        if (triangle && last_sample < pj * width_ / right.positions) continue;
        const std::int64_t at_i = (i * left.panels + pi) * width_, at_j = (j * right.panels + pj) * width_;
        const std::int64_t end = std::min(width_, rows - pi * width_), col_end = std::min(width_, cols - pj * width_);
        std::int64_t needed[kMostBlocks];
        for (std::int64_t r = 0; r < end; r += loops_->row_block) {
          const std::int64_t sample = (std::min(end, r + loops_->row_block) - 1 + pi * width_) / left.positions;
          needed[r / loops_->row_block] =
              triangle ? std::clamp<std::int64_t>((sample + 1) * right.positions - pj * width_, 0, col_end) : col_end;
        }
        std::fill(x, x + width_ * width_, 0.0);
        loops_->multiply(left.one->get() + at_i * left.p, right.one->get() + at_j * right.p, left.p, end, needed, x);
        std::fill(y, y + width_ * width_, 0.0);
        loops_->multiply(left.two->get() + at_i * left.q, right.two->get() + at_j * right.q, left.q, end, needed, y);
        if (left.positions == 1 && right.positions == 1) {
          for (std::int64_t r = 0; r < end; ++r) {
            double* const out = gram_ + (first_row + pi * width_ + r) * ld_ + first_col + pj * width_;
            const std::int64_t cols_of = triangle ? std::min(col_end, (pi - pj) * width_ + r + 1) : col_end;
            for (std::int64_t c = 0; c < cols_of; ++c) out[c] += x[r * width_ + c] * y[r * width_ + c];
          }
          continue;
        }
        const std::int64_t first_other = pj * width_ / right.positions;
        std::int64_t sample = pi * width_ / left.positions;
        for (std::int64_t r = 0; r < end; ++sample) {
          const std::int64_t to = std::min(end, (sample + 1) * left.positions - pi * width_);
          std::fill(sums, sums + width_, 0.0);
          loops_->sum_rows(x, y, r, to, sums);
          double* const out = gram_ + (first_row + sample) * ld_ + first_col;
          std::int64_t other = first_other;
          for (std::int64_t c = 0; c < col_end && !(triangle && other > sample); ++other) {
            const std::int64_t until = std::min(col_end, (other + 1) * right.positions - pj * width_);
            double sum = 0.0;
            for (; c < until; ++c) sum += sums[c];
            out[other] += sum;
          }
          r = to;
        }
      }
  }

  void pack_columns(const Positions& x, std::int64_t first, std::int64_t count, T* to) {
    over(panels(x.samples), [&](std::int64_t panel) {
      std::vector<const T*> rows;
      for (std::int64_t i = panel * width_; i < std::min(x.samples, (panel + 1) * width_); ++i) rows.push_back(row(x, i, 0) + first);
      loops_->pack(rows.data(), static_cast<std::int64_t>(rows.size()), count, width_, to + panel * width_ * count);
    });
  }

  void write_gradients(const GramSide& side, const Tile& tile, T* to, std::int64_t step) {
    const Positions& a = tile.turned ? side.second : side.first;
    const Positions& b = tile.turned ? side.first : side.second;
    over(a.samples, [&](std::int64_t i) {
      loops_->outer(row(a, i, 0) + tile.r, a.position_stride, row(b, i, 0) + tile.c, b.position_stride, a.positions, tile.rows, tile.cols,
                    to + i * step);
    });
  }

  // gram += left rightᵀ of rows `step` apart, where they lie
  void dots(const T* left, std::int64_t n, const T* right, std::int64_t m, std::int64_t step, std::int64_t depth) {
    struct Task {
      std::int64_t i, j;
    };
    std::int64_t rows = kMostRows, cols = kMostColumns;
    while (rows > 12 && n * m < 16 * rows * cols) rows /= 2, cols /= 2;  // enough of them for the threads
    std::vector<Task> tasks;
    for (std::int64_t i = 0; i < n; i += rows)
      for (std::int64_t j = 0; j < std::min(m, same_ ? i + rows : m); j += cols) tasks.push_back({i, j});
    KeptScratch scratch(static_cast<std::size_t>(rows * cols));
    over(static_cast<std::int64_t>(tasks.size()), [&](std::int64_t number) {
      const KeptScratch::Lease lease(scratch);
      double* const x = lease.data();
      const Task& task = tasks[static_cast<std::size_t>(number)];
      const std::int64_t some = std::min(rows, n - task.i), wide = std::min(cols, m - task.j);
      const std::int64_t diagonal = same_ ? task.i - task.j : wide;  // of row r the columns up to r + diagonal are wanted
      std::fill(x, x + some * cols, 0.0);
      loops_->dot(left + task.i * step, right + task.j * step, step, some, wide, depth, diagonal, x, cols);
      for (std::int64_t r = 0; r < some; ++r) {
        double* const out = gram_ + (task.i + r) * ld_ + task.j;
        for (std::int64_t c = 0; c < std::min(wide, r + diagonal + 1); ++c) out[c] += x[r * cols + c];
      }
    });
  }

  // gram += left rightᵀ of packed rows
  void products(const T* left, std::int64_t n, const T* right, std::int64_t m, std::int64_t depth) {
    struct Task {
      std::int64_t i, j, end;
    };
    std::vector<Task> tasks;
    const std::int64_t together = std::clamp<std::int64_t>(panels(n) * panels(m) / 32, 1, kTogether);
    for (std::int64_t j = 0; j < panels(m); ++j)
      for (std::int64_t i = same_ ? j : 0; i < panels(n); i += together) tasks.push_back({i, j, std::min(panels(n), i + together)});
    KeptScratch scratch(static_cast<std::size_t>(width_ * width_));
    over(static_cast<std::int64_t>(tasks.size()), [&](std::int64_t number) {
      const KeptScratch::Lease lease(scratch);
      double* const x = lease.data();
      const Task& task = tasks[static_cast<std::size_t>(number)];
      for (std::int64_t i = task.i; i < task.end; ++i) {
        std::fill(x, x + width_ * width_, 0.0);
        const std::int64_t rows = std::min(width_, n - i * width_), cols = std::min(width_, m - task.j * width_);
        const bool diagonal = same_ && i == task.j;
        std::int64_t needed[kMostBlocks];
        for (std::int64_t r = 0; r < rows; r += loops_->row_block)
          needed[r / loops_->row_block] = diagonal ? std::min(cols, r + loops_->row_block) : cols;
        loops_->multiply(left + i * width_ * depth, right + task.j * width_ * depth, depth, rows, needed, x);
        for (std::int64_t r = 0; r < rows; ++r) {
          double* const out = gram_ + (i * width_ + r) * ld_ + task.j * width_;
          const std::int64_t end = diagonal ? std::min(cols, r + 1) : cols;
          if (options_.times != nullptr) {
            const double* const factor = options_.times + (out - gram_);
            for (std::int64_t c = 0; c < end; ++c) out[c] += x[r * width_ + c] * factor[c];
          } else {
            for (std::int64_t c = 0; c < end; ++c) out[c] += x[r * width_ + c];
          }
        }
      }
    });
  }

  const bool same_;
  double* const gram_;
  const std::int64_t ld_;
  const GramOptions& options_;
  const GramLoops<T>* loops_;
  std::int64_t width_;
  std::int64_t lanes_;  // of a vector
};

template <class T>
void compute(const GramSide& left, const GramSide& right, bool same, GramAlgorithm algorithm, double* gram, std::int64_t ld,
             const GramOptions& options) {
  Gram<T> work(same, gram, ld, options);
  if (left.second.data == nullptr) {
    work.rows(left.first, right.first);
  } else if (algorithm == GramAlgorithm::positions) {
    work.positions(left, right);
  } else {
    work.gradients(left, right);
  }
  if (same) work.mirror(left.first.samples);
}

}  // namespace

void gradient_gram(const GramSide& left, const GramSide& right, bool same, GramAlgorithm algorithm, double* gram, std::int64_t ld,
                   const GramOptions& options) {
  const auto empty = [](const Positions& x) { return x.samples == 0 || x.positions == 0 || x.width == 0; };
  if (empty(left.first) || empty(right.first) || (left.second.data != nullptr && left.second.width == 0)) return;
  if (left.first.dtype == DType::f64) {
    compute<double>(left, right, same, algorithm, gram, ld, options);
  } else {
    compute<float>(left, right, same, algorithm, gram, ld, options);
  }
}

}  // namespace sf
