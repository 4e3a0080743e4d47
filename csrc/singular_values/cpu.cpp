#include <algorithm>

#include "core/parallel.h"
#include "core/scratch.h"
#include "singular_values/condensed.h"

namespace sf {

SF_LEVEL_TABLE(LaneLoops, lane_loops)

// Small matrices, one per lane.
void by_lanes(const Matrices& a, double* s, const SingularValueOptions& options, SingularValueStages* stages) {
  const LaneLoops& loops = lane_loops(options.level);
  const bool high = options.accuracy == Accuracy::high;
  const std::int64_t m = a.rows, n = a.cols;
  Condensed c(a.batch, n, loops.lanes);
  // several blocks take turns where they fit into L1 together
  const int together = m * n <= 256 ? kMaxBlocks : m * n <= 1024 ? 2 : 1;
  const std::int64_t packed = m * n * loops.lanes, work = 2 * (m + n) * loops.lanes;
  Scratch scratch(static_cast<std::size_t>(together * (packed + work)));
  parallel_for((c.blocks + together - 1) / together, options.threads,
               [&](std::int64_t task) {
                 Watch watch(stages);
                 const Scratch::Lease lease(scratch);
                 const std::int64_t first = task * together;
                 const int blocks = static_cast<int>(std::min<std::int64_t>(together, c.blocks - first));
                 for (int b = 0; b < blocks; ++b) {
                   loops.pack(a, (first + b) * loops.lanes, lease.data() + b * packed, c.exponents.data() + (first + b) * loops.lanes);
                 }
                 watch.lap(&SingularValueStages::pack);
                 loops.bidiagonalize(lease.data(), m, n, blocks, c.d(first), c.e(first), lease.data() + together * packed);
                 for (int b = 0; b < blocks; ++b) {
                   double *d = c.d(first + b), *e = c.e(first + b);
                   if (!scaled_when_packed(a.dtype)) loops.rescale(d, e, n, c.exponents.data() + (first + b) * loops.lanes);
                   if (!high) loops.square(d, e, n, d, e);
                 }
                 watch.lap(&SingularValueStages::reduce);
               },
               options.interrupted);
  solve(c, high, s, options, stages);
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
