// The small decompositions that a block of a GPU computes, by teams of threads of the CPU: against known values, and without races.
#include <algorithm>
#include <barrier>
#include <cmath>
#include <limits>
#include <thread>
#include <vector>

#include "randomized_svd/numerics.h"
#include "tests/check.h"
#include "tests/problems.h"

namespace sf::tests {
namespace {

using Numbers = std::vector<double>;

// Groups of one lane each: a thread of the CPU takes a warp's place.
struct ThreadGroups {
  int group, groups, lane, lanes;
  std::barrier<>* meet;
  void sync() const { meet->arrive_and_wait(); }
  double lane_sum(double x) const { return x; }
};

struct Turned {
  Numbers x, u;
  bool settled = true;
};

Turned turn(const Numbers& a, int r, int n, int threads) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const int ld = n + 3;  // what is between the rows is nobody's
  Numbers x(static_cast<std::size_t>(r) * ld, nan), flags(static_cast<std::size_t>(threads), nan);
  for (int i = 0; i < r; ++i)
    std::copy_n(a.begin() + static_cast<std::ptrdiff_t>(i) * n, n, x.begin() + static_cast<std::ptrdiff_t>(i) * ld);
  Turned out{Numbers(static_cast<std::size_t>(r) * n), Numbers(static_cast<std::size_t>(r) * r, nan)};
  std::vector<char> settled(static_cast<std::size_t>(threads));
  std::barrier<> meet(threads);
  std::vector<std::thread> team;
  for (int rank = 0; rank < threads; ++rank) {
    team.emplace_back([&, rank] {
      const ThreadGroups own{rank, threads, 0, 1, &meet};
      settled[static_cast<std::size_t>(rank)] = team_jacobi(own, x.data(), ld, r, n, out.u.data(), flags.data());
    });
  }
  for (std::thread& t : team) t.join();
  for (const char one : settled) out.settled = out.settled && one != 0;
  for (int i = 0; i < r; ++i) {
    std::copy_n(x.begin() + static_cast<std::ptrdiff_t>(i) * ld, n, out.x.begin() + static_cast<std::ptrdiff_t>(i) * n);
    for (int k = n; k < ld; ++k) check(std::isnan(x[static_cast<std::size_t>(i) * ld + k]), "nothing is written between the rows");
  }
  return out;
}

long double dot(const double* a, const double* b, int n) {
  long double sum = 0.0L;
  for (int k = 0; k < n; ++k) sum += static_cast<long double>(a[k]) * b[k];
  return sum;
}

void decompose(const Problem& problem, int r, int n, int threads) {
  const std::string what = problem.name + ", " + std::to_string(r) + " x " + std::to_string(n) + ", threads " + std::to_string(threads);
  const Turned t = turn(problem.a, r, n, threads);
  check(t.settled, what + ": settled");
  Numbers lengths;
  for (int i = 0; i < r; ++i)
    lengths.push_back(static_cast<double>(std::sqrt(dot(&t.x[static_cast<std::size_t>(i) * n], &t.x[static_cast<std::size_t>(i) * n], n))));
  const double top = *std::max_element(lengths.begin(), lengths.end());
  for (int i = 0; i < r; ++i) {
    for (int j = 0; j < r; ++j) {
      const long double rows = dot(&t.u[static_cast<std::size_t>(i) * r], &t.u[static_cast<std::size_t>(j) * r], r);
      check(std::fabs(rows - (i == j)) <= 1e-13L, what + ": u is orthogonal");
      const double size = lengths[static_cast<std::size_t>(i)] * lengths[static_cast<std::size_t>(j)];
      if (i == j || size <= 1e-140 || lengths[static_cast<std::size_t>(i)] <= 1e-70 || lengths[static_cast<std::size_t>(j)] <= 1e-70)
        continue;
      check(std::fabs(dot(&t.x[static_cast<std::size_t>(i) * n], &t.x[static_cast<std::size_t>(j) * n], n)) <= 1e-14L * std::sqrt(n) * size,
            what + ": the rows are orthogonal");
    }
    for (int k = 0; k < n; ++k) {  // u a = x
      long double sum = 0.0L;
      for (int j = 0; j < r; ++j)
        sum += static_cast<long double>(t.u[static_cast<std::size_t>(i) * r + j]) * problem.a[static_cast<std::size_t>(j) * n + k];
      check(std::fabs(sum - t.x[static_cast<std::size_t>(i) * n + k]) <= 1e-13L * top + 1e-290L, what + ": the rows are u a");
    }
  }
  std::sort(lengths.rbegin(), lengths.rend());
  for (std::size_t i = 0; i < problem.s.size(); ++i) {
    check(std::fabs(lengths[i] - problem.s[i]) <= 1e-14L * r * problem.s[0] + 2.0L * problem.slack + 1e-290L, what + ": values");
  }
}

void graded_rows_keep_their_digits() {
  // rows of 1, 1e-8, .. 1e-56: each value is known to its own size, as the Gram matrix never tells
  const int r = 8, n = 20;
  Random random(5);
  const Problem flat = prescribed("flat", std::vector<long double>(r, 1.0L), r, n, random);
  Numbers a = flat.a;
  for (int i = 0; i < r; ++i) {
    for (int k = 0; k < n; ++k) a[static_cast<std::size_t>(i) * n + k] *= std::pow(10.0, -8.0 * i);
  }
  const Turned t = turn(a, r, n, 3);
  for (int i = 0; i < r; ++i) {
    const long double length = std::sqrt(dot(&t.x[static_cast<std::size_t>(i) * n], &t.x[static_cast<std::size_t>(i) * n], n));
    check(std::fabs(length / std::pow(10.0L, -8.0L * i) - 1.0L) <= 1e-13L, "graded rows, value " + std::to_string(i));
  }
}

}  // namespace

void test_team_jacobi() {
  for (const auto& [r, n] : std::vector<std::pair<int, int>>{{1, 1}, {1, 9}, {2, 2}, {3, 3}, {4, 30}, {7, 12}, {16, 40}, {17, 17}}) {
    for (const int threads : {1, 3, 8}) {
      for (const Problem& problem : families(r, n, true, static_cast<std::uint64_t>(10 * r + n))) decompose(problem, r, n, threads);
    }
  }
  graded_rows_keep_their_digits();
  const Problem same = families(12, 25, false, 3).back();
  check(turn(same.a, 12, 25, 5).x == turn(same.a, 12, 25, 5).x, "the same bits from run to run");
  check(turn(same.a, 12, 25, 1).x == turn(same.a, 12, 25, 6).x, "the same bits with any number of groups");
}

}  // namespace sf::tests
