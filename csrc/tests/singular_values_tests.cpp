// singular_values of matrices with known values: every route, level and accuracy, one and two threads, any grouping into batches.
#include <stdexcept>
#include <thread>

#include "core/parallel.h"
#include "tests/singular_values_checks.h"

namespace sf::tests {
namespace {

using std::int64_t;

struct Shape {
  int64_t m, n;
};

std::string text(const Shape& shape) { return std::to_string(shape.m) + "x" + std::to_string(shape.n); }

double squares(const double* x, std::size_t n) {
  long double sum = 0;
  for (std::size_t k = 0; k < n; ++k) sum += static_cast<long double>(x[k]) * x[k];
  return static_cast<double>(sum);
}

// Values within the contract; where they are not known, their squares have to sum up to those of the entries.
void check_values(const Problem& p, const double* got, int64_t d, Accuracy accuracy, const std::string& what) {
  if (!p.s.empty()) {
    const long double error = error_of(got, p.s, p.slack, accuracy);
    check(error <= 1.0L, what + ": error " + std::to_string(static_cast<double>(error)) + " of what is promised");
    return;
  }
  const double sum = squares(got, static_cast<std::size_t>(d)), frobenius = squares(p.a.data(), p.a.size());
  const bool single = accuracy == Accuracy::fast && d > kOneStage;
  const double eps = single ? 68.0 * 0x1p-24 * static_cast<double>(d) : 10.0 * std::sqrt(static_cast<double>(d)) * 0x1p-52;
  check(std::abs(sum - frobenius) <= 2.0 * static_cast<double>(d) * eps * got[0] * got[0], what + ": Frobenius norm");
}

// The batch of all problems in every level and accuracy; `full` runs every grouping.
void run(const Shape& shape, const std::vector<Problem>& problems, const std::vector<std::string>& levels, bool full) {
  const int64_t d = std::min(shape.m, shape.n), size = shape.m * shape.n, batch = static_cast<int64_t>(problems.size());
  std::vector<double> all;
  all.reserve(static_cast<std::size_t>(batch * size));
  for (const Problem& p : problems) all.insert(all.end(), p.a.begin(), p.a.end());
  const Matrices a = matrices(all, batch, shape.m, shape.n);
  for (const std::string& level : levels) {
    for (const Accuracy accuracy : {Accuracy::standard, Accuracy::high, Accuracy::fast}) {
      if (accuracy == Accuracy::fast && d <= kOneStage) continue;  // the same as "standard"
      const std::string where = text(shape) + " " + name_of(accuracy) + " at " + level;
      const std::vector<double> got = values_of(a, options_for(level, accuracy, 2));
      for (int64_t i = 0; i < batch; ++i) {
        const Problem& p = problems[static_cast<std::size_t>(i)];
        check_values(p, got.data() + i * d, d, accuracy, where + ", " + p.name);
      }
      check(same_bits(values_of(a, options_for(level, accuracy, 1)), got), where + ": threads 1 and 2");
      if (!full) continue;
      Matrices reversed = a;
      reversed.data = all.data() + (batch - 1) * size;
      reversed.batch_stride = -size;
      const std::vector<double> backwards = values_of(reversed, options_for(level, accuracy, 2));
      bool same = true;
      for (int64_t i = 0; i < batch; ++i) same = same && same_bits(backwards.data() + i * d, got.data() + (batch - 1 - i) * d, d);
      check(same, where + ": batch reversed");
      for (const int64_t i : {int64_t{0}, batch / 2, batch - 1}) {
        // a copy of its own: what is read beyond the matrix is seen by a sanitizer
        const std::vector<double> alone =
            values_of(matrices(problems[static_cast<std::size_t>(i)].a, 1, shape.m, shape.n), options_for(level, accuracy, 2));
        check(same_bits(alone.data(), got.data() + i * d, d), where + ": a matrix by itself");
      }
    }
  }
}

void empty() {
  for (const Shape& shape : {Shape{3, 4}, Shape{0, 4}, Shape{3, 0}}) {
    const std::vector<double> a(12, 1.0);
    const int64_t batch = shape.m * shape.n > 0 ? 0 : 2;
    check(values_of(matrices(a, batch, shape.m, shape.n), options_for("baseline", Accuracy::standard, 2)).empty(), "empty " + text(shape));
  }
}

// NaN and infinities spoil their own matrix and nothing else.
void spoiled(const Shape& shape, int64_t batch) {
  const int64_t d = std::min(shape.m, shape.n), size = shape.m * shape.n;
  Random random(7);
  std::vector<double> a;
  for (int64_t k = 0; k < batch * size; ++k) a.push_back(random.normal());
  std::vector<double> bad = a;
  bad[static_cast<std::size_t>(2 * size - 1)] = std::nan("");
  if (batch > 3) bad[static_cast<std::size_t>(3 * size)] = INFINITY;
  if (batch > 5) bad[static_cast<std::size_t>(5 * size + size / 2)] = -INFINITY;
  for (const std::string& level : levels()) {
    for (const Accuracy accuracy : {Accuracy::standard, Accuracy::high, Accuracy::fast}) {
      const std::vector<double> clean = values_of(matrices(a, batch, shape.m, shape.n), options_for(level, accuracy, 2));
      const std::vector<double> got = values_of(matrices(bad, batch, shape.m, shape.n), options_for(level, accuracy, 2));
      bool right = true;
      for (int64_t i = 0; i < batch; ++i) {
        for (int64_t k = 0; k < d; ++k) {
          const std::size_t at = static_cast<std::size_t>(i * d + k);
          right = right && (i % 2 == 1 ? std::isnan(got[at]) : got[at] == clean[at]);
        }
      }
      check(right, text(shape) + " " + name_of(accuracy) + " at " + level + ": bad entries");
    }
  }
}

// Several callers: one has the pool, the others work by themselves.
void callers_at_once(const Shape& shape, int64_t batch) {
  Random random(8);
  std::vector<double> a;
  for (int64_t k = 0; k < batch * shape.m * shape.n; ++k) a.push_back(random.normal());
  for (const Accuracy accuracy : {Accuracy::standard, Accuracy::high}) {
    const auto call = [&] { return values_of(matrices(a, batch, shape.m, shape.n), options_for("", accuracy, 2)); };
    const std::vector<double> expected = call();
    std::vector<std::vector<double>> got(3);
    std::vector<std::thread> callers;
    for (auto& own : got) callers.emplace_back([&] { own = call(); });
    for (std::thread& caller : callers) caller.join();
    for (const auto& own : got) check(same_bits(own, expected), text(shape) + ": several callers at once");
    std::vector<int> right(4, 0);
    parallel_for(4, 2, [&](int64_t i) { right[static_cast<std::size_t>(i)] = same_bits(call(), expected); });
    check(right == std::vector<int>(4, 1), text(shape) + ": inside a task");
  }
}

// A Gaussian matrix by one thread and by two; the sum of squares.
void shared(const Shape& shape, Accuracy accuracy) {
  Random random(10);
  std::vector<double> a;
  for (int64_t k = 0; k < shape.m * shape.n; ++k) a.push_back(random.normal());
  const Problem p{"gaussian", a, {}};
  for (const std::string& level : levels()) {
    const std::string what = text(shape) + " " + name_of(accuracy) + " at " + level;
    const std::vector<double> got = values_of(matrices(a, 1, shape.m, shape.n), options_for(level, accuracy, 2));
    check_values(p, got.data(), std::min(shape.m, shape.n), accuracy, what);
    check(same_bits(values_of(matrices(a, 1, shape.m, shape.n), options_for(level, accuracy, 1)), got), what + ": threads 1 and 2");
  }
}

void interrupted(const Shape& shape, int64_t batch) {
  const std::vector<double> a(static_cast<std::size_t>(batch * shape.m * shape.n), 1.0);
  for (const Accuracy accuracy : {Accuracy::standard, Accuracy::high}) {
    SingularValueOptions options = options_for("baseline", accuracy, 2);
    int asked = 0;
    options.interrupted = [&] { return ++asked > 0; };
    bool thrown = false;
    try {
      values_of(matrices(a, batch, shape.m, shape.n), options);
    } catch (const Cancelled&) {
      thrown = true;
    }
    check(thrown == (asked > 0), text(shape) + ": interrupted");  // a fast machine is done before it asks
  }
}

}  // namespace

void test_families() {
  empty();
  // lanes: several blocks at a time, two, one; and what is left of blocks
  for (const Shape& shape : {Shape{1, 1}, {2, 2}, {1, 9}, {3, 5}, {7, 7}, {16, 16}, {40, 17}, {33, 33}, {64, 64}, {64, 100}}) {
    run(shape, families(shape.m, shape.n, true, static_cast<std::uint64_t>(100 * shape.m + shape.n)), levels(), true);
  }
  // one reduction per matrix: square, tall, wide, more rows than a panel, more than a part
  for (const Shape& shape : {Shape{65, 65}, {100, 100}, {300, 20}, {60, 500}, {129, 140}, {200, 200}, {300, 257}}) {
    run(shape, families(shape.m, shape.n, false, static_cast<std::uint64_t>(100 * shape.m + shape.n)), levels(), shape.m + shape.n < 500);
  }
  // rows summed up in parts: one thread for each matrix of a batch, all threads on a matrix by itself
  for (const Shape& shape : {Shape{8300, 3}, {12, 16500}}) run(shape, families(shape.m, shape.n, false, 1), levels(), true);
  for (const Shape& shape : {Shape{3, 3}, {64, 40}, {90, 100}, {70, 600}}) spoiled(shape, 7);
  callers_at_once({20, 20}, 40);
  callers_at_once({90, 70}, 6);
  interrupted({30, 30}, 400);
  interrupted({150, 150}, 8);
}

void test_large() {
  const auto named = [](const Shape& shape, const std::vector<std::string>& names) {
    std::vector<Problem> found;
    for (Problem& p : families(shape.m, shape.n, false, static_cast<std::uint64_t>(100 * shape.m + shape.n))) {
      if (std::find(names.begin(), names.end(), p.name) != names.end()) found.push_back(std::move(p));
    }
    return found;
  };
  run({321, 321}, named({321, 321}, {"graded", "clustered", "holes", "gaussian"}), levels(), true);
  run({330, 500}, named({330, 500}, {"deficient", "holes"}), levels(), false);
  run({449, 385}, named({449, 385}, {"graded", "blocks"}), levels(), false);
  spoiled({325, 330}, 3);
  for (const Accuracy accuracy : {Accuracy::standard, Accuracy::fast}) {
    shared({530, 514}, accuracy);   // a band, and a Gram matrix in rows of G
    shared({4200, 321}, accuracy);  // a Gram matrix in parts
  }
  callers_at_once({340, 330}, 2);
  interrupted({400, 400}, 2);
}

// The widest band, for more than 1024 columns, and the fewest rows of a tall matrix's second panel.
void test_largest() {
  Random random(9);
  std::vector<long double> s;
  for (int k = 0; k < 1030; ++k) s.push_back(std::pow(10.0L, -0.01L * k));
  const Problem p = prescribed("graded", s, 1100, 1030, random);
  run({1100, 1030}, {p}, {levels().back()}, false);
}

}  // namespace sf::tests
