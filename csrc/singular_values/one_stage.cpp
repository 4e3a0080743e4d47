// Matrices that fit into L2, and tall ones whose Gram matrix or R does: one reduction, each matrix on one thread; the condensed matrices
// are solved together.
#include <algorithm>
#include <vector>

#include "core/parallel.h"
#include "core/scratch.h"
#include "singular_values/condensed.h"
#include "singular_values/dense.h"

namespace sf {

SF_LEVEL_TABLE(LaneLoops, lane_loops)
SF_LEVEL_TABLE(DenseLoops, dense_loops)

namespace {

constexpr std::int64_t kPanel = 256;  // rows of a tall matrix converted at a time

// Rows summed up by themselves before they are added to those before: rounding errors stay those of a sum of kPart terms and one of
// m / kPart terms, and the parts of a single matrix can be shared among threads. The same parts whatever the threads: the same bits.
constexpr std::int64_t kPart = 32 * kPanel;

struct Reduction {
  const Matrices& a;
  const LaneLoops& lanes;
  const DenseLoops& dense;
  bool high;
  SingularValueStages* stages;
  std::int64_t m = a.rows, n = a.cols, ld = padded_columns(n);
  bool squared = !high;
  bool tall = 2 * m > 3 * n;  // R first: fewer flops, and never the whole matrix
  std::int64_t panel = high && !tall ? m : std::min(m, kPanel);
  std::int64_t parts = squared || tall ? (m + kPart - 1) / kPart : 1;
  std::int64_t square = n * ld;
  std::int64_t work = std::max({tridiagonalize_work(n), bidiagonalize_work(panel == m ? m : n, n), qr_append_work(std::max(panel, n))});

  // Doubles of a task's memory: the square matrix, a second one for further parts, rows, work, d and e.
  std::size_t memory() const { return static_cast<std::size_t>((parts > 1 ? 2 : 1) * square + panel * ld + work + 2 * ld); }

  // The Gram matrix or R of one part of a matrix, in g.
  void reduce_part(std::int64_t matrix, std::int64_t part, int exponent, double* g, double* rows, double* w, Watch& watch) const {
    std::fill_n(g, square, 0.0);
    const std::int64_t end = std::min(m, (part + 1) * kPart);
    for (std::int64_t first = part * kPart; first < end; first += panel) {
      const std::int64_t count = std::min(panel, end - first);
      lanes.load_rows(a, matrix, first, count, exponent, rows, ld);
      watch.lap(&SingularValueStages::pack);
      if (squared) {
        dense.gram(rows, count, ld, n, g, ld);
        watch.lap(&SingularValueStages::gram);
      } else {
        dense.qr_append(g, n, ld, rows, count, ld, w);
        watch.lap(&SingularValueStages::qr);
      }
    }
  }

  // g <- what reduce_part would make of the rows of both; other is destroyed.
  void merge(double* g, double* other, double* w) const {
    if (squared) {
      for (std::int64_t k = 0; k < square; ++k) g[k] += other[k];
    } else {
      dense.qr_append(g, n, ld, other, n, ld, w);
    }
  }

  // The Gram matrix, R or (rows) the matrix itself to its place among the condensed ones.
  void condense(double* g, double* w, std::int64_t matrix, Condensed& c) const {
    double *d = w + work, *e = d + ld;
    if (squared) {
      dense.tridiagonalize(g, n, ld, d, e, w);
    } else {
      dense.bidiagonalize(g, tall ? n : m, n, ld, d, e, w);
    }
    double *first = c.first.data() + c.place(matrix), *second = c.second.data() + c.place(matrix);
    for (std::int64_t k = 0; k < n; ++k) first[k * c.lanes] = d[k];
    for (std::int64_t k = 0; k + 1 < n; ++k) second[k * c.lanes] = high ? e[k] : e[k] * e[k];
  }
};

// A matrix per task.
void reduce_apart(const Reduction& r, Condensed& c, const SingularValueOptions& options) {
  Scratch scratch(r.memory());
  const auto task = [&](std::int64_t i) {
    Watch watch(r.stages);
    const int exponent = c.exponents[static_cast<std::size_t>(i)] = exponent_of(r.lanes.largest_entry(r.a, i, 0, r.m));
    if (exponent == kNotFinite) return;  // its place stays zero
    const Scratch::Lease lease(scratch);
    double *g = lease.data(), *other = g + r.square, *rows = r.parts > 1 ? other + r.square : other, *w = rows + r.panel * r.ld;
    watch.lap(&SingularValueStages::pack);
    if (r.squared || r.tall) {
      r.reduce_part(i, 0, exponent, g, rows, w, watch);
      for (std::int64_t part = 1; part < r.parts; ++part) {
        r.reduce_part(i, part, exponent, other, rows, w, watch);
        r.merge(g, other, w);
      }
      r.condense(g, w, i, c);
    } else {
      r.lanes.load_rows(r.a, i, 0, r.m, exponent, rows, r.ld);
      watch.lap(&SingularValueStages::pack);
      r.condense(rows, w, i, c);
    }
    watch.lap(&SingularValueStages::reduce);
  };
  parallel_for(r.a.batch, options.threads, task, options.interrupted);
}

// All threads on one matrix after another, a part per task.
void reduce_together(const Reduction& r, Condensed& c, const SingularValueOptions& options) {
  Scratch scratch(r.memory());
  Scratch squares(static_cast<std::size_t>(r.parts * r.square));
  const Scratch::Lease all(squares);
  for (std::int64_t i = 0; i < r.a.batch; ++i) {
    const int exponent = c.exponents[static_cast<std::size_t>(i)] = exponent_of(r.lanes.largest_entry(r.a, i, 0, r.m));
    if (exponent == kNotFinite) continue;
    const auto task = [&](std::int64_t part) {
      Watch watch(r.stages);
      const Scratch::Lease lease(scratch);
      r.reduce_part(i, part, exponent, all.data() + part * r.square, lease.data(), lease.data() + r.panel * r.ld, watch);
    };
    parallel_for(r.parts, options.threads, task, options.interrupted);
    Watch watch(r.stages);
    const Scratch::Lease lease(scratch);
    for (std::int64_t part = 1; part < r.parts; ++part) r.merge(all.data(), all.data() + part * r.square, lease.data());
    r.condense(all.data(), lease.data(), i, c);
    watch.lap(&SingularValueStages::reduce);
  }
}

}  // namespace

void one_stage(const Matrices& a, double* s, const SingularValueOptions& options, SingularValueStages* stages) {
  const LaneLoops& lanes = lane_loops(options.level);
  const Reduction reduction{a, lanes, dense_loops(options.level), options.accuracy == Accuracy::high, stages};
  Condensed c(a.batch, a.cols, lanes.lanes);
  const int threads = options.threads > 0 ? options.threads : default_threads();
  if (reduction.parts > 1 && a.batch < 2 * threads) {
    reduce_together(reduction, c, options);
  } else {
    reduce_apart(reduction, c, options);
  }
  solve(c, reduction.high, s, options, stages);
}

}  // namespace sf
