// Matrices whose singular values are known without a LAPACK: built from a spectrum in extended precision, of a structure that shows them,
// or small enough for one-sided Jacobi rotations in extended precision.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace sf::tests {

// splitmix64 (Steele, Lea & Flood 2014): the same numbers on every platform.
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed) {}
  std::uint64_t bits();
  double uniform();  // (0, 1)
  double normal();

 private:
  std::uint64_t state_;
};

struct Problem {
  std::string name;
  std::vector<double> a;       // m x n, row-major
  std::vector<long double> s;  // descending; empty: not known
  long double slack = 0.0L;    // distance of s from the values of a as rounded to float64
};

// m x n with the values s (min(m, n) of them, descending) up to the slack, and dense vectors: reflectors from both sides.
Problem prescribed(const std::string& name, const std::vector<long double>& s, std::int64_t m, std::int64_t n, Random& random);

// Values by one-sided Jacobi rotations (Hestenes 1958) in extended precision, m >= n or not.
std::vector<long double> jacobi(const std::vector<double>& a, std::int64_t m, std::int64_t n);

// The families of tests/kernels/test_singular_values.py; `all`: every one, with values by Jacobi rotations where nothing else gives them,
// else those whose values are known for any size, and a Gaussian matrix.
std::vector<Problem> families(std::int64_t m, std::int64_t n, bool all, std::uint64_t seed);

}  // namespace sf::tests
