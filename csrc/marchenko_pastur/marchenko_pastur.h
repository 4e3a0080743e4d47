// contract: numpy_kernels.marchenko_pastur
//
// Work and bytes. A spectrum of n values takes some hundred evaluations of the law (three to five steps for each number of spikes tried),
// each two arctangents, a square root and a division per value; the 8 n bytes stay in L1.
#pragma once
#include <cstdint>
#include <functional>

#include "core/isa.h"

namespace sf {

// One spectrum's bulk: ln(var), its distance from the law, the spikes taken out and the fits made; settled: 0 where there is no bulk.
struct Bulk {
  double log_var, distance;
  std::int64_t spikes, rounds;
  bool settled;
};

struct BulkOptions {
  std::int64_t d_max;
  double start, quantile;
  std::int64_t min_bulk;
};

// values: (spectra, width) ascending, row-major, 1 <= width <= d_max -> bulks (spectra,). Throws Cancelled.
void marchenko_pastur(const double* values, std::int64_t spectra, std::int64_t width, const BulkOptions& options, Bulk* bulks, Level level,
                      int threads, const std::function<bool()>& interrupted);

// Of one spectrum at one variance.
struct LawSums {
  double residual2, slope2, slope_residual;  // sums over the values
  double distance;
};

struct MarchenkoPasturLoops {
  // values: (n,); scale: 1/(var d_max); ratio: n/d_max.
  LawSums (*compare)(const double* values, std::int64_t n, double scale, double ratio);
};

}  // namespace sf
