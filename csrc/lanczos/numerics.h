// One sweep of Gram-Schmidt over a stripe of columns by a team of threads: what a block of a GPU does, written so that a team of CPU
// threads can run it too (see csrc/tests/team_sweep_tests.cpp, which the thread sanitizer watches).
//
// A thread takes a column at a time, so that a row's number that was subtracted is still near when it is multiplied again. It has a sum for
// each row in `sums`, which all see but only it writes to.
#pragma once
#include <stdint.h>
#include <string.h>

#include "core/hd.h"

namespace sf {

struct Bfloat16 {
  uint16_t bits;
};

SF_HD static inline double read(const double* x) { return *x; }
SF_HD static inline double read(const float* x) { return *x; }
SF_HD static inline double read(const Bfloat16* x) {
  const uint32_t wide = (uint32_t)x->bits << 16;
  float value;
  memcpy(&value, &wide, sizeof value);
  return value;
}

constexpr int64_t kStripe = 2048;  // columns of a stripe, which is one block's

// w -= minusᵀ v where `minus` (t) is given; then sums[j * size + rank] += this thread's part of <row j, w> for j < t, and of <w, w> for j =
// t; with `dots` false of the latter alone. v: t rows ld apart, w: n numbers; the stripe is first .. last. Only columns of this thread are
// touched.
template <class Row, class Vector, class Team>
SF_HD static inline void team_sweep(const Team& team, const Row* v, int64_t ld, int t, Vector* w, int64_t first, int64_t last,
                                    const double* minus, double* sums, bool dots) {
  double square = 0.0;
  for (int64_t i = first + team.rank; i < last; i += team.size) {
    double x = w[i];
    if (minus != nullptr) {
      double less = 0.0;
      for (int j = 0; j < t; ++j) less += minus[j] * read(v + j * ld + i);
      x -= less;
      w[i] = (Vector)x;
    }
    square += x * x;
    if (dots) {
      for (int j = 0; j < t; ++j) sums[(int64_t)j * team.size + team.rank] += read(v + j * ld + i) * x;
    }
  }
  sums[(int64_t)t * team.size + team.rank] += square;
}

// All stripes of block `block` of `blocks`; its t + 1 sums to `out`.
template <class Row, class Vector, class Team>
SF_HD static inline void team_sweeps(const Team& team, const Row* v, int64_t ld, int t, Vector* w, int64_t n, const double* minus,
                                     double* sums, bool dots, int64_t block, int64_t blocks, double* out) {
  for (int j = 0; j <= t; ++j) sums[(int64_t)j * team.size + team.rank] = 0.0;
  for (int64_t first = block * kStripe; first < n; first += blocks * kStripe) {
    const int64_t last = first + kStripe < n ? first + kStripe : n;
    team_sweep(team, v, ld, t, w, first, last, minus, sums, dots);
  }
  team.sync();
  for (int j = team.rank; j <= t; j += team.size) {
    double total = 0.0;
    for (int r = 0; r < team.size; ++r) total += sums[(int64_t)j * team.size + r];
    out[j] = total;
  }
}

}  // namespace sf
