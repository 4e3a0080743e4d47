// The eigenvalues that a block of a GPU computes, by teams of threads of the CPU: against known values, and without races.
#include <barrier>
#include <cmath>
#include <limits>
#include <thread>
#include <vector>

#include "singular_values/numerics.h"
#include "tests/check.h"
#include "tests/problems.h"

namespace sf::tests {
namespace {

using std::int64_t;

struct ThreadTeam {
  int rank, size;
  double* scratch;
  std::barrier<>* meet;
  void sync() const { meet->arrive_and_wait(); }
};

// values, and fresh memory full of NaN for everything in between
std::vector<double> eigenvalues(std::vector<double> a, int n, int threads) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  std::vector<double> vectors(7 * static_cast<std::size_t>(n), nan), scratch(static_cast<std::size_t>(threads + kSums), nan);
  std::vector<double> values(static_cast<std::size_t>(n), nan);
  std::barrier<> meet(threads);
  std::vector<std::thread> team;
  for (int rank = 0; rank < threads; ++rank) {
    team.emplace_back([&, rank] {
      ThreadTeam own{rank, threads, scratch.data(), &meet};
      team_eigenvalues(own, a.data(), n, n, vectors.data(), values.data());
    });
  }
  for (std::thread& t : team) t.join();
  return values;
}

// x xᵀ for x (n x m), rounded once.
std::vector<double> gram(const std::vector<double>& x, int n, int m) {
  std::vector<double> g(static_cast<std::size_t>(n) * n);
  for (int i = 0; i < n; ++i) {
    for (int j = 0; j < n; ++j) {
      long double sum = 0.0L;
      for (int k = 0; k < m; ++k)
        sum += static_cast<long double>(x[static_cast<std::size_t>(i) * m + k]) * x[static_cast<std::size_t>(j) * m + k];
      g[static_cast<std::size_t>(i) * n + j] = static_cast<double>(sum);
    }
  }
  return g;
}

void known_spectra(int n, int threads) {
  for (const Problem& problem : families(n, n, n <= 40, static_cast<std::uint64_t>(n))) {
    if (problem.s.empty()) continue;
    const std::vector<double> values = eigenvalues(gram(problem.a, n, n), n, threads);
    const long double top = problem.s[0] * problem.s[0];
    // entries of the Gram matrix are rounded once; a reflector adds a few units of the norm, and there are n of them
    const long double allowed = 20.0L * n * 0x1p-52L * top + 2.0L * problem.slack * problem.s[0] + 1e-290L;
    for (int i = 0; i < n; ++i) {
      const long double wanted = problem.s[static_cast<std::size_t>(i)] * problem.s[static_cast<std::size_t>(i)];
      check(std::fabs(values[static_cast<std::size_t>(i)] - wanted) <= allowed,
            problem.name + ", n " + std::to_string(n) + ", threads " + std::to_string(threads) + ", value " + std::to_string(i));
      check(i == 0 || values[static_cast<std::size_t>(i)] <= values[static_cast<std::size_t>(i - 1)], problem.name + ": descending");
    }
  }
}

// 2 on the diagonal, -1 beside it: 2 - 2 cos(pi k / (n + 1)).
void second_differences(int n, int threads) {
  std::vector<double> a(static_cast<std::size_t>(n) * n, 0.0);
  for (int i = 0; i < n; ++i) {
    a[static_cast<std::size_t>(i) * n + i] = 2.0;
    if (i + 1 < n) a[static_cast<std::size_t>(i) * n + i + 1] = a[static_cast<std::size_t>(i + 1) * n + i] = -1.0;
  }
  const std::vector<double> values = eigenvalues(a, n, threads);
  for (int i = 0; i < n; ++i) {
    const double wanted = 2.0 - 2.0 * std::cos(3.14159265358979323846 * (n - i) / (n + 1));
    check(std::fabs(values[static_cast<std::size_t>(i)] - wanted) <= 1e-14,
          "second differences, n " + std::to_string(n) + ", value " + std::to_string(i));
  }
}

// Negative values too: a reflection I - 2 u uᵀ has 1 (n - 1 times) and -1.
void reflection(int n, int threads) {
  std::vector<double> a(static_cast<std::size_t>(n) * n);
  for (int i = 0; i < n; ++i) {
    for (int j = 0; j < n; ++j) a[static_cast<std::size_t>(i) * n + j] = (i == j) - 2.0 / n;
  }
  const std::vector<double> values = eigenvalues(a, n, threads);
  for (int i = 0; i < n; ++i) check(std::fabs(values[static_cast<std::size_t>(i)] - (i + 1 < n ? 1.0 : -1.0)) <= 1e-13, "reflection");
}

void the_same_bits_again(int n, int threads) {
  const std::vector<Problem> problems = families(n, n, false, 7);
  const std::vector<double> g = gram(problems.back().a, n, n);
  check(eigenvalues(g, n, threads) == eigenvalues(g, n, threads), "the same bits from run to run, threads " + std::to_string(threads));
}

}  // namespace

void test_team_eigenvalues() {
  for (const int n : {1, 2, 3, 4, 5, 7, 12, 17, 33}) {
    for (const int threads : {1, 3, 20}) {
      known_spectra(n, threads);
      second_differences(n, threads);
      if (n > 1) reflection(n, threads);
    }
  }
#if !defined(__SANITIZE_THREAD__)
  known_spectra(90, 4);
#endif
  the_same_bits_again(24, 5);
}

}  // namespace sf::tests
