// First stage for square matrices: to an upper band. One step takes b columns and b rows out of the trailing matrix:
//
//   the columns, brought up to date -> QR: V, T; R goes to the band
//   pass over the rest, by columns of tiles: the update of the *last* step, A -= V Z^T + X W^T, and the product A^T V with the new V
//   Z = A^T V T, so that A - V Z^T is what the reflectors leave; its first b rows -> LQ: W, U; L goes to the band
//   pass over what is left, by rows of tiles: A W
//   X = (A - V Z^T) W U, so that A - V Z^T - X W^T is what is left: the next pending update
//
// (U: the triangle of the reflectors in W.) Every sum has one task that forms it.
#include "singular_values/two_stage_parts.h"

namespace sf {
namespace {

class GeneralReduction {
 public:
  GeneralReduction(double* a, std::int64_t order, std::int64_t lda, Band& band, const TwoStageLoops& loops, Team& team,
                   TwoStageSeconds* seconds)
      : a_(a),
        n(order),
        lda_(lda),
        b(band.b),
        ld(thin_ld(b)),
        width(loops.width),
        panel_(2 * b * width),
        tile_(order >= kWideOrder ? kBandTile : 2 * kBandStrip),
        band_(band),
        loops_(loops),
        team_(team),
        watch_(seconds),
        head_(blocks_of(b, width) * panel_),
        pack_rows_(blocks_of(n, width) * panel_),
        pack_cols_(blocks_of(n, width) * panel_),
        v_(n * ld),
        w_(n * ld),
        z_(n * ld),
        x_(n * ld),
        sums_(n * ld),
        panel_work_(panel_work(n, b)),
        own_(team.size() * own_size()),
        squares_(2 * b * b * blocks_of(n, tile_)),
        small_(8 * b * b) {}

  void run() {
    std::int64_t o = 0;
    for (; n - o > b; o += b) {
      team_.check();
      bring_columns(o, b);
      reduce_columns(o);
      watch_.lap(&TwoStageSeconds::panels);
      pass_columns(o);
      watch_.lap(&TwoStageSeconds::passes);
      reduce_rows(o);
      watch_.lap(&TwoStageSeconds::panels);
      pass_rows(o + b);
      watch_.lap(&TwoStageSeconds::passes);
    }
    const std::int64_t left = n - o;
    bring_columns(o, left);
    loops_.panel_qr(row(v_, o), left, b, small_.get(), small_ + b * b, panel_work_.get());
    for (std::int64_t j = 0; j < left; ++j) {
      for (std::int64_t i = 0; i <= j; ++i) entry(o + i, o + j) = small_[j * b + i];
    }
    watch_.lap(&TwoStageSeconds::panels);
  }

 private:
  static constexpr std::int64_t kWideOrder = 1500;  // below it tasks are narrower: there would be too few

  std::int64_t own_size() const { return kBandTile * ld; }
  std::int64_t tiles(std::int64_t from) const { return blocks_of(n - from, tile_); }
  double* row(const Doubles& thin, std::int64_t i) const { return thin + i * ld; }
  double* own(int rank) const { return own_ + rank * own_size(); }
  double& entry(std::int64_t i, std::int64_t j) const { return band_.first()[j * band_.ld + i - j]; }
  double* triangle() const { return small_ + 2 * b * b; }
  double* factors() const { return small_ + 4 * b * b; }

  // Columns o ... o+count-1 up to date in v_; by the way, X and the packs of the pending update.
  void bring_columns(std::int64_t o, std::int64_t count) {
    if (o > 0) pack_pair(loops_, row(z_, o), row(w_, o), count, b, head_.get());
    team_.each(tiles(o), [&](std::int64_t k, int rank) {
      const std::int64_t i = o + k * tile_, rows = std::min(tile_, n - i);
      double* t = a_ + i * lda_ + o;
      if (o > 0) {
        loops_.combine(row(x_, i), row(v_, i), factors(), rows, b, own(rank));
        pack_pair(loops_, row(v_, i), own(rank), rows, b, pack_rows_ + k * tile_ / width * panel_);
        BandTile x{};
        x.t = t, x.ldt = lda_, x.rows = rows, x.cols = count, x.b = b;
        x.pack_rows = pack_rows_ + k * tile_ / width * panel_, x.pack_cols = head_.get();
        loops_.update_paired(x);
        const std::int64_t j = o + b + k * tile_;
        if (j < n) pack_pair(loops_, row(z_, j), row(w_, j), std::min(tile_, n - j), b, pack_cols_ + k * tile_ / width * panel_);
      }
      for (std::int64_t r = 0; r < rows; ++r) {
        std::memcpy(row(v_, i + r), t + r * lda_, static_cast<std::size_t>(count) * sizeof(double));
        std::fill(row(v_, i + r) + count, row(v_, i + r) + b, 0.0);
      }
    });
  }

  // The panel in rows `first` and later of a thin matrix to its reflectors, and T; the square of another thin matrix with it.
  void reflectors(std::int64_t first, const Doubles& thin, const Doubles* with) {
    double* tau = small_ + b * b;
    const std::int64_t size = b * b, both = with != nullptr ? 2 * size : size;
    loops_.panel_qr(row(thin, first), n - first, b, small_.get(), tau, panel_work_.get());
    team_.each(tiles(first), [&](std::int64_t k, int) {
      const std::int64_t i = first + k * tile_, rows = std::min(tile_, n - i);
      loops_.thin_gram(row(thin, i), row(thin, i), rows, b, true, squares_ + k * both);
      if (with != nullptr) loops_.thin_gram(row(*with, i), row(thin, i), rows, b, true, squares_ + k * both + size);
    });
    add_squares(squares_.get(), tiles(first), both);
    loops_.reflector_triangle(squares_.get(), tau, b, triangle());
  }

  void reduce_columns(std::int64_t o) {
    reflectors(o, v_, nullptr);
    for (std::int64_t j = 0; j < b; ++j) {
      for (std::int64_t i = 0; i <= j; ++i) entry(o + i, o + j) = small_[j * b + i];
    }
  }

  void reduce_rows(std::int64_t o) {
    const std::int64_t first = o + b;
    reflectors(first, w_, &z_);
    for (std::int64_t i = 0; i < b; ++i) {
      for (std::int64_t j = 0; j <= i && first + j < n; ++j) entry(o + i, first + j) = small_[i * b + j];
    }
    loops_.paired_factors(squares_ + b * b, triangle(), b, factors());
  }

  void pass_columns(std::int64_t o) {
    const std::int64_t first = o + b;
    team_.each(tiles(first), [&](std::int64_t k, int rank) {
      const std::int64_t col = first + k * tile_, cols = std::min(tile_, n - col);
      std::memset(row(sums_, col), 0, static_cast<std::size_t>(cols * ld) * sizeof(double));
      for (std::int64_t i = o; i < n; i += kBandStrip) {
        BandTile x{};
        x.t = a_ + i * lda_ + col, x.ldt = lda_, x.b = b;
        x.rows = std::min(kBandStrip, n - i), x.cols = cols;
        if (o > 0) {
          x.pack_rows = pack_rows_ + (i - o) / width * panel_;
          x.pack_cols = pack_cols_ + (col - first) / width * panel_;
        }
        x.thin_rows = row(v_, i), x.sum_cols = row(sums_, col);
        if (i + 2 * kBandStrip <= n) x.next = x.t + kBandStrip * lda_;
        loops_.general_tile(x);
      }
      loops_.combine(row(sums_, col), nullptr, triangle(), cols, b, row(z_, col));
      loops_.subtract_reflected(a_ + o * lda_ + col, lda_, row(v_, o), row(z_, col), cols, b, row(w_, col), own(rank));
    });
  }

  void pass_rows(std::int64_t first) {
    team_.each(blocks_of(n - first, kBandStrip), [&](std::int64_t k, int) {
      const std::int64_t i = first + k * kBandStrip, rows = std::min(kBandStrip, n - i);
      std::memset(row(x_, i), 0, static_cast<std::size_t>(rows * ld) * sizeof(double));
      for (std::int64_t col = first; col < n; col += kBandTile) {
        BandTile x{};
        x.t = a_ + i * lda_ + col, x.ldt = lda_, x.b = b;
        x.rows = rows, x.cols = std::min(kBandTile, n - col);
        x.thin_cols = row(w_, col), x.sum_rows = row(x_, i);
        if (col + 2 * kBandTile <= n) x.next = x.t + kBandTile;
        loops_.product_tile(x);
      }
    });
  }

  double* a_;
  const std::int64_t n, lda_, b, ld, width, panel_, tile_;
  Band& band_;
  const TwoStageLoops& loops_;
  Team& team_;
  StageWatch watch_;
  Doubles head_, pack_rows_, pack_cols_;  // the pending update: [Z W] of the next b columns; [V X]; [Z W] of the columns after those
  Doubles v_, w_, z_, x_, sums_;          // thin, by rows or columns of the whole matrix; x_ holds A W, sums_ A^T V
  Doubles panel_work_;
  Doubles own_;      // work space of each thread
  Doubles squares_;  // V^T V, or W^T W and Z^T W, by blocks of rows
  Doubles small_;    // R | tau | T | - | factors of X (2)
};

}  // namespace

void general_to_band(double* a, std::int64_t n, std::int64_t lda, Band& band, const TwoStageLoops& loops, Team& team,
                     TwoStageSeconds* seconds) {
  GeneralReduction(a, n, lda, band, loops, team, seconds).run();
}

}  // namespace sf
