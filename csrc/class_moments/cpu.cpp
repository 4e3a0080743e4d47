#include <algorithm>
#include <cmath>
#include <functional>
#include <string>
#include <vector>

#include "class_moments/class_moments.h"
#include "core/buffer.h"
#include "core/parallel.h"
#include "core/require.h"
#include "singular_values/two_stage.h"

namespace sf {

SF_LEVEL_TABLE(MomentLoops, moment_loops)

namespace {

constexpr std::int64_t kChunk = 256;           // rows of one task, and terms of one sum
constexpr std::int64_t kClasses = 16;          // of one task
constexpr std::int64_t kTile = 32;             // of the scatter, when the halves are made equal
constexpr std::int64_t kWorthATeam = 1 << 16;  // numbers: some ten microseconds of work, what waking a thread costs

std::size_t at(std::int64_t i) { return static_cast<std::size_t>(i); }

// Rows sorted by class, in their order within a class, and the classes that occur, ascending.
struct Sorted {
  std::vector<std::int64_t> order;    // rows
  std::vector<std::int64_t> local;    // which of the classes that occur
  std::vector<std::int64_t> classes;  // their names
  std::vector<std::int64_t> starts;   // where each begins in `order`, and where the last one ends

  std::int64_t size(std::int64_t c) const { return starts[at(c + 1)] - starts[at(c)]; }
};

Sorted sorted_by_class(const View<const std::int64_t, 1>& labels, std::int64_t classes) {
  std::vector<std::int64_t> seen(at(classes), 0);
  for (std::int64_t i = 0; i < labels.shape[0]; ++i) {
    require(labels(i) < classes, "labels: wanted classes below " + std::to_string(classes) + ", got " + std::to_string(labels(i)) +
                                     " in row " + std::to_string(i));
    if (labels(i) >= 0) ++seen[at(labels(i))];
  }
  Sorted s;
  std::int64_t total = 0;
  for (std::int64_t c = 0; c < classes; ++c) {
    const std::int64_t count = seen[at(c)];
    if (count == 0) continue;
    s.classes.push_back(c);
    s.starts.push_back(total);
    seen[at(c)] = total;
    total += count;
  }
  s.starts.push_back(total);
  s.order.resize(at(total));
  s.local.resize(at(total));
  for (std::int64_t i = 0; i < labels.shape[0]; ++i) {
    if (labels(i) >= 0) s.order[at(seen[at(labels(i))]++)] = i;
  }
  for (std::size_t c = 0; c < s.classes.size(); ++c)
    std::fill(s.local.begin() + s.starts[c], s.local.begin() + s.starts[c + 1], static_cast<std::int64_t>(c));
  return s;
}

// One call: everything is found before the state is touched.
class Block {
 public:
  Block(const LabelledRows& rows, const MomentState& state, const MomentOptions& options)
      : rows_(rows),
        state_(state),
        options_(options),
        loops_(moment_loops(options.level)),
        sorted_(sorted_by_class(rows.labels, state.classes)),
        samples_(static_cast<std::int64_t>(sorted_.order.size())),
        present_(static_cast<std::int64_t>(sorted_.classes.size())),
        chunks_((samples_ + kChunk - 1) / kChunk),
        dim_(rows.dim),
        means_((present_ + chunks_) * dim_),
        weights_(at(present_), 0.0),
        squares_(at(samples_), 0.0),
        moved_(at(present_), 0.0) {}

  void merge() {
    add_up();
    find_means();
    std::vector<std::int64_t>
        terms;  // of the scatter: places in `order`, and ~c for the step from the old mean of a class to that of the block
    for (std::int64_t p = 0; p < samples_; ++p) {
      if (sorted_.size(sorted_.local[at(p)]) > 1) terms.push_back(p);  // one alone is its own mean
    }
    for (std::int64_t c = 0; c < present_; ++c) {
      if (weights_[at(c)] > 0.0) terms.push_back(~c);
    }
    const std::int64_t n = static_cast<std::int64_t>(terms.size()), ld = (dim_ + 15) / 8 * 8;
    const Buffer<double> products(n > 0 ? dim_ * ld : 0);
    if (n > 0 && dim_ > 0) {
      TwoStageOptions gram_options;
      gram_options.level = options_.level;
      gram_options.threads = n * dim_ * dim_ < kWorthATeam ? 1 : options_.threads > 0 ? options_.threads : default_threads();
      gram_options.interrupted = options_.interrupted;
      const RowSource source = [&](std::int64_t first, std::int64_t count, double* out, std::int64_t ldo) {
        for (std::int64_t i = 0; i < count; ++i) term(terms[at(first + i)], out + i * ldo);
      };
      gram(source, n, dim_, products.get(), ld, gram_options);
      add_products(products.get(), ld);  // from here on nothing can be interrupted: a state half merged is none
    }
    commit();
  }

 private:
  const char* row(std::int64_t place) const {
    return static_cast<const char*>(rows_.data) + sorted_.order[at(place)] * rows_.stride * size_of(rows_.dtype);
  }
  double* mean(std::int64_t c) const { return means_ + c * dim_; }
  double* old_mean(std::int64_t c) const { return state_.means + sorted_.classes[at(c)] * dim_; }

  template <class Task>
  void over(std::int64_t tasks, std::int64_t numbers, const Task& task, const std::function<bool()>& interrupted = {}) {
    parallel_for(tasks, numbers < kWorthATeam ? 1 : options_.threads, task, interrupted);
  }

  // For every class of the block the sum of the differences to its first row: of equal rows exactly nothing. A task has some rows; what it
  // finds of a class that began in a task before has a place of its own behind the classes.
  void add_up() {
    const auto task = [&](std::int64_t chunk) {
      const std::int64_t end = std::min(samples_, (chunk + 1) * kChunk);
      for (std::int64_t p = chunk * kChunk; p < end;) {
        const std::int64_t c = sorted_.local[at(p)], start = sorted_.starts[at(c)], stop = std::min(end, sorted_.starts[at(c + 1)]);
        double* const sums = start < p ? mean(present_ + chunk) : mean(c);
        std::fill(sums, sums + dim_, 0.0);
        // the first one too: an infinity less itself is no number
        for (; p < stop; ++p) loops_.add_difference(row(p), row(start), rows_.dtype, dim_, sums);
      }
    };
    over(chunks_, samples_ * dim_, task, options_.interrupted);
  }

  void find_means() {
    const auto task = [&](std::int64_t group) {
      std::vector<double> first(at(dim_));
      const std::int64_t end = std::min(present_, (group + 1) * kClasses);
      for (std::int64_t c = group * kClasses; c < end; ++c) {
        double* const m = mean(c);
        const std::int64_t start = sorted_.starts[at(c)], last = (sorted_.starts[at(c + 1)] - 1) / kChunk;
        for (std::int64_t chunk = start / kChunk + 1; chunk <= last; ++chunk) {
          const double* const more = mean(present_ + chunk);
          for (std::int64_t j = 0; j < dim_; ++j) m[j] += more[j];
        }
        loops_.load(row(start), rows_.dtype, dim_, first.data());
        const double fresh = static_cast<double>(sorted_.size(c)), old = static_cast<double>(state_.counts[sorted_.classes[at(c)]]);
        for (std::int64_t j = 0; j < dim_; ++j) m[j] = first[at(j)] + m[j] / fresh;
        weights_[at(c)] = std::sqrt(old * fresh / (old + fresh));
      }
    };
    over((present_ + kClasses - 1) / kClasses, (present_ + chunks_) * dim_, task);
  }

  // A row whose product with itself belongs to the scatter.
  void term(std::int64_t which, double* out) {
    if (which >= 0) {
      squares_[at(which)] = loops_.centre(row(which), rows_.dtype, dim_, mean(sorted_.local[at(which)]), out);
      return;
    }
    const std::int64_t c = ~which;
    const double *const to = mean(c), *const from = old_mean(c), weight = weights_[at(c)];
    double square = 0.0;
    for (std::int64_t j = 0; j < dim_; ++j) {
      out[j] = weight * (to[j] - from[j]);
      square += out[j] * out[j];
    }
    moved_[at(c)] = square;
  }

  // scatter += the lower triangle of `products`, both halves alike.
  void add_products(const double* products, std::int64_t ld) {
    const std::int64_t tiles = (dim_ + kTile - 1) / kTile;
    over(tiles, dim_ * dim_, [&](std::int64_t tile) {
      const std::int64_t end = std::min(dim_, (tile + 1) * kTile);
      for (std::int64_t from = 0; from < end; from += kTile) {
        for (std::int64_t i = tile * kTile; i < end; ++i) {
          const std::int64_t to = std::min(from + kTile, i + 1);
          double* const line = state_.scatter + i * dim_;
          for (std::int64_t j = from; j < to; ++j) line[j] += products[i * ld + j];
          for (std::int64_t j = from; j < to; ++j) state_.scatter[j * dim_ + i] = line[j];
        }
      }
    });
  }

  void commit() {
    over((present_ + kClasses - 1) / kClasses, present_ * dim_ + samples_, [&](std::int64_t group) {
      const std::int64_t end = std::min(present_, (group + 1) * kClasses);
      for (std::int64_t c = group * kClasses; c < end; ++c) {
        const std::int64_t name = sorted_.classes[at(c)], fresh = sorted_.size(c), old = state_.counts[name];
        const double* const to = mean(c);
        double* const m = old_mean(c);
        const double step = static_cast<double>(fresh) / static_cast<double>(old + fresh);
        for (std::int64_t j = 0; j < dim_; ++j) m[j] = old == 0 ? to[j] : m[j] + (to[j] - m[j]) * step;
        double spread = 0.0;
        for (std::int64_t p = sorted_.starts[at(c)]; p < sorted_.starts[at(c + 1)]; p += kChunk) {
          double sum = 0.0;
          for (std::int64_t q = p; q < std::min(p + kChunk, sorted_.starts[at(c + 1)]); ++q) sum += squares_[at(q)];
          spread += sum;
        }
        state_.spread[name] += spread + moved_[at(c)];
        state_.counts[name] = old + fresh;
      }
    });
  }

  const LabelledRows& rows_;
  const MomentState& state_;
  const MomentOptions& options_;
  const MomentLoops& loops_;
  const Sorted sorted_;
  const std::int64_t samples_, present_, chunks_, dim_;
  const Buffer<double> means_;           // of the classes that occur; behind them what each task found of a class that began before
  std::vector<double> weights_;          // of the step from the old mean to that of the block; 0: there was none
  std::vector<double> squares_, moved_;  // of the rows, centred, and of the weighted steps
};

}  // namespace

void class_moments(const LabelledRows& rows, const MomentState& state, const MomentOptions& options) {
  Block(rows, state, options).merge();
}

}  // namespace sf
