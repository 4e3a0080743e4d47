// The exact largest deviation of every tail, by branch and bound.
//
// Over l = ln x the model F is concave and increasing, and so is the data's step function but for its roughness. For a block of
// values p..q let c(l) be the straight line through (l_p, p) and (l_q, q), and low <= j - c(l_j) <= high the roughness of the
// data against it (computed once, for all starts, in cpu.cpp). The deviation of tail i at j is
//   d_j = F(l_j) - (j-i)/n = [F(l_j) - (c(l_j)-i)/n] - (j - c(l_j))/n,
// where the bracket is concave in l: not below the smaller of its ends d_p, d_q, and not above the larger by more than the sag
// of F over its chord, min((slope dl)^2 (1-F_p)/8, F_q-F_p). So
//   min(d_p, d_q) - high/n <= d_j <= max(d_p, d_q) + sag - low/n,      d_p - (q-p)/n <= d_j <= d_p + (F_q-F_p),
// the second pair from monotony alone. A block that cannot exceed the largest deviation seen is dropped whole, the others are
// split 16 ways. Roughness is about sqrt(q-p) for data without gaps: large blocks are dropped even where the fit is good.
#include <math.h>

#include "power_law/numerics.h"
#include "power_law/power_law.h"

namespace sf::SF_ISA {
namespace {

constexpr int kFan = kPowerLawFan;

// Bounds and model values are rounded, by a few ulps of 1. With this much to spare no dropped block can hold a larger
// *evaluated* deviation: the result is the maximum over all points, bit for bit, whatever the order of search.
constexpr double kSlack = 1e-14;

struct Tail {
  const PowerLawTails& all;
  std::int64_t i;  // its first value
  double slope;
  double inv_n;
};

// The model at one value: t = slope ln(x_j/x_i), F = 1 - exp(-t), d = F - (j-i)/n.
struct Point {
  double t, F, d;
};

// The same at 16 values.
struct Points {
  double t[kFan], F[kFan], d[kFan];
};

struct Largest {
  double value;
  std::int64_t at;  // where it was seen: the hint for the next start
};

inline double least(double a, double b) { return a < b ? a : b; }
inline double most(double a, double b) { return a > b ? a : b; }

// The values from + step, from + 2 step, ..., from + 16 step; the last value of all stands in for those beyond the end.
inline void evaluate(const Tail& tail, std::int64_t from, std::int64_t step, Points& out, Largest& largest) {
  const std::int64_t last = tail.all.n - 1;
  const double *hi = tail.all.hi + from + 1, *lo = tail.all.lo + from + 1;
  double hi_here[kFan], lo_here[kFan], position[kFan], m[kFan];
  if (step != 1 || from + kFan > last) {
    for (int k = 0; k < kFan; ++k) {
      const std::int64_t j = from + (k + 1) * step < last ? from + (k + 1) * step : last;
      hi_here[k] = tail.all.hi[j];
      lo_here[k] = tail.all.lo[j];
    }
    hi = hi_here;
    lo = lo_here;
  }
  const double hi_i = tail.all.hi[tail.i], lo_i = tail.all.lo[tail.i];
  const double start = static_cast<double>(from - tail.i), end = static_cast<double>(last - tail.i), stride = static_cast<double>(step);
  for (int k = 0; k < kFan; ++k) {
    position[k] = least(start + stride * (k + 1), end);
    out.t[k] = model_exponent(tail.slope, hi_i, lo_i, hi[k], lo[k]);
    out.F[k] = model_cdf(out.t[k]);
    out.d[k] = deviation(out.F[k], position[k], tail.inv_n);
    m[k] = fabs(out.d[k]);
  }
  for (int k = 0; k < 8; ++k) m[k] = most(m[k], m[k + 8]);
  for (int k = 0; k < 4; ++k) m[k] = most(m[k], m[k + 4]);
  for (int k = 0; k < 2; ++k) m[k] = most(m[k], m[k + 2]);
  const double here = most(m[0], m[1]);
  if (here > largest.value) {
    largest.value = here;
    for (int k = 0; k < kFan; ++k) {
      if (fabs(out.d[k]) == here) largest.at = tail.i + static_cast<std::int64_t>(position[k]);
    }
  }
}

// Searches the `count` blocks of `step` values (16^level of them) that follow `from`, whose point is known; says what stands at
// their end.
Point search(const Tail& tail, std::int64_t from, int level, std::int64_t step, int count, Point start, Largest& largest) {
  Points right;
  evaluate(tail, from, step, right, largest);
  if (level > 0) {
    const double* low = tail.all.low[level - 1] + from / step;
    const double* high = tail.all.high[level - 1] + from / step;
    const double width = static_cast<double>(step) * tail.inv_n;
    double t[kFan], F[kFan], d[kFan], bound[kFan];  // of the left ends
    t[0] = start.t, F[0] = start.F, d[0] = start.d;
    for (int k = 1; k < kFan; ++k) t[k] = right.t[k - 1], F[k] = right.F[k - 1], d[k] = right.d[k - 1];
    for (int k = 0; k < kFan; ++k) {
      const double rise = right.F[k] - F[k], way = right.t[k] - t[k];
      const double sag = least(0.125 * way * way * (1.0 - F[k]), rise);
      const double above = least(most(d[k], right.d[k]) + sag - low[k] * tail.inv_n, d[k] + rise);
      const double below = most(least(d[k], right.d[k]) - high[k] * tail.inv_n, d[k] - width);
      bound[k] = most(above, -below) + kSlack;
    }
    for (int k = 0; k < count && from + k * step < tail.all.n - 1; ++k) {
      if (bound[k] > largest.value) search(tail, from + k * step, level - 1, step / kFan, kFan, {t[k], F[k], d[k]}, largest);
    }
  }
  return {right.t[count - 1], right.F[count - 1], right.d[count - 1]};
}

void deviations(const PowerLawTails& all, std::int64_t first, std::int64_t end, double* D) {
  const std::int64_t last = all.n - 1;
  std::int64_t hint = last;  // tails that differ by one value have their maxima close together
  for (std::int64_t i = end - 1; i >= first; --i) {
    if (!(all.slope[i] < HUGE_VAL)) {
      D[i] = NAN;
      continue;
    }
    const Tail tail{all, i, all.slope[i], 1.0 / static_cast<double>(all.n - i)};
    Largest largest{0.0, i};
    Points unused;
    evaluate(tail, hint - kFan / 2 > i ? hint - kFan / 2 : i, 1, unused, largest);
    // single values up to the first block boundary, small blocks up to the first boundary of larger ones, and so on
    Point here{0.0, 0.0, 0.0};
    std::int64_t from = i, step = 1;
    for (int level = 0; from < last; ++level, step *= kFan) {
      const bool top = level == all.levels;
      do {
        const int count = kFan - static_cast<int>(from / step % kFan);
        if (count == kFan && !top) break;  // a boundary of the larger blocks already
        here = search(tail, from, level, step, count, here, largest);
        from += count * step;
      } while (top && from < last);
    }
    D[i] = largest.value;
    hint = largest.at;
  }
}

}  // namespace
}  // namespace sf::SF_ISA
