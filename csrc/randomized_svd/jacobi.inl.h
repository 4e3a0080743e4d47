// One-sided Jacobi (Hestenes 1958; Demmel & Veselic 1992), several pairs of columns in the lanes of a vector.
//
// Column p of the first half meets column p of the second. After each round the columns move on as in a round-robin tournament, which is
// one place along each half, the first column staying where it is: the rotated vectors are shifted by one lane before they are stored.
#include "core/simd.h"
#include "randomized_svd/loops.h"

namespace sf::SF_ISA {
namespace {

constexpr double kVanished = 1e-150;  // squared length of a column that no rotation can do anything for

// [last lane of before, all lanes of here but the last] and [all lanes of here but the first, first lane of after].
#if defined(__AVX512F__)
inline Vec shift_on(Vec before, Vec here) {
  return _mm512_castsi512_pd(_mm512_alignr_epi64(_mm512_castpd_si512(here), _mm512_castpd_si512(before), 7));
}
inline Vec shift_back(Vec here, Vec after) {
  return _mm512_castsi512_pd(_mm512_alignr_epi64(_mm512_castpd_si512(after), _mm512_castpd_si512(here), 1));
}
#elif defined(__AVX2__)
inline Vec shift_on(Vec before, Vec here) { return _mm256_shuffle_pd(_mm256_permute2f128_pd(before, here, 0x21), here, 5); }
inline Vec shift_back(Vec here, Vec after) { return _mm256_shuffle_pd(here, _mm256_permute2f128_pd(here, after, 0x21), 5); }
#elif defined(SF_X86)
inline Vec shift_on(Vec before, Vec here) { return _mm_shuffle_pd(before, here, 1); }
inline Vec shift_back(Vec here, Vec after) { return _mm_shuffle_pd(here, after, 1); }
#else
inline Vec shift_on(Vec before, Vec here) {
  for (int k = kLanes - 1; k > 0; --k) here.lane[k] = here.lane[k - 1];
  here.lane[0] = before.lane[kLanes - 1];
  return here;
}
inline Vec shift_back(Vec here, Vec after) {
  for (int k = 0; k + 1 < kLanes; ++k) here.lane[k] = here.lane[k + 1];
  here.lane[kLanes - 1] = after.lane[0];
  return here;
}
#endif

inline Mask one_lane(int lane) {
  double marks[kLanes];
  for (int k = 0; k < kLanes; ++k) marks[k] = k == lane ? 0.0 : 1.0;
  return less(load(marks), broadcast(0.5));
}

// Vectors: h / kLanes, where that is known.
template <int Vectors>
inline void rotate_rows(double* x, int64_t rows, int64_t h, const double* cosines, const double* sines) {
  const Mask first = one_lane(0), second = one_lane(1), last = one_lane(kLanes - 1);
  if (Vectors > 0) h = Vectors * kLanes;
  for (int64_t i = 0; i < rows; ++i, x += 2 * h) {
    double* const y = x + h;
    Vec before = zeros(), waiting = zeros();
#pragma GCC unroll 4
    for (int64_t p = 0; p < h; p += kLanes) {
      const Vec c = load(cosines + p), s = load(sines + p), a = load(x + p), b = load(y + p);
      const Vec a_new = fnma(s, b, mul(c, a)), b_new = fma(s, a, mul(c, b));
      if (p == 0) {
        store(x, select(first, a_new, select(second, shift_on(b_new, b_new), shift_on(a_new, a_new))));
      } else {
        store(x + p, shift_on(before, a_new));
        store(y + p - kLanes, shift_back(waiting, b_new));
      }
      before = a_new;
      waiting = b_new;
    }
    store(y + h - kLanes, select(last, before, shift_back(waiting, waiting)));
  }
}

inline void rotate(double* x, int64_t rows, int64_t h, const double* cosines, const double* sines) {
  if (h == kLanes) {
    rotate_rows<1>(x, rows, h, cosines, sines);
  } else if (h == 2 * kLanes) {
    rotate_rows<2>(x, rows, h, cosines, sines);
  } else if (h == 3 * kLanes) {
    rotate_rows<3>(x, rows, h, cosines, sines);
  } else if (h == 4 * kLanes) {
    rotate_rows<4>(x, rows, h, cosines, sines);
  } else {
    rotate_rows<0>(x, rows, h, cosines, sines);
  }
}

// Whether a pair has a squared cosine above `limit`.
template <int Vectors>
inline bool angles(const double* x, int64_t h, int64_t rows, double limit, double* cosines, double* sines) {
  Vec aa[Vectors], bb[Vectors], ab[Vectors];
#pragma GCC unroll 4
  for (int v = 0; v < Vectors; ++v) aa[v] = bb[v] = ab[v] = zeros();
  for (int64_t i = 0; i < rows; ++i, x += 2 * h) {
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) {
      const Vec a = load(x + v * kLanes), b = load(x + h + v * kLanes);
      aa[v] = fma(a, a, aa[v]);
      bb[v] = fma(b, b, bb[v]);
      ab[v] = fma(a, b, ab[v]);
    }
  }
  unsigned above = 0;
  const Vec one = broadcast(1.0), nothing = broadcast(kVanished);
#pragma GCC unroll 4
  for (int v = 0; v < Vectors; ++v) {
    const Mask turned = both(both(less(nothing, aa[v]), less(nothing, bb[v])), less(zeros(), magnitude(ab[v])));
    above |= bits(both(turned, less(mul(broadcast(limit), mul(aa[v], bb[v])), mul(ab[v], ab[v]))));
    // tangent of the smaller angle: sign(zeta) / (|zeta| + sqrt(1 + zeta^2)), zeta = (bb - aa) / (2 ab)
    const Vec d = sub(bb[v], aa[v]), g = add(ab[v], ab[v]);
    const Vec tangent = select(turned, div(with_sign(g, mul(d, g)), add(magnitude(d), square_root(fma(d, d, mul(g, g))))), zeros());
    const Vec c = div(one, square_root(fma(tangent, tangent, one)));
    store(cosines + v * kLanes, c);
    store(sines + v * kLanes, mul(c, tangent));
  }
  return above != 0;
}

inline bool all_angles(const double* x, int64_t rows, int64_t h, double limit, double* cosines, double* sines) {
  bool above = false;
  int64_t p = 0;
  const auto step = [&](bool here, int64_t pairs) {
    above = above || here;
    p += pairs;
  };
  while (h - p >= 4 * kLanes) step(angles<4>(x + p, h, rows, limit, cosines + p, sines + p), 4 * kLanes);
  if (h - p == 3 * kLanes) step(angles<3>(x + p, h, rows, limit, cosines + p, sines + p), 3 * kLanes);
  if (h - p == 2 * kLanes) step(angles<2>(x + p, h, rows, limit, cosines + p, sines + p), 2 * kLanes);
  if (p < h) step(angles<1>(x + p, h, rows, limit, cosines + p, sines + p), kLanes);
  return above;
}

bool jacobi(double* x, int64_t rows, int64_t h, double cosine, double* work) {
  bool above = false;
  for (int64_t round = 0; round + 1 < 2 * h; ++round) {
    above = all_angles(x, rows, h, cosine * cosine, work, work + h) || above;
    rotate(x, rows, h, work, work + h);
  }
  return above;
}

}  // namespace
}  // namespace sf::SF_ISA
