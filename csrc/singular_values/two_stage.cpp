#include "singular_values/two_stage.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "singular_values/two_stage_parts.h"

namespace sf {

SF_LEVEL_TABLE(TwoStageLoops, two_stage_loops)

namespace {

constexpr std::int64_t kGramRows =
    384;  // rows of A between two visits to G: their pack is O(n) memory, G is read and written once for each
constexpr std::int64_t kGramPanels = 96;     // rows of G in one task
constexpr std::int64_t kNarrowOrder = 1536;  // up to this, a band of 16: the panels and the chase cost more than wider products save
constexpr std::int64_t kReadRows = 8;        // rows of A converted at a time

}  // namespace

Band::Band(std::int64_t order, std::int64_t width, bool symmetric)
    : n(order), b(width), ld((symmetric ? 2 : 3) * width + 8), diagonal(symmetric ? 0 : 2 * width), a((order + 3 * width + 1) * ld) {
  std::memset(a.get(), 0, static_cast<std::size_t>((order + 3 * width + 1) * ld) * sizeof(double));
}

void gram(const RowSource& rows, std::int64_t m, std::int64_t n, double* g, std::int64_t ldg, const TwoStageOptions& options) {
  if (n == 0) return;
  if (m == 0) {
    for (std::int64_t i = 0; i < n; ++i) std::fill(g + i * ldg, g + i * ldg + i + 1, 0.0);
    return;
  }
  const TwoStageLoops& loops = two_stage_loops(options.level);
  const std::int64_t panels = blocks_of(n, loops.width), step = kGramPanels / loops.width, depth_most = std::min(kGramRows, m);
  StageWatch watch(options.seconds);
  Team::run(options.threads, options.interrupted, [&](Team& team) {
    const std::int64_t ld = (n + 7) / 8 * 8;
    const Doubles pack(panels * loops.width * depth_most), read(team.size() * kReadRows * ld);
    for (std::int64_t first = 0; first < m; first += kGramRows) {
      team.check();
      const std::int64_t depth = std::min(kGramRows, m - first);
      team.each(blocks_of(depth, kReadRows), [&](std::int64_t k, int rank) {
        const std::int64_t from = k * kReadRows, count = std::min(kReadRows, depth - from);
        double* own = read + rank * kReadRows * ld;
        rows(first + from, count, own, ld);
        loops.pack_transposed(own, count, ld, n, from, depth, pack.get());
      });
      const std::int64_t tasks = blocks_of(panels, step);
      team.each(tasks, [&](std::int64_t t, int) {
        const std::int64_t block = (tasks - 1 - t) * step;  // longest first
        loops.gram(pack.get(), depth, n, block, std::min(block + step, panels), first == 0, g, ldg);
      });
    }
  });
  watch.lap(&TwoStageSeconds::gram);
}

void symmetric_eigenvalues(double* g, std::int64_t n, std::int64_t ldg, double* values, const TwoStageOptions& options) {
  if (n == 0) return;
  const TwoStageLoops& loops = two_stage_loops(options.level);
  Team::run(options.threads, options.interrupted, [&](Team& team) {
    Band band(n, options.band > 0 ? options.band : n <= kNarrowOrder ? 16 : 32, true);
    symmetric_to_band(g, n, ldg, band, loops, team, options.seconds);
    StageWatch watch(options.seconds);
    chase(band, true, loops, team);
    std::vector<double> d(static_cast<std::size_t>(n)), e(d);
    for (std::int64_t i = 0; i < n; ++i) {
      d[static_cast<std::size_t>(i)] = band.a[i * band.ld];
      e[static_cast<std::size_t>(i)] = band.a[i * band.ld + 1];
    }
    watch.lap(&TwoStageSeconds::chase);
    tridiagonal_eigenvalues(d.data(), e.data(), n, values, loops, team);
    watch.lap(&TwoStageSeconds::bisection);
  });
}

void square_singular_values(double* a, std::int64_t n, std::int64_t lda, double* values, const TwoStageOptions& options) {
  if (n == 0) return;
  const TwoStageLoops& loops = two_stage_loops(options.level);
  Team::run(options.threads, options.interrupted, [&](Team& team) {
    Band band(n, options.band > 0 ? options.band : n <= kNarrowOrder ? 16 : 32, false);
    general_to_band(a, n, lda, band, loops, team, options.seconds);
    StageWatch watch(options.seconds);
    chase(band, false, loops, team);
    std::vector<double> d(static_cast<std::size_t>(n)), e(d);
    for (std::int64_t i = 0; i < n; ++i) {
      d[static_cast<std::size_t>(i)] = band.first()[i * band.ld];
      e[static_cast<std::size_t>(i)] = band.first()[(i + 1) * band.ld - 1];
    }
    watch.lap(&TwoStageSeconds::chase);
    bidiagonal_singular_values(d.data(), e.data(), n, values, loops, team);
    watch.lap(&TwoStageSeconds::bisection);
  });
}

}  // namespace sf
