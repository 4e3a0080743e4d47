#include <algorithm>
#include <cmath>
#include <limits>

#include "core/parallel.h"
#include "marchenko_pastur/marchenko_pastur.h"

namespace sf {

SF_LEVEL_TABLE(MarchenkoPasturLoops, marchenko_pastur_loops)

namespace {

constexpr int kMaxRounds = 50;   // fits with another number of spikes; two or three are usual for random matrices
constexpr int kMaxSteps = 60;    // three to five are usual
constexpr double kClose = 1e-3;  // last step in ln(var), in units of the standard error sqrt(2/(d_max d_min))
constexpr std::int64_t kValuesPerTask = 1 << 10;

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

Bulk without_spikes(const double* values, std::int64_t d_min, const BulkOptions& options, const MarchenkoPasturLoops& loops) {
  Bulk bulk{options.start, 0.0, 0, 0, true};
  bool rising = true;
  while (true) {
    const std::int64_t big = options.d_max - bulk.spikes, small = d_min - bulk.spikes;
    const Fit fit = least_squares(values, big, small, bulk.log_var, loops);
    bulk.log_var = fit.log_var;
    bulk.distance = fit.distance;
    ++bulk.rounds;
    const double a = std::sqrt(static_cast<double>(big) - 0.5), b = std::sqrt(static_cast<double>(small) - 0.5);
    const double centre = (a + b) * (a + b), scale = (a + b) * std::pow(1.0 / a + 1.0 / b, 1.0 / 3.0);
    const double threshold = std::exp(fit.log_var) * (centre + options.quantile * scale);
    const std::int64_t above = values + d_min - std::upper_bound(values, values + d_min, threshold);
    // The number rises to its place; once it has fallen it may only fall, so that no sequence runs in a circle.
    if (above == bulk.spikes || (!rising && above > bulk.spikes)) return bulk;
    rising = rising && above > bulk.spikes;
    bulk.spikes = above;
    bulk.settled = 2 * above <= d_min && d_min - above >= options.min_bulk && bulk.rounds < kMaxRounds;
    if (!bulk.settled) return bulk;
  }
}

}  // namespace

void marchenko_pastur(const double* values, std::int64_t spectra, std::int64_t width, const BulkOptions& options, Bulk* bulks, Level level,
                      int threads, const std::function<bool()>& interrupted) {
  const MarchenkoPasturLoops& loops = marchenko_pastur_loops(level);
  const std::int64_t together = std::max<std::int64_t>(1, kValuesPerTask / std::max<std::int64_t>(1, width));
  parallel_for((spectra + together - 1) / together, threads,
               [&](std::int64_t task) {
                 for (std::int64_t s = task * together; s < std::min(spectra, (task + 1) * together); ++s) {
                   bulks[s] = without_spikes(values + s * width, width, options, loops);
                 }
               },
               interrupted);
}

}  // namespace sf
