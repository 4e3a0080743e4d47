// Leading triplets: orthonormal factors, an error that holds, the same bits for every number of threads, nothing read or written outside.
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <random>

#include "core/parallel.h"
#include "randomized_svd/randomized_svd.h"
#include "tests/check.h"

namespace sf::tests {

namespace {

// Memory of exactly the size used, so that the address sanitizer sees what goes beyond it.
template <class T>
struct Outcome {
  Outcome(std::int64_t batch_, std::int64_t m_, std::int64_t n_, std::int64_t rank_)
      : batch(batch_),
        m(m_),
        n(n_),
        rank(rank_),
        u(static_cast<std::size_t>(batch_ * m_ * rank_)),
        s(static_cast<std::size_t>(batch_ * rank_)),
        vt(static_cast<std::size_t>(batch_ * rank_ * n_)),
        error(static_cast<std::size_t>(batch_)),
        ranks(static_cast<std::size_t>(batch_)),
        reached(new bool[static_cast<std::size_t>(batch_)]) {}

  LowRankResults results() { return {u.data(), s.data(), vt.data(), error.data(), ranks.data(), reached.get()}; }

  bool same(const Outcome& o) const { return bits(u, o.u) && bits(s, o.s) && bits(vt, o.vt) && bits(error, o.error) && ranks == o.ranks; }

  template <class X>
  static bool bits(const std::vector<X>& a, const std::vector<X>& b) {
    return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(X)) == 0;
  }

  std::int64_t batch, m, n, rank;
  std::vector<T> u, s, vt;
  std::vector<double> error;
  std::vector<std::int64_t> ranks;
  std::unique_ptr<bool[]> reached;
};

// Largest deviation of the first k columns of x (rows r apart by `step`, columns by `stride`) from orthonormal ones.
template <class T>
double deviation(const T* x, std::int64_t rows, std::int64_t k, std::int64_t step, std::int64_t stride) {
  double worst = 0.0;
  for (std::int64_t a = 0; a < k; ++a) {
    for (std::int64_t b = 0; b <= a; ++b) {
      double dot = a == b ? -1.0 : 0.0;
      for (std::int64_t i = 0; i < rows; ++i) {
        dot += static_cast<double>(x[i * step + a * stride]) * static_cast<double>(x[i * step + b * stride]);
      }
      worst = std::max(worst, std::abs(dot));
    }
  }
  return worst;
}

template <class T>
double left(const std::vector<T>& a, const Outcome<T>& r, std::int64_t index) {
  double total = 0.0;
  for (std::int64_t i = 0; i < r.m; ++i) {
    for (std::int64_t j = 0; j < r.n; ++j) {
      double x = static_cast<double>(a[static_cast<std::size_t>((index * r.m + i) * r.n + j)]);
      for (std::int64_t c = 0; c < r.ranks[static_cast<std::size_t>(index)]; ++c) {
        x -= static_cast<double>(r.u[static_cast<std::size_t>((index * r.m + i) * r.rank + c)]) *
             static_cast<double>(r.s[static_cast<std::size_t>(index * r.rank + c)]) *
             static_cast<double>(r.vt[static_cast<std::size_t>((index * r.rank + c) * r.n + j)]);
      }
      total += x * x;
    }
  }
  return std::sqrt(total);
}

struct Case {
  std::int64_t batch, m, n, rank, width, blocks;
  bool krylov;
  double tol;
  std::int64_t sketch = 0;
};

constexpr Case kCases[] = {
    {1, 1, 1, 1, 1, 1, false, 0.0},        {2, 3, 7, 2, 3, 1, false, 0.0},         {3, 40, 33, 5, 8, 3, true, 0.0},
    {3, 33, 40, 7, 15, 1, false, 0.0},     {5, 70, 50, 50, 8, 9, true, 0.0},       {2, 300, 90, 12, 16, 3, true, 0.0},
    {2, 60, 300, 9, 24, 2, true, 0.0},     {3, 90, 80, 80, 16, 1, true, 1e-3},     {2, 80, 90, 20, 16, 1, false, 1e-3},
    {3, 700, 760, 10, 16, 3, true, 0.0},   {1, 760, 700, 6, 14, 1, false, 0.0},    {3, 900, 61, 7, 12, 1, true, 0.0, 96},
    {3, 61, 900, 7, 12, 1, true, 0.0, 96}, {2, 30, 24, 24, 20, 1, true, 0.0, 160}, {1, 2100, 257, 9, 12, 1, true, 0.0, 96},
};

// Graded columns; the second matrix of a batch has rank 3.
template <class T>
std::vector<T> made(const Case& c) {
  std::mt19937_64 bits(static_cast<std::uint64_t>(c.m * 1000 + c.n));
  std::normal_distribution<double> normal;
  std::vector<T> a(static_cast<std::size_t>(c.batch * c.m * c.n));
  for (std::int64_t b = 0; b < c.batch; ++b) {
    for (std::int64_t i = 0; i < c.m; ++i) {
      for (std::int64_t j = 0; j < c.n; ++j) {
        const double graded = normal(bits) / (1.0 + static_cast<double>(j)), few = std::cos(0.1 * static_cast<double>(i * (j % 3)));
        a[static_cast<std::size_t>((b * c.m + i) * c.n + j)] = static_cast<T>(b == 1 ? few : graded);
      }
    }
  }
  return a;
}

LowRankOptions options_of(const Case& c, const std::string& level, int threads) {
  LowRankOptions o;
  o.rank = c.rank;
  o.width = c.width;
  o.blocks = c.blocks;
  o.krylov = c.krylov;
  o.tol = c.tol;
  o.sketch = c.sketch;
  o.sketch_width = 8;
  o.sketch_blocks = 3;
  o.seed = 7;
  o.level = find_level(level);
  o.threads = threads;
  return o;
}

template <class T>
void test_case(const Case& c, const std::string& level) {
  const bool wide = sizeof(T) == sizeof(double);
  const std::string what = level + (wide ? " f64 " : " f32 ") + std::to_string(c.m) + "x" + std::to_string(c.n);
  const std::vector<T> a = made<T>(c);
  const Matrices view{a.data(), wide ? DType::f64 : DType::f32, c.batch, c.m, c.n, c.m * c.n, c.n, 1};
  Outcome<T> one(c.batch, c.m, c.n, c.rank);
  randomized_svd(view, options_of(c, level, 1), one.results());
  for (const int threads : {2, 3}) {
    Outcome<T> more(c.batch, c.m, c.n, c.rank);
    randomized_svd(view, options_of(c, level, threads), more.results());
    check(one.same(more), what + ": bits with " + std::to_string(threads) + " threads");
  }
  const double limit = wide ? 1e-13 : 1e-6;
  for (std::int64_t b = 0; b < c.batch; ++b) {
    const std::int64_t k = one.ranks[static_cast<std::size_t>(b)];
    check(deviation(one.u.data() + b * c.m * c.rank, c.m, k, c.rank, 1) <= limit, what + ": u");
    check(deviation(one.vt.data() + b * c.rank * c.n, c.n, k, 1, c.n) <= limit, what + ": vt");
    if (c.m * c.n > 100000) continue;
    check(left(a, one, b) <= one.error[static_cast<std::size_t>(b)] * (1 + 1e-9), what + ": error");
  }
  // the same matrices in the other order of memory, the last one not finite
  std::vector<T> turned(a.size());
  for (std::int64_t b = 0; b < c.batch; ++b) {
    for (std::int64_t i = 0; i < c.m * c.n; ++i) {
      turned[static_cast<std::size_t>(b * c.m * c.n + i % c.n * c.m + i / c.n)] = a[static_cast<std::size_t>(b * c.m * c.n + i)];
    }
  }
  turned.back() = std::numeric_limits<T>::quiet_NaN();
  Outcome<T> other(c.batch, c.m, c.n, c.rank);
  randomized_svd({turned.data(), view.dtype, c.batch, c.m, c.n, c.m * c.n, 1, c.m}, options_of(c, level, 2), other.results());
  check(std::isnan(other.s.back()) && std::isnan(other.error.back()), what + ": NaN");
  if (c.batch > 2) {
    check(std::abs(static_cast<double>(other.s[0]) - static_cast<double>(one.s[0])) <= 1e-5 * static_cast<double>(one.s[0]),
          what + ": turned");
  }
}

void test_narrow(const Case& c, const std::string& level) {
  std::vector<float> a = made<float>(c);
  std::vector<std::uint16_t> narrow(a.size());
  for (std::size_t i = 0; i < a.size(); ++i) {
    std::uint32_t x;
    std::memcpy(&x, &a[i], sizeof x);
    narrow[i] = static_cast<std::uint16_t>(x >> 16);
    x &= 0xffff0000u;
    std::memcpy(&a[i], &x, sizeof x);
  }
  Outcome<float> from_wide(c.batch, c.m, c.n, c.rank), from_narrow(c.batch, c.m, c.n, c.rank);
  randomized_svd({a.data(), DType::f32, c.batch, c.m, c.n, c.m * c.n, c.n, 1}, options_of(c, level, 2), from_wide.results());
  randomized_svd({narrow.data(), DType::bf16, c.batch, c.m, c.n, c.m * c.n, c.n, 1}, options_of(c, level, 2), from_narrow.results());
  check(from_wide.same(from_narrow), level + ": bfloat16 " + std::to_string(c.m) + "x" + std::to_string(c.n));
}

}  // namespace

void test_low_rank() {
  for (const std::string& level : levels()) {
    for (const Case& c : kCases) {
      test_case<float>(c, level);
      test_case<double>(c, level);
      test_narrow(c, level);
    }
  }
  const Case large{1, 1800, 1600, 10, 16, 100, true, 0.0};  // takes longer than the 100 ms after which it is asked
  const std::vector<float> a = made<float>(large);
  Outcome<float> r(1, large.m, large.n, large.rank);
  LowRankOptions options = options_of(large, "", 2);
  options.interrupted = [] { return true; };
  check_throws<Cancelled>([&] { randomized_svd({a.data(), DType::f32, 1, large.m, large.n, 0, large.n, 1}, options, r.results()); },
                          "an interrupted call");
}

}  // namespace sf::tests
