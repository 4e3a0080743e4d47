// From a symmetric band to a tridiagonal matrix by one team of threads: what runs in a block of a GPU, written so that a team of CPU
// threads can run it too (see csrc/tests/team_chase_tests.cpp, which the thread sanitizer watches).
//
// Bulge chasing with reflectors (Bischof, Lang & Sun 2000; Haidar, Ltaief & Dongarra 2011). Sweep j clears column j; its step t works on a
// window of `width` rows and columns, the next one below it. Step t of a sweep touches nothing that step t + 2 of the sweep before does, so
// that in every round of the team sweep j makes step round - 2 j.
//
// A Team is one of randomized_svd/numerics.h, with void lane_sync() as well, after which the lanes of the own group see what any of them
// has written.
#pragma once
#include <math.h>
#include <stdint.h>

#include "core/hd.h"

namespace sf {

// Entry (i, j), j <= i < j + 2 width, of the matrix is at band[j * 2 width + i - j]. Zeros where i - j > width, before.
struct TeamBand {
  double* entries;
  int64_t n;
  int width;
  SF_HD double* at(int64_t i, int64_t j) const { return entries + j * 2 * width + (i - j); }
  SF_HD double symmetric(int64_t i, int64_t j) const { return i >= j ? *at(i, j) : *at(j, i); }
};

// Sweeps that may be under way at the same time, each with a reflector of its own: width + 1 doubles, tau the last.
SF_HD static inline int64_t team_chase_slots(int64_t n, int width) { return (n / width + 1) / 2 + 2; }

// Makes v = (1, v') and tau of the reflector that takes x (length, one after the other) to (beta, 0, ..., 0), and does that.
template <class Team>
SF_HD static inline void chase_reflector(const Team& team, double* x, int length, double* v, double* tau) {
  double tail = 0.0;
  for (int i = team.lane; i < length; i += team.lanes) {
    if (i > 0) tail += x[i] * x[i];
  }
  tail = team.lane_sum(tail);
  const double alpha = x[0];
  const bool nothing = !(tail > 1e-300);
  const double size = sqrt(alpha * alpha + tail), beta = nothing ? alpha : alpha > 0.0 ? -size : size;
  const double scale = nothing ? 0.0 : 1.0 / (alpha - beta);
  team.lane_sync();  // all have read x[0]
  for (int i = team.lane; i < length; i += team.lanes) {
    v[i] = i == 0 ? 1.0 : x[i] * scale;
    x[i] = i == 0 ? beta : 0.0;
  }
  if (team.lane == 0) *tau = nothing ? 0.0 : (beta - alpha) / beta;
  team.lane_sync();
}

// D <- H D H of the rows and columns first .. first + length - 1. p: length doubles of the group's own.
template <class Team>
SF_HD static inline void chase_both_sides(const Team& team, const TeamBand& a, int64_t first, int length, const double* v, double tau,
                                          double* p) {
  double along = 0.0;
  for (int i = team.lane; i < length; i += team.lanes) {
    double sum = 0.0;
    for (int j = 0; j < length; ++j) sum += a.symmetric(first + i, first + j) * v[j];
    p[i] = tau * sum;
    along += p[i] * v[i];
  }
  const double half = 0.5 * tau * team.lane_sum(along);
  for (int i = team.lane; i < length; i += team.lanes) p[i] -= half * v[i];
  team.lane_sync();
  for (int j = 0; j < length; ++j) {
    double* const column = a.at(first + j, first + j);
    const double pj = p[j], vj = v[j];
    for (int i = j + (team.lane + team.lanes - j % team.lanes) % team.lanes; i < length; i += team.lanes)
      column[i - j] -= v[i] * pj + p[i] * vj;
  }
  team.lane_sync();
}

// One step of a sweep. v: its reflector, of the step before on entry (step > 0), of this one on return. work: 2 width doubles of the
// group's own.
template <class Team>
SF_HD static inline void chase_step(const Team& team, const TeamBand& a, int64_t sweep, int64_t step, double* v, double* work) {
  const int width = a.width;
  double* const tau = v + width;
  const int64_t first = sweep + 1 + step * width;
  const int length = (int)(a.n - first < width ? a.n - first : width);
  if (step == 0) {
    chase_reflector(team, a.at(first, sweep), length, v, tau);
  } else {
    // the block between the windows: columns before .. before + width - 1, rows first .. first + length - 1
    const int64_t before = first - width;
    double *const y = work, *const fresh = work + width;
    const double old_tau = *tau;
    for (int i = team.lane; i < length; i += team.lanes) {
      double sum = 0.0;
      for (int j = 0; j < width; ++j) sum += *a.at(first + i, before + j) * v[j];
      y[i] = old_tau * sum;
    }
    team.lane_sync();
    for (int j = 0; j < width; ++j) {
      double* const column = a.at(first, before + j);
      const double vj = v[j];
      for (int i = team.lane; i < length; i += team.lanes) column[i] -= y[i] * vj;
    }
    team.lane_sync();
    chase_reflector(team, a.at(first, before), length, fresh, tau);
    const double new_tau = *tau;
    for (int j = 1 + team.lane; j < width; j += team.lanes) {
      const double* const column = a.at(first, before + j);
      double sum = 0.0;
      for (int i = 0; i < length; ++i) sum += column[i] * fresh[i];
      y[j] = new_tau * sum;
    }
    team.lane_sync();
    for (int j = 1; j < width; ++j) {
      double* const column = a.at(first, before + j);
      for (int i = team.lane; i < length; i += team.lanes) column[i] -= fresh[i] * y[j];
    }
    for (int i = team.lane; i < length; i += team.lanes) v[i] = fresh[i];
    team.lane_sync();
  }
  chase_both_sides(team, a, first, length, v, *tau, work);
}

// All sweeps; diagonal d (n) and squares e2 (n - 1) of the entries beside it. reflectors: team_chase_slots(n, width) (width + 1) doubles
// that all see; work: 2 width doubles for every group.
template <class Team>
SF_HD static inline void team_chase(const Team& team, const TeamBand& a, double* reflectors, double* work, double* d, double* e2) {
  const int64_t n = a.n, slots = team_chase_slots(n, a.width), sweeps = n - 2;
  double* const own = work + (int64_t)team.group * 2 * a.width;
  if (a.width > 1) {
    for (int64_t round = 0; round < 2 * sweeps - 1; ++round) {          // the last sweep has one step, and those before are done by then
      int64_t sweep = round / 2 < sweeps - 1 ? round / 2 : sweeps - 1;  // the youngest; group g takes the g-th of them
      for (sweep -= team.group; sweep >= 0; sweep -= team.groups) {
        const int64_t step = round - 2 * sweep;
        if (sweep + 1 + step * a.width >= n) break;  // done, and so are all before it
        chase_step(team, a, sweep, step, reflectors + (sweep % slots) * (a.width + 1), own);
      }
      team.sync();
    }
  }
  const int threads = team.groups * team.lanes;
  for (int64_t j = team.group * team.lanes + team.lane; j < n; j += threads) {
    d[j] = *a.at(j, j);
    if (j + 1 < n) e2[j] = *a.at(j + 1, j) * *a.at(j + 1, j);
  }
}

}  // namespace sf
