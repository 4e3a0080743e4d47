// power_law against its definition in extended precision, all starts of every spectrum.
#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <vector>

#include "power_law/power_law.h"
#include "tests/check.h"
#include "tests/problems.h"

namespace sf::tests {
namespace {

using Real = long double;
using std::int64_t;

struct Spectra {
  std::vector<double> values;
  std::vector<int64_t> offsets{0};

  void add(std::vector<double> x) {
    std::sort(x.begin(), x.end());
    values.insert(values.end(), x.begin(), x.end());
    offsets.push_back(static_cast<int64_t>(values.size()));
  }
};

struct Fits {
  std::vector<double> alpha, D;
  std::vector<int64_t> best;
};

template <class T>
View<const T, 1> view(const std::vector<T>& x) {
  View<const T, 1> v;
  v.data = x.data();
  v.shape[0] = static_cast<int64_t>(x.size());
  v.strides[0] = 1;
  return v;
}

Fits fit(View<const double, 1> values, const std::vector<int64_t>& offsets, Level level, int threads) {
  const std::size_t n = static_cast<std::size_t>(values.shape[0]);
  Fits f{std::vector<double>(n, -1.0), std::vector<double>(n, -1.0), std::vector<int64_t>(offsets.size() - 1, -2)};
  power_law(values, view(offsets), f.alpha.data(), f.D.data(), f.best.data(), level, threads, {});
  return f;
}

bool same(const std::vector<double>& a, const std::vector<double>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](double x, double y) { return x == y || (std::isnan(x) && std::isnan(y)); });
}

bool same(const Fits& a, const Fits& b) { return same(a.alpha, b.alpha) && same(a.D, b.D) && a.best == b.best; }

Spectra examples() {
  Random random(1);
  Spectra all;
  const auto draw = [&](int64_t n, const auto& value) {
    std::vector<double> x;
    for (int64_t k = 0; k < n; ++k) x.push_back(value(k));
    all.add(std::move(x));
  };
  for (const int64_t n : {0, 1, 2, 3, 15, 16, 17, 33, 64, 200, 600}) {
    draw(n, [&](int64_t) { return std::pow(random.uniform(), -1.0 / 1.5); });
    draw(n, [&](int64_t) { return std::exp(3.0 * random.normal()); });
  }
  draw(300, [](int64_t) { return 0.25; });
  draw(300, [](int64_t k) { return k < 200 ? 1e-300 : 1e300; });
  draw(300, [](int64_t k) { return 1.0 + 1e-13 * static_cast<double>(k); });
  draw(40, [](int64_t k) { return std::ldexp(1.0, static_cast<int>(k) - 1074); });
  return all;
}

void against_the_definition(const Spectra& all, const Fits& f, const std::string& level) {
  for (std::size_t s = 0; s + 1 < all.offsets.size(); ++s) {
    const std::string what = "power_law, spectrum " + std::to_string(s) + " at " + level;
    const int64_t first = all.offsets[s], n = all.offsets[s + 1] - first;
    const double* x = all.values.data() + first;
    Real least = INFINITY;
    bool right = true;
    for (int64_t i = 0; i + 1 < n; ++i) {
      Real sum = 0, D = 0;
      // ln(b/a) through b - a: no cancellation for close values
      const auto way = [&](int64_t j) { return x[j] < 2 * x[i] ? std::log1p((Real(x[j]) - x[i]) / x[i]) : std::log(Real(x[j]) / x[i]); };
      for (int64_t j = i; j < n; ++j) sum += way(j);
      const Real slope = static_cast<Real>(n - i) / sum;
      for (int64_t j = i; j < n; ++j) {
        D = std::max(D, std::abs(1 - std::exp(-slope * way(j)) - static_cast<Real>(j - i) / static_cast<Real>(n - i)));
      }
      const double alpha = f.alpha[static_cast<std::size_t>(first + i)], d = f.D[static_cast<std::size_t>(first + i)];
      if (sum == 0) {
        right = right && alpha == INFINITY && std::isnan(d);
      } else {
        right = right && std::abs(alpha - (1 + slope)) <= 1e-14L * (1 + slope) && std::abs(d - D) <= 1e-14L;
        least = std::min(least, D);
      }
    }
    if (n > 0) right = right && std::isnan(f.alpha[static_cast<std::size_t>(first + n - 1)]);
    const int64_t best = f.best[s];
    if (std::isinf(least)) {
      right = right && best == -1;
    } else {
      right = right && best >= 0 && best < n - 1 && std::abs(f.D[static_cast<std::size_t>(first + best)] - least) <= 1e-12L;
    }
    check(right, what);
  }
}

void refused(Level level) {
  const auto call = [&](std::vector<double> x, int threads) {
    return [=] { fit(view(x), {0, 2, static_cast<int64_t>(x.size())}, level, threads); };
  };
  constexpr double nan = std::numeric_limits<double>::quiet_NaN();
  for (const int threads : {1, 2}) {
    check_throws<std::invalid_argument>(call({1, 2, 3, 2}, threads), "descending values");
    check_throws<std::invalid_argument>(call({0, 2, 3, 4}, threads), "a zero");
    check_throws<std::invalid_argument>(call({1, 2, 3, INFINITY}, threads), "an infinity");
    check_throws<std::invalid_argument>(call({1, 2, 3, nan, 5}, threads), "a NaN");
  }
}

}  // namespace

void test_power_law() {
  const Spectra all = examples();
  Fits first;
  for (const std::string& name : levels()) {
    const Level level = find_level(name);
    const Fits f = fit(view(all.values), all.offsets, level, 1);
    if (first.best.empty()) first = f;
    against_the_definition(all, f, name);
    check(same(f, first), "power_law: the same bits at " + name);
    for (const int threads : {2, 3})
      check(same(fit(view(all.values), all.offsets, level, threads), f), "power_law: the same bits, threads");

    std::vector<double> reversed(all.values.rbegin(), all.values.rend()), spaced;
    for (const double x : all.values) spaced.insert(spaced.end(), {x, -1.0, -1.0});
    View<const double, 1> backwards = view(reversed), every_third = view(spaced);
    backwards.data += reversed.size() - 1;
    backwards.strides[0] = -1;
    every_third.strides[0] = 3;
    every_third.shape[0] = backwards.shape[0];
    check(same(fit(backwards, all.offsets, level, 2), f), "power_law: negative stride");
    check(same(fit(every_third, all.offsets, level, 2), f), "power_law: stride 3");
    refused(level);
  }
}

}  // namespace sf::tests
