#include "core/parallel.h"

#include "core/torch_threads.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <fstream>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <sched.h>
#endif
#if !defined(_WIN32)
#include <unistd.h>
#endif

namespace sf {
namespace {

using Clock = std::chrono::steady_clock;

long process_id() {
#if defined(_WIN32)
  return 0;  // no fork there
#else
  return static_cast<long>(getpid());
#endif
}

// CPUs granted by the cgroup, or infinity. Version 2 first: the limits of the process's group and of all groups above it.
double cgroup_cpus() {
  double cpus = HUGE_VAL;
#if defined(__linux__)
  std::string path;
  {
    std::ifstream membership("/proc/self/cgroup");
    for (std::string line; std::getline(membership, line);) {
      if (line.rfind("0::", 0) == 0) path = line.substr(3);
    }
  }
  while (true) {
    std::ifstream limit("/sys/fs/cgroup" + path + "/cpu.max");
    std::string quota;
    double period = 0.0;
    if (limit >> quota >> period && quota != "max" && period > 0.0) cpus = std::min(cpus, std::stod(quota) / period);
    if (path.empty()) break;
    path.resize(path.find_last_of('/') == std::string::npos ? 0 : path.find_last_of('/'));
  }
  double quota = 0.0, period = 0.0;  // version 1
  std::ifstream quota_file("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"), period_file("/sys/fs/cgroup/cpu/cpu.cfs_period_us");
  if (quota_file >> quota && period_file >> period && quota > 0.0 && period > 0.0) cpus = std::min(cpus, quota / period);
#endif
  return cpus;
}

// One call of parallel_for; lives on the caller's stack.
struct Job {
  const std::function<void(std::int64_t)>& task;
  std::int64_t n_tasks;
  std::atomic<std::int64_t> next{0};
  std::mutex error_lock{};
  std::exception_ptr error{};

  void stop() { next.store(n_tasks); }

  bool run_one() {
    const std::int64_t i = next.fetch_add(1);
    if (i >= n_tasks) return false;
    try {
      task(i);
    } catch (...) {
      const std::lock_guard<std::mutex> hold(error_lock);
      if (!error) error = std::current_exception();
      stop();
    }
    return true;
  }
};

class Pool {
 public:
  const long pid = process_id();
  std::atomic<bool> busy{false};

  // Lends up to `helpers` threads to the job until finish().
  void start(Job& job, int helpers) {
    const std::lock_guard<std::mutex> hold(lock_);
    while (static_cast<int>(workers_.size()) < helpers) workers_.emplace_back([this] { work(); });
    job_ = &job;
    openings_ = helpers;
    wake_.notify_all();
  }

  void finish() {
    std::unique_lock<std::mutex> hold(lock_);
    job_ = nullptr;  // a worker that wakes late finds nothing to join
    idle_.wait(hold, [this] { return active_ == 0; });
  }

 private:
  void work() {
    std::unique_lock<std::mutex> hold(lock_);
    while (true) {
      wake_.wait(hold, [this] { return job_ != nullptr && openings_ > 0; });
      Job* job = job_;
      --openings_;
      ++active_;
      hold.unlock();
      while (job->run_one()) {
      }
      hold.lock();
      if (--active_ == 0) idle_.notify_all();
    }
  }

  std::mutex lock_;
  std::condition_variable wake_, idle_;
  std::vector<std::thread> workers_;
  Job* job_ = nullptr;
  int openings_ = 0;
  int active_ = 0;
};

// Pools are never destroyed: at exit their threads sleep, and after fork they exist only in the parent.
Pool& pool() {
  static std::atomic<Pool*> current{nullptr};
  Pool* seen = current.load();
  if (seen == nullptr || seen->pid != process_id()) {
    Pool* fresh = new Pool;
    if (current.compare_exchange_strong(seen, fresh)) return *fresh;
    delete fresh;  // another thread was quicker; this one has no workers yet
  }
  return *seen;
}

void run_on_caller(Job& job, const std::function<bool()>& interrupted) {
  Clock::time_point asked = Clock::now();
  bool cancelled = false;
  while (job.run_one()) {
    if (!interrupted || Clock::now() - asked < std::chrono::milliseconds(100)) continue;
    if ((cancelled = interrupted())) break;
    asked = Clock::now();
  }
  if (!cancelled) return;
  job.stop();
  const std::lock_guard<std::mutex> hold(job.error_lock);
  if (!job.error) job.error = std::make_exception_ptr(Cancelled{});
}

}  // namespace

int default_threads() {
  static const double quota = cgroup_cpus();
  double cpus = std::max(1u, std::thread::hardware_concurrency());
#if defined(__linux__)
  cpu_set_t mask;
  if (sched_getaffinity(0, sizeof mask, &mask) == 0) cpus = CPU_COUNT(&mask);
#endif
  return static_cast<int>(std::max(1.0, std::ceil(std::min(cpus, quota))));
}

void parallel_for(std::int64_t n_tasks, int threads, const std::function<void(std::int64_t)>& task,
                  const std::function<bool()>& interrupted) {
  Job job{task, n_tasks};
  const std::int64_t wanted = threads > 0 ? threads : default_threads();
  const int helpers = static_cast<int>(std::min<std::int64_t>(wanted, n_tasks)) - 1;
  Pool* helpers_from = helpers > 0 ? &pool() : nullptr;
  if (helpers_from != nullptr && helpers_from->busy.exchange(true)) helpers_from = nullptr;
  if (helpers_from == nullptr) {
    run_on_caller(job, interrupted);
  } else {
    struct Release {
      Pool& p;
      ~Release() {
        p.finish();
        p.busy.store(false);
      }
    } release{*helpers_from};
    struct Crew {
      Job& job;
      const std::function<bool()>& interrupted;
      const std::thread::id caller = std::this_thread::get_id();
    } crew{job, interrupted};
    const auto work = [](void* given) {
      Crew& c = *static_cast<Crew*>(given);
      if (std::this_thread::get_id() == c.caller) {
        run_on_caller(c.job, c.interrupted);
      } else {
        while (c.job.run_one()) {
        }
      }
    };
    if (!run_on_torch_threads(work, &crew, helpers + 1)) {
      helpers_from->start(job, helpers);
      run_on_caller(job, interrupted);
    }
  }
  if (job.error) std::rethrow_exception(job.error);
}

}  // namespace sf
