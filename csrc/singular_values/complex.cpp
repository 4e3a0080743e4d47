// Complex matrices through the Hermitian Gram matrix, each on one thread.
#include <algorithm>
#include <cmath>

#include "core/parallel.h"
#include "core/require.h"
#include "core/scratch.h"
#include "singular_values/condensed.h"
#include "singular_values/dense.h"

namespace sf {

SF_LEVEL_TABLE(LaneLoops, lane_loops)
SF_LEVEL_TABLE(DenseLoops, dense_loops)

void complex_singular_values(Matrices re, Matrices im, double* s, const SingularValueOptions& options, SingularValueStages* stages) {
  constexpr std::int64_t kPanel = 256;  // rows converted at a time
  for (Matrices* a : {&re, &im}) {
    if (a->rows >= a->cols) continue;  // A^T has the values of A
    std::swap(a->rows, a->cols);
    std::swap(a->row_stride, a->col_stride);
  }
  if (re.batch == 0 || re.cols == 0) return;
  const LaneLoops& lanes = lane_loops(options.level);
  const DenseLoops& dense = dense_loops(options.level);
  const std::int64_t m = re.rows, n = re.cols, ld = padded_columns(n), panel = std::min(m, kPanel);
  const std::int64_t square = n * ld, rows_size = panel * ld, work = tridiagonalize_complex_work(n);
  Condensed c(re.batch, n, lanes.lanes);
  Scratch scratch(static_cast<std::size_t>(2 * square + 2 * rows_size + work + 2 * ld));
  const auto task = [&](std::int64_t i) {
    Watch watch(stages);
    const double one = lanes.largest_entry(re, i, 0, m), other = lanes.largest_entry(im, i, 0, m);
    const int exponent = exponent_of(std::isnan(one) ? one : std::isnan(other) ? other : std::max(one, other));
    c.exponents[static_cast<std::size_t>(i)] = exponent;
    if (exponent == kNotFinite) return;
    const Scratch::Lease lease(scratch);
    double *g_re = lease.data(), *g_im = g_re + square, *p_re = g_im + square, *p_im = p_re + rows_size;
    double *w = p_im + rows_size, *d = w + work, *e = d + ld;
    std::fill_n(g_re, 2 * square, 0.0);
    for (std::int64_t first = 0; first < m; first += panel) {
      const std::int64_t rows = std::min(panel, m - first);
      lanes.load_rows(re, i, first, rows, exponent, p_re, ld);
      lanes.load_rows(im, i, first, rows, exponent, p_im, ld);
      watch.lap(&SingularValueStages::pack);
      dense.gram_complex(p_re, p_im, rows, ld, n, g_re, g_im, ld);
      watch.lap(&SingularValueStages::gram);
    }
    dense.tridiagonalize_complex(g_re, g_im, n, ld, d, e, w);
    double *first = c.first.data() + c.place(i), *second = c.second.data() + c.place(i);
    for (std::int64_t k = 0; k < n; ++k) first[k * c.lanes] = d[k];
    for (std::int64_t k = 0; k + 1 < n; ++k) second[k * c.lanes] = e[k] * e[k];
    watch.lap(&SingularValueStages::reduce);
  };
  parallel_for(re.batch, options.threads, task, options.interrupted);
  solve(c, false, s, options, stages);
}

}  // namespace sf
