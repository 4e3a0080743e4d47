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

int Condensed::used(std::int64_t block) const { return static_cast<int>(std::min<std::int64_t>(lanes, batch - block * lanes)); }

void solve(Condensed& c, bool high, double* s, const SingularValueOptions& options, SingularValueStages* stages) {
  const LaneLoops& loops = lane_loops(options.level);
  const std::int64_t n = c.n, block_size = n * c.lanes;
  Scratch scratch(static_cast<std::size_t>(high ? 2 * kMaxBlocks * block_size + 4 * n : 0) + 8);
  const auto task = [&](std::int64_t t) {
    Watch watch(stages);
    const std::int64_t first = t * kMaxBlocks;
    const int blocks = static_cast<int>(std::min<std::int64_t>(kMaxBlocks, c.blocks - first));
    unsigned failed[kMaxBlocks], doubtful[kMaxBlocks];
    const Scratch::Lease lease(scratch);
    double *diagonal = c.d(first), *off2 = c.e(first);
    if (high) {
      diagonal = lease.data();
      off2 = diagonal + kMaxBlocks * block_size;
      for (int b = 0; b < blocks; ++b) loops.square(c.d(first + b), c.e(first + b), n, diagonal + b * block_size, off2 + b * block_size);
    }
    loops.root_free_qr(diagonal, off2, n, blocks, failed);
    watch.lap(&SingularValueStages::solve);
    if (high) {
      for (int b = 0; b < blocks; ++b) doubtful[b] = (1u << c.lanes) - 1u;
      loops.newton(c.d(first), c.e(first), n, diagonal, blocks, doubtful);
      bool more = false;
      for (int b = 0; b < blocks; ++b) more = more || doubtful[b];
      // the second step's size tells whether the first one did its work
      if (more) loops.newton(c.d(first), c.e(first), n, diagonal, blocks, doubtful);
      for (int b = 0; b < blocks; ++b) doubtful[b] |= failed[b];
    }
    loops.sort(diagonal, n, blocks);
    for (int b = 0; b < blocks; ++b) {
      const std::int64_t i = (first + b) * c.lanes;
      loops.finish(diagonal + b * block_size, n, c.exponents.data() + i, c.used(first + b), s + i * n);
    }
    if (high) {
      double* values = off2;  // no longer needed
      for (int b = 0; b < blocks; ++b) {
        for (int lane = 0; lane < c.used(first + b); ++lane) {
          const std::int64_t i = (first + b) * c.lanes + lane;
          if (!(doubtful[b] >> lane & 1u)) continue;
          loops.bisect(c.d(first + b) + lane, c.e(first + b) + lane, c.lanes, n, values, values + n);
          const int exponent = c.exponents[static_cast<std::size_t>(i)];
          if (exponent == kNotFinite) continue;
          for (std::int64_t k = 0; k < n; ++k) s[i * n + k] = std::ldexp(values[n - 1 - k], exponent);
        }
      }
    }
    watch.lap(&SingularValueStages::refine);
  };
  parallel_for(ceil_div(c.blocks, kMaxBlocks), options.threads, task, options.interrupted);
}

}  // namespace sf
