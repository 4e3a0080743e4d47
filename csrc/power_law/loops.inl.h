// The exact largest deviation of every tail, by branch and bound.
//
// Model and data both ascend. Between two points p < q whose model values are known, every deviation in between lies within
// [F_p - (q-1)/n, F_q - (p+1)/n]; a block whose interval cannot exceed the largest deviation seen is dropped whole. Blocks are
// split 16 ways, so that the innermost loops have a fixed length and no dependence between their turns.
#include <math.h>

#include "power_law/numerics.h"
#include "power_law/power_law.h"

namespace sf::SF_ISA {
namespace {

constexpr int kFan = 16;

// F is rounded, so the bounds above hold up to a few ulps of 1. With this much to spare no dropped block can hold a larger
// *evaluated* deviation: the result is the maximum over all points, bit for bit, whatever the order of search.
constexpr double kSlack = 1e-14;

struct Tail {
  const double *hi, *lo;  // running log sums from xmin on
  double slope;
  double inv_n;
  std::int64_t n;
};

struct Largest {
  double value;
  std::int64_t at;  // where it was seen: the hint for the next start
};

// Model values at 16 points of a tail and what they do to the largest deviation.
inline void evaluate(const Tail& t, const double* hi, const double* lo, double position, double step, double F[kFan], Largest& largest) {
  double d[kFan], m[kFan / 2];
  const double hi_0 = t.hi[0], lo_0 = t.lo[0];
  for (int k = 0; k < kFan; ++k) {
    F[k] = model_cdf(t.slope, hi_0, lo_0, hi[k], lo[k]);
    d[k] = deviation(F[k], position + step * k, t.inv_n);
  }
  for (int k = 0; k < 8; ++k) m[k] = d[k + 8] > d[k] ? d[k + 8] : d[k];
  for (int k = 0; k < 4; ++k) m[k] = m[k + 4] > m[k] ? m[k + 4] : m[k];
  for (int k = 0; k < 2; ++k) m[k] = m[k + 2] > m[k] ? m[k + 2] : m[k];
  const double most = m[1] > m[0] ? m[1] : m[0];
  if (most > largest.value) {
    largest.value = most;
    for (int k = 0; k < kFan; ++k) {
      if (d[k] == most) largest.at = static_cast<std::int64_t>(position + step * k);
    }
  }
}

// The same for the points p, p + step, ..., p + 15 step; where the tail ends before, the last value stands in for the rest.
inline void evaluate_at(const Tail& t, std::int64_t p, std::int64_t step, double F[kFan], Largest& largest) {
  if (p + (kFan - 1) * step < t.n) {
    if (step == 1) {
      evaluate(t, t.hi + p, t.lo + p, static_cast<double>(p), 1.0, F, largest);
      return;
    }
    double hi[kFan], lo[kFan];
    for (int k = 0; k < kFan; ++k) {
      hi[k] = t.hi[p + k * step];
      lo[k] = t.lo[p + k * step];
    }
    evaluate(t, hi, lo, static_cast<double>(p), static_cast<double>(step), F, largest);
    return;
  }
  for (int k = 0; k < kFan; ++k) {
    const std::int64_t j = p + k * step < t.n ? p + k * step : t.n - 1;
    F[k] = model_cdf(t.slope, t.hi[0], t.lo[0], t.hi[j], t.lo[j]);
    const double d = deviation(F[k], static_cast<double>(j), t.inv_n);
    if (d > largest.value) largest = {d, j};
    if (j == t.n - 1) {
      for (int rest = k + 1; rest < kFan; ++rest) F[rest] = F[k];
      return;
    }
  }
}

// Searches the points p, p + 1, ..., q - 1, where q = min(p + 16 step, n); F_q: the model at q, or 1 at the end.
void search(const Tail& t, std::int64_t p, std::int64_t step, double F_q, Largest& largest) {
  double F[kFan + 1];
  evaluate_at(t, p, step, F, largest);
  if (step == 1) return;
  F[kFan] = F_q;
  const std::int64_t q = p + kFan * step < t.n ? p + kFan * step : t.n;
  for (int k = 0; k < kFan; ++k) {
    const std::int64_t a = p + k * step;
    if (a >= q) break;
    const bool last = a + step >= q;
    const std::int64_t b = last ? q : a + step;
    const double above = (last ? F_q : F[k + 1]) - static_cast<double>(a + 1) * t.inv_n;
    const double below = static_cast<double>(b - 1) * t.inv_n - F[k];
    if (above + kSlack > largest.value || below + kSlack > largest.value) search(t, a, step / kFan, last ? F_q : F[k + 1], largest);
  }
}

void deviations(const double* hi, const double* lo, const double* slope, std::int64_t n, std::int64_t first, std::int64_t last, double* D) {
  std::int64_t hint = n - 1;  // index in the whole spectrum; tails that differ by one value have their maxima close together
  for (std::int64_t i = last - 1; i >= first; --i) {
    if (!(slope[i] < HUGE_VAL)) {
      D[i] = NAN;
      continue;
    }
    const Tail t{hi + i, lo + i, slope[i], 1.0 / static_cast<double>(n - i), n - i};
    Largest largest{0.0, 0};
    double F[kFan];
    const std::int64_t near = hint - i - kFan / 2;
    evaluate_at(t, near > 0 ? near : 0, 1, F, largest);
    std::int64_t step = 1;
    while (step * 4 * kFan <= t.n) step *= kFan;
    for (std::int64_t p = 0; p < t.n; p += kFan * step) {
      const std::int64_t q = p + kFan * step;
      search(t, p, step, q < t.n ? model_cdf(t.slope, t.hi[0], t.lo[0], t.hi[q], t.lo[q]) : 1.0, largest);
    }
    D[i] = largest.value;
    hint = i + largest.at;
  }
}

}  // namespace
}  // namespace sf::SF_ISA
