// The sweep of Gram-Schmidt that a block of a GPU does, by teams of threads of the CPU: against sums in extended precision, and without
// races.
#include <barrier>
#include <cmath>
#include <cstring>
#include <limits>
#include <thread>
#include <type_traits>
#include <vector>

#include "lanczos/numerics.h"
#include "tests/check.h"
#include "tests/problems.h"

namespace sf::tests {
namespace {

using std::int64_t;

struct ThreadTeam {
  int rank, size;
  std::barrier<>* meet;
  void sync() const { meet->arrive_and_wait(); }
};

void set(double& to, double x) { to = x; }
void set(float& to, double x) { to = static_cast<float>(x); }
void set(Bfloat16& to, double x) {
  const auto narrow = static_cast<float>(x);
  std::uint32_t bits;
  std::memcpy(&bits, &narrow, sizeof bits);
  to.bits = static_cast<std::uint16_t>(bits >> 16);
}

template <class Row, class Vector>
void sweep(int64_t n, int t, int pad, int threads, int64_t blocks, bool subtract, bool dots) {
  Random random(static_cast<std::uint64_t>(n + 31 * t + threads));
  const int64_t ld = n + pad;
  std::vector<Row> v(static_cast<std::size_t>(ld * t + 1));
  for (Row& x : v) set(x, random.normal());
  std::vector<Vector> w(static_cast<std::size_t>(n));
  for (Vector& x : w) set(x, random.normal());
  std::vector<double> minus(static_cast<std::size_t>(t));
  for (double& x : minus) x = random.normal();
  const std::vector<Vector> before = w;
  const double nan = std::numeric_limits<double>::quiet_NaN();
  std::vector<double> out(static_cast<std::size_t>(blocks * (t + 1)), nan);
  for (int64_t block = 0; block < blocks; ++block) {
    std::vector<double> sums(static_cast<std::size_t>((t + 1) * threads), nan);
    std::barrier<> meet(threads);
    std::vector<std::thread> team;
    for (int rank = 0; rank < threads; ++rank) {
      team.emplace_back([&, rank] {
        const ThreadTeam own{rank, threads, &meet};
        team_sweeps(own, v.data(), ld, t, w.data(), n, subtract ? minus.data() : nullptr, sums.data(), dots, block, blocks,
                    out.data() + block * (t + 1));
      });
    }
    for (std::thread& one : team) one.join();
  }
  const std::string what =
      "n " + std::to_string(n) + ", t " + std::to_string(t) + ", threads " + std::to_string(threads) + ", blocks " + std::to_string(blocks);
  std::vector<long double> wanted(static_cast<std::size_t>(t + 1), 0.0L), sizes(static_cast<std::size_t>(t + 1), 0.0L);
  for (int64_t i = 0; i < n; ++i) {
    long double x = before[static_cast<std::size_t>(i)], size = std::fabs(x);
    for (int j = 0; j < t && subtract; ++j) {
      const long double less =
          static_cast<long double>(minus[static_cast<std::size_t>(j)]) * read(&v[static_cast<std::size_t>(j * ld + i)]);
      x -= less;
      size += std::fabs(less);
    }
    const long double unit = std::is_same_v<Vector, float> ? 0x1p-24L : 0x1p-53L;
    check(std::fabs(w[static_cast<std::size_t>(i)] - x) <= (t + 3) * 0x1p-53L * size + unit * std::fabs(x), "w, " + what);
    for (int j = 0; j <= t; ++j) {
      const long double y = j == t ? x : read(&v[static_cast<std::size_t>(j * ld + i)]);
      wanted[static_cast<std::size_t>(j)] += x * y;
      sizes[static_cast<std::size_t>(j)] += size * std::fabs(j == t ? size : y);
    }
  }
  for (int j = 0; j <= t; ++j) {
    double got = 0.0;
    for (int64_t block = 0; block < blocks; ++block) got += out[static_cast<std::size_t>(block * (t + 1) + j)];
    const long double want = j == t || dots ? wanted[static_cast<std::size_t>(j)] : 0.0L;
    check(std::fabs(got - want) <= (n + t + 5) * 0x1p-53L * sizes[static_cast<std::size_t>(j)], "sum " + std::to_string(j) + ", " + what);
  }
}

}  // namespace

void test_team_sweep() {
  for (const int64_t n : {int64_t{1}, int64_t{5}, int64_t{127}, int64_t{2048}, int64_t{5000}}) {
    for (const int t : {0, 1, 7}) {
      for (const bool subtract : {false, true}) {
        sweep<double, double>(n, t, 0, 3, 2, subtract, true);
        sweep<float, float>(n, t, 3, 4, 1, subtract, true);
        sweep<Bfloat16, float>(n, t, 1, 5, 3, subtract, false);
        sweep<float, double>(n, t, 0, 1, 1, subtract, true);
      }
    }
  }
}

}  // namespace sf::tests
