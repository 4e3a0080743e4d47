// One-sided Jacobi (Hestenes 1958; Demmel & Veselic 1992), several pairs of columns in the lanes of a vector.
//
// Column p of the first half meets column p of the second. After each round the columns move on as in a round-robin tournament, which is one
// place along each half: the rotated vectors are stored one column further, and what leaves a half enters the other.
#include "core/simd.h"
#include "randomized_svd/loops.h"

namespace sf::SF_ISA {
namespace {

constexpr double kVanished = 1e-280;  // squared length of a column that no rotation can do anything for

inline void rotate_rows(const double* from, double* to, int64_t rows, int64_t h, const double* cosines, const double* sines) {
  const int64_t second = h + kLanes, ld = 2 * second;
  for (int64_t i = 0; i < rows; ++i, from += ld, to += ld) {
    for (int64_t p = 0; p < h; p += kLanes) {
      const Vec c = load(cosines + p), s = load(sines + p), a = load(from + p), b = load(from + second + p);
      store(to + p + 1, fnma(s, b, mul(c, a)));
      store(to + second + p - 1, fma(s, a, mul(c, b)));
    }
    to[0] = to[1];
    to[1] = to[second - 1];
    to[second + h - 1] = to[h];
  }
}

template <int Vectors>
inline double angles(const double* x, int64_t second, int64_t rows, double* cosines, double* sines) {
  const int64_t ld = 2 * second;
  Vec aa[Vectors], bb[Vectors], ab[Vectors];
#pragma GCC unroll 4
  for (int v = 0; v < Vectors; ++v) aa[v] = bb[v] = ab[v] = zeros();
  for (int64_t i = 0; i < rows; ++i, x += ld) {
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) {
      const Vec a = load(x + v * kLanes), b = load(x + second + v * kLanes);
      aa[v] = fma(a, a, aa[v]);
      bb[v] = fma(b, b, bb[v]);
      ab[v] = fma(a, b, ab[v]);
    }
  }
  Vec worst = zeros();
  const Vec one = broadcast(1.0), nothing = broadcast(kVanished);
#pragma GCC unroll 4
  for (int v = 0; v < Vectors; ++v) {
    const Mask there = both(less(nothing, aa[v]), less(nothing, bb[v]));
    const Mask turned = both(there, less(zeros(), magnitude(ab[v])));
    const Vec cosine = div(magnitude(ab[v]), mul(square_root(aa[v]), square_root(bb[v])));
    worst = most(select(turned, cosine, zeros()), worst);
    // tan of the smaller angle: sign(zeta) / (|zeta| + sqrt(1 + zeta^2)), zeta = (bb - aa) / (2 ab)
    const Vec zeta = div(sub(bb[v], aa[v]), select(turned, add(ab[v], ab[v]), one));
    const Vec size = div(one, add(magnitude(zeta), square_root(fma(zeta, zeta, one))));
    const Vec tangent = select(turned, with_sign(size, zeta), zeros());
    const Vec c = div(one, square_root(fma(tangent, tangent, one)));
    store(cosines + v * kLanes, c);
    store(sines + v * kLanes, mul(c, tangent));
  }
  double each[kLanes], largest = 0.0;
  store(each, worst);
  for (int k = 0; k < kLanes; ++k) largest = each[k] > largest ? each[k] : largest;
  return largest;
}

inline double all_angles(const double* x, int64_t rows, int64_t h, double* cosines, double* sines) {
  const int64_t second = h + kLanes;
  double worst = 0.0;
  int64_t p = 0;
  const auto step = [&](double here, int64_t pairs) {
    worst = here > worst ? here : worst;
    p += pairs;
  };
  while (h - p >= 4 * kLanes) step(angles<4>(x + p, second, rows, cosines + p, sines + p), 4 * kLanes);
  while (h - p >= 2 * kLanes) step(angles<2>(x + p, second, rows, cosines + p, sines + p), 2 * kLanes);
  if (p < h) step(angles<1>(x + p, second, rows, cosines + p, sines + p), kLanes);
  return worst;
}

double jacobi(double** x, double** j, double** spare_x, double** spare_j, int64_t rows, int64_t h, double* work) {
  double worst = 0.0;
  for (int64_t round = 0; round + 1 < 2 * h; ++round) {
    const double here = all_angles(*x, rows, h, work, work + h);
    worst = here > worst ? here : worst;
    rotate_rows(*x, *spare_x, rows, h, work, work + h);
    rotate_rows(*j, *spare_j, rows, h, work, work + h);
    double* moved = *x;
    *x = *spare_x;
    *spare_x = moved;
    moved = *j;
    *j = *spare_j;
    *spare_j = moved;
  }
  return worst;
}

}  // namespace
}  // namespace sf::SF_ISA
