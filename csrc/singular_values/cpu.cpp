#include <algorithm>

#include "core/parallel.h"
#include "core/scratch.h"
#include "singular_values/condensed.h"

namespace sf {

SF_LEVEL_TABLE(LaneLoops, lane_loops)

// Small matrices, one per lane; several blocks from the entries to the values in one task.
void by_lanes(const Matrices& a, double* s, const SingularValueOptions& options, SingularValueStages* stages) {
  const LaneLoops& loops = lane_loops(options.level);
  const bool high = options.accuracy == Accuracy::high;
  const std::int64_t m = a.rows, n = a.cols, lanes = loops.lanes, block = n * lanes;
  // several blocks take turns where they fit into L1 together
  const std::int64_t together = m * n <= 256 ? kMaxBlocks : m * n <= 1024 ? 2 : 1;
  const std::int64_t packed = m * n * lanes, work = 2 * (m + n) * lanes;
  const std::int64_t blocks = (a.batch + lanes - 1) / lanes, threads = options.threads > 0 ? options.threads : default_threads();
  const std::int64_t at_once = std::clamp<std::int64_t>(blocks / (4 * threads), 1, kMaxBlocks);
  const std::size_t reducing = static_cast<std::size_t>(together * (packed + work));
  Scratch scratch(2 * kMaxBlocks * static_cast<std::size_t>(block) + std::max(reducing, solve_work(n, loops.lanes, high)));
  const auto task = [&](std::int64_t t) {
    Watch watch(stages);
    const Scratch::Lease lease(scratch);
    const std::int64_t first = t * at_once, count = std::min(at_once, blocks - first);
    int exponents[kMaxBlocks * kMostLanes];
    double *d = lease.data(), *e = d + kMaxBlocks * block, *rest = e + kMaxBlocks * block;
    for (std::int64_t done = 0; done < count; done += together) {
      const int now = static_cast<int>(std::min(together, count - done));
      for (int b = 0; b < now; ++b) {
        loops.pack(a, (first + done + b) * lanes, rest + b * packed, exponents + (done + b) * lanes);
      }
      watch.lap(&SingularValueStages::pack);
      loops.bidiagonalize(rest, m, n, now, d + done * block, e + done * block, rest + together * packed);
      watch.lap(&SingularValueStages::reduce);
    }
    for (std::int64_t b = 0; b < count; ++b) {
      double *db = d + b * block, *eb = e + b * block;
      if (!scaled_when_packed(a.dtype)) loops.rescale(db, eb, n, exponents + b * lanes);
      if (!high) loops.square(db, eb, n, db, eb);
    }
    const std::int64_t matrices = std::min(count * lanes, a.batch - first * lanes);
    solve_blocks(loops, d, e, n, matrices, exponents, high, s + first * lanes * n, rest, watch);
  };
  parallel_for((blocks + at_once - 1) / at_once, options.threads, task, options.interrupted);
}

// Whether matrices share vectors. Tall ones are better squared, or reduced to R, by themselves: fewer flops, and shorter sums.
static bool small(std::int64_t m, std::int64_t n, Accuracy accuracy) {
  if (n > 64 || m > 16 * n) return false;
  return accuracy == Accuracy::high ? m <= 4 * n : n < 24 || 2 * m <= 3 * n;
}

void singular_values(Matrices a, double* s, const SingularValueOptions& options, SingularValueStages* stages) {
  if (a.rows < a.cols) {
    std::swap(a.rows, a.cols);
    std::swap(a.row_stride, a.col_stride);
  }
  if (a.batch == 0 || a.cols == 0) return;
  if (a.cols > kOneStage) {
    two_stages(a, s, options, stages);
  } else if (small(a.rows, a.cols, options.accuracy)) {
    by_lanes(a, s, options, stages);
  } else {
    one_stage(a, s, options, stages);
  }
}

}  // namespace sf
