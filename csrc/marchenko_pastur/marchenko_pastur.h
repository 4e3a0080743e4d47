// contract: numpy_kernels.marchenko_pastur
//
// Work and bytes. A spectrum of n values takes some hundred evaluations of the law (three to five steps for each number of spikes tried), each
// two arctangents, a square root and a division per value; the 8 n bytes stay in L1.
#pragma once
#include <cstdint>
#include <functional>

#include "core/isa.h"

namespace sf {

// values: (spectra, width) ascending, row-major; d_max, d_min, start: (spectra,) -> log_var, distance (spectra,). The caller has checked that
// 1 <= d_min <= min(width, d_max). Throws Cancelled.
void marchenko_pastur(const double* values, std::int64_t spectra, std::int64_t width, const std::int64_t* d_max, const std::int64_t* d_min,
                      const double* start, double* log_var, double* distance, Level level, int threads,
                      const std::function<bool()>& interrupted);

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
