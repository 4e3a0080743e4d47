// Our own threads: tasks of one op call spread over a small pool.
#pragma once
#include <cstdint>
#include <exception>
#include <functional>

namespace sf {

// CPUs this process may use: its affinity mask, cut to the cgroup's CPU quota (rounded up), at least 1.
int default_threads();

struct Cancelled : std::exception {
  const char* what() const noexcept override { return "interrupted"; }
};

// Calls task(0) ... task(n_tasks - 1), each once, in any order, on up to `threads` threads (0: default_threads()), the
// calling one among them. Tasks must write to disjoint places, so that nothing depends on the number of threads.
//
// The pool is created at the first call, and anew in a process that was forked from one that had a pool (threads do not
// survive fork). A call made while the pool is busy, from another thread or from inside a task, runs on its own thread.
// `interrupted`, where given, is asked on the calling thread about every 100 ms; when it says true no further task is
// started and Cancelled is thrown. The first exception of a task is rethrown here.
void parallel_for(std::int64_t n_tasks, int threads, const std::function<void(std::int64_t)>& task,
                  const std::function<bool()>& interrupted = {});

}  // namespace sf
