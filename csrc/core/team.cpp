#include "core/team.h"

#include <thread>
#include <utility>

#include "core/parallel.h"

#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#endif

namespace sf {

void Patience::pause() {
  constexpr int kSpins = 4000;  // some tens of microseconds: the serial stretches between loops are of that order
  if (++spins_ > kSpins) {
    std::this_thread::yield();
    return;
  }
#if defined(__x86_64__) || defined(_M_X64)
  _mm_pause();
#endif
}

void Team::run(int threads, const std::function<bool()>& interrupted, const std::function<void(Team&)>& lead) {
  const int size = threads > 0 ? threads : default_threads();
  Team team(size, interrupted);
  if (size == 1) {
    lead(team);
    return;
  }
  // Whoever waits for the end of this call leads. It always gets a task: a helper keeps the one it took until the leader is done.
  const std::thread::id caller = std::this_thread::get_id();
  bool led = false;  // the caller's own
  parallel_for(size, size, [&](std::int64_t) {
    if (std::this_thread::get_id() != caller) {
      team.help();
    } else if (!led) {
      led = true;
      struct Over {
        Team& team;
        ~Over() { team.over_.store(true); }
      } over{team};
      lead(team);
    }
  });
}

void Team::check() {
  if (!interrupted_ || std::chrono::steady_clock::now() - asked_ < std::chrono::milliseconds(100)) return;
  if (interrupted_()) throw Cancelled{};
  asked_ = std::chrono::steady_clock::now();
}

void Team::work(int rank) {
  try {
    for (std::int64_t i = next_.fetch_add(1); i < n_; i = next_.fetch_add(1)) call_(context_, i, rank);
  } catch (...) {
    const std::lock_guard<std::mutex> hold(error_lock_);
    if (!error_) error_ = std::current_exception();
    next_.store(n_);
  }
}

void Team::open(Call call, const void* context, std::int64_t n) {
  call_ = call;
  context_ = context;
  n_ = n;
  next_.store(0);
  loop_.fetch_add(1);
  work(0);
  loop_.fetch_add(1);
  Patience patience;
  while (inside_.load() != 0) patience.pause();
  if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
}

void Team::help() {
  const int rank = 1 + helpers_.fetch_add(1);
  std::uint64_t done = 0;
  Patience patience;
  while (!over_.load()) {
    const std::uint64_t seen = loop_.load();
    if (seen == done || seen % 2 == 0) {
      patience.pause();
      continue;
    }
    // Between the two reads the loop may close, and another may open: only then is the number different.
    inside_.fetch_add(1);
    if (loop_.load() == seen) {
      work(rank);
      done = seen;
      patience = Patience{};
    }
    inside_.fetch_sub(1);
  }
}

}  // namespace sf
