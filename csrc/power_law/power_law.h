// contract: numpy_kernels.power_law
//
// Work and bytes. The definition costs sum_i n_i ~ n^2/2 exponentials (4,096 values: 8.4 million) on 16 n bytes, which stay
// in the L1/L2 cache: arithmetic is everything. Branch and bound (loops.inl.h) evaluates a hundred or two of a tail's points
// and still returns the exact maximum.
#pragma once
#include <cstdint>
#include <functional>

#include "core/isa.h"
#include "core/view.h"

namespace sf {

// values (total,), offsets (n_spectra + 1,) -> alpha (total,), D (total,), best (n_spectra,). The caller has checked that
// offsets start at 0, do not descend and end at total. Throws std::invalid_argument where a spectrum is not ascending,
// positive and finite; Cancelled when `interrupted` says so.
void power_law(View<const double, 1> values, View<const std::int64_t, 1> offsets, double* alpha, double* D, std::int64_t* best, Level level,
               int threads, const std::function<bool()>& interrupted);

constexpr int kPowerLawFan = 16;
constexpr int kPowerLawMaxLevels = 15;

// One spectrum of n values, ready for the search; `levels` sizes of blocks, 16, 256, ... values.
struct PowerLawTails {
  std::int64_t n;
  const double *hi, *lo;  // running log sums: ln(x_j/x_0) = hi[j] + lo[j]
  const double* slope;    // alpha_i - 1
  int levels;
  const double* low[kPowerLawMaxLevels];   // low[l][b] <= j - c(l_j) for j in block b of 16^(l+1) values ...
  const double* high[kPowerLawMaxLevels];  // ... <= high[l][b]; both have room for 16 blocks more than there are
};

struct PowerLawLoops {
  // D[i] for i in [first, end), end <= n - 1
  void (*deviations)(const PowerLawTails& tails, std::int64_t first, std::int64_t end, double* D);
};

}  // namespace sf
