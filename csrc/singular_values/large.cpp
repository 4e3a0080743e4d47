// Large matrices: two stages, a team of threads on one matrix, or one matrix per thread where there are enough of them.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "core/parallel.h"
#include "core/scratch.h"
#include "core/team.h"
#include "singular_values/condensed.h"
#include "singular_values/dense.h"
#include "singular_values/two_stage.h"

namespace sf {

SF_LEVEL_TABLE(LaneLoops, lane_loops)
SF_LEVEL_TABLE(DenseLoops, dense_loops)

namespace {

constexpr std::int64_t kPanel = 256;    // rows of a tall matrix converted at a time
constexpr std::int64_t kRows = 64;      // rows that one part of a loop looks at or converts
constexpr std::int64_t kShared = 1024;  // with more columns a team works on one matrix, however many there are: memory

SingularValueStages stages_of(const TwoStageSeconds& seconds) {
  SingularValueStages all;
  all.gram = seconds.gram;
  all.reduce = seconds.panels + seconds.passes;
  all.chase = seconds.chase;
  all.solve = seconds.bisection;
  return all;
}

std::int64_t parts_of(std::int64_t rows) { return (rows + kRows - 1) / kRows; }

// Whether the entries can be squared as they are: a NaN or an infinity then shows on the diagonal of the Gram matrix, and only there is
// anything to scale.
bool squared_as_it_is(const Matrices& a, Accuracy accuracy) { return accuracy == Accuracy::standard && a.dtype != DType::f64; }

int examine(const Matrices& a, std::int64_t i, const LaneLoops& lanes, const TwoStageOptions& options) {
  std::vector<double> largest(static_cast<std::size_t>(parts_of(a.rows)));
  Team::run(options.threads, options.interrupted, [&](Team& team) {
    team.each(parts_of(a.rows), [&](std::int64_t part, int) {
      largest[static_cast<std::size_t>(part)] = lanes.largest_entry(a, i, part * kRows, std::min(kRows, a.rows - part * kRows));
    });
  });
  double all = 0.0;
  for (const double x : largest) all = std::isnan(x) || std::isnan(all) ? HUGE_VAL - HUGE_VAL : std::max(all, x);
  return exponent_of(all);
}

// The exponent of a matrix by its Gram matrix, whose lower triangle is scaled where it is far from 1.
int examine_gram(double* g, std::int64_t n, std::int64_t ld) {
  constexpr int kFar = 40;
  double largest = 0.0;
  for (std::int64_t i = 0; i < n; ++i) {
    const double x = g[i * ld + i];
    if (!std::isfinite(x)) return kNotFinite;
    largest = std::max(largest, x);
  }
  const int exponent = exponent_of(std::sqrt(largest));
  if (std::abs(exponent) < kFar) return 0;
  const double factor = std::ldexp(1.0, -2 * exponent);
  for (std::int64_t i = 0; i < n; ++i) {
    for (std::int64_t j = 0; j <= i; ++j) g[i * ld + j] *= factor;
  }
  return exponent;
}

}  // namespace

void two_stages(const Matrices& a, double* s, const SingularValueOptions& options, SingularValueStages* stages) {
  const LaneLoops& lanes = lane_loops(options.level);
  const DenseLoops& dense = dense_loops(options.level);
  const bool high = options.accuracy == Accuracy::high;
  const std::int64_t m = a.rows, n = a.cols, ld = padded_columns(n);
  const bool tall = high && m > n;
  const int threads = options.threads > 0 ? options.threads : default_threads();
  const bool apart = n <= kShared && a.batch > 1 && threads > 1;
  Scratch scratch(static_cast<std::size_t>(n * ld + (tall ? kPanel * ld + qr_append_work(kPanel) : 0)));
  const auto one = [&](std::int64_t i, int team, const std::function<bool()>& interrupted) {
    double* values = s + i * n;
    TwoStageSeconds seconds;
    {
      Watch watch(stages);
      const TwoStageOptions two{options.level, team, interrupted, stages ? &seconds : nullptr, options.accuracy == Accuracy::fast, 0};
      const bool as_it_is = squared_as_it_is(a, options.accuracy);
      int exponent = as_it_is ? 0 : examine(a, i, lanes, two);
      const auto not_finite = [&] {
        if (exponent == kNotFinite) std::fill_n(values, n, std::numeric_limits<double>::quiet_NaN());
        return exponent == kNotFinite;
      };
      if (not_finite()) return;
      const Scratch::Lease lease(scratch);
      double* g = lease.data();
      watch.lap(&SingularValueStages::pack);
      if (!high) {
        gram([&](std::int64_t first, std::int64_t count, double* out,
                 std::int64_t ldo) { lanes.load_rows(a, i, first, count, exponent, out, ldo); },
             m, n, g, ld, two);
        if (as_it_is) exponent = examine_gram(g, n, ld);
        if (not_finite()) return;
        symmetric_eigenvalues(g, n, ld, values, two);
      } else {
        if (tall) {
          std::fill_n(g, n * ld, 0.0);
          double *p = g + n * ld, *w = p + kPanel * ld;
          for (std::int64_t first = 0; first < m; first += kPanel) {
            const std::int64_t rows = std::min(kPanel, m - first);
            lanes.load_rows(a, i, first, rows, exponent, p, ld);
            watch.lap(&SingularValueStages::pack);
            dense.qr_append(g, n, ld, p, rows, ld, w);
            watch.lap(&SingularValueStages::qr);
          }
        } else {
          Team::run(team, interrupted, [&](Team& all) {
            all.each(parts_of(n), [&](std::int64_t part, int) {
              const std::int64_t first = part * kRows;
              lanes.load_rows(a, i, first, std::min(kRows, n - first), exponent, g + first * ld, ld);
            });
          });
          watch.lap(&SingularValueStages::pack);
        }
        square_singular_values(g, n, ld, values, two);
      }
      for (std::int64_t k = 0; k < n; ++k) values[k] = std::ldexp(high ? values[k] : std::sqrt(std::max(values[k], 0.0)), exponent);
    }
    if (stages) add(stages_of(seconds), stages);
  };
  if (apart) {
    const std::function<bool()> never;
    parallel_for(a.batch, threads, [&](std::int64_t i) { one(i, 1, never); }, options.interrupted);
  } else {
    for (std::int64_t i = 0; i < a.batch; ++i) one(i, threads, options.interrupted);
  }
}

}  // namespace sf
