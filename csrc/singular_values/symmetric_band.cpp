// First stage for symmetric matrices. One step takes b columns out of the trailing matrix:
//
//   the columns, brought up to date    -> QR: V, T, R goes to the band
//   pass over the rest, tile by tile:     the update of the *last* step, A -= V W^T + W V^T, and the products Y = A V with the new V
//   W = Y T - 1/2 V (T^T (V^T Y) T)       the next pending update
//
// A tile is read and written once per step. Rows of tiles are tasks, longest first; a tile adds to the Y of its rows and to the Y of
// its columns. Of the latter sums there are classes_, row tasks r of equal r mod classes_ adding to the same one in the order of r:
// each sum is then always formed in the same order, and a task seldom has to wait for the one that adds to it before.
#include <algorithm>
#include <atomic>
#include <cstring>

#include "singular_values/two_stage_parts.h"

namespace sf {
namespace {

constexpr std::int64_t kMostClasses = 4;

class SymmetricReduction {
 public:
  SymmetricReduction(double* g, std::int64_t order, std::int64_t ldg, Band& band, const TwoStageLoops& loops, Team& team,
                     TwoStageSeconds* seconds)
      : g_(g),
        n(order),
        ldg_(ldg),
        b(band.b),
        ld(thin_ld(b)),
        width(loops.width),
        panel_(2 * b * width),
        blocks_(blocks_of(n, kBandTile)),
        band_(band),
        loops_(loops),
        team_(team),
        watch_(seconds),
        head_(blocks_of(b, width) * panel_),
        pack_(blocks_of(n, width) * panel_),
        thin_(n * ld),
        classes_(order < 1500 ? 2 : kMostClasses),
        sums_((1 + classes_) * n * ld),
        panel_work_(panel_work(n, b)),
        own_(team.size() * kBandTile * ld),
        square_(b * b * blocks_),
        small_(8 * b * b),
        done_(static_cast<std::size_t>(blocks_)) {}

  void run() {
    std::int64_t o = 0;
    for (; n - o > b; o += b) {
      team_.check();
      bring_columns(o);
      panel(o + b);
      watch_.lap(&TwoStageSeconds::panels);
      pass(o + b, o > 0);
      watch_.lap(&TwoStageSeconds::passes);
      prepare_update(o + b);
    }
    finish_corner(o);
    watch_.lap(&TwoStageSeconds::panels);
  }

 private:
  std::int64_t tiles(std::int64_t from) const { return blocks_of(n - from, kBandTile); }
  double* thin(std::int64_t row) const { return thin_ + row * ld; }
  double* sum(std::int64_t kind, std::int64_t row) const { return sums_ + (kind * n + row) * ld; }
  double* own(int rank) const { return own_ + rank * kBandTile * ld; }

  // W of rows from the last step's sums, to `w`.
  void form_update(std::int64_t row, std::int64_t count, double* w) const {
    loops_.combine(sum(0, row), thin(row), small_ + 2 * b * b, count, b, w);
  }

  // Columns o ... o+b-1 of the trailing matrix brought up to date: the diagonal block to the band, the rest to thin_; by the way,
  // the packs of the pending update and zeros where the next sums will be.
  void bring_columns(std::int64_t o) {
    if (o > 0) {
      form_update(o, b, own(0));
      pack_pair(loops_, thin(o), own(0), b, b, head_.get());
    }
    corner(o, b, o > 0);
    const std::int64_t first = o + b;
    team_.each(tiles(first), [&](std::int64_t k, int rank) {
      const std::int64_t row = first + k * kBandTile, rows = std::min(kBandTile, n - row);
      double* t = g_ + row * ldg_ + o;
      if (o > 0) {
        double* here = pack_ + k * kBandTile / width * panel_;
        form_update(row, rows, own(rank));
        pack_pair(loops_, thin(row), own(rank), rows, b, here);
        BandTile tile{};
        tile.t = t, tile.ldt = ldg_, tile.rows = rows, tile.cols = b, tile.b = b;
        tile.pack_rows = here, tile.pack_cols = head_.get();
        loops_.update(tile);
      }
      for (std::int64_t i = 0; i < rows; ++i) std::memcpy(thin(row + i), t + i * ldg_, static_cast<std::size_t>(b) * sizeof(double));
      for (std::int64_t kind = 0; kind <= classes_; ++kind)
        std::memset(sum(kind, row), 0, static_cast<std::size_t>(rows * ld) * sizeof(double));
    });
  }

  // The block on the diagonal to the band.
  void corner(std::int64_t o, std::int64_t size, bool pending) {
    if (pending) {
      BandTile tile{};
      tile.t = g_ + o * ldg_ + o, tile.ldt = ldg_, tile.rows = size, tile.cols = size, tile.b = b;
      tile.pack_rows = tile.pack_cols = head_.get();
      loops_.update(tile);
    }
    for (std::int64_t i = 0; i < size; ++i) {
      for (std::int64_t j = 0; j <= i; ++j) band_.a[(o + j) * band_.ld + i - j] = g_[(o + i) * ldg_ + o + j];
    }
  }

  void finish_corner(std::int64_t o) {
    const std::int64_t size = n - o;
    if (size > 0 && o > 0) {
      form_update(o, size, own(0));
      pack_pair(loops_, thin(o), own(0), size, b, head_.get());
    }
    corner(o, size, o > 0);
  }

  // QR of the columns; R to the band, V as a thin matrix, T.
  void panel(std::int64_t first) {
    double *r = small_.get(), *tau = small_ + b * b;
    loops_.panel_qr(thin(first), n - first, b, r, tau, panel_work_.get());
    for (std::int64_t j = 0; j < b; ++j) {
      for (std::int64_t i = 0; i <= j && first + i < n; ++i) band_.a[(first - b + j) * band_.ld + b + i - j] = r[j * b + i];
    }
    team_.each(tiles(first), [&](std::int64_t k, int) {
      const std::int64_t row = first + k * kBandTile, rows = std::min(kBandTile, n - row);
      loops_.thin_gram(thin(row), thin(row), rows, b, true, square_ + k * b * b);
    });
    add_squares(square_.get(), tiles(first), b * b);
    loops_.reflector_triangle(square_.get(), tau, b, triangle());
  }

  double* triangle() const { return small_ + 5 * b * b; }

  void pass(std::int64_t first, bool pending) {
    const std::int64_t count = tiles(first);
    for (std::int64_t r = 0; r < count; ++r) done_[static_cast<std::size_t>(r)].store(0, std::memory_order_relaxed);
    team_.each(count, [&](std::int64_t r, int) {
      const std::int64_t i = count - 1 - r;
      for (std::int64_t j = 0; j <= i; ++j) {
        if (r >= classes_) {
          Patience patience;
          while (done_[static_cast<std::size_t>(r - classes_)].load(std::memory_order_acquire) <= j) patience.pause();
        }
        work_tile(first, i, j, r % classes_, pending);
        done_[static_cast<std::size_t>(r)].store(j + 1, std::memory_order_release);
      }
    });
  }

  void work_tile(std::int64_t first, std::int64_t i, std::int64_t j, std::int64_t kind, bool pending) const {
    const std::int64_t row = first + i * kBandTile, col = first + j * kBandTile, end = std::min(row + kBandTile, n);
    for (std::int64_t at = row; at < end; at += kBandStrip) {
      BandTile x{};
      x.ldt = ldg_, x.b = b;
      x.rows = std::min(kBandStrip, end - at);
      x.t = g_ + at * ldg_ + col;
      if (pending) {
        x.pack_rows = pack_ + (at - first) / width * panel_;
        x.pack_cols = pack_ + (col - first) / width * panel_;
      }
      x.thin_rows = thin(at), x.thin_cols = thin(col);
      x.sum_rows = sum(0, at), x.sum_cols = sum(1 + kind, col);
      x.cols = i == j ? at - row : kBandTile;
      if (at + kBandStrip < end) {
        x.next = x.t + kBandStrip * ldg_;
      } else if (j + 1 < i) {
        x.next = g_ + row * ldg_ + col + kBandTile;
      }
      if (x.cols > 0) loops_.symmetric_tile(x);
      if (i != j) continue;
      x.t += x.cols, x.cols = x.rows;
      if (pending) x.pack_cols = x.pack_rows;
      x.thin_cols = x.thin_rows;
      loops_.symmetric_diagonal(x);
    }
  }

  // Y complete, and the factors of W.
  void prepare_update(std::int64_t first) {
    team_.each(tiles(first), [&](std::int64_t k, int) {
      const std::int64_t row = first + k * kBandTile, rows = std::min(kBandTile, n - row);
      double* total = sum(0, row);
      loops_.add_sums(total, n * ld, classes_, rows * ld);
      loops_.thin_gram(thin(row), total, rows, b, true, square_ + k * b * b);
    });
    add_squares(square_.get(), tiles(first), b * b);
    loops_.update_factors(square_.get(), triangle(), b, small_ + 2 * b * b, small_ + 4 * b * b);
  }

  double* g_;
  const std::int64_t n, ldg_, b, ld, width, panel_, blocks_;
  Band& band_;
  const TwoStageLoops& loops_;
  Team& team_;
  StageWatch watch_;
  Doubles head_, pack_;  // the pending update: of the next b rows, of those below
  Doubles thin_;         // the panel, then V, by rows of the whole matrix
  const std::int64_t classes_;
  Doubles sums_;  // Y by tiles' rows, then classes_ times Y by tiles' columns
  Doubles panel_work_;
  Doubles own_;                                  // W of one block of rows, for each thread
  Doubles square_;                               // V^T V or V^T Y, by blocks of rows
  Doubles small_;                                // R | tau | factors of W (2) | work | T
  std::vector<std::atomic<std::int64_t>> done_;  // tiles of each row task
};

}  // namespace

void symmetric_to_band(double* g, std::int64_t n, std::int64_t ldg, Band& band, const TwoStageLoops& loops, Team& team,
                       TwoStageSeconds* seconds) {
  SymmetricReduction(g, n, ldg, band, loops, team, seconds).run();
}

}  // namespace sf
