// Third stage: eigenvalues of a symmetric tridiagonal matrix from Sturm counts.
//
// Counts on a grid give every eigenvalue a first interval; intervals with several eigenvalues are halved (once for all of them);
// where only one is left, the last minor p_n, which changes its sign there, is driven to zero by Chandrupatla's method (1997): inverse
// quadratic interpolation where it is safe, halving where not. The signs are those of the counts, so nothing can be missed.
#include <algorithm>
#include <cmath>

#include "singular_values/two_stage_parts.h"

namespace sf {
namespace {

constexpr std::int64_t kGroup = 128;  // eigenvalues of one task
constexpr double kEnough = 0x1p-51;   // half the width of a last interval, for a spectrum scaled to about 1
constexpr double kFloor = 0x1p-110;   // of squared off-diagonals: see sturm.inl.h
constexpr std::int64_t kMostLanes = 8;

// p_n at a point: value * 2^exponent, |value| in [0.5, 1); 0 stands for a value that says nothing.
struct Minor {
  double value = 0.0;
  std::int64_t exponent = 0;
};

struct Point {
  double x = 0.0;
  std::int64_t count = 0;
  Minor minor;
};

// From a to b, in either order; c is the point before a, where there was one.
struct Interval {
  Point a, b, c;
  double part = 0.5;  // where to look next: a + part (b - a)
  int steps = 0;

  std::int64_t first() const { return std::min(a.count, b.count); }
  std::int64_t end() const { return std::max(a.count, b.count); }
  bool isolated() const { return end() - first() == 1; }
  double next() const { return a.x + part * (b.x - a.x); }
};

bool smaller(const Minor& f, const Minor& g) {
  return f.exponent != g.exponent ? f.exponent < g.exponent : std::fabs(f.value) < std::fabs(g.value);
}

// Where Chandrupatla's method looks next.
double interpolate(const Interval& i) {
  if (i.a.minor.value == 0.0 || i.b.minor.value == 0.0 || i.c.minor.value == 0.0 || i.steps > 40) return 0.5;
  const std::int64_t top = std::max({i.a.minor.exponent, i.b.minor.exponent, i.c.minor.exponent});
  const auto size = [&](const Point& p) {
    return std::ldexp(p.minor.value, static_cast<int>(std::max<std::int64_t>(p.minor.exponent - top, -400)));
  };
  const double fa = size(i.a), fb = size(i.b), fc = size(i.c), a = i.a.x, b = i.b.x, c = i.c.x;
  const double xi = (a - b) / (c - b), phi = (fa - fb) / (fc - fb);
  if (!(phi * phi < xi && (1.0 - phi) * (1.0 - phi) < 1.0 - xi)) return 0.5;
  const double part = fa / (fb - fa) * fc / (fb - fc) + (c - a) / (b - a) * fa / (fc - fa) * fb / (fc - fb);
  const double least = kEnough / std::fabs(b - a);
  return part > 0.0 && part < 1.0 ? std::clamp(part, std::min(least, 0.5), std::max(1.0 - least, 0.5)) : 0.5;
}

class Bisection {
 public:
  Bisection(const double* d, std::vector<double> e2, std::int64_t order, double low, double high, std::int64_t from,
            const TwoStageLoops& loops)
      : d_(d), e2_(std::move(e2)), n(order), from_(from), low_(low), high_(high), loops_(loops) {}

  void run(double* values, Team& team) {
    const std::int64_t inner = std::max<std::int64_t>((n - from_ + 7) / 8 * 8, 32);
    grid_.resize(static_cast<std::size_t>(inner + 2));
    grid_.front() = Point{low_, from_, {}};
    grid_.back() = Point{high_, n, {}};
    for (std::int64_t i = 1; i <= inner; ++i) {
      grid_[static_cast<std::size_t>(i)].x = low_ + (high_ - low_) * (static_cast<double>(i) / static_cast<double>(inner + 1));
    }
    team.each(blocks_of(inner, 64), [&](std::int64_t t, int) {
      evaluate(&grid_[static_cast<std::size_t>(1 + t * 64)], std::min<std::int64_t>(64, inner - t * 64));
    });
    for (std::size_t i = 1; i < grid_.size(); ++i) agree(grid_[i], grid_[i - 1].count, n);
    team.check();
    team.each(blocks_of(n - from_, kGroup),
              [&](std::int64_t t, int) { group(from_ + t * kGroup, std::min(from_ + (t + 1) * kGroup, n), values); });
  }

 private:
  // Counts of neighbours may be out of order by rounding; the minor's sign is then not the count's.
  static void agree(Point& p, std::int64_t least, std::int64_t most) {
    const std::int64_t count = std::clamp(p.count, least, most);
    if (count != p.count) p.minor = Minor{};
    p.count = count;
  }

  void evaluate(Point* points, std::int64_t count) const {
    double x[64] = {}, value[64];
    std::int64_t counts[64], exponents[64];
    for (std::int64_t k = 0; k < count; ++k) x[k] = points[k].x;
    for (std::int64_t k = count; k % kMostLanes != 0; ++k) x[k] = x[k - 1];
    loops_.sturm(d_, e2_.data(), n, x, (count + kMostLanes - 1) / kMostLanes * kMostLanes, counts, value, exponents);
    for (std::int64_t k = 0; k < count; ++k) {
      points[k].count = counts[k];
      points[k].minor = Minor{value[k], exponents[k]};
    }
  }

  // Eigenvalues k0 ... k1-1 (ascending) to values, which is descending.
  void group(std::int64_t k0, std::int64_t k1, double* values) const {
    std::vector<Interval> open, kept;
    std::vector<Point> points;
    const auto keep = [&](const Interval& i) {
      if (i.end() <= k0 || i.first() >= k1 || i.first() == i.end()) return;
      if (std::fabs(i.b.x - i.a.x) > 2.0 * kEnough) {
        kept.push_back(i);
        return;
      }
      double x = 0.5 * (i.a.x + i.b.x);
      if (i.isolated() && i.a.minor.value != 0.0 && i.b.minor.value != 0.0) x = smaller(i.a.minor, i.b.minor) ? i.a.x : i.b.x;
      for (std::int64_t k = std::max(k0, i.first()); k < std::min(k1, i.end()); ++k) values[n - 1 - k] = x;
    };
    for (std::size_t i = 0; i + 1 < grid_.size(); ++i) keep(Interval{grid_[i], grid_[i + 1], {}});
    while (!kept.empty()) {
      open.swap(kept);
      kept.clear();
      points.resize(open.size());
      for (std::size_t k = 0; k < open.size(); ++k) points[k].x = open[k].next();
      for (std::size_t k = 0; k < open.size(); k += 64)
        evaluate(&points[k], static_cast<std::int64_t>(std::min<std::size_t>(64, open.size() - k)));
      for (std::size_t k = 0; k < open.size(); ++k) {
        Interval& i = open[k];
        agree(points[k], i.first(), i.end());
        if (!i.isolated()) {
          keep(Interval{i.a, points[k], {}});
          keep(Interval{points[k], i.b, {}});
          continue;
        }
        if (points[k].count == i.a.count) {
          i.c = i.a;
        } else {
          i.c = i.b;
          i.b = i.a;
        }
        i.a = points[k];
        ++i.steps;
        i.part = interpolate(i);
        keep(i);
      }
    }
  }

  const double* d_;  // null: zero diagonal
  const std::vector<double> e2_;
  const std::int64_t n, from_;  // the order; the first eigenvalue wanted
  const double low_, high_;
  const TwoStageLoops& loops_;
  std::vector<Point> grid_;
};

}  // namespace

void tridiagonal_eigenvalues(const double* d, const double* e, std::int64_t n, double* values, const TwoStageLoops& loops, Team& team) {
  double low = HUGE_VAL, high = -HUGE_VAL;
  for (std::int64_t i = 0; i < n; ++i) {
    const double radius = (i > 0 ? std::fabs(e[i - 1]) : 0.0) + (i + 1 < n ? std::fabs(e[i]) : 0.0);
    low = std::min(low, d[i] - radius);
    high = std::max(high, d[i] + radius);
  }
  const double size = std::max(std::fabs(low), std::fabs(high));
  if (!(size > 0.0)) {
    std::fill(values, values + n, 0.0);
    return;
  }
  int exponent = 0;
  (void)std::frexp(size, &exponent);
  std::vector<double> scaled(static_cast<std::size_t>(n)), e2(static_cast<std::size_t>(n), 0.0);
  for (std::int64_t i = 0; i < n; ++i) scaled[static_cast<std::size_t>(i)] = std::ldexp(d[i], -exponent);
  for (std::int64_t i = 1; i < n; ++i) {
    const double x = std::ldexp(e[i - 1], -exponent);
    e2[static_cast<std::size_t>(i)] = std::max(x * x, kFloor);
  }
  constexpr double kMargin = 0x1p-49;
  Bisection(scaled.data(), std::move(e2), n, std::ldexp(low, -exponent) - kMargin, std::ldexp(high, -exponent) + kMargin, 0, loops)
      .run(values, team);
  for (std::int64_t i = 0; i < n; ++i) values[i] = std::ldexp(values[i], exponent);
}

// Of the symmetric matrix of order 2n with zero diagonal and off-diagonals d_1, e_1, d_2, ... (Golub & Kahan 1965) the upper half.
void bidiagonal_singular_values(const double* d, const double* e, std::int64_t n, double* values, const TwoStageLoops& loops, Team& team) {
  double size = 0.0;
  for (std::int64_t i = 0; i < n; ++i) {
    size = std::max(size, std::fabs(d[i]) + std::max(i > 0 ? std::fabs(e[i - 1]) : 0.0, i + 1 < n ? std::fabs(e[i]) : 0.0));
  }
  if (!(size > 0.0)) {
    std::fill(values, values + n, 0.0);
    return;
  }
  int exponent = 0;
  (void)std::frexp(size, &exponent);
  std::vector<double> e2(static_cast<std::size_t>(2 * n), 0.0);
  for (std::int64_t i = 0; i < n; ++i) {
    const double x = std::ldexp(d[i], -exponent), y = i + 1 < n ? std::ldexp(e[i], -exponent) : 0.0;
    e2[static_cast<std::size_t>(2 * i + 1)] = std::max(x * x, kFloor);
    if (i + 1 < n) e2[static_cast<std::size_t>(2 * i + 2)] = std::max(y * y, kFloor);
  }
  Bisection(nullptr, std::move(e2), 2 * n, 0.0, std::ldexp(size, -exponent) + 0x1p-49, n, loops).run(values, team);
  for (std::int64_t i = 0; i < n; ++i) values[i] = std::ldexp(values[i], exponent);
}

}  // namespace sf
