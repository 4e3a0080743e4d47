// class_moments: against two passes in extended precision, the same bits for every number of threads, nothing changed by a call that
// fails. Features lie in memory of exactly their size, NaN between the rows.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <stdexcept>
#include <vector>

#include "class_moments/class_moments.h"
#include "core/parallel.h"
#include "tests/check.h"
#include "tests/problems.h"

namespace sf::tests {
namespace {

using std::int64_t;

std::size_t at(int64_t k) { return static_cast<std::size_t>(k); }

struct State {
  int64_t classes, dim;
  std::vector<int64_t> counts;
  std::vector<double> means, scatter, spread;

  State(int64_t c, int64_t d) : classes(c), dim(d), counts(at(c)), means(at(c * d)), scatter(at(d * d)), spread(at(c)) {}
  MomentState view() { return {classes, counts.data(), means.data(), scatter.data(), spread.data()}; }
  bool same(const State& o) const {
    return counts == o.counts && std::memcmp(means.data(), o.means.data(), means.size() * sizeof(double)) == 0 &&
           std::memcmp(scatter.data(), o.scatter.data(), scatter.size() * sizeof(double)) == 0 &&
           std::memcmp(spread.data(), o.spread.data(), spread.size() * sizeof(double)) == 0;
  }
};

struct Samples {
  int64_t rows, dim, stride;
  DType dtype;
  std::unique_ptr<char[]> raw;
  std::vector<int64_t> labels;
  std::vector<double> numbers;  // as stored

  Samples(int64_t n, int64_t d, int64_t classes, DType type, int64_t pad, double shift) : rows(n), dim(d), stride(d + pad), dtype(type) {
    const std::size_t size = n > 0 ? at(((n - 1) * stride + d) * size_of(type)) : 0;
    raw.reset(new char[size]);
    std::memset(raw.get(), 0xff, size);
    Random random(static_cast<std::uint64_t>(n * 1000 + d * 10 + classes));
    for (int64_t i = 0; i < n; ++i) {
      labels.push_back(static_cast<int64_t>(random.bits() % static_cast<std::uint64_t>(classes + 1)) - 1);
      for (int64_t j = 0; j < d; ++j) numbers.push_back(put(i * stride + j, random.normal() + shift));
    }
  }

  LabelledRows part(int64_t from, int64_t to) const {
    return {raw.get() + from * stride * size_of(dtype), dtype, to - from, dim, stride, {labels.data() + from, {to - from}, {1}}};
  }

 private:
  // Rounded towards zero to what the format holds: eight bits of a bfloat16, eleven of a float16 of middling size.
  double put(int64_t place, double x) {
    char* const p = raw.get() + place * size_of(dtype);
    if (dtype == DType::f64) {
      std::memcpy(p, &x, sizeof x);
      return x;
    }
    float single = static_cast<float>(x);
    std::uint32_t bits;
    std::memcpy(&bits, &single, sizeof bits);
    if (dtype == DType::f32) {
      std::memcpy(p, &single, sizeof single);
      return static_cast<double>(single);
    }
    std::uint16_t narrow = static_cast<std::uint16_t>(bits >> 16);
    bits &= 0xffff0000u;
    if (dtype == DType::f16) {
      const int exponent = static_cast<int>(bits >> 23 & 0xffu) - 112;
      if (exponent <= 0 || exponent >= 31) bits = static_cast<std::uint32_t>(bits & 0x80000000u);
      narrow = static_cast<std::uint16_t>((bits >> 16 & 0x8000u) |
                                          (bits << 1 == 0 ? 0 : static_cast<std::uint32_t>(exponent) << 10 | (bits >> 13 & 0x3ffu)));
    }
    std::memcpy(p, &narrow, sizeof narrow);
    std::memcpy(&single, &bits, sizeof single);
    return static_cast<double>(single);
  }
};

void test_case(const Samples& s, int64_t classes, const std::string& level) {
  const std::string what = level + " class_moments " + std::to_string(s.rows) + " x " + std::to_string(s.dim) + ", " +
                           std::to_string(classes) + " classes, bytes " + std::to_string(size_of(s.dtype));
  const int64_t d = s.dim;
  State state(classes, d), again(classes, d);
  for (const int threads : {1, 3}) {
    State& to = threads == 1 ? state : again;
    const MomentOptions options{find_level(level), threads, {}};
    for (const auto& [from, end] : {std::pair<int64_t, int64_t>{0, s.rows / 3}, {s.rows / 3, s.rows}})
      class_moments(s.part(from, end), to.view(), options);
  }
  check(state.same(again), what + ": threads");

  std::vector<long double> means(at(classes * d)), scatter(at(d * d)), spread(at(classes)), row(at(d));
  std::vector<int64_t> counts(at(classes));
  long double largest = 0.0L;
  for (int64_t i = 0; i < s.rows; ++i) {
    const int64_t c = s.labels[at(i)];
    if (c < 0) continue;
    ++counts[at(c)];
    for (int64_t j = 0; j < d; ++j) {
      means[at(c * d + j)] += s.numbers[at(i * d + j)];
      largest = std::max(largest, std::abs(static_cast<long double>(s.numbers[at(i * d + j)])));
    }
  }
  for (int64_t c = 0; c < classes; ++c) {
    for (int64_t j = 0; j < d && counts[at(c)] > 0; ++j) means[at(c * d + j)] /= counts[at(c)];
  }
  for (int64_t i = 0; i < s.rows; ++i) {
    const int64_t c = s.labels[at(i)];
    if (c < 0) continue;
    for (int64_t j = 0; j < d; ++j) row[at(j)] = s.numbers[at(i * d + j)] - means[at(c * d + j)];
    for (int64_t j = 0; j < d; ++j) {
      spread[at(c)] += row[at(j)] * row[at(j)];
      for (int64_t k = 0; k < d; ++k) scatter[at(j * d + k)] += row[at(j)] * row[at(k)];
    }
  }
  check(counts == state.counts, what + ": counts");
  constexpr long double eps = 0x1p-52L;
  bool right = true, even = true;
  for (int64_t k = 0; k < classes * d; ++k) right = right && std::abs(state.means[at(k)] - means[at(k)]) <= 16 * eps * largest;
  check(right, what + ": means");
  right = true;
  // of the entries, and of what the means' errors make of them
  const auto bound = [&](long double a, long double b) {
    const long double off = 16 * eps * largest * std::sqrt(static_cast<long double>(s.rows));
    return 1000 * eps * std::sqrt(a * b) + 2 * off * (std::sqrt(a) + std::sqrt(b)) + off * off;
  };
  for (int64_t j = 0; j < d; ++j) {
    for (int64_t k = 0; k < d; ++k) {
      const double x = state.scatter[at(j * d + k)];
      right = right && std::abs(x - scatter[at(j * d + k)]) <= bound(scatter[at(j * d + j)], scatter[at(k * d + k)]);
      even = even && x == state.scatter[at(k * d + j)];
    }
  }
  check(right, what + ": scatter");
  check(even, what + ": both halves");
  right = true;
  for (int64_t c = 0; c < classes; ++c)
    right = right && std::abs(state.spread[at(c)] - spread[at(c)]) <= static_cast<long double>(d) * bound(spread[at(c)], spread[at(c)]);
  check(right, what + ": spread");
}

void test_failures(const std::string& level) {
  Samples s(5000, 40, 7, DType::f32, 0, 1.0);
  State state(7, 40);
  const MomentOptions options{find_level(level), 2, {}};
  class_moments(s.part(0, 100), state.view(), options);
  const State before(state);
  s.labels[4999] = 7;
  check_throws<std::invalid_argument>([&] { class_moments(s.part(100, 5000), state.view(), options); }, level + " class_moments: label");
  check(state.same(before), level + " class_moments: after a bad label");
  std::fill(s.labels.begin(), s.labels.end(), -1);
  class_moments(s.part(0, 5000), state.view(), options);
  check(state.same(before), level + " class_moments: all left out");
}

}  // namespace

void test_class_moments() {
  for (const std::string& level : levels()) {
    for (const DType dtype : {DType::f64, DType::f32, DType::f16, DType::bf16}) {
      for (const int64_t d : {1, 2, 3, 4, 7, 8, 9, 15, 16, 17, 31, 33, 49}) {
        for (const int64_t n : {0, 1, 2, 5, 60}) {
          test_case(Samples(n, d, 3, dtype, d % 3, 0.5), 3, level);
          test_case(Samples(n, d, 40, dtype, 0, 0.0), 40, level);
        }
      }
      test_case(Samples(700, 20, 2, dtype, 1, 0.0), 2, level);  // classes of several tasks
      test_case(Samples(700, 20, 300, dtype, 0, 0.0), 300, level);
    }
    test_case(Samples(6500, 30, 5, DType::f32, 0, 1000.0), 5, level);  // the two ways to share the products among threads
    test_case(Samples(40, 530, 4, DType::f32, 2, 0.0), 4, level);
    test_failures(level);
  }
}

}  // namespace sf::tests
