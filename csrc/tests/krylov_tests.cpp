// orthogonalize and recombine: rows orthonormal, vectors put together again from their coefficients, the same bits for every number of
// threads, sums over two halves of the columns. Basis, vectors and results lie in memory of exactly their size.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <vector>

#include "lanczos/lanczos.h"
#include "tests/check.h"
#include "tests/problems.h"

namespace sf::tests {
namespace {

using std::int64_t;

std::size_t at(int64_t k) { return static_cast<std::size_t>(k); }

int64_t bytes_of(DType dtype) { return dtype == DType::f64 ? 8 : dtype == DType::f32 ? 4 : 2; }

// Rows of `n` numbers, `stride` apart, the last of them without what would follow: the smallest block that holds them.
class Memory {
 public:
  Memory(DType dtype, int64_t rows, int64_t n, int64_t stride)
      : dtype_(dtype), n_(n), stride_(stride), raw_(new char[at(size(dtype, rows, n, stride))]), size_(size(dtype, rows, n, stride)) {
    std::memset(raw_.get(), 0xff, at(size_));  // NaN in every format
  }
  Memory(const Memory& o) : dtype_(o.dtype_), n_(o.n_), stride_(o.stride_), raw_(new char[at(o.size_)]), size_(o.size_) {
    std::memcpy(raw_.get(), o.raw_.get(), at(size_));
  }
  Memory& operator=(const Memory&) = delete;

  Rows rows(int64_t from = 0, int64_t n = -1) const { return {raw_.get() + from * bytes_of(dtype_), dtype_, n < 0 ? n_ : n, stride_}; }

  double get(int64_t row, int64_t col) const {
    const char* const p = raw_.get() + (row * stride_ + col) * bytes_of(dtype_);
    if (dtype_ == DType::f64) return value<double>(p);
    if (dtype_ == DType::f32) return static_cast<double>(value<float>(p));
    const std::uint32_t wide = static_cast<std::uint32_t>(value<std::uint16_t>(p)) << 16;
    return static_cast<double>(value<float>(reinterpret_cast<const char*>(&wide)));
  }

  void set(int64_t row, int64_t col, double x) {
    char* const p = raw_.get() + (row * stride_ + col) * bytes_of(dtype_);
    if (dtype_ == DType::f64) {
      std::memcpy(p, &x, sizeof x);
      return;
    }
    const float single = static_cast<float>(x);
    std::uint32_t bits;
    std::memcpy(&bits, &single, sizeof bits);
    const std::uint16_t narrow = static_cast<std::uint16_t>((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16);
    if (dtype_ == DType::f32) {
      std::memcpy(p, &single, sizeof single);
    } else {
      std::memcpy(p, &narrow, sizeof narrow);
    }
  }

  bool same(const Memory& o) const { return size_ == o.size_ && std::memcmp(raw_.get(), o.raw_.get(), at(size_)) == 0; }

 private:
  static int64_t size(DType dtype, int64_t rows, int64_t n, int64_t stride) {
    return rows > 0 ? ((rows - 1) * stride + n) * bytes_of(dtype) : 0;
  }

  template <class T>
  static T value(const char* p) {
    T x;
    std::memcpy(&x, p, sizeof x);
    return x;
  }

  DType dtype_;
  int64_t n_, stride_;
  std::unique_ptr<char[]> raw_;
  int64_t size_;
};

struct Outcome {
  std::vector<double> c;
  std::unique_ptr<bool[]> kept;
  int64_t fresh = 0;

  bool same(const Outcome& o) const { return fresh == o.fresh && std::memcmp(c.data(), o.c.data(), c.size() * sizeof(double)) == 0; }
};

struct Case {
  DType basis, vectors;
  int64_t n, t, b, room, pad;
};

double unit(DType dtype) { return dtype == DType::f64 ? 0x1p-53 : dtype == DType::f32 ? 0x1p-24 : 0x1p-8; }

Outcome run(const Case& c, const Memory& basis, const Memory& w, KrylovOptions options, double floor = 0.0, int64_t from = 0,
            int64_t n = -1) {
  Outcome out{std::vector<double>(at((c.t + c.b) * c.b), 7.0), std::unique_ptr<bool[]>(new bool[at(c.b)])};
  const std::vector<double> least(at(c.b), floor);
  options.room = c.room;
  orthogonalize(basis.rows(from, n), c.t, w.rows(from, n), c.b, least.data(), out.c.data(), out.kept.get(), options);
  for (int64_t i = 0; i < c.b; ++i) out.fresh += out.kept[at(i)] ? 1 : 0;
  return out;
}

KrylovOptions options_at(Level level, int threads, double relative) {
  KrylovOptions options;
  options.level = level;
  options.threads = threads;
  options.relative = relative;
  return options;
}

// t orthonormal rows made one by one from random numbers, by the code under test
Memory start(const Case& c, Level level, Random& random) {
  Memory basis(c.basis, c.room, c.n, c.n + c.pad);
  Case one = c;
  one.b = 1;
  for (one.t = 0; one.t < c.t; ++one.t) {
    Memory w(DType::f64, 1, c.n, c.n);
    for (int64_t j = 0; j < c.n; ++j) w.set(0, j, random.normal());
    run(one, basis, w, options_at(level, 1, 0.0));
  }
  return basis;
}

double deviation(const Memory& basis, int64_t rows, int64_t n) {
  double worst = 0.0;
  for (int64_t a = 0; a < rows; ++a) {
    for (int64_t b = 0; b <= a; ++b) {
      double dot = a == b ? -1.0 : 0.0;
      for (int64_t j = 0; j < n; ++j) dot += basis.get(a, j) * basis.get(b, j);
      worst = std::max(worst, std::abs(dot));
    }
  }
  return worst;
}

void test_case(const Case& c, const std::string& level_named) {
  const Level level = find_level(level_named);
  const std::string what = level_named + " n " + std::to_string(c.n) + " t " + std::to_string(c.t) + " b " + std::to_string(c.b) +
                           " format " + std::to_string(static_cast<int>(c.basis)) + std::to_string(static_cast<int>(c.vectors));
  Random random(static_cast<std::uint64_t>(c.n + 100 * c.t + c.b));
  const Memory basis = start(c, level, random);
  Memory w(c.vectors, c.b, c.n, c.n + c.pad);
  for (int64_t i = 0; i < c.b; ++i) {
    for (int64_t j = 0; j < c.n; ++j) w.set(i, j, i == 2 ? w.get(0, j) + 1e-3 * random.normal() : random.normal());
  }
  const double tiny = 1e-13 * std::sqrt(static_cast<double>(c.n)), rounded = 3 * unit(c.basis) + 2 * unit(c.vectors) + tiny;
  const KrylovOptions options = options_at(level, 1, c.basis == DType::f64 && c.vectors == DType::f64 ? 1e-11 : 1e-5);
  Memory one_basis(basis), one_w(w);
  const Outcome one = run(c, one_basis, one_w, options);
  check(one.fresh <= std::min(c.room - c.t, c.b) && (one.fresh > 0 || c.room == c.t || c.n == c.t), what + ": new rows");
  check(deviation(one_basis, c.t + one.fresh, c.n) <= rounded, what + ": orthonormal");
  for (int64_t i = 0; i < c.b; ++i) {
    if (!one.kept[at(i)]) continue;
    double left = 0.0, size = 0.0;
    for (int64_t j = 0; j < c.n; ++j) {
      double x = w.get(i, j);
      size += x * x;
      for (int64_t r = 0; r < c.t + one.fresh; ++r) x -= one.c[at(r * c.b + i)] * one_basis.get(r, j);
      left += x * x;
    }
    check(left <= std::pow(2 * rounded, 2) * size, what + ": put together again");
  }
  for (const int threads : {2, 3}) {
    Memory more_basis(basis), more_w(w);
    KrylovOptions more_options = options;
    more_options.threads = threads;
    const Outcome more = run(c, more_basis, more_w, more_options);
    check(one.same(more) && one_basis.same(more_basis) && one_w.same(more_w), what + ": bits with " + std::to_string(threads) + " threads");
  }
  // the first half of the columns, told what all of them add up to
  if (c.n > 1) {
    std::vector<std::vector<double>> sums;
    Memory whole_basis(basis), whole_w(w), half_basis(basis), half_w(w);
    KrylovOptions telling = options, told = options;
    telling.reduce = [&](double* s, int64_t count) { sums.emplace_back(s, s + count); };
    std::size_t next = 0;
    told.reduce = [&](double* s, int64_t count) {
      check(next < sums.size() && static_cast<int64_t>(sums[next].size()) == count, what + ": sums asked for");
      if (next < sums.size()) std::copy(sums[next].begin(), sums[next].end(), s);
      ++next;
    };
    const Outcome whole = run(c, whole_basis, whole_w, telling), half = run(c, half_basis, half_w, told, 0.0, 0, c.n / 2);
    check(whole.same(one) && half.fresh == one.fresh && next == sums.size(), what + ": half of the columns");
    bool alike = true;
    for (int64_t r = 0; r < c.t + one.fresh; ++r) {
      for (int64_t j = 0; j < c.n / 2; ++j)
        alike = alike && std::abs(half_basis.get(r, j) - whole_basis.get(r, j)) <= 2 * unit(c.basis) + tiny;
    }
    check(alike, what + ": their numbers");
  }
  // not a number, a floor above everything
  Memory bad_basis(basis), bad_w(w);
  bad_w.set(c.b - 1, c.n - 1, std::numeric_limits<double>::quiet_NaN());
  const Outcome bad = run(c, bad_basis, bad_w, options);
  check(bad.fresh == 0 && std::isnan(bad.c.front()) && std::isnan(bad.c.back()) && bad_basis.same(basis), what + ": NaN");
  Memory low_basis(basis), low_w(w);
  check(run(c, low_basis, low_w, options, 1e9).fresh == 0 && low_basis.same(basis), what + ": floor");
}

void test_combinations(DType dtype, DType into, int64_t n, int64_t m, int64_t q, const std::string& level) {
  const std::string what = level + " recombine n " + std::to_string(n) + " m " + std::to_string(m) + " q " + std::to_string(q);
  Random random(static_cast<std::uint64_t>(n + m + q));
  Memory basis(dtype, m, n, n + 1), out(into, q, n, n);
  for (int64_t r = 0; r < m; ++r) {
    for (int64_t j = 0; j < n; ++j) basis.set(r, j, random.normal());
  }
  std::vector<double> s(at(m * q));
  for (double& x : s) x = random.normal();
  recombine(basis.rows(), m, s.data(), q, out.rows(), options_at(find_level(level), 2, 0.0));
  bool right = true;
  for (int64_t k = 0; k < q; ++k) {
    for (int64_t j = 0; j < n; ++j) {
      double exact = 0.0, size = 0.0;
      for (int64_t r = 0; r < m; ++r) {
        const double term = s[at(r * q + k)] * basis.get(r, j);
        exact += term;
        size += std::abs(term);
      }
      right = right && std::abs(out.get(k, j) - exact) <= 1e-14 * size + 1.01 * unit(into) * std::abs(exact);
    }
  }
  check(right, what);
  if (q > m || into != dtype) return;
  recombine(basis.rows(), m, s.data(), q, basis.rows(), options_at(find_level(level), 3, 0.0));
  bool same = true;
  for (int64_t k = 0; k < q; ++k) {
    for (int64_t j = 0; j < n; ++j) same = same && basis.get(k, j) == out.get(k, j);
  }
  check(same, what + ", in place");
}

}  // namespace

void test_krylov() {
  for (const std::string& level : levels()) {
    for (const DType basis : {DType::f64, DType::f32, DType::bf16}) {
      for (const DType vectors : {DType::f64, DType::f32}) {
        for (const int64_t n : {1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 31, 33, 127, 129, 600}) {
          for (const int64_t t : {0, 1, 3, 4, 5, 9}) {
            if (t > n) continue;
            test_case({basis, vectors, n, t, 1, std::min(n, t + 1), 0}, level);
            test_case({basis, vectors, n, t, 3, std::min(n, t + 2), 3}, level);
          }
        }
        test_case({basis, vectors, 33000, 6, 4, 10, 1}, level);  // of several tasks
      }
      for (const DType into : {DType::f64, DType::f32, DType::bf16}) {
        for (const int64_t n : {1, 7, 16, 33, 4100}) {
          test_combinations(basis, into, n, 6, 5, level);
          test_combinations(basis, into, n, 1, 4, level);
        }
        test_combinations(basis, into, 50, 0, 2, level);
      }
    }
  }
}

}  // namespace sf::tests
