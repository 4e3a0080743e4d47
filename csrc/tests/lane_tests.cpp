// The iterations across lanes on bidiagonals that a reduction of a matrix hardly makes: against bisection, which they fall back on.
#include <algorithm>
#include <cmath>

#include "singular_values/singular_values.h"
#include "tests/check.h"
#include "tests/problems.h"

namespace sf {
SF_LEVEL_TABLE(LaneLoops, lane_loops)
}

namespace sf::tests {
namespace {

using std::int64_t;

struct Kind {
  const char* name;
  double (*diagonal)(Random& random, int64_t k, int64_t n);
  double (*above)(Random& random, int64_t k, int64_t n);
};

double share(int64_t k, int64_t n) { return n > 1 ? static_cast<double>(k) / static_cast<double>(n - 1) : 0.0; }

const Kind kKinds[] = {
    {"random", [](Random& r, int64_t, int64_t) { return r.normal(); }, [](Random& r, int64_t, int64_t) { return r.normal(); }},
    {"graded down", [](Random& r, int64_t k, int64_t n) { return r.normal() * std::pow(10.0, -18.0 * share(k, n)); },
     [](Random& r, int64_t k, int64_t n) { return r.normal() * std::pow(10.0, -18.0 * share(k, n)); }},
    {"graded up", [](Random& r, int64_t k, int64_t n) { return r.normal() * std::pow(10.0, 18.0 * share(k, n) - 18.0); },
     [](Random& r, int64_t k, int64_t n) { return r.normal() * std::pow(10.0, 18.0 * share(k, n) - 18.0); }},
    {"zeros within", [](Random& r, int64_t k, int64_t) { return k % 3 == 1 ? 0.0 : r.normal(); },
     [](Random& r, int64_t k, int64_t) { return k % 5 == 2 ? 0.0 : r.normal(); }},
    {"no diagonal", [](Random&, int64_t, int64_t) { return 0.0; }, [](Random& r, int64_t, int64_t) { return r.normal(); }},
    {"diagonal", [](Random& r, int64_t, int64_t) { return r.normal(); }, [](Random&, int64_t, int64_t) { return 0.0; }},
    {"equal", [](Random&, int64_t, int64_t) { return 0.7; }, [](Random&, int64_t, int64_t) { return 0.0; }},
    {"one tiny value", [](Random&, int64_t, int64_t) { return 0.1; }, [](Random&, int64_t, int64_t) { return 1.0; }},
    {"nearly apart", [](Random&, int64_t k, int64_t) { return k % 2 ? 0.5 : 0.25; },
     [](Random& r, int64_t k, int64_t) {
       return r.normal() * (k % 4 == 3 ? 1e-9 : k % 4 == 1 ? 1e-17 : 0.3);
     }},
    {"Toeplitz", [](Random&, int64_t, int64_t) { return 1.0; }, [](Random&, int64_t, int64_t) { return 1.0; }},
    {"two sizes", [](Random& r, int64_t k, int64_t) { return r.normal() * (k % 2 ? 1.0 : 1e-8); },
     [](Random& r, int64_t k, int64_t) { return r.normal() * (k % 2 ? 1e-8 : 1.0); }},
    {"three above a bulk", [](Random& r, int64_t k, int64_t) { return k < 3 ? 1.0 + 0.1 * r.uniform() : 1e-8 * (1.0 + r.uniform()); },
     [](Random&, int64_t k, int64_t) { return k % 2 || k == 0 ? 0.0 : 1e-12; }},
    {"zero", [](Random&, int64_t, int64_t) { return 0.0; }, [](Random&, int64_t, int64_t) { return 0.0; }},
};

}  // namespace

void test_lanes() {
  for (const std::string& level : levels()) {
    const LaneLoops& loops = lane_loops(find_level(level));
    const int64_t lanes = loops.lanes, kinds = static_cast<int64_t>(std::size(kKinds));
    for (const int64_t n : {1, 2, 3, 4, 7, 16, 33, 64, 150}) {
      Random random(static_cast<std::uint64_t>(n));
      const int64_t block = n * lanes;
      // every kind in every lane, next to others, in 1 to 4 blocks
      std::vector<double> d(static_cast<std::size_t>(kMaxBlocks * block)), e(d), values(d), tri(d), off2(d);
      std::vector<double> work(static_cast<std::size_t>(2 * kMaxBlocks * block)), exact(static_cast<std::size_t>(n)),
          more(2 * exact.size());
      for (int64_t turn = 0; turn < kinds; ++turn) {
        const int blocks = static_cast<int>(turn % kMaxBlocks) + 1;
        const auto kind_of = [&](int64_t i) -> const Kind& { return kKinds[(i + turn) % kinds]; };
        for (int64_t i = 0; i < blocks * lanes; ++i) {
          for (int64_t k = 0; k < n; ++k) {
            const auto place = static_cast<std::size_t>(i / lanes * block + k * lanes + i % lanes);
            d[place] = kind_of(i).diagonal(random, k, n);
            e[place] = k + 1 < n ? kind_of(i).above(random, k, n) : 0.0;
          }
        }
        unsigned failed[kMaxBlocks], unsure[kMaxBlocks];
        loops.qd(d.data(), e.data(), n, blocks, values.data(), work.data(), failed);
        for (int b = 0; b < blocks; ++b)
          loops.square(d.data() + b * block, e.data() + b * block, n, tri.data() + b * block, off2.data() + b * block);
        loops.root_free_qr(tri.data(), off2.data(), n, blocks, unsure);
        loops.sort(values.data(), n, blocks);
        loops.sort(tri.data(), n, blocks);
        for (int64_t i = 0; i < blocks * lanes; ++i) {
          const int64_t first = i / lanes * block + i % lanes;
          const std::string what =
              std::string(kind_of(i).name) + ", n " + std::to_string(n) + ", lane " + std::to_string(i) + " at " + level;
          loops.bisect(d.data() + first, e.data() + first, lanes, n, exact.data(), more.data());
          const double top = exact[static_cast<std::size_t>(n - 1)], bound = 5.0 * std::sqrt(static_cast<double>(n)) * 0x1p-52;
          double worst = 0.0, worst2 = 0.0;
          for (int64_t k = 0; k < n; ++k) {
            const double s = exact[static_cast<std::size_t>(n - 1 - k)];
            worst = std::max(worst, std::abs(std::sqrt(values[static_cast<std::size_t>(first + k * lanes)]) - s));
            worst2 = std::max(worst2, std::abs(tri[static_cast<std::size_t>(first + k * lanes)] - s * s));
          }
          check(!(failed[i / lanes] >> (i % lanes) & 1u), what + ": qd has not converged");
          check(!(unsure[i / lanes] >> (i % lanes) & 1u), what + ": QR has not converged");
          check(worst <= bound * top, what + ": qd, error " + std::to_string(worst / (bound * top)));
          check(worst2 <= bound * top * top, what + ": QR, error " + std::to_string(worst2 / (bound * top * top)));
        }
      }
    }
  }
}

}  // namespace sf::tests
