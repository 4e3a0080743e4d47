// The stages behind two_stage.h.
#pragma once
#include <algorithm>
#include <chrono>
#include <cstring>
#include <vector>

#include "core/buffer.h"
#include "core/team.h"
#include "singular_values/two_stage.h"
#include "singular_values/two_stage_loops.h"

namespace sf {

using Doubles = Buffer<double>;

// Adds the time since the last lap to a stage.
class StageWatch {
 public:
  explicit StageWatch(TwoStageSeconds* seconds) : seconds_(seconds) { restart(); }
  void restart() {
    if (seconds_) since_ = std::chrono::steady_clock::now();
  }
  void lap(double TwoStageSeconds::* stage) {
    if (!seconds_) return;
    const auto now = std::chrono::steady_clock::now();
    seconds_->*stage += std::chrono::duration<double>(now - since_).count();
    since_ = now;
  }

 private:
  TwoStageSeconds* seconds_;
  std::chrono::steady_clock::time_point since_{};
};

inline std::int64_t blocks_of(std::int64_t n, std::int64_t size) { return n > 0 ? (n + size - 1) / size : 0; }

// Bands for the second stage. Lower band of a symmetric matrix: entry (i, j), 0 <= i-j < 2b, at a[j * ld + i - j]; what the caller
// fills has i-j <= b. Upper band: entry (i, j), -b < j-i < 2b, at a[j * ld + i - j + 2b]; filled for 0 <= j-i <= b.
// Both have zero columns after the last, so that no block of the chase needs a special case.
struct Band {
  Band(std::int64_t order, std::int64_t width, bool symmetric);
  double* first() const { return a + diagonal; }  // entry (0, 0); (i, i) is ld further
  std::int64_t n, b, ld, diagonal;
  Doubles a;
};

// Two thin matrices (`count` rows of each) side by side as a pack.
inline void pack_pair(const TwoStageLoops& loops, const double* one, const double* other, std::int64_t count, std::int64_t b, double* to) {
  const std::int64_t ld = thin_ld(b), width = loops.width, panel = 2 * b * width;
  for (std::int64_t i = 0; i < count; i += width, to += panel) {
    const std::int64_t rows = std::min(width, count - i);
    if (rows < width) std::memset(to, 0, static_cast<std::size_t>(panel) * sizeof(double));
    loops.transpose(one + i * ld, rows, b, ld, to, width);
    loops.transpose(other + i * ld, rows, b, ld, to + b * width, width);
  }
}

// squares[0] += squares[1] + ... + squares[count - 1], each of `size` doubles.
inline void add_squares(double* squares, std::int64_t count, std::int64_t size) {
  for (std::int64_t k = 1; k < count; ++k) {
    for (std::int64_t i = 0; i < size; ++i) squares[i] += squares[k * size + i];
  }
}

void symmetric_to_band(double* g, std::int64_t n, std::int64_t ldg, Band& band, const TwoStageLoops& loops, Team& team,
                       TwoStageSeconds* seconds);
void general_to_band(double* a, std::int64_t n, std::int64_t lda, Band& band, const TwoStageLoops& loops, Team& team,
                     TwoStageSeconds* seconds);

// To tridiagonal (symmetric) or upper bidiagonal form, in place.
void chase(Band& band, bool symmetric, const TwoStageLoops& loops, Team& team);

// Descending.
void tridiagonal_eigenvalues(const double* d, const double* e, std::int64_t n, double* values, const TwoStageLoops& loops, Team& team);
void bidiagonal_singular_values(const double* d, const double* e, std::int64_t n, double* values, const TwoStageLoops& loops, Team& team);

}  // namespace sf
