#include <algorithm>
#include <cmath>
#include <limits>
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

struct Spectrum {
  std::int64_t n = 0;
  std::vector<double> hi, lo, slope;
  std::vector<std::vector<double>> low, high;

  // Running log sums from the left, slopes from the sums from the right: sum_{k >= i} ln(x_k/x_i) grows by
  // (n-1-i) ln(x_{i+1}/x_i) when i steps down, so every term is positive and nothing cancels.
  void prepare(View<const double, 1> values, std::int64_t begin, double* alpha, double* D) {
    const auto x = [&](std::int64_t i) { return values(begin + i); };
    require(std::isfinite(x(n - 1)) && x(0) > 0.0, "values: a spectrum has to be positive and finite");
    const auto size = static_cast<std::size_t>(n);
    hi.assign(size, 0.0);
    lo.assign(size, 0.0);
    slope.assign(size, kNaN);
    PairSum run{0.0, 0.0};
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
    alpha[n - 1] = D[n - 1] = kNaN;
    low.clear();
    high.clear();
    for (std::int64_t width = kPowerLawFan; width * 2 < n; width *= kPowerLawFan) measure_blocks(width);
  }

  // Roughness of the data in every block of `width` values; the last block may be shorter.
  void measure_blocks(std::int64_t width) {
    const std::int64_t blocks = (n - 2) / width + 1;
    std::vector<double> lowest(static_cast<std::size_t>(blocks + kPowerLawFan), 0.0), highest(lowest);
    for (std::int64_t b = 0; b < blocks; ++b) {
      const std::int64_t p = b * width, q = std::min(p + width, n - 1);
      const double way = (hi[q] - hi[p]) + (lo[q] - lo[p]);
      if (way <= 0.0) continue;  // one value throughout: deviations lie between those of the ends
      const double steepness = static_cast<double>(q - p) / way;
      for (std::int64_t j = p + 1; j < q; ++j) {
        const double off = static_cast<double>(j - p) - steepness * ((hi[j] - hi[p]) + (lo[j] - lo[p]));
        lowest[b] = std::min(lowest[b], off);
        highest[b] = std::max(highest[b], off);
      }
    }
    low.push_back(std::move(lowest));
    high.push_back(std::move(highest));
  }

  PowerLawTails tails() const {
    PowerLawTails t{n, hi.data(), lo.data(), slope.data(), static_cast<int>(low.size()), {}, {}};
    for (std::size_t l = 0; l < low.size(); ++l) {
      t.low[l] = low[l].data();
      t.high[l] = high[l].data();
    }
    return t;
  }
};

struct Task {
  std::int64_t spectrum, first, end;
};

}  // namespace

void power_law(View<const double, 1> values, View<const std::int64_t, 1> offsets, double* alpha, double* D, std::int64_t* best, Level level,
               int threads, const std::function<bool()>& interrupted) {
  const PowerLawLoops& loops = power_law_loops(level);
  const std::int64_t n_spectra = offsets.shape[0] - 1;
  std::vector<Spectrum> spectra(static_cast<std::size_t>(n_spectra));
  std::vector<Task> tasks;
  for (std::int64_t s = 0; s < n_spectra; ++s) {
    const std::int64_t n = spectra[s].n = offsets(s + 1) - offsets(s);
    for (std::int64_t first = 0; first < n - 1; first += kStartsPerTask) {
      tasks.push_back({s, first, std::min(first + kStartsPerTask, n - 1)});
    }
  }
  parallel_for(
      n_spectra, threads,
      [&](std::int64_t s) {
        if (spectra[s].n > 0) spectra[s].prepare(values, offsets(s), alpha + offsets(s), D + offsets(s));
      },
      interrupted);
  parallel_for(
      static_cast<std::int64_t>(tasks.size()), threads,
      [&](std::int64_t i) {
        const Task& t = tasks[i];
        loops.deviations(spectra[t.spectrum].tails(), t.first, t.end, D + offsets(t.spectrum));
      },
      interrupted);
  for (std::int64_t s = 0; s < n_spectra; ++s) {
    best[s] = -1;
    const double* d = D + offsets(s);
    for (std::int64_t i = 0; i < spectra[s].n - 1; ++i) {
      if (!std::isnan(d[i]) && (best[s] < 0 || d[i] < d[best[s]])) best[s] = i;
    }
  }
}

}  // namespace sf
