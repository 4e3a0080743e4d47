#include "singular_values/condensed.h"

#include <algorithm>
#include <cmath>
#include <mutex>

#include "core/parallel.h"
#include "core/scratch.h"

namespace sf {

SF_LEVEL_TABLE(LaneLoops, lane_loops)

namespace {
std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }
}  // namespace

int exponent_of(double largest) {
  if (std::isnan(largest)) return kNotFinite;
  int exponent = 0;
  if (largest > 0.0) (void)std::frexp(largest, &exponent);
  return exponent;
}

void add(const SingularValueStages& part, SingularValueStages* total) {
  static std::mutex lock;
  const std::lock_guard<std::mutex> hold(lock);
  for (const auto stage : SingularValueStages::all) total->*stage.seconds += part.*stage.seconds;
}

Watch::~Watch() {
  if (stages_) add(here_, stages_);
}

Condensed::Condensed(std::int64_t matrices, std::int64_t size, int width)
    : batch(matrices),
      n(size),
      lanes(width),
      blocks(ceil_div(matrices, width)),
      first(static_cast<std::size_t>(blocks * n * width)),
      second(first),
      exponents(static_cast<std::size_t>(blocks * width)) {}

std::size_t solve_work(std::int64_t n, int lanes, bool high) { return static_cast<std::size_t>(high ? 3 * kMaxBlocks * n * lanes : 0) + 8; }

void solve_blocks(const LaneLoops& loops, double* d, double* e, std::int64_t n, std::int64_t matrices, const int* exponents, bool high,
                  double* s, double* work, Watch& watch) {
  const std::int64_t block_size = n * loops.lanes;
  const int blocks = static_cast<int>(ceil_div(matrices, loops.lanes));
  unsigned failed[kMaxBlocks];
  double* values = d;
  if (high) {
    values = work;
    loops.qd(d, e, n, blocks, values, work + kMaxBlocks * block_size, failed);
  } else {
    loops.root_free_qr(d, e, n, blocks, failed);
  }
  loops.sort(values, n, blocks);
  for (int b = 0; b < blocks; ++b) {
    const std::int64_t first = b * loops.lanes, used = std::min<std::int64_t>(loops.lanes, matrices - first);
    loops.finish(values + b * block_size, n, exponents + first, static_cast<int>(used), s + first * n);
    for (int lane = 0; high && lane < used; ++lane) {
      const int exponent = exponents[first + lane];
      if (!(failed[b] >> lane & 1u) || exponent == kNotFinite) continue;
      double *found = work + kMaxBlocks * block_size, *own = s + (first + lane) * n;  // not needed any longer
      loops.bisect(d + b * block_size + lane, e + b * block_size + lane, loops.lanes, n, found, found + n);
      for (std::int64_t k = 0; k < n; ++k) own[k] = std::ldexp(found[n - 1 - k], exponent);
    }
  }
  watch.lap(&SingularValueStages::solve);
}

void solve(Condensed& c, bool high, double* s, const SingularValueOptions& options, SingularValueStages* stages) {
  const LaneLoops& loops = lane_loops(options.level);
  Scratch scratch(solve_work(c.n, c.lanes, high));
  const std::int64_t at_once = kMaxBlocks * c.lanes;
  const auto task = [&](std::int64_t t) {
    Watch watch(stages);
    const std::int64_t first = t * at_once;
    const Scratch::Lease lease(scratch);
    solve_blocks(loops, c.first.data() + first * c.n, c.second.data() + first * c.n, c.n, std::min(at_once, c.batch - first),
                 c.exponents.data() + first, high, s + first * c.n, lease.data(), watch);
  };
  parallel_for(ceil_div(c.batch, at_once), options.threads, task, options.interrupted);
}

}  // namespace sf
