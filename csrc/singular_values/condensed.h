// What the routes of singular_values share: condensed matrices of a batch, their values, and the clock of the stages.
#pragma once
#include <chrono>
#include <cstdint>
#include <vector>

#include "singular_values/singular_values.h"

namespace sf {

// The exponent that divides the largest magnitude of a matrix to [0.5, 1); kNotFinite of a NaN.
int exponent_of(double largest);

// From any thread.
void add(const SingularValueStages& part, SingularValueStages* total);

// Adds the time since the last lap to one of the stages; the sum goes out with the object.
class Watch {
 public:
  explicit Watch(SingularValueStages* stages) : stages_(stages), since_(stages ? Clock::now() : Clock::time_point{}) {}
  ~Watch();
  Watch(const Watch&) = delete;
  Watch& operator=(const Watch&) = delete;
  void lap(double SingularValueStages::* stage) {
    if (!stages_) return;
    const Clock::time_point now = Clock::now();
    here_.*stage += std::chrono::duration<double>(now - since_).count();
    since_ = now;
  }

 private:
  using Clock = std::chrono::steady_clock;
  SingularValueStages* stages_;
  SingularValueStages here_{};
  Clock::time_point since_;
};

// The bidiagonals (d, e) or tridiagonals (diagonal, squared off-diagonal) of a batch, `lanes` to a block (see lanes.h), each scaled by
// 2^-exponent.
struct Condensed {
  Condensed(std::int64_t batch, std::int64_t n, int lanes);
  std::int64_t batch, n;
  int lanes;
  std::int64_t blocks;
  std::vector<double> first, second;
  std::vector<int> exponents;

  // The place of matrix i; entry k is k * lanes further.
  std::int64_t place(std::int64_t i) const { return (i / lanes) * n * lanes + i % lanes; }
};

// Bidiagonals (`high`) or tridiagonals of up to kMaxBlocks blocks, both destroyed, to singular values s (matrices x n); work: solve_work
// doubles.
std::size_t solve_work(std::int64_t n, int lanes, bool high);
void solve_blocks(const LaneLoops& loops, double* d, double* e, std::int64_t n, std::int64_t matrices, const int* exponents, bool high,
                  double* s, double* work, Watch& watch);

// The same for a whole batch.
void solve(Condensed& c, bool high, double* s, const SingularValueOptions& options, SingularValueStages* stages);

// The routes; a.rows >= a.cols.
void by_lanes(const Matrices& a, double* s, const SingularValueOptions& options, SingularValueStages* stages);
void one_stage(const Matrices& a, double* s, const SingularValueOptions& options, SingularValueStages* stages);
void two_stages(const Matrices& a, double* s, const SingularValueOptions& options, SingularValueStages* stages);

}  // namespace sf
