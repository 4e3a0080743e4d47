// Bands that a block of a GPU makes tridiagonal, by teams of threads of the CPU: against known eigenvalues, and without races.
#include <algorithm>
#include <barrier>
#include <cmath>
#include <limits>
#include <thread>
#include <vector>

#include "singular_values/chase_numerics.h"
#include "singular_values/numerics.h"
#include "tests/check.h"
#include "tests/problems.h"

namespace sf::tests {
namespace {

using Numbers = std::vector<double>;
using std::size_t;

// Groups of one lane each: a thread of the CPU takes a warp's place.
struct ThreadGroups {
  int group, groups, lane, lanes;
  std::barrier<>* meet;
  void sync() const { meet->arrive_and_wait(); }
  void lane_sync() const {}
  double lane_sum(double x) const { return x; }
};

struct Alone {
  int rank, size;
  double* scratch;
  void sync() const {}
};

// n x n band in dense form -> its eigenvalues, ascending, by chasing and bisection.
Numbers chased(const Numbers& dense, int n, int width, int threads) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  Numbers band(static_cast<size_t>(n) * 2 * width, nan);  // rows beyond the last are nobody's
  for (int j = 0; j < n; ++j) {
    for (int i = j; i < std::min(n, j + 2 * width); ++i) {
      band[static_cast<size_t>(j) * 2 * width + i - j] = i - j <= width ? dense[static_cast<size_t>(i) * n + j] : 0.0;
    }
  }
  const TeamBand a{band.data(), n, width};
  Numbers reflectors(static_cast<size_t>(team_chase_slots(n, width) * (width + 1)), nan),
      work(static_cast<size_t>(threads) * 2 * width, nan);
  Numbers d(static_cast<size_t>(n), nan), e2(static_cast<size_t>(n), nan), values(static_cast<size_t>(n));
  std::barrier<> meet(threads);
  std::vector<std::thread> team;
  for (int rank = 0; rank < threads; ++rank) {
    team.emplace_back([&, rank] {
      const ThreadGroups own{rank, threads, 0, 1, &meet};
      team_chase(own, a, reflectors.data(), work.data(), d.data(), e2.data());
    });
  }
  for (std::thread& t : team) t.join();
  for (int j = 0; j < n; ++j) {
    for (int k = 2; k < 2 * width && j + k < n; ++k) {
      const double left = band[static_cast<size_t>(j) * 2 * width + k];
      check(std::fabs(left) <= 1e-280, "nothing is left beside the diagonals, n " + std::to_string(n) + ", width " + std::to_string(width));
    }
  }
  double lower, upper, tiny;
  tridiagonal_bounds(d.data(), e2.data(), n, &lower, &upper, &tiny);
  for (int r = 0; r < n; ++r) values[static_cast<size_t>(r)] = bisect(d.data(), e2.data(), n, r, lower, upper, tiny);
  return values;
}

void compare(const Numbers& values, const Numbers& wanted, const std::string& what) {
  double top = 0.0;
  for (const double x : wanted) top = std::max(top, std::fabs(x));
  const double allowed = 2e-16 * std::sqrt(static_cast<double>(wanted.size())) * 8.0 * top + 1e-290;
  for (size_t i = 0; i < wanted.size(); ++i) check(std::fabs(values[i] - wanted[i]) <= allowed, what + ", value " + std::to_string(i));
}

std::string named(const char* what, int n, int width, int threads) {
  return std::string(what) + ", n " + std::to_string(n) + ", width " + std::to_string(width) + ", threads " + std::to_string(threads);
}

// (1/4, 1/2, 1/4)^width, whose eigenvalues are known.
void powers(int n, int width, int threads) {
  Numbers dense(static_cast<size_t>(n) * n, 0.0), wanted;
  for (int i = 0; i < n; ++i) dense[static_cast<size_t>(i) * n + i] = 1.0;
  for (int k = 0; k < width; ++k) {
    Numbers next(dense.size());
    for (int i = 0; i < n; ++i) {
      for (int j = 0; j < n; ++j) {
        const auto entry = [&](int r) { return r < 0 || r >= n ? 0.0 : dense[static_cast<size_t>(r) * n + j]; };
        next[static_cast<size_t>(i) * n + j] = 0.5 * entry(i) + 0.25 * (entry(i - 1) + entry(i + 1));
      }
    }
    dense = next;
  }
  for (int k = n; k >= 1; --k) wanted.push_back(std::pow(0.5 + 0.5 * std::cos(3.14159265358979323846 * k / (n + 1)), width));
  compare(chased(dense, n, width, threads), wanted, named("powers of second differences", n, width, threads));
}

Numbers random_band(int n, int width, bool gaps) {
  Random random(static_cast<std::uint64_t>(100 * n + width));
  Numbers dense(static_cast<size_t>(n) * n, 0.0);
  for (int i = 0; i < n; ++i) {
    for (int j = std::max(0, i - width); j <= i; ++j) {
      const double x = gaps && i % 3 != j % 3 ? 0.0 : random.normal();
      dense[static_cast<size_t>(i) * n + j] = dense[static_cast<size_t>(j) * n + i] = x;
    }
  }
  return dense;
}

// Against the reduction of the dense matrix by one thread.
void random_bands(int n, int width, int threads, bool gaps) {
  const Numbers dense = random_band(n, width, gaps);
  Numbers copy = dense, vectors(7 * static_cast<size_t>(n)), scratch(1 + kSums), values(static_cast<size_t>(n));
  Alone alone{0, 1, scratch.data()};
  team_eigenvalues(alone, copy.data(), n, n, vectors.data(), values.data());
  std::reverse(values.begin(), values.end());
  compare(chased(dense, n, width, threads), values, named(gaps ? "bands with gaps" : "random bands", n, width, threads));
}

}  // namespace

void test_team_chase() {
  for (const int n : {1, 2, 3, 4, 5, 7, 12, 31, 40}) {
    for (const int width : {1, 2, 3, 5, 8, 32}) {
      for (const int threads : {1, 3, 6}) {
        powers(n, width, threads);
        random_bands(n, width, threads, false);
        random_bands(n, width, threads, true);
      }
    }
  }
#if !defined(__SANITIZE_THREAD__)
  powers(150, 4, 5);
  random_bands(200, 7, 4, false);
#endif
  const Numbers same = random_band(37, 4, false);
  check(chased(same, 37, 4, 1) == chased(same, 37, 4, 5), "the same bits with any number of groups");
  check(chased(Numbers(400, 0.0), 20, 3, 3) == Numbers(20, chased(Numbers(400, 0.0), 20, 3, 1)[0]), "zero");
}

}  // namespace sf::tests
