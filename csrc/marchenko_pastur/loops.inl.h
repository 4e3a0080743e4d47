// The law beside the values of one spectrum, eight at a time: eight partial sums whatever the vectors' width, and no fused operations, so
// that every instruction set gives the same bits.
#include <math.h>

#include "core/simd.h"
#include "marchenko_pastur/marchenko_pastur.h"

namespace sf::SF_ISA {
namespace {

constexpr double kPi = 0x1.921fb54442d18p+1;
constexpr int kTogether = 8;
constexpr int kParts = kTogether / kLanes;

// c[0] + c[1] u + ... of degree Terms - 1
template <int Terms>
inline Vec polynomial(const double (&c)[Terms], Vec u) {
  Vec p = broadcast(c[Terms - 1]);
  for (int k = Terms - 2; k >= 0; --k) p = add(mul(p, u), broadcast(c[k]));
  return p;
}

// atan(z)/z = 1 + u (kOdd(u^2) + u kEven(u^2)), u = z^2: interpolated at the Chebyshev nodes of u in [0, tan(pi/8)^2], error 1.3e-18. Two
// short chains of dependent operations instead of a long one.
constexpr double kOdd[6] = {-0x1.555555555552fp-2, -0x1.2492492259b3ep-3, -0x1.745cf64dcc6bdp-4,
                            -0x1.10ea1d157f6ffp-4, -0x1.9c79c07a989c6p-5, -0x1.23b93fac21dacp-6};
constexpr double kEven[5] = {0x1.999999999466ap-3, 0x1.c71c70cb775cep-4, 0x1.3b10f0f5b1224p-4, 0x1.def9ecd6a20f2p-5, 0x1.3702ea64c11f2p-5};

// Angle of the points (x, y), y >= 0, in [0, pi] (0 for the origin), to about two ulps of pi: atan(smaller/larger), from tan(pi/8) on as
// pi/4 + atan((smaller - larger)/(smaller + larger)), then mirrored.
inline Vec angle(Vec y, Vec x) {
  const Vec size = magnitude(x), small = least(y, size), large = most(most(y, size), broadcast(1e-300));
  const Mask beyond = less(mul(broadcast(0.41421356237309503), large), small);
  const Vec z = div(select(beyond, sub(small, large), small), select(beyond, add(small, large), large));
  const Vec u = mul(z, z), u2 = mul(u, u);
  const Vec part = add(z, mul(z, mul(u, add(mul(polynomial(kEven, u2), u), polynomial(kOdd, u2)))));
  const Vec first = select(beyond, add(broadcast(0.25 * kPi), part), part);
  const Vec quadrant = select(less(size, y), sub(broadcast(0.5 * kPi), first), first);
  return select(less(x, zeros()), sub(broadcast(kPi), quadrant), quadrant);
}

inline double sum_of(const Vec* parts) {
  double s[kTogether];
  for (int k = 0; k < kParts; ++k) store(s + k * kLanes, parts[k]);
  return ((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7]));
}

LawSums compare(const double* values, int64_t n, double scale, double ratio) {
  const double square_root_of_ratio = sqrt(ratio), one_by_n = 1.0 / static_cast<double>(n);
  const Vec one = broadcast(1.0), root = broadcast(square_root_of_ratio), c = broadcast(ratio), rest = broadcast(1.0 - ratio);
  const Vec centre = broadcast(1.0 + ratio), half = broadcast(0.5 / square_root_of_ratio), factor = broadcast(scale);
  const Vec of_law = broadcast(1.0 / (kPi * ratio)), of_slope = broadcast(1.0 / (kPi * square_root_of_ratio)),
            of_theta = broadcast(0.5 / kPi);
  const Vec inv_n = broadcast(one_by_n), quarter = broadcast(0.25), half_step = broadcast(0.5 * one_by_n);
  Vec residual2[kParts], slope2[kParts], both[kParts], farthest[kParts];
  for (int k = 0; k < kParts; ++k) residual2[k] = slope2[k] = both[k] = farthest[k] = zeros();
  for (int64_t first = 0; first < n; first += kTogether) {
    double position[kTogether], used[kTogether], rows[kTogether];
    const double* y = values + first;
    for (int k = 0; k < kTogether; ++k) {
      position[k] = static_cast<double>(first + k) + 0.5;
      used[k] = first + k < n ? 1.0 : 0.0;
    }
    if (first + kTogether > n) {
      for (int k = 0; k < kTogether; ++k) rows[k] = values[first + k < n ? first + k : n - 1];
      y = rows;
    }
    for (int k = 0; k < kParts; ++k) {
      const Vec cosine = most(least(mul(sub(centre, mul(load(y + k * kLanes), factor)), half), one), broadcast(-1.0));
      const Vec sine = square_root(mul(sub(one, cosine), add(one, cosine))), height = mul(root, sine);
      const Vec theta = angle(sine, cosine), psi = angle(height, sub(one, mul(root, cosine)));
      const Vec law = mul(sub(add(height, mul(c, theta)), mul(rest, psi)), of_law);
      const Vec off = sub(law, mul(load(position + k * kLanes), inv_n)), counts = load(used + k * kLanes);
      const Vec residual = mul(counts, add(off, mul(sub(quarter, mul(theta, of_theta)), inv_n)));
      const Vec slope = mul(counts, mul(sine, of_slope));
      residual2[k] = add(residual2[k], mul(residual, residual));
      slope2[k] = add(slope2[k], mul(slope, slope));
      both[k] = add(both[k], mul(slope, residual));
      farthest[k] = most(mul(counts, add(magnitude(off), half_step)), farthest[k]);
    }
  }
  double s[kTogether], distance = 0.0;
  for (int k = 0; k < kParts; ++k) store(s + k * kLanes, farthest[k]);
  for (int k = 0; k < kTogether; ++k) distance = s[k] > distance ? s[k] : distance;
  return {sum_of(residual2), sum_of(slope2), sum_of(both), distance};
}

}  // namespace
}  // namespace sf::SF_ISA
