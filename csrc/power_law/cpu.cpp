#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "core/parallel.h"
#include "core/require.h"
#include "power_law/numerics.h"
#include "power_law/power_law.h"

namespace sf {

SF_LEVEL_TABLE(PowerLawLoops, power_law_loops)

namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
constexpr std::int64_t kStartsPerTask = 256;

// Running log sums from the left, slopes from the sums from the right: sum_{k >= i} ln(x_k/x_i) grows by
// (n-1-i) ln(x_{i+1}/x_i) when i steps down, so every term is positive and nothing cancels.
void prepare(View<const double, 1> values, std::int64_t begin, std::int64_t n, double* hi, double* lo, double* slope, double* alpha,
             double* D) {
  const auto x = [&](std::int64_t i) { return values(begin + i); };
  require(std::isfinite(x(n - 1)) && x(0) > 0.0, "values: a spectrum has to be positive and finite");
  PairSum run{0.0, 0.0};
  hi[0] = lo[0] = 0.0;
  for (std::int64_t j = 1; j < n; ++j) {
    require(x(j - 1) <= x(j), "values: a spectrum has to be ascending");
    slope[j - 1] = log_ratio(x(j - 1), x(j));  // a gap, for now
    run = accumulate(run, slope[j - 1]);
    hi[j] = run.hi;
    lo[j] = run.lo;
  }
  PairSum sum{0.0, 0.0};
  for (std::int64_t i = n - 2; i >= 0; --i) {
    sum = accumulate(sum, mul(static_cast<double>(n - 1 - i), slope[i]));
    slope[i] = tail_slope(static_cast<double>(n - i), sum);
    alpha[i] = add(1.0, slope[i]);
  }
  slope[n - 1] = alpha[n - 1] = D[n - 1] = kNaN;
}

struct Task {
  std::int64_t begin, n, first, last;
};

}  // namespace

void power_law(View<const double, 1> values, View<const std::int64_t, 1> offsets, double* alpha, double* D, std::int64_t* best, Level level,
               int threads, const std::function<bool()>& interrupted) {
  const PowerLawLoops& loops = power_law_loops(level);
  const std::int64_t n_spectra = offsets.shape[0] - 1;
  const auto length = [&](std::int64_t s) { return offsets(s + 1) - offsets(s); };
  std::vector<double> work(3 * static_cast<std::size_t>(values.shape[0]));
  double* hi = work.data();
  double* lo = hi + values.shape[0];
  double* slope = lo + values.shape[0];

  parallel_for(
      n_spectra, threads,
      [&](std::int64_t s) {
        const std::int64_t b = offsets(s);
        if (length(s) > 0) prepare(values, b, length(s), hi + b, lo + b, slope + b, alpha + b, D + b);
      },
      interrupted);

  std::vector<Task> tasks;
  for (std::int64_t s = 0; s < n_spectra; ++s) {
    for (std::int64_t first = 0; first < length(s) - 1; first += kStartsPerTask) {
      tasks.push_back({offsets(s), length(s), first, std::min(first + kStartsPerTask, length(s) - 1)});
    }
  }
  parallel_for(
      static_cast<std::int64_t>(tasks.size()), threads,
      [&](std::int64_t i) {
        const Task& t = tasks[static_cast<std::size_t>(i)];
        loops.deviations(hi + t.begin, lo + t.begin, slope + t.begin, t.n, t.first, t.last, D + t.begin);
      },
      interrupted);

  for (std::int64_t s = 0; s < n_spectra; ++s) {
    best[s] = -1;
    const double* d = D + offsets(s);
    for (std::int64_t i = 0; i < length(s) - 1; ++i) {
      if (!std::isnan(d[i]) && (best[s] < 0 || d[i] < d[best[s]])) best[s] = i;
    }
  }
}

}  // namespace sf
