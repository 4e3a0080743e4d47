#include "core/parallel.h"
#include "randomized_svd/one_matrix.h"

namespace sf {

SF_LEVEL_TABLE(LowRankLoops, low_rank_loops)

namespace {

// Matrices one per thread; those that are left over, where they are large, by all threads together.
template <class T>
void in_precision(const Matrices& a, const LowRankOptions& options, const LowRankResults& out) {
  constexpr std::int64_t kLarge = 1 << 19;  // entries
  const Shared<T> shared(a, options, out, low_rank_loops(options.level));
  const std::int64_t threads = options.threads > 0 ? options.threads : default_threads();
  const std::int64_t apart = a.rows * a.cols >= kLarge ? a.batch / threads * threads : a.batch;
  parallel_for(
      apart, options.threads,
      [&](std::int64_t i) { Team::run(1, options.interrupted, [&](Team& team) { OneMatrix<T>(shared, i, team).run(); }); },
      options.interrupted);
  for (std::int64_t i = apart; i < a.batch; ++i) {
    Team::run(static_cast<int>(threads), options.interrupted, [&](Team& team) { OneMatrix<T>(shared, i, team).run(); });
  }
}

}  // namespace

void randomized_svd(const Matrices& a, const LowRankOptions& options, const LowRankResults& out) {
  if (a.batch == 0 || options.rank == 0) return;
  if (works_in_double(a.dtype)) {
    in_precision<double>(a, options, out);
  } else {
    in_precision<float>(a, options, out);
  }
}

}  // namespace sf
