// What decides the results of power_law, on every instruction set and on the GPU alike.
#pragma once
#include <math.h>

#include "core/hd.h"

namespace sf {

// ln 2 in two parts; the first has 32 significant bits, so that k * kLn2Hi is exact for |k| < 2^20.
constexpr double kLn2Hi = 0x1.62e42feep-1;
constexpr double kLn2Lo = 0x1.a39ef35793c76p-33;

// exp(-t) for t >= 0, within about one ulp; t above 700 counts as 700 (1e-304, nothing beside 1).
// -t = k ln 2 + r with |r| <= ln(2)/2, then the Taylor polynomial of degree 13 (remainder r^14/14! < 5e-18).
SF_HD static inline double exp_neg(double t) {
  const double y = -(t < 700.0 ? t : 700.0);
  const double shift = 0x1.8p52;  // adding it rounds to an integer, which then stands in the low bits
  const double shifted = add(mul(y, 0x1.71547652b82fep0), shift);
  const double k = sub(shifted, shift);
  const double r = sub(sub(y, mul(k, kLn2Hi)), mul(k, kLn2Lo));
  // even and odd powers apart: two short chains of dependent operations instead of a long one
  const double r2 = mul(r, r);
  double even = 1.0 / 479001600.0;
  even = add(mul(even, r2), 1.0 / 3628800.0);
  even = add(mul(even, r2), 1.0 / 40320.0);
  even = add(mul(even, r2), 1.0 / 720.0);
  even = add(mul(even, r2), 1.0 / 24.0);
  even = add(mul(even, r2), 0.5);
  even = add(mul(even, r2), 1.0);
  double odd = 1.0 / 6227020800.0;
  odd = add(mul(odd, r2), 1.0 / 39916800.0);
  odd = add(mul(odd, r2), 1.0 / 362880.0);
  odd = add(mul(odd, r2), 1.0 / 5040.0);
  odd = add(mul(odd, r2), 1.0 / 120.0);
  odd = add(mul(odd, r2), 1.0 / 6.0);
  odd = add(mul(odd, r2), 1.0);
  const double p = add(mul(odd, r), even);
  const double scale = from_bits((bits_of(shifted) + 1023u) << 52);  // 2^k
  return mul(p, scale);
}

// ln(b/a) for 0 < a <= b, to a few ulps of itself: no cancellation when b is close to a, no overflow when it is far, and
// exactly the same for (c a, c b), c a power of two.
// b/a = 2^k (1+s)/(1-s) with s = (mb-ma)/(mb+ma), |s| <= 0.1716; ln((1+s)/(1-s)) = 2 (s + s^3/3 + s^5/5 + ...).
SF_HD static inline double log_ratio(double a, double b) {
  int ea, eb;
  const double ma = frexp(a, &ea);
  double mb = frexp(b, &eb);
  if (mb > mul(1.4142135623730951, ma)) {
    mb = mul(mb, 0.5);
    ++eb;
  } else if (ma > mul(1.4142135623730951, mb)) {
    mb = mul(mb, 2.0);
    --eb;
  }
  const double k = (double)(eb - ea);
  const double s = div(sub(mb, ma), add(mb, ma));  // the difference is exact: the two are within a factor 2
  const double z = mul(s, s);
  double p = 1.0 / 21.0;
  p = add(mul(p, z), 1.0 / 19.0);
  p = add(mul(p, z), 1.0 / 17.0);
  p = add(mul(p, z), 1.0 / 15.0);
  p = add(mul(p, z), 1.0 / 13.0);
  p = add(mul(p, z), 1.0 / 11.0);
  p = add(mul(p, z), 1.0 / 9.0);
  p = add(mul(p, z), 1.0 / 7.0);
  p = add(mul(p, z), 1.0 / 5.0);
  p = add(mul(p, z), 1.0 / 3.0);
  const double s2 = add(s, s);
  const double tail = add(mul(mul(s2, z), p), mul(k, kLn2Lo));
  return add(mul(k, kLn2Hi), add(s2, tail));
}

// A sum kept as hi + lo, lo collecting the rounding errors of hi (Ogita, Rump & Oishi 2005, algorithm Sum2).
struct PairSum {
  double hi, lo;
};

SF_HD static inline PairSum accumulate(PairSum s, double x) {
  const double hi = add(s.hi, x);
  const double back = sub(hi, s.hi);
  const double error = add(sub(s.hi, sub(hi, back)), sub(x, back));
  return {hi, add(s.lo, error)};
}

// alpha_i - 1 = n_i / sum ln(x/xmin); infinite when the whole tail equals xmin.
SF_HD static inline double tail_slope(double n_tail, PairSum log_sum) {
  const double sum = add(log_sum.hi, log_sum.lo);
  return sum > 0.0 ? div(n_tail, sum) : HUGE_VAL;
}

// (alpha-1) ln(x_j/x_i) from the running log sums at i and j. Their difference is taken part by part: relative to
// ln(x_j/x_i) itself it has a few ulps of error, however long the way from x_0.
SF_HD static inline double model_exponent(double slope, double hi_i, double lo_i, double hi_j, double lo_j) {
  return mul(slope, add(sub(hi_j, hi_i), sub(lo_j, lo_i)));
}

// The model's distribution function there, 1 - (x_j/x_i)^(1-alpha).
SF_HD static inline double model_cdf(double exponent) { return sub(1.0, exp_neg(exponent)); }

// Model minus data at the j-th value of a tail of 1/inv_n values (left steps).
SF_HD static inline double deviation(double cdf, double j, double inv_n) { return sub(cdf, mul(j, inv_n)); }

}  // namespace sf
