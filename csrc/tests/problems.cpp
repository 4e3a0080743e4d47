#include "tests/problems.h"

#include <algorithm>
#include <cfloat>
#include <cmath>

namespace sf::tests {

using Real = long double;
using std::int64_t;

std::uint64_t Random::bits() {
  std::uint64_t z = state_ += 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

double Random::uniform() { return (static_cast<double>(bits() >> 12) + 0.5) * 0x1p-52; }

double Random::normal() { return std::sqrt(-2.0 * std::log(uniform())) * std::cos(6.283185307179586 * uniform()); }

namespace {

constexpr int kReflectors = 4;

// `count` vectors of length `size`, `step` apart, entries `stride` apart: x <- (I - 2 v v^T / v^T v) x.
void reflect(std::vector<Real>& a, int64_t count, int64_t step, int64_t size, int64_t stride, Random& random) {
  std::vector<Real> v(static_cast<std::size_t>(size));
  Real norm = 0;
  for (Real& x : v) {
    x = random.normal();
    norm += x * x;
  }
  for (int64_t k = 0; k < count; ++k) {
    Real* const x = a.data() + k * step;
    Real dot = 0;
    for (int64_t i = 0; i < size; ++i) dot += v[static_cast<std::size_t>(i)] * x[i * stride];
    dot *= 2 / norm;
    for (int64_t i = 0; i < size; ++i) x[i * stride] -= dot * v[static_cast<std::size_t>(i)];
  }
}

std::vector<Real> sorted(std::vector<Real> s) {
  std::sort(s.begin(), s.end(), [](Real x, Real y) { return x > y; });
  return s;
}

// A problem of the larger shape that holds `inner` (rows x cols) at the places row(i), column(j) and zeros elsewhere.
template <class Row, class Column>
Problem spread(const std::string& name, const Problem& inner, int64_t rows, int64_t cols, int64_t m, int64_t n, const Row& row,
               const Column& column) {
  Problem p{name, std::vector<double>(static_cast<std::size_t>(m * n)), inner.s, inner.slack};
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < cols; ++j)
      p.a[static_cast<std::size_t>(row(i) * n + column(j))] = inner.a[static_cast<std::size_t>(i * cols + j)];
  }
  p.s.resize(static_cast<std::size_t>(std::min(m, n)), 0);
  return p;
}

// Matrices without a closed form.
std::vector<Problem> computed(int64_t m, int64_t n, Random& random) {
  std::vector<Problem> found;
  const auto fill = [&](const char* name, const auto& entry) {
    Problem p{name, std::vector<double>(static_cast<std::size_t>(m * n)), {}};
    for (int64_t i = 0; i < m; ++i) {
      for (int64_t j = 0; j < n; ++j) p.a[static_cast<std::size_t>(i * n + j)] = entry(static_cast<double>(i), static_cast<double>(j));
    }
    p.s = jacobi(p.a, m, n);
    p.slack = 8 * static_cast<Real>(m + n) * LDBL_EPSILON * p.s[0];
    found.push_back(std::move(p));
  };
  fill("heavy-tailed", [&](double, double) { return random.normal() / std::pow(random.uniform(), 0.67); });
  fill("scaled rows", [&](double i, double) { return random.normal() * std::pow(10.0, -30.0 * i / static_cast<double>(m)); });
  fill("kahan", [](double i, double j) { return std::pow(std::sin(1.2), i) * (i == j ? 1.0 : i < j ? -std::cos(1.2) : 0.0); });
  fill("hilbert", [](double i, double j) { return 1.0 / (i + j + 1.0); });
  fill("cauchy", [](double i, double j) { return 1.0 / (1.1 * i - j + 0.3); });
  fill("upper bidiagonal with zeros", [&](double i, double j) { return j == i || j == i + 1 ? std::fmod(i + j, 5.0) - 2.0 : 0.0; });
  return found;
}

}  // namespace

Problem prescribed(const std::string& name, const std::vector<Real>& s, int64_t m, int64_t n, Random& random) {
  std::vector<Real> a(static_cast<std::size_t>(m * n));
  Real sum = 0;
  for (int64_t k = 0; k < std::min(m, n); ++k) {
    const Real x = s[static_cast<std::size_t>(k)];
    a[static_cast<std::size_t>(k * (n + 1))] = x;
    sum += x * x;
  }
  for (int k = 0; k < kReflectors; ++k) {
    reflect(a, n, 1, m, n, random);  // columns
    reflect(a, m, n, n, 1, random);  // rows
  }
  Problem p{name, {}, s};
  p.a.reserve(a.size());  // exactly: what is read beyond the last entry is then beyond the memory
  for (const Real x : a) p.a.push_back(static_cast<double>(x));
  // |s(A + E) - s(A)| <= |E|_F. Rounding each entry to float64: 2^-53 |A|_F. A reflector of length k errs by at most (2 k + 10) u |A|_F.
  const Real steps = 2 * kReflectors * static_cast<Real>(m + n + 10);
  p.slack = (0x1p-53L + steps * LDBL_EPSILON) * std::sqrt(sum);
  return p;
}

std::vector<Real> jacobi(const std::vector<double>& a, int64_t m, int64_t n) {
  // columns of A, or of its transpose where that has fewer
  const int64_t cols = std::min(m, n), rows = std::max(m, n);
  std::vector<std::vector<Real>> x(static_cast<std::size_t>(cols), std::vector<Real>(static_cast<std::size_t>(rows)));
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      (m >= n ? x[static_cast<std::size_t>(j)][static_cast<std::size_t>(i)] : x[static_cast<std::size_t>(i)][static_cast<std::size_t>(j)]) =
          a[static_cast<std::size_t>(i * n + j)];
    }
  }
  const auto dot = [](const std::vector<Real>& u, const std::vector<Real>& v) {
    Real sum = 0;
    for (std::size_t k = 0; k < u.size(); ++k) sum += u[k] * v[k];
    return sum;
  };
  for (bool rotated = true; rotated;) {
    rotated = false;
    for (std::size_t p = 0; p < x.size(); ++p) {
      for (std::size_t q = p + 1; q < x.size(); ++q) {
        const Real pp = dot(x[p], x[p]), qq = dot(x[q], x[q]), pq = dot(x[p], x[q]);
        // columns of less than 1e-60 of unit entries are as good as zero here, and their products would not be
        if (std::abs(pq) <= static_cast<Real>(rows) * LDBL_EPSILON * std::sqrt(pp) * std::sqrt(qq) || pq * pq < 1e-240L) continue;
        rotated = true;
        const Real zeta = (qq - pp) / (2 * pq);
        const Real t = (zeta < 0 ? -1 : 1) / (std::abs(zeta) + std::sqrt(1 + zeta * zeta));
        const Real c = 1 / std::sqrt(1 + t * t), s = c * t;
        for (std::size_t k = 0; k < x[p].size(); ++k) {
          const Real u = x[p][k], v = x[q][k];
          x[p][k] = c * u - s * v;
          x[q][k] = s * u + c * v;
        }
      }
    }
  }
  std::vector<Real> s;
  for (const auto& column : x) s.push_back(std::sqrt(dot(column, column)));
  return sorted(s);
}

std::vector<Problem> families(int64_t m, int64_t n, bool all, std::uint64_t seed) {
  Random random(seed);
  const int64_t d = std::min(m, n), half = (d + 1) / 2;
  std::vector<Problem> found;
  const auto with = [&](const char* name, const auto& value) {
    std::vector<Real> s;
    for (int64_t k = 0; k < d; ++k) s.push_back(value(k));
    found.push_back(prescribed(name, s, m, n, random));
  };
  const Real last = static_cast<Real>(std::max<int64_t>(d - 1, 1));
  with("graded", [&](int64_t k) { return std::pow(10.0L, -15 * static_cast<Real>(k) / last); });
  with("deficient", [&](int64_t k) { return k < half ? 2 - static_cast<Real>(k) / last : 0; });
  with("repeated", [&](int64_t k) { return k < half ? 1.0L : 1e-3L; });
  with("clustered", [&](int64_t k) { return (k < half ? 1.0L : 1e-6L) * (1 + 1e-12L * static_cast<Real>(d - k) / static_cast<Real>(d)); });
  with("flat", [](int64_t) { return 1.0L; });
  with("zero", [](int64_t) { return 0.0L; });

  const auto place = [&](int64_t i, int64_t j) { return static_cast<std::size_t>(i * n + j); };
  Problem diagonal{"permuted diagonal", std::vector<double>(static_cast<std::size_t>(m * n)), {}};
  for (int64_t k = 0; k < d; ++k) {
    const double x = random.normal();
    diagonal.a[place((d / 3 + k) % d, d - 1 - k)] = x;
    diagonal.s.push_back(std::abs(x));
  }
  diagonal.s = sorted(diagonal.s);
  found.push_back(std::move(diagonal));

  Problem ones{"ones", std::vector<double>(static_cast<std::size_t>(m * n), 1.0), std::vector<Real>(static_cast<std::size_t>(d))};
  ones.s[0] = std::sqrt(static_cast<Real>(m * n));
  found.push_back(std::move(ones));

  const auto descending = [&](int64_t count, Real scale) {
    std::vector<Real> s;
    for (int64_t k = 0; k < count; ++k) s.push_back(scale * (count - k) / count);
    return s;
  };
  {                                                                // zero rows and columns
    const int64_t rows = m - (m + 2) / 3, cols = n - (n + 2) / 4;  // all but every third, all but every fourth
    if (rows > 0 && cols > 0) {
      const Problem inner = prescribed("", descending(std::min(rows, cols), 1), rows, cols, random);
      found.push_back(spread(
          "holes", inner, rows, cols, m, n, [](int64_t i) { return i / 2 * 3 + i % 2 + 1; },
          [](int64_t j) { return j / 3 * 4 + j % 3 + (j % 3 > 0); }));
    }
  }
  if (d >= 2) {  // two blocks of different size; the spectrum is that of both
    const int64_t rows = m - half, cols = n - half;
    const Problem upper = prescribed("", descending(half, 1e-4L), half, half, random);
    const Problem lower = prescribed("", descending(std::min(rows, cols), 1), rows, cols, random);
    Problem blocks = spread("blocks", lower, rows, cols, m, n, [&](int64_t i) { return i + half; }, [&](int64_t j) { return j + half; });
    for (int64_t i = 0; i < half; ++i) {
      for (int64_t j = 0; j < half; ++j) blocks.a[place(i, j)] = upper.a[static_cast<std::size_t>(i * half + j)];
    }
    blocks.s = lower.s;
    blocks.s.insert(blocks.s.end(), upper.s.begin(), upper.s.end());
    blocks.s = sorted(blocks.s);
    blocks.slack = std::max(lower.slack, upper.slack);
    found.push_back(std::move(blocks));
  }
  Problem gaussian{"gaussian", {}, {}};
  gaussian.a.reserve(static_cast<std::size_t>(m * n));
  for (int64_t k = 0; k < m * n; ++k) gaussian.a.push_back(random.normal());
  if (all) {
    gaussian.s = jacobi(gaussian.a, m, n);
    gaussian.slack = 8 * static_cast<Real>(m + n) * LDBL_EPSILON * gaussian.s[0];
    for (Problem& p : computed(m, n, random)) found.push_back(std::move(p));
  }
  found.push_back(std::move(gaussian));
  return found;
}

}  // namespace sf::tests
