// complex_singular_values against the real matrix [[x, -y], [y, x]], which has every value twice, and where they are known by themselves.
#include "tests/singular_values_checks.h"

namespace sf::tests {
namespace {

using std::int64_t;

std::vector<double> complex_values(const Matrices& re, const Matrices& im, const SingularValueOptions& options) {
  std::vector<double> s(static_cast<std::size_t>(re.batch * std::min(re.rows, re.cols)), -7.0);
  SingularValueStages stages;
  complex_singular_values(re, im, s.data(), options, &stages);
  return s;
}

void run(int64_t m, int64_t n) {
  constexpr int64_t kBatch = 5;
  const int64_t d = std::min(m, n), size = m * n;
  Random random(static_cast<std::uint64_t>(m + n));
  std::vector<double> x(static_cast<std::size_t>(kBatch * size)), y(x), twice(4 * x.size());
  for (int64_t k = 0; k < kBatch * size; ++k) {
    const std::size_t at = static_cast<std::size_t>(k);
    x[at] = random.normal();
    y[at] = random.normal();
    if (k / size == 1) y[at] = 0.0;                                          // a real one
    if (k / size == 2) x[at] = 0.0, y[at] = static_cast<double>(1 + k % n);  // rank one
    if (k / size == 3) x[at] = std::ldexp(x[at], -900), y[at] = std::ldexp(y[at], -900);
  }
  for (int64_t b = 0; b < kBatch; ++b) {
    for (int64_t i = 0; i < m; ++i) {
      for (int64_t j = 0; j < n; ++j) {
        const std::size_t from = static_cast<std::size_t>(b * size + i * n + j);
        double* const to = twice.data() + b * 4 * size + i * 2 * n + j;
        to[0] = to[2 * n * m + n] = x[from];
        to[2 * n * m] = y[from];
        to[n] = -y[from];
      }
    }
  }
  const Matrices re = matrices(x, kBatch, m, n), im = matrices(y, kBatch, m, n);
  for (const std::string& level : levels()) {
    const std::string what = "complex " + std::to_string(m) + "x" + std::to_string(n) + " at " + level;
    const std::vector<double> got = complex_values(re, im, options_for(level, Accuracy::standard, 2));
    const std::vector<double> pairs = values_of(matrices(twice, kBatch, 2 * m, 2 * n), options_for(level, Accuracy::high, 2));
    for (int64_t b = 0; b < kBatch; ++b) {
      std::vector<long double> exact;
      for (int64_t k = 0; k < d; ++k) exact.push_back(pairs[static_cast<std::size_t>(b * 2 * d + 2 * k)]);
      check(error_of(got.data() + b * d, exact, 0.0L, Accuracy::standard) <= 1.0L, what + ", matrix " + std::to_string(b));
    }
    check(same_bits(complex_values(re, im, options_for(level, Accuracy::standard, 1)), got), what + ": threads 1 and 2");
    // the transpose, read by columns
    const Matrices re_t{x.data(), DType::f64, kBatch, n, m, size, 1, n}, im_t{y.data(), DType::f64, kBatch, n, m, size, 1, n};
    if (m != n) check(same_bits(complex_values(re_t, im_t, options_for(level, Accuracy::standard, 2)), got), what + ": transposed");
    std::vector<double> bad = y;
    bad[static_cast<std::size_t>(3 * size)] = INFINITY;
    const std::vector<double> rest = complex_values(re, matrices(bad, kBatch, m, n), options_for(level, Accuracy::standard, 2));
    check(std::isnan(rest[static_cast<std::size_t>(3 * d)]) && same_bits(rest.data(), got.data(), 3 * d) &&
              same_bits(rest.data() + 4 * d, got.data() + 4 * d, d),
          what + ": bad entries");
  }
}

}  // namespace

void test_complex() {
  run(1, 1);
  run(5, 3);
  run(20, 32);
  run(33, 33);
  run(40, 90);
  run(300, 130);
}

}  // namespace sf::tests
