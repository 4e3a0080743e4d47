// gradient_gram: both algorithms and rows against plain loops, the same bits for every number of threads. Factors and results lie in memory
// of exactly their size.
#include "gradient_gram/gradient_gram.h"

#include <cmath>
#include <string>
#include <vector>

#include "tests/check.h"

namespace sf::tests {
namespace {

using std::int64_t;

std::size_t at(int64_t k) { return static_cast<std::size_t>(k); }

// (n, t, width) numbers of which half are left out: every second position, and some at the end of each row.
template <class T>
struct Factor {
  int64_t n, t, width, row, sample;
  std::vector<T> data;

  Factor(int64_t samples, int64_t positions, int64_t w, unsigned seed)
      : n(samples), t(positions), width(w), row(2 * (w + 1)), sample(positions * row) {
    data.resize(at((n - 1) * sample + (t - 1) * row + width));
    unsigned state = seed * 2654435761u + 1;
    for (T& x : data) {
      state = state * 1664525u + 1013904223u;
      x = static_cast<T>(static_cast<double>(state >> 8) / 8388608.0 - 1.0);
    }
  }
  double get(int64_t i, int64_t p, int64_t k) const { return static_cast<double>(data[at(i * sample + p * row + k)]); }
  Positions view() const { return {data.data(), sizeof(T) == 8 ? DType::f64 : DType::f32, n, t, width, sample, row}; }
};

template <class T>
std::vector<double> plain(const Factor<T>& a, const Factor<T>* b, const Factor<T>& a2, const Factor<T>* b2) {
  std::vector<double> gram(at(a.n * a2.n));
  for (int64_t i = 0; i < a.n; ++i)
    for (int64_t j = 0; j < a2.n; ++j)
      for (int64_t t = 0; t < a.t; ++t)
        for (int64_t s = 0; s < a2.t; ++s) {
          double x = 0.0, y = b == nullptr ? 1.0 : 0.0;
          for (int64_t k = 0; k < a.width; ++k) x += a.get(i, t, k) * a2.get(j, s, k);
          for (int64_t k = 0; b != nullptr && k < b->width; ++k) y += b->get(i, t, k) * b2->get(j, s, k);
          gram[at(i * a2.n + j)] += x * y;
        }
  return gram;
}

template <class T>
void one(int64_t n, int64_t m, int64_t t, int64_t p, int64_t q, bool rows, GramAlgorithm algorithm, Level level, const std::string& what) {
  const Factor<T> a(n, t, p, 1), b(n, t, q, 2), a2(m, t, p, 3), b2(m, t, q, 4);
  const GramSide left{a.view(), rows ? Positions{} : b.view()}, right{a2.view(), rows ? Positions{} : b2.view()};
  for (const bool same : {true, false}) {
    const int64_t cols = same ? n : m;
    const std::vector<double> want = same ? plain(a, rows ? nullptr : &b, a, &b) : plain(a, rows ? nullptr : &b, a2, &b2);
    std::vector<double> first;
    for (const int threads : {1, 3}) {
      std::vector<double> gram(at(n * cols), 1.0);
      GramOptions options;
      options.level = level;
      options.threads = threads;
      gradient_gram(left, same ? left : right, same, algorithm, gram.data(), cols, options);
      double worst = 0.0;
      for (std::size_t k = 0; k < gram.size(); ++k) worst = std::fmax(worst, std::fabs(gram[k] - 1.0 - want[k]));
      const double size = static_cast<double>(t * t * p * (rows ? 1 : q));
      check(worst <= (sizeof(T) == 8 ? 1e-14 : 4e-6) * size,
            what + (same ? " with itself" : " with others") + ": " + std::to_string(worst));
      if (first.empty()) first = gram;
      check(first == gram, what + ": the same bits for any number of threads");
    }
  }
}

template <class T>
void all(const std::string& name) {
  const Level level = find_level(name);
  for (const GramAlgorithm algorithm : {GramAlgorithm::positions, GramAlgorithm::gradients}) {
    const std::string what =
        name + (sizeof(T) == 8 ? " f64" : " f32") + (algorithm == GramAlgorithm::positions ? " positions" : " gradients");
    one<T>(1, 1, 1, 1, 1, false, algorithm, level, what + " 1");
    one<T>(53, 7, 1, 30, 50, false, algorithm, level, what + " one position");
    one<T>(13, 5, 7, 9, 70, false, algorithm, level, what + " positions");
    one<T>(3, 2, 140, 6, 5, false, algorithm, level, what + " many positions");
  }
  one<T>(30, 4, 1, 1100, 1, true, GramAlgorithm::positions, level, name + " rows");
}

}  // namespace

void test_gradient_gram() {
  for (const std::string& name : levels()) {
    all<float>(name);
    all<double>(name);
  }
}

}  // namespace sf::tests
