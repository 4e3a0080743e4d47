// Singular values and vectors of a small matrix by one team of threads: what runs in a block of a GPU, written so that a team of CPU
// threads can run it too (see csrc/tests/team_jacobi_tests.cpp, which the thread sanitizer watches).
//
// One-sided Jacobi rotations of rows (Hestenes 1958; Demmel & Veselic 1992), pairs that share no row at the same time, as in a round-robin
// tournament.
//
// A Team is made of `groups` groups of `lanes` lanes: int group, groups, lane, lanes; double lane_sum(double), the sum over the lanes of
// the own group, the same bits for all of them; void sync(), after which all see what any has written.
#pragma once
#include <math.h>
#include <stdint.h>

#include "core/hd.h"

namespace sf {

constexpr int kMostSweeps = 40;
constexpr double kVanishedRow = 1e-150;  // squared length of a row that no rotation can do anything for

// The two rows of pair p in a round, of `players` rows, an even number.
SF_HD static inline void team_pair(int round, int p, int players, int* i, int* j) {
  const int others = players - 1;
  *i = p == 0 ? others : (round + p) % others;
  *j = (round + others - p) % others;
}

// Rotates rows i and j of x (length n, rows ld apart) and of u (length r) where their cosine is above `limit`; whether it was.
template <class Team>
SF_HD static inline bool team_rotate(const Team& team, double* xi, double* xj, int64_t n, double* ui, double* uj, int r, double limit) {
  double aa = 0.0, bb = 0.0, ab = 0.0;
  for (int64_t k = team.lane; k < n; k += team.lanes) {
    const double a = xi[k], b = xj[k];
    aa += a * a, bb += b * b, ab += a * b;
  }
  aa = team.lane_sum(aa), bb = team.lane_sum(bb), ab = team.lane_sum(ab);
  if (!(aa > kVanishedRow && bb > kVanishedRow && fabs(ab) > limit * sqrt(aa) * sqrt(bb))) return false;
  const double zeta = (bb - aa) / (2.0 * ab);
  const double tangent = (zeta >= 0.0 ? 1.0 : -1.0) / (fabs(zeta) + sqrt(1.0 + zeta * zeta));
  const double c = 1.0 / sqrt(1.0 + tangent * tangent), s = c * tangent;
  for (int64_t k = team.lane; k < n; k += team.lanes) {
    const double a = xi[k], b = xj[k];
    xi[k] = c * a - s * b;
    xj[k] = s * a + c * b;
  }
  for (int k = team.lane; k < r; k += team.lanes) {
    const double a = ui[k], b = uj[k];
    ui[k] = c * a - s * b;
    uj[k] = s * a + c * b;
  }
  return true;
}

// x (r x n, rows ld apart) -> u x with orthogonal rows, in place; u (r x r): an orthogonal matrix. flags: `groups` doubles that all see.
// Whether the rows became orthogonal to rounding within kMostSweeps sweeps, the same answer for all.
template <class Team>
SF_HD static inline bool team_jacobi(const Team& team, double* x, int64_t ld, int r, int64_t n, double* u, double* flags) {
  const int threads = team.groups * team.lanes, rank = team.group * team.lanes + team.lane;
  for (int i = rank; i < r * r; i += threads) u[i] = i / r == i % r ? 1.0 : 0.0;
  team.sync();
  const double limit = 0x1p-51 * sqrt((double)n);
  const int players = r + (r & 1);
  for (int sweep = 0; sweep < kMostSweeps; ++sweep) {
    bool turned = false;
    for (int round = 0; round + 1 < players; ++round) {
      for (int p = team.group; p < players / 2; p += team.groups) {
        int i = 0, j = 0;
        team_pair(round, p, players, &i, &j);
        if (i >= r || j >= r) continue;
        turned = team_rotate(team, x + i * ld, x + j * ld, n, u + (int64_t)i * r, u + (int64_t)j * r, r, limit) || turned;
      }
      team.sync();
    }
    if (team.lane == 0) flags[team.group] = turned ? 1.0 : 0.0;
    team.sync();
    bool any = false;
    for (int g = 0; g < team.groups; ++g) any = any || flags[g] != 0.0;
    team.sync();  // before anybody writes there again
    if (!any) return true;
  }
  return false;
}

}  // namespace sf
