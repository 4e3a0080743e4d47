// Second stage, driven: sweeps in groups, the groups pipelined over the threads of the team.
//
// Sweep s+1 may do step k when sweep s has done step k+1. Within a group the sweeps follow one another at that distance, so that a
// block is worked on by the whole group while it is in the cache; between groups a counter of the steps of a group's last sweep says
// how far the next one may go. Every block sees the same operations in the same order whatever the number of threads.
#include <algorithm>
#include <atomic>
#include <limits>

#include "singular_values/two_stage_parts.h"

namespace sf {

void chase(Band& band, bool symmetric, const TwoStageLoops& loops, Team& team) {
  const std::int64_t n = band.n, b = band.b, sweeps = n - 2;
  if (sweeps <= 0) return;
  const ChaseLoops& step = symmetric ? (b == 16 ? loops.symmetric_chase_16 : loops.symmetric_chase_32)
                                     : (b == 16 ? loops.general_chase_16 : loops.general_chase_32);
  const std::int64_t size = n >= 2048 ? 16 : 8, groups = blocks_of(sweeps, size), state = 2 * b + 8;
  const Doubles states(team.size() * size * state);
  std::vector<std::atomic<std::int64_t>> done(static_cast<std::size_t>(groups));
  for (auto& d : done) d.store(0, std::memory_order_relaxed);
  constexpr std::int64_t kBatch = 64;  // groups between two questions whether to stop
  for (std::int64_t first = 0; first < groups; first += kBatch) {
    team.check();
    team.each(std::min(kBatch, groups - first), [&](std::int64_t task, int rank) {
      const std::int64_t g = first + task, start = g * size, count = std::min(size, sweeps - start);
      const std::atomic<std::int64_t>* before = task > 0 ? &done[static_cast<std::size_t>(g - 1)] : nullptr;
      std::atomic<std::int64_t>& mine = done[static_cast<std::size_t>(g)];
      const std::int64_t longest = blocks_of(n - 1 - start, b);
      for (std::int64_t wave = 0; wave < longest + count - 1; ++wave) {
        if (before != nullptr) {
          Patience patience;
          while (before->load(std::memory_order_acquire) < wave + 2) patience.pause();
        }
        for (std::int64_t q = std::max<std::int64_t>(0, wave - longest + 1); q < std::min(count, wave + 1); ++q) {
          const std::int64_t sweep = start + q, k = wave - q, at = sweep + 1 + k * b;
          if (at >= n) continue;
          double* own = states + (rank * size + q) * state;
          if (k == 0) step.start(band.first() + sweep * band.ld, band.ld, own);
          step.step(band.first() + at * band.ld, band.ld, at + b >= n, own);
        }
        mine.store(wave - count + 2, std::memory_order_release);
      }
      mine.store(std::numeric_limits<std::int64_t>::max(), std::memory_order_release);
    });
  }
}

}  // namespace sf
