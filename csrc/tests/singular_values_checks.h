// Calls of singular_values on matrices of doubles, and its contract.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "singular_values/singular_values.h"
#include "tests/check.h"
#include "tests/problems.h"

namespace sf::tests {

inline SingularValueOptions options_for(const std::string& level, Accuracy accuracy, int threads) {
  return {accuracy, find_level(level), threads, {}};
}

inline const char* name_of(Accuracy accuracy) {
  return accuracy == Accuracy::high ? "high" : accuracy == Accuracy::fast ? "fast" : "standard";
}

// What "fast" adds to the error of s^2, over s_1^2.
inline long double single_error(Accuracy accuracy, const std::vector<long double>& s) {
  if (accuracy != Accuracy::fast || s.size() <= static_cast<std::size_t>(kOneStage) || s[0] == 0.0L) return 0.0L;
  long double sum = 0.0L;
  for (const long double x : s) sum += x / s[0] * (x / s[0]);
  return 68.0L * 0x1p-24L * sum;
}

inline Matrices matrices(const std::vector<double>& a, std::int64_t batch, std::int64_t m, std::int64_t n) {
  return {a.data(), DType::f64, batch, m, n, m * n, n, 1};
}

// Values (batch x min(m, n)); every place starts as a number that is none of them. The clock of the stages runs too: threads share it.
inline std::vector<double> values_of(const Matrices& a, const SingularValueOptions& options) {
  std::vector<double> s(static_cast<std::size_t>(a.batch * std::min(a.rows, a.cols)), -7.0);
  SingularValueStages stages;
  singular_values(a, s.data(), options, &stages);
  return s;
}

inline bool same_bits(const double* a, const double* b, std::int64_t n) {
  return n == 0 || std::memcmp(a, b, static_cast<std::size_t>(n) * sizeof(double)) == 0;
}

inline bool same_bits(const std::vector<double>& a, const std::vector<double>& b) {
  return a.size() == b.size() && same_bits(a.data(), b.data(), static_cast<std::int64_t>(a.size()));
}

// Largest error of `got` in units of what the accuracy promises: |s_hat - s| <= c eps s_1, or |s_hat^2 - s^2| <= c eps s_1^2, with
// c = 10 sqrt(n), beyond the slack of the exact values. Infinite where values ascend or are no numbers.
inline long double error_of(const double* got, const std::vector<long double>& exact, long double slack, Accuracy accuracy) {
  const long double top = exact[0];
  const long double promised = 10.0L * std::sqrt(static_cast<long double>(exact.size())) * 0x1p-52L + single_error(accuracy, exact);
  long double worst = 0.0L;
  for (std::size_t k = 0; k < exact.size(); ++k) {
    if (!(got[k] >= 0.0) || std::isinf(got[k]) || (k > 0 && got[k] > got[k - 1])) return INFINITY;
    const long double s = exact[k], x = got[k];
    const bool high = accuracy == Accuracy::high;
    const long double error = high ? std::abs(x - s) - slack : std::abs(x * x - s * s) - slack * (2.0L * s + slack);
    if (error > 0.0L) worst = std::max(worst, error / (high ? promised * top : promised * top * top));  // infinite for top = 0
  }
  return worst;
}

}  // namespace sf::tests
