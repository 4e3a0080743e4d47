// Large matrices: two stages, a team of threads on one matrix, or one matrix per thread where there are enough of them.
#include <algorithm>
#include <cmath>
#include <limits>

#include "core/parallel.h"
#include "core/scratch.h"
#include "singular_values/condensed.h"
#include "singular_values/dense.h"
#include "singular_values/two_stage.h"

namespace sf {

SF_LEVEL_TABLE(LaneLoops, lane_loops)
SF_LEVEL_TABLE(DenseLoops, dense_loops)

namespace {

constexpr std::int64_t kPanel = 256;    // rows of a tall matrix converted at a time
constexpr std::int64_t kShared = 1024;  // with more columns a team works on one matrix, however many there are: memory

SingularValueStages stages_of(const TwoStageSeconds& seconds) {
  SingularValueStages all;
  all.gram = seconds.gram;
  all.reduce = seconds.panels + seconds.passes;
  all.chase = seconds.chase;
  all.solve = seconds.bisection;
  return all;
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
      const int exponent = lanes.examine(a, i);
      if (exponent == kNotFinite) {
        std::fill_n(values, n, std::numeric_limits<double>::quiet_NaN());
        return;
      }
      const Scratch::Lease lease(scratch);
      double* g = lease.data();
      watch.lap(&SingularValueStages::pack);
      const TwoStageOptions two{options.level, team, interrupted, stages ? &seconds : nullptr, 0};
      if (!high) {
        gram([&](std::int64_t first, std::int64_t count, double* out,
                 std::int64_t ldo) { lanes.load_rows(a, i, first, count, exponent, out, ldo); },
             m, n, g, ld, two);
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
          lanes.load_rows(a, i, 0, n, exponent, g, ld);
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
