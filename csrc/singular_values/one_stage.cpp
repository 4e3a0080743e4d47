// Matrices that fit into L2: one reduction, each matrix on one thread; the condensed matrices are solved together.
#include <algorithm>

#include "core/parallel.h"
#include "core/scratch.h"
#include "singular_values/condensed.h"
#include "singular_values/dense.h"

namespace sf {

SF_LEVEL_TABLE(LaneLoops, lane_loops)
SF_LEVEL_TABLE(DenseLoops, dense_loops)

namespace {
constexpr std::int64_t kPanel = 256;  // rows of a tall matrix converted at a time
}

void one_stage(const Matrices& a, double* s, const SingularValueOptions& options, SingularValueStages* stages) {
  const LaneLoops& lanes = lane_loops(options.level);
  const DenseLoops& dense = dense_loops(options.level);
  const bool high = options.accuracy == Accuracy::high;
  const std::int64_t m = a.rows, n = a.cols, ld = padded_columns(n);
  const bool tall = 2 * m > 3 * n;  // R first: fewer flops, and never the whole matrix
  const std::int64_t panel = high && !tall ? m : std::min(m, kPanel), square = n * ld;
  const std::int64_t work = std::max({tridiagonalize_work(n), bidiagonalize_work(m, n), qr_append_work(panel)});
  Condensed c(a.batch, n, lanes.lanes);
  Scratch scratch(static_cast<std::size_t>(square + panel * ld + work + 2 * ld));
  const auto task = [&](std::int64_t i) {
    Watch watch(stages);
    const int exponent = lanes.examine(a, i);
    c.exponents[static_cast<std::size_t>(i)] = exponent;
    if (exponent == kNotFinite) return;  // its place stays zero
    const Scratch::Lease lease(scratch);
    double *g = lease.data(), *p = g + square, *w = p + panel * ld, *d = w + work, *e = d + ld;
    watch.lap(&SingularValueStages::pack);
    if (!high || tall) {
      std::fill_n(g, square, 0.0);
      for (std::int64_t first = 0; first < m; first += panel) {
        const std::int64_t rows = std::min(panel, m - first);
        lanes.load_rows(a, i, first, rows, exponent, p, ld);
        watch.lap(&SingularValueStages::pack);
        if (high) {
          dense.qr_append(g, n, ld, p, rows, ld, w);
          watch.lap(&SingularValueStages::qr);
        } else {
          dense.gram(p, rows, ld, n, g, ld);
          watch.lap(&SingularValueStages::gram);
        }
      }
      if (high) {
        dense.bidiagonalize(g, n, n, ld, d, e, w);
      } else {
        dense.tridiagonalize(g, n, ld, d, e, w);
      }
    } else {
      lanes.load_rows(a, i, 0, m, exponent, p, ld);
      watch.lap(&SingularValueStages::pack);
      dense.bidiagonalize(p, m, n, ld, d, e, w);
    }
    double *first = c.first.data() + c.place(i), *second = c.second.data() + c.place(i);
    for (std::int64_t k = 0; k < n; ++k) first[k * c.lanes] = d[k];
    for (std::int64_t k = 0; k + 1 < n; ++k) second[k * c.lanes] = high ? e[k] : e[k] * e[k];
    watch.lap(&SingularValueStages::reduce);
  };
  parallel_for(a.batch, options.threads, task, options.interrupted);
  solve(c, high, s, options, stages);
}

}  // namespace sf
