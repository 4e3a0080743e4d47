#include "singular_values/two_stage.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <vector>

#include "singular_values/dense.h"
#include "singular_values/two_stage_parts.h"

namespace sf {

SF_LEVEL_TABLE(DenseLoops, dense_loops)
SF_LEVEL_TABLE(TwoStageLoops, two_stage_loops)

namespace {

// rows of A between two visits to G: their pack is O(n) memory, G is read and written once for each
constexpr std::int64_t kGramRows = 384;
constexpr std::int64_t kLeastPanels = 4;     // panels of G in one task, at least
constexpr std::int64_t kGramPanels = 144;    // rows of G in one task, at most
constexpr std::int64_t kDirectOrder = 512;   // up to this, tridiagonal at once: the triangle is in L2, or nearly
constexpr std::int64_t kNarrowOrder = 1536;  // up to this, a band of 16: the panels and the chase cost more than wider products save
constexpr std::int64_t kPartRows = 2048;     // rows of a tall matrix summed up by themselves
constexpr std::int64_t kPartsAtOnce = 32;    // between two questions whether to stop
constexpr std::int64_t kReadRows = 8;        // rows of A converted at a time

}  // namespace

Band::Band(std::int64_t order, std::int64_t width, bool symmetric)
    : n(order), b(width), ld((symmetric ? 2 : 3) * width + 8), diagonal(symmetric ? 0 : 2 * width), a((order + 3 * width + 1) * ld) {
  std::memset(a.get(), 0, static_cast<std::size_t>((order + 3 * width + 1) * ld) * sizeof(double));
}

namespace {

// How G comes about: doubles, or single precision.
template <class Entry>
struct GramKernel {
  std::int64_t width;
  void (*pack)(const double* p, std::int64_t rows, std::int64_t ldp, std::int64_t n, std::int64_t k, std::int64_t depth, Entry* pack);
  void (*gram)(const Entry* pack, std::int64_t depth, std::int64_t n, std::int64_t first, std::int64_t end, bool fresh, double* g,
               std::int64_t ldg);
};

template <class Entry>
std::int64_t doubles_for(std::int64_t entries) {
  return (entries * static_cast<std::int64_t>(sizeof(Entry)) + 7) / 8;
}

// Tall and narrow: each thread has a pack and a G of its own, so that none has to fetch what another has packed. Parts are added up in
// their order, whoever comes first.
template <class Entry>
void gram_by_parts(const RowSource& rows, std::int64_t m, std::int64_t n, double* g, std::int64_t ldg, const GramKernel<Entry>& kernel,
                   Team& team) {
  const std::int64_t panels = blocks_of(n, kernel.width), ld = (n + 7) / 8 * 8, size = n * ldg;
  const std::int64_t depth_most = kGramRows / 4, own_pack = doubles_for<Entry>(panels * kernel.width * depth_most),
                     own_read = kReadRows * ld;
  const Doubles memory(team.size() * (own_pack + own_read + size));
  for (std::int64_t i = 0; i < n; ++i) std::fill(g + i * ldg, g + i * ldg + i + 1, 0.0);
  const std::int64_t parts = blocks_of(m, kPartRows);
  for (std::int64_t from = 0; from < parts; from += kPartsAtOnce) {
    team.check();
    std::atomic<std::int64_t> turn{0};
    team.each(std::min(kPartsAtOnce, parts - from), [&](std::int64_t part, int rank) {
      double *sums = memory + rank * (own_pack + own_read + size), *read = sums + size + own_pack;
      Entry* pack = reinterpret_cast<Entry*>(sums + size);
      const std::int64_t first = (from + part) * kPartRows, end = std::min(m, first + kPartRows);
      for (std::int64_t k = first; k < end; k += depth_most) {
        const std::int64_t depth = std::min(depth_most, end - k);
        for (std::int64_t r = 0; r < depth; r += kReadRows) {
          const std::int64_t count = std::min(kReadRows, depth - r);
          rows(k + r, count, read, ld);
          kernel.pack(read, count, ld, n, r, depth, pack);
        }
        kernel.gram(pack, depth, n, 0, panels, k == first, sums, ldg);
      }
      Patience patience;
      while (turn.load() != part) patience.pause();
      for (std::int64_t i = 0; i < n; ++i) {
        for (std::int64_t j = 0; j <= i; ++j) g[i * ldg + j] += sums[i * ldg + j];
      }
      turn.store(part + 1);
    });
  }
}

// All threads on the same rows, each on its own rows of G.
template <class Entry>
void gram_by_rows_of_g(const RowSource& rows, std::int64_t m, std::int64_t n, double* g, std::int64_t ldg, const GramKernel<Entry>& kernel,
                       Team& team) {
  const std::int64_t panels = blocks_of(n, kernel.width), depth_most = std::min(kGramRows, m), ld = (n + 7) / 8 * 8;
  // the triangle in tasks of whole rows: the last and longest rows first, then smaller and smaller tasks
  std::vector<std::int64_t> ends{panels};
  while (ends.back() > 0) {
    const std::int64_t end = ends.back(), share = blocks_of(end, 2 * team.size());
    ends.push_back(
        std::max<std::int64_t>(0, end - std::clamp<std::int64_t>(share, kLeastPanels, std::max(kLeastPanels, kGramPanels / kernel.width))));
  }
  const Doubles memory(doubles_for<Entry>(panels * kernel.width * depth_most)), read(team.size() * kReadRows * ld);
  Entry* pack = reinterpret_cast<Entry*>(memory.get());
  for (std::int64_t first = 0; first < m; first += kGramRows) {
    team.check();
    const std::int64_t depth = std::min(kGramRows, m - first);
    team.each(blocks_of(depth, kReadRows), [&](std::int64_t k, int rank) {
      const std::int64_t from = k * kReadRows, count = std::min(kReadRows, depth - from);
      double* own = read + rank * kReadRows * ld;
      rows(first + from, count, own, ld);
      kernel.pack(own, count, ld, n, from, depth, pack);
    });
    team.each(static_cast<std::int64_t>(ends.size()) - 1, [&](std::int64_t t, int) {
      const auto at = static_cast<std::size_t>(t);
      kernel.gram(pack, depth, n, ends[at + 1], ends[at], first == 0, g, ldg);
    });
  }
}

template <class Entry>
void gram_in(const RowSource& rows, std::int64_t m, std::int64_t n, double* g, std::int64_t ldg, const GramKernel<Entry>& kernel,
             Team& team) {
  if (n <= kDirectOrder && m >= 2 * kPartRows) {
    gram_by_parts(rows, m, n, g, ldg, kernel, team);
  } else {
    gram_by_rows_of_g(rows, m, n, g, ldg, kernel, team);
  }
}

}  // namespace

void gram(const RowSource& rows, std::int64_t m, std::int64_t n, double* g, std::int64_t ldg, const TwoStageOptions& options) {
  if (n == 0) return;
  if (m == 0) {
    for (std::int64_t i = 0; i < n; ++i) std::fill(g + i * ldg, g + i * ldg + i + 1, 0.0);
    return;
  }
  const TwoStageLoops& loops = two_stage_loops(options.level);
  StageWatch watch(options.seconds);
  Team::run(options.threads, options.interrupted, [&](Team& team) {
    if (options.single) {
      gram_in<float>(rows, m, n, g, ldg, {loops.single_width, loops.pack_transposed_single, loops.gram_single}, team);
    } else {
      gram_in<double>(rows, m, n, g, ldg, {loops.width, loops.pack_transposed, loops.gram}, team);
    }
  });
  watch.lap(&TwoStageSeconds::gram);
}

void symmetric_eigenvalues(double* g, std::int64_t n, std::int64_t ldg, double* values, const TwoStageOptions& options) {
  if (n == 0) return;
  const TwoStageLoops& loops = two_stage_loops(options.level);
  Team::run(options.threads, options.interrupted, [&](Team& team) {
    std::vector<double> d, e;
    const auto reserve = [&] {  // not before the band: it takes the memory that the pack of gram() left
      d.resize(static_cast<std::size_t>(n));
      e.resize(static_cast<std::size_t>(n));
    };
    StageWatch watch(options.seconds);
    if (n <= kDirectOrder && options.band == 0) {
      reserve();
      const Doubles work(tridiagonalize_work(n));
      dense_loops(options.level).tridiagonalize(g, n, ldg, d.data(), e.data(), work.get());
      watch.lap(&TwoStageSeconds::panels);
    } else {
      Band band(n, options.band > 0 ? options.band : n <= kNarrowOrder ? 16 : 32, true);
      symmetric_to_band(g, n, ldg, band, loops, team, options.seconds);
      watch.restart();
      chase(band, true, loops, team);
      reserve();
      for (std::int64_t i = 0; i < n; ++i) {
        d[static_cast<std::size_t>(i)] = band.a[i * band.ld];
        e[static_cast<std::size_t>(i)] = band.a[i * band.ld + 1];
      }
      watch.lap(&TwoStageSeconds::chase);
    }
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
