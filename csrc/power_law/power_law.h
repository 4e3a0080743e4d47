// contract: numpy_kernels.power_law
//
// Work and bytes. The definition costs sum_i n_i ~ n^2/2 exponentials (4,096 values: 8.4 million) on 16 n bytes, which stay
// in the L1/L2 cache: arithmetic is everything. largest_deviation (loops.inl.h) bounds whole blocks and evaluates about
// n/16 + 100 points per start where the definition takes n, and still returns the exact maximum.
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

// One spectrum's running log sums (PairSum of ln(x_j/x_0), split in two arrays) and slopes alpha_i - 1.
struct PowerLawLoops {
  // D[i] for i in [first, last), last <= n - 1
  void (*deviations)(const double* hi, const double* lo, const double* slope, std::int64_t n, std::int64_t first, std::int64_t last,
                     double* D);
};

}  // namespace sf
