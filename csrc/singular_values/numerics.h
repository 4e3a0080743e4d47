// Eigenvalues of a symmetric matrix by one team of threads: what runs in a block of a GPU, written so that a team of CPU threads can run it
// too (see csrc/tests/team_eigenvalues_tests.cpp, which the thread sanitizer watches).
//
// Householder reduction to tridiagonal form (Golub & Van Loan 2013, algorithm 8.3.1) in which the update of one step is applied in the pass
// that multiplies for the next, so that every entry is read and written once a step; then bisection by Sturm counts (Barth, Martin &
// Wilkinson 1967), a value for each thread.
//
// A Team has `int rank`, `int size`, `double* scratch` (size + kSums doubles that all see) and `void sync()`, after which all see what any
// has written.
#pragma once
#include <math.h>
#include <stdint.h>

#include "core/hd.h"

namespace sf {

constexpr int kSums = 16;

// Sum of every thread's x, the same bits for all of them.
template <class Team>
SF_HD static inline double team_sum(Team& team, double x) {
  team.scratch[team.rank] = x;
  team.sync();
  double total = 0.0;
  if (team.size <= kSums) {
    for (int r = 0; r < team.size; ++r) total += team.scratch[r];
  } else {
    double* sums = team.scratch + team.size;
    if (team.rank < kSums) {
      double part = 0.0;
      for (int r = team.rank; r < team.size; r += kSums) part += team.scratch[r];
      sums[team.rank] = part;
    }
    team.sync();
    for (int r = 0; r < kSums; ++r) total += sums[r];
  }
  team.sync();  // before anybody writes there again
  return total;
}

// The vectors a team needs beside the matrix: 7 n doubles that all see.
struct TeamVectors {
  double *d, *e2, *x, *u, *v, *w, *p;
};

SF_HD static inline TeamVectors team_vectors(double* memory, int n) {
  return {memory, memory + n, memory + 2 * n, memory + 3 * n, memory + 4 * n, memory + 5 * n, memory + 6 * n};
}

// a: n x n symmetric, all of it, rows ld apart; destroyed. -> diagonal d (n) and squares e2 (n - 1) of the entries beside it.
template <class Team>
SF_HD static inline void team_tridiagonalize(Team& team, double* a, int64_t ld, int n, const TeamVectors& t) {
  for (int i = team.rank; i < n; i += team.size) t.v[i] = t.w[i] = 0.0;
  team.sync();
  for (int k = 0; k < n; ++k) {
    // row k as the update v wᵀ + w vᵀ, which is still to be taken from the matrix, leaves it
    const double vk = t.v[k], wk = t.w[k];
    double square = 0.0;
    for (int i = k + team.rank; i < n; i += team.size) {
      const double x = a[k * ld + i] - vk * t.w[i] - wk * t.v[i];
      t.x[i] = x;
      if (i > k + 1) square += x * x;
    }
    const double tail = team_sum(team, square);
    if (team.rank == 0) t.d[k] = t.x[k];
    if (k + 1 == n) break;
    const double alpha = t.x[k + 1];
    if (k + 2 == n) {  // nothing is left to be reflected; the last entry still lacks the same update
      if (team.rank == 0) t.e2[k] = alpha * alpha;
      team.sync();  // before x is written again
      continue;
    }
    // I - tau u uᵀ takes the row beside the diagonal to (beta, 0, ..., 0); nothing to do where it is so already
    const double beta = alpha >= 0.0 ? -sqrt(alpha * alpha + tail) : sqrt(alpha * alpha + tail);
    const double first = alpha - beta;
    const double tau = tail == 0.0 ? 0.0 : 2.0 / (tail + first * first);
    if (team.rank == 0) t.e2[k] = tail == 0.0 ? alpha * alpha : beta * beta;
    for (int i = k + 1 + team.rank; i < n; i += team.size) t.u[i] = tau == 0.0 ? 0.0 : i == k + 1 ? first : t.x[i];
    team.sync();
    double along = 0.0;
    for (int i = k + 1 + team.rank; i < n; i += team.size) {
      const double vi = t.v[i], wi = t.w[i];
      double* at = a + i;
      double p0 = 0.0, p1 = 0.0, p2 = 0.0, p3 = 0.0;
      int j = k + 1;
      for (; j + 3 < n; j += 4) {
        const double a0 = at[j * ld] - t.v[j] * wi - t.w[j] * vi, a1 = at[(j + 1) * ld] - t.v[j + 1] * wi - t.w[j + 1] * vi;
        const double a2 = at[(j + 2) * ld] - t.v[j + 2] * wi - t.w[j + 2] * vi, a3 = at[(j + 3) * ld] - t.v[j + 3] * wi - t.w[j + 3] * vi;
        at[j * ld] = a0, at[(j + 1) * ld] = a1, at[(j + 2) * ld] = a2, at[(j + 3) * ld] = a3;
        p0 += a0 * t.u[j], p1 += a1 * t.u[j + 1], p2 += a2 * t.u[j + 2], p3 += a3 * t.u[j + 3];
      }
      for (; j < n; ++j) {
        const double a0 = at[j * ld] - t.v[j] * wi - t.w[j] * vi;
        at[j * ld] = a0;
        p0 += a0 * t.u[j];
      }
      const double p = tau * ((p0 + p1) + (p2 + p3));
      t.p[i] = p;
      along += p * t.u[i];
    }
    const double half = 0.5 * tau * team_sum(team, along);
    for (int i = k + 1 + team.rank; i < n; i += team.size) {
      t.v[i] = t.u[i];
      t.w[i] = t.p[i] - half * t.u[i];
    }
    team.sync();
  }
  team.sync();
}

// How many eigenvalues of the tridiagonal matrix are below x. Products that vanish count as the smallest numbers there are: with tiny > 0
// no division is by zero, and the count never falls as x grows (Demmel, Dhillon & Ren 1995).
SF_HD static inline int count_below(const double* d, const double* e2, int n, double x, double tiny) {
  int below = 0;
  double q = 1.0;
  for (int i = 0; i < n; ++i) {
    q = sub(sub(d[i], x), i == 0 ? 0.0 : div(e2[i - 1], q));
    if (q < 0.0) ++below;
    if (fabs(q) < tiny) q = q < 0.0 ? -tiny : tiny;
  }
  return below;
}

// Bounds of all eigenvalues (Gershgorin) with room for rounding, and what count_below calls tiny.
SF_HD static inline void tridiagonal_bounds(const double* d, const double* e2, int n, double* lower, double* upper, double* tiny) {
  double least = d[0], most = d[0], before = 0.0, largest = 1.0;
  for (int i = 0; i < n; ++i) {
    const double after = i + 1 < n ? sqrt(e2[i]) : 0.0;
    least = fmin(least, d[i] - before - after);
    most = fmax(most, d[i] + before + after);
    if (i + 1 < n) largest = fmax(largest, e2[i]);
    before = after;
  }
  const double size = fmax(fabs(least), fabs(most));
  *lower = least - 2e-15 * size - 1e-300;
  *upper = most + 2e-15 * size + 1e-300;
  *tiny = mul(0x1p-1021, largest);
}

// The eigenvalue below which r others are, to half an ulp of the largest magnitude among the bounds.
SF_HD static inline double bisect(const double* d, const double* e2, int n, int r, double lower, double upper, double tiny) {
  const double close = mul(0x1p-54, fmax(fabs(lower), fabs(upper)));
  while (upper - lower > close) {
    const double middle = mul(0.5, add(lower, upper));
    if (!(middle > lower && middle < upper)) break;
    if (count_below(d, e2, n, middle, tiny) > r) {
      upper = middle;
    } else {
      lower = middle;
    }
  }
  return mul(0.5, add(lower, upper));
}

// All eigenvalues of a (n x n symmetric, rows ld apart, destroyed), descending, to `values` (n). vectors: 7 n doubles that all see.
template <class Team>
SF_HD static inline void team_eigenvalues(Team& team, double* a, int64_t ld, int n, double* vectors, double* values) {
  const TeamVectors t = team_vectors(vectors, n);
  team_tridiagonalize(team, a, ld, n, t);
  double lower, upper, tiny;
  tridiagonal_bounds(t.d, t.e2, n, &lower, &upper, &tiny);
  for (int r = team.rank; r < n; r += team.size) values[n - 1 - r] = bisect(t.d, t.e2, n, r, lower, upper, tiny);
}

}  // namespace sf
