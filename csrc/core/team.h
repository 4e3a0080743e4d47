// Threads that work on one matrix together: a leader runs the algorithm, helpers take parts of each of its loops.
#pragma once
#include <atomic>
#include <chrono>
#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>

namespace sf {

// Team::run calls lead(team) on the calling thread. Inside it, team.each(n, part) calls part(i, rank) for i = 0 ... n-1, each once,
// taken in ascending order by the leader (rank 0) and by whichever helpers have come (1 ... size()-1); it returns when all are done.
// No helper is ever waited for that has not come: where the pool lends none, the leader does everything. So parts may wait for parts
// with smaller numbers, which are done or running, and for nothing else.
//
// Helpers spin between loops for some microseconds, then yield. The first exception of a part ends its loop, the parts not yet begun
// left out, and is thrown again by each(); a part that others wait for must not throw.
class Team {
 public:
  static void run(int threads, const std::function<bool()>& interrupted, const std::function<void(Team&)>& lead);

  template <class Part>
  void each(std::int64_t n, const Part& part) {
    if (size_ == 1 || n <= 1) {
      for (std::int64_t i = 0; i < n; ++i) part(i, 0);
      return;
    }
    open([](const void* context, std::int64_t i, int rank) { (*static_cast<const Part*>(context))(i, rank); }, &part, n);
  }

  // Asks `interrupted` about every 100 ms and throws Cancelled where it says true; for the leader, between loops.
  void check();

  int size() const { return size_; }  // the leader and the helpers that may come

 private:
  using Call = void (*)(const void* context, std::int64_t i, int rank);

  Team(int size, const std::function<bool()>& interrupted) : size_(size), interrupted_(interrupted) {}
  void open(Call call, const void* context, std::int64_t n);
  void work(int rank);
  void help();

  const int size_;
  const std::function<bool()>& interrupted_;
  std::chrono::steady_clock::time_point asked_ = std::chrono::steady_clock::now();

  Call call_ = nullptr;
  const void* context_ = nullptr;
  std::int64_t n_ = 0;
  std::mutex error_lock_;
  std::exception_ptr error_;
  alignas(64) std::atomic<std::int64_t> next_{0};
  alignas(64) std::atomic<std::uint64_t> loop_{0};  // odd while a loop is open to helpers
  alignas(64) std::atomic<int> inside_{0};          // helpers that look at the open loop
  std::atomic<int> helpers_{0};
  std::atomic<bool> over_{false};
};

// Waiting for another thread of the team: pause() in a loop until what is awaited is seen.
class Patience {
 public:
  void pause();

 private:
  int spins_ = 0;
};

}  // namespace sf
