#include <algorithm>
#include <cmath>
#include <limits>

#include "core/parallel.h"
#include "marchenko_pastur/marchenko_pastur.h"

namespace sf {

SF_LEVEL_TABLE(MarchenkoPasturLoops, marchenko_pastur_loops)

namespace {

constexpr int kMaxSteps = 60;    // three to five are usual
constexpr double kClose = 1e-3;  // last step in ln(var), in units of the standard error sqrt(2/(d_max d_min))
constexpr std::int64_t kValuesPerTask = 1 << 12;

struct Fit {
  double log_var, distance;
};

// Gauss-Newton; a step that does not reduce the sum of squares is halved.
Fit least_squares(const double* values, std::int64_t d_max, std::int64_t d_min, double start, const MarchenkoPasturLoops& loops) {
  const double big = static_cast<double>(d_max), n = static_cast<double>(d_min);
  const double close = kClose * std::sqrt(2.0 / big / n);
  Fit fit{start, 0.0};
  double cost = std::numeric_limits<double>::infinity(), step = 0.0;
  for (int i = 0; i < kMaxSteps; ++i) {
    const double tried = fit.log_var + step;
    const LawSums sums = loops.compare(values, d_min, std::exp(-tried) / big, n / big);
    if (sums.residual2 < cost) {
      cost = sums.residual2;
      fit = {tried, sums.distance};
      step = std::clamp(sums.slope2 > 0.0 ? sums.slope_residual / sums.slope2 : 0.0, -1.0, 1.0);
    } else {
      step *= 0.5;
    }
    if (!(std::abs(step) > close)) break;
  }
  return fit;
}

}  // namespace

void marchenko_pastur(const double* values, std::int64_t spectra, std::int64_t width, const std::int64_t* d_max, const std::int64_t* d_min,
                      const double* start, double* log_var, double* distance, Level level, int threads,
                      const std::function<bool()>& interrupted) {
  const MarchenkoPasturLoops& loops = marchenko_pastur_loops(level);
  const std::int64_t together = std::max<std::int64_t>(1, kValuesPerTask / std::max<std::int64_t>(1, width));
  parallel_for(
      (spectra + together - 1) / together, threads,
      [&](std::int64_t task) {
        for (std::int64_t s = task * together; s < std::min(spectra, (task + 1) * together); ++s) {
          const Fit fit = least_squares(values + s * width, d_max[s], d_min[s], start[s], loops);
          log_var[s] = fit.log_var;
          distance[s] = fit.distance;
        }
      },
      interrupted);
}

}  // namespace sf
