#pragma once
#include <cstdint>
#include <vector>

#include "randomized_svd/loops.h"

namespace sf {

// t = left diag(s) right^T of a small matrix t (r x r, row-major): all values, descending, and the first k columns of left and right (r x
// k, row-major), orthonormal whatever the rank of t.
struct Decomposition {
  std::vector<double> s, left, right;
};

// To `cosine`: pairs of columns closer to a right angle are left alone once all are.
Decomposition decompose(const std::vector<double>& t, std::int64_t r, std::int64_t k, double cosine, const LowRankLoops& loops);

}  // namespace sf
