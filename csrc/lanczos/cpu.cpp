#include <algorithm>
#include <cmath>
#include <vector>

#include "core/parallel.h"
#include "core/scratch.h"
#include "lanczos/lanczos.h"

namespace sf {

SF_LEVEL_TABLE(KrylovLoops, krylov_loops)

namespace {

constexpr std::int64_t kStripeBytes = 1 << 17;  // of all rows: a quarter of a second-level cache of 512 KB
constexpr std::int64_t kLeastCols = 128, kMostCols = 4096;
constexpr std::int64_t kLeastTasks = 32, kMostStripes = 16;
constexpr double kLost = 0.01;                 // of the squared norm: nine tenths of a vector
constexpr std::int64_t kWorthATeam = 1 << 18;  // bytes of a pass: ten microseconds, what waking a thread costs

std::int64_t stripe_cols(std::int64_t rows, std::int64_t row_bytes) {
  return std::clamp(kStripeBytes / std::max<std::int64_t>(1, rows * row_bytes) / 64 * 64, kLeastCols, kMostCols);
}

char* at(const Rows& rows, std::int64_t row, std::int64_t col) {
  return static_cast<char*>(rows.data) + (row * rows.stride + col) * size_of(rows.dtype);
}

class Sweeps {
 public:
  Sweeps(const Rows& basis, const KrylovOptions& options) : basis_(basis), options_(options), loops_(krylov_loops(options.level)) {}

  // w -= minusᵀ rows where given, [count][b]; then sums [count + 1][b]: rows wᵀ where wanted, and below them the squared norms of w.
  void run(std::int64_t first, std::int64_t count, const Rows& w, std::int64_t b, const double* minus, bool with_dots, double* sums) {
    const std::int64_t cols = stripe_cols(count + 2 * b, size_of(basis_.dtype)), stripes = (w.n + cols - 1) / cols;
    const std::int64_t dots = with_dots ? count * b : 0, each = dots + b;
    // a task is some stripes side by side, the same whatever the number of threads
    const std::int64_t group = std::clamp<std::int64_t>(stripes / kLeastTasks, 1, kMostStripes), tasks = (stripes + group - 1) / group;
    std::vector<double> parts(static_cast<std::size_t>(tasks * each));
    Scratch scratch(static_cast<std::size_t>(b * cols + each));
    over(tasks, w.n * ((count + b) * size_of(basis_.dtype)), [&](std::int64_t task) {
      const Scratch::Lease lease(scratch);
      double* const found = lease.data() + b * cols;
      double* const part = parts.data() + task * each;
      const std::int64_t end = std::min(stripes, (task + 1) * group);
      for (std::int64_t p = task * group; p < end; ++p) {
        const std::int64_t from = p * cols, width = std::min(cols, w.n - from);
        Stripe stripe{at(basis_, first, from), basis_.dtype, count, basis_.stride, width, lease.data(), b, cols};
        for (std::int64_t i = 0; i < b; ++i) loops_.load(at(w, i, from), w.dtype, width, stripe.x + i * cols);
        if (minus != nullptr) {
          loops_.subtract(stripe, minus);
          stripe.near = true;
          for (std::int64_t i = 0; i < b; ++i) loops_.save(stripe.x + i * cols, width, 1.0, at(w, i, from), w.dtype);
        }
        if (with_dots) loops_.dots(stripe, found);
        loops_.squares(stripe, found + dots);
        for (std::int64_t k = 0; k < each; ++k) part[k] += found[k];
      }
    });
    std::fill(sums, sums + (count + 1) * b, 0.0);
    double* const squares = sums + count * b;
    for (std::int64_t p = 0; p < tasks; ++p) {
      const double* const part = parts.data() + p * each;
      for (std::int64_t k = 0; k < dots; ++k) sums[k] += part[k];
      for (std::int64_t i = 0; i < b; ++i) squares[i] += part[dots + i];
    }
    if (options_.reduce) options_.reduce(sums, (count + 1) * b);
  }

  // row = w[i] * (1 / norm), rounded
  void keep(const Rows& w, std::int64_t i, double norm, std::int64_t row) {
    const std::int64_t cols = kMostCols;
    Scratch scratch(static_cast<std::size_t>(cols));
    over((w.n + cols - 1) / cols, w.n * size_of(w.dtype), [&](std::int64_t p) {
      const Scratch::Lease lease(scratch);
      const std::int64_t from = p * cols, width = std::min(cols, w.n - from);
      loops_.load(at(w, i, from), w.dtype, width, lease.data());
      loops_.save(lease.data(), width, 1.0 / norm, at(basis_, row, from), basis_.dtype);
    });
  }

  void combine(std::int64_t m, const double* s, std::int64_t q, const Rows& into) {
    const std::int64_t cols = stripe_cols(m + 2 * q, size_of(basis_.dtype));
    Scratch scratch(static_cast<std::size_t>(q * cols));
    over((basis_.n + cols - 1) / cols, basis_.n * m * size_of(basis_.dtype), [&](std::int64_t p) {
      const Scratch::Lease lease(scratch);
      const std::int64_t from = p * cols, width = std::min(cols, basis_.n - from);
      loops_.combine({at(basis_, 0, from), basis_.dtype, m, basis_.stride, width, lease.data(), q, cols}, s);
      for (std::int64_t j = 0; j < q; ++j) loops_.save(lease.data() + j * cols, width, 1.0, at(into, j, from), into.dtype);
    });
  }

 private:
  template <class Task>
  void over(std::int64_t stripes, std::int64_t bytes, const Task& task) {
    parallel_for(stripes, bytes < kWorthATeam ? 1 : options_.threads, task);
  }

  const Rows& basis_;
  const KrylovOptions& options_;
  const KrylovLoops& loops_;
};

bool all_finite(const std::vector<double>& sums) {
  return std::all_of(sums.begin(), sums.end(), [](double x) { return std::isfinite(x); });
}

}  // namespace

void orthogonalize(const Rows& basis, std::int64_t t, const Rows& w, std::int64_t b, const double* floor, double* coefficients, bool* kept,
                   const KrylovOptions& options) {
  Sweeps sweeps(basis, options);
  std::fill(coefficients, coefficients + (t + b) * b, 0.0);
  std::fill(kept, kept + b, false);
  std::vector<double> sums(static_cast<std::size_t>((t + 1) * b)), more(sums.size());
  sweeps.run(0, t, w, b, nullptr, true, sums.data());
  if (!all_finite(sums)) {
    std::fill(coefficients, coefficients + (t + b) * b, std::nan(""));
    return;
  }
  std::copy_n(sums.data(), t * b, coefficients);
  std::vector<double> size(static_cast<std::size_t>(b));
  for (std::int64_t i = 0; i < b; ++i) size[static_cast<std::size_t>(i)] = std::sqrt(sums[static_cast<std::size_t>(t * b + i)]);
  if (t > 0) {
    sweeps.run(0, t, w, b, sums.data(), true, more.data());
    for (std::int64_t k = 0; k < t * b; ++k) coefficients[k] += more[static_cast<std::size_t>(k)];
    sweeps.run(0, t, w, b, more.data(), false, sums.data());
  }
  const bool narrow = basis.dtype == DType::bf16;  // rows that are orthonormal to a hundredth only
  std::int64_t fresh = 0;
  std::vector<double> column(static_cast<std::size_t>(t + b + 1)), again(column.size());
  for (std::int64_t i = 0; i < b; ++i) {
    Rows one = w;
    one.data = at(w, i, 0);
    double square = sums[static_cast<std::size_t>(t * b + i)];
    const double came = size[static_cast<std::size_t>(i)], least = std::max(floor[i], options.relative * came);
    std::int64_t first = narrow && square <= kLost * came * came ? 0 : t;
    for (int round = 0; round < (narrow ? 4 : 2) && first < t + fresh; ++round) {
      const double before = square;
      const std::int64_t count = t + fresh - first;
      for (int pass = 0; pass < 2; ++pass) {
        sweeps.run(first, count, one, 1, nullptr, true, column.data());
        for (std::int64_t k = 0; k < count; ++k) coefficients[(first + k) * b + i] += column[static_cast<std::size_t>(k)];
        sweeps.run(first, count, one, 1, column.data(), false, again.data());
        square = again[static_cast<std::size_t>(count)];
      }
      if (square > kLost * before || std::sqrt(square) <= least) break;
      first = 0;
    }
    const double norm = std::sqrt(square);
    if (norm > least && t + fresh < options.room) {
      sweeps.keep(w, i, norm, t + fresh);
      coefficients[(t + fresh) * b + i] = norm;
      kept[i] = true;
      ++fresh;
    }
  }
}

void recombine(const Rows& basis, std::int64_t m, const double* s, std::int64_t q, const Rows& into, const KrylovOptions& options) {
  Sweeps(basis, options).combine(m, s, q, into);
}

}  // namespace sf
