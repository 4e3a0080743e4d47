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

// cosine: of two columns that are at a right angle but for rounding. Sweeps go on until no pair is further from it: where values are close
// together the last sweep does not square what is left.
Decomposition decompose(const std::vector<double>& t, std::int64_t r, std::int64_t k, double cosine, const LowRankLoops& loops);

}  // namespace sf
