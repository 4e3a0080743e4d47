// The pool, the team and the instruction-set levels.
#include <atomic>
#include <chrono>
#include <stdexcept>
#include <thread>
#include <vector>

#include "core/isa.h"
#include "core/parallel.h"
#include "core/team.h"
#include "tests/check.h"

namespace sf::tests {
namespace {

using std::int64_t;

// Whether parallel_for runs every task once; tasks write without locks, each to its own place.
bool each_once(int64_t n, int threads) {
  std::vector<int> runs(static_cast<std::size_t>(n), 0);
  parallel_for(n, threads, [&](int64_t i) { ++runs[static_cast<std::size_t>(i)]; });
  for (const int r : runs) {
    if (r != 1) return false;
  }
  return true;
}

void every_task_once() {
  for (const int threads : {0, 1, 2, 5}) {
    for (const int64_t n : {0, 1, 2, 7, 1000}) check(each_once(n, threads), "each task once, threads " + std::to_string(threads));
  }
  check(default_threads() >= 1, "default_threads");
}

void nested() {
  std::atomic<int> inner{0};
  parallel_for(6, 2, [&](int64_t) { parallel_for(50, 2, [&](int64_t) { inner.fetch_add(1); }); });
  check(inner.load() == 300, "nested parallel_for");
}

void exceptions() {
  const auto spoiled = [](int threads) {
    parallel_for(100, threads, [](int64_t i) {
      if (i % 10 == 3) throw std::runtime_error("task " + std::to_string(i));
    });
  };
  for (const int threads : {1, 2, 4}) {
    for (int again = 0; again < 20; ++again) check_throws<std::runtime_error>([&] { spoiled(threads); }, "exception of a task");
    check(each_once(100, threads), "the pool after an exception");
  }
  check_throws<std::runtime_error>([&] { parallel_for(4, 2, [&](int64_t) { spoiled(2); }); }, "exception of a nested task");
  check(each_once(100, 2), "the pool after a nested exception");
}

void cancelled() {
  for (const int threads : {1, 2}) {
    std::atomic<int> started{0};
    const auto task = [&](int64_t) {
      started.fetch_add(1);
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    };
    check_throws<Cancelled>([&] { parallel_for(1000, threads, task, [] { return true; }); }, "interrupted");
    check(started.load() < 500, "no further task after an interruption");
    check(each_once(100, threads), "the pool after an interruption");
  }
}

void callers_at_once() {
  std::atomic<int> good{0};
  std::vector<std::thread> callers;
  for (int k = 0; k < 3; ++k) {
    callers.emplace_back([&] {
      for (int again = 0; again < 50; ++again) good.fetch_add(each_once(20, 2));
    });
  }
  for (std::thread& caller : callers) caller.join();
  check(good.load() == 150, "several callers at once");
}

// Loops of a team whose parts wait for parts with smaller numbers, as the chase does, and plain data handed from loop to loop.
void team(int threads) {
  constexpr int64_t kParts = 64;
  const std::function<bool()> never;
  std::vector<int64_t> sums(kParts), totals;
  bool ranks = true;
  Team::run(threads, never, [&](Team& t) {
    std::vector<std::atomic<int>> used(static_cast<std::size_t>(t.size()));
    for (int64_t loop = 0; loop < 200; ++loop) {
      std::vector<std::atomic<bool>> done(kParts);
      t.each(kParts, [&](int64_t i, int rank) {
        used[static_cast<std::size_t>(rank)].fetch_add(1);
        Patience patience;
        while (i > 0 && !done[static_cast<std::size_t>(i - 1)].load()) patience.pause();
        const std::size_t at = static_cast<std::size_t>(i);
        sums[at] = i == 0 ? loop : sums[at - 1] + i;
        done[at].store(true);
      });
      totals.push_back(sums.back());
    }
    int64_t all = 0;
    for (const auto& u : used) all += u.load();
    ranks = all == 200 * kParts;
  });
  bool right = totals.size() == 200;
  for (std::size_t loop = 0; right && loop < totals.size(); ++loop) {
    right = totals[loop] == static_cast<int64_t>(loop) + kParts * (kParts - 1) / 2;
  }
  check(right && ranks, "team of " + std::to_string(threads));
}

void teams() {
  for (const int threads : {1, 2, 3}) team(threads);
  // inside a task, where no helper can be had
  std::atomic<int> ran{0};
  parallel_for(4, 2, [&](int64_t) { Team::run(2, {}, [&](Team& t) { t.each(10, [&](int64_t, int) { ran.fetch_add(1); }); }); });
  check(ran.load() == 40, "team inside a task");
  for (const int threads : {1, 2, 3}) {
    bool after = false;  // the team is whole again after a part has thrown
    Team::run(threads, {}, [&](Team& t) {
      for (int loop = 0; loop < 50; ++loop) {
        const auto failing = [](int64_t i, int) {
          if (i % 7 == 3) throw std::bad_alloc{};
        };
        check_throws<std::bad_alloc>([&] { t.each(40, failing); }, "part that throws, team of " + std::to_string(threads));
      }
      std::atomic<int> parts{0};
      t.each(40, [&](int64_t, int) { parts.fetch_add(1); });
      after = parts.load() == 40;
    });
    check(after, "team after exceptions");
  }
  const std::function<bool()> yes = [] { return true; };
  const auto endless = [&] {
    Team::run(2, yes, [](Team& t) {
      for (;;) {
        t.each(2, [](int64_t, int) { std::this_thread::sleep_for(std::chrono::milliseconds(1)); });
        t.check();
      }
    });
  };
  check_throws<Cancelled>(endless, "team interrupted");
  team(2);
}

}  // namespace

void test_threads() {
  every_task_once();
  nested();
  exceptions();
  cancelled();
  callers_at_once();
  teams();
  check(runnable_levels().front() == "baseline", "levels start with baseline");
  for (const std::string& name : runnable_levels()) check(level_name(find_level(name)) == name, "level " + name);
  check_throws<std::invalid_argument>([] { find_level("sse9"); }, "unknown level");
}

}  // namespace sf::tests
