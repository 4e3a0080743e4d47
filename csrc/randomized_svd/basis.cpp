#include "randomized_svd/basis.h"

#include <limits>

namespace sf {

namespace {

// Smallest pivot of Cholesky's decomposition, relative to the diagonal, with which one step of CholeskyQR leaves columns that the next one
// can make orthonormal to rounding.
template <class T>
constexpr double kLeastPivot = sizeof(T) == sizeof(float) ? 4e-9 : 1e-11;

constexpr int kMostRounds = 5;

// What is left of a column, as a share of its length, below which it is nothing but rounding; a fourth of it, of the norm of what it is
// a product with.
template <class T>
constexpr double kRounding = 4.0 * static_cast<double>(std::numeric_limits<T>::epsilon());

// The same where the Gram matrix is in the working precision, which is enough for a rough basis.
constexpr double kEvenPivot = 1e-3;

// g (w x w), symmetric, to the upper triangle r with r^T r = g and its inverse; returns the smallest pivot relative
// to the diagonal, 0 where that is less than `least`.
double cholesky(const std::vector<double>& g, std::int64_t w, double least, std::vector<double>& r, std::vector<double>& inverse) {
  r.assign(g.size(), 0.0);
  inverse.assign(g.size(), 0.0);
  const auto at = [w](std::int64_t i, std::int64_t j) { return static_cast<std::size_t>(i * w + j); };
  double smallest = 1.0;
  for (std::int64_t i = 0; i < w; ++i) {
    double* const ri = r.data() + i * w;
    for (std::int64_t j = i; j < w; ++j) ri[j] = g[at(i, j)];
    for (std::int64_t k = 0; k < i; ++k) {
      const double* const rk = r.data() + k * w;
      const double factor = rk[i];
      for (std::int64_t j = i; j < w; ++j) ri[j] -= factor * rk[j];
    }
    if (!(ri[i] > least * g[at(i, i)]) || !(ri[i] > 0.0)) return 0.0;
    smallest = std::min(smallest, ri[i] / g[at(i, i)]);
    const double pivot = 1.0 / std::sqrt(ri[i]);
    for (std::int64_t j = i; j < w; ++j) ri[j] *= pivot;
    inverse[at(i, i)] = pivot;
  }
  for (std::int64_t i = w - 1; i >= 0; --i) {  // row i of the inverse: (e_i - r_i,i+1.. inverse) / r_ii
    double* const xi = inverse.data() + i * w;
    const double* const ri = r.data() + i * w;
    const double pivot = xi[i];
    for (std::int64_t k = i + 1; k < w; ++k) {
      const double* const xk = inverse.data() + k * w;
      const double factor = pivot * ri[k];
      for (std::int64_t j = k; j < w; ++j) xi[j] -= factor * xk[j];
    }
  }
  return smallest;
}

// a (n x w) b, b (w x w) upper triangular
std::vector<double> times_triangle(const std::vector<double>& a, const std::vector<double>& b, std::int64_t n, std::int64_t w) {
  std::vector<double> out(static_cast<std::size_t>(n * w), 0.0);
  for (std::int64_t i = 0; i < n; ++i) {
    for (std::int64_t k = 0; k < w; ++k) {
      const double factor = a[static_cast<std::size_t>(i * w + k)];
      if (factor == 0.0) continue;
      for (std::int64_t j = k; j < w; ++j) out[static_cast<std::size_t>(i * w + j)] += factor * b[static_cast<std::size_t>(k * w + j)];
    }
  }
  return out;
}

// Coefficients of a step that comes after those in `all`: block = basis above + itself corner, where the block is what `all` left.
void compose(Coefficients& all, const std::vector<double>& above, const std::vector<double>& corner) {
  if (all.corner.empty()) {
    all.above = above;
    all.corner = corner;
    return;
  }
  const std::vector<double> more = times_triangle(above, all.corner, all.before, all.width);
  for (std::size_t i = 0; i < more.size(); ++i) all.above[i] += more[i];
  all.corner = times_triangle(corner, all.corner, all.width, all.width);
}

}  // namespace

template <class T>
std::vector<double> Basis<T>::sum(const std::vector<double>& partial, std::size_t size) const {
  std::vector<double> total(partial.begin(), partial.begin() + static_cast<std::ptrdiff_t>(size));
  for (std::size_t from = size; from < partial.size(); from += size) {
    for (std::size_t i = 0; i < size; ++i) total[i] += partial[from + i];
  }
  return total;
}

// basis^T y
template <class T>
std::vector<double> Basis<T>::overlap(const Thin<T>& y) const {
  const auto size = static_cast<std::size_t>(width_ * y.width);
  std::vector<double> partial(size * static_cast<std::size_t>(parts()));
  team_.each(parts(), [&](std::int64_t p, int) {
    double* to = partial.data() + size * static_cast<std::size_t>(p);
    for (const Thin<T>& q : blocks_) {
      Local<T, 2048> z(q.width * y.ld);
      std::memset(z.get(), 0, static_cast<std::size_t>(q.width * y.ld) * sizeof(T));
      loops_.columns(q.row(p * kChain), q.ld, count(p), q.width, y.row(p * kChain), y.ld, y.width, z.get(), y.ld);
      for (std::int64_t i = 0; i < q.width; ++i) {
        for (std::int64_t j = 0; j < y.width; ++j) *to++ = static_cast<double>(z.get()[i * y.ld + j]);
      }
    }
  });
  return sum(partial, size);
}

// y -= basis c, and c as it was used
template <class T>
void Basis<T>::subtract(const Thin<T>& y, std::vector<double>& c) const {
  std::vector<Thin<T>> minus;
  std::size_t from = 0;
  for (const Thin<T>& q : blocks_) {
    minus.emplace_back(q.width, y.width, loops_.lanes);
    minus.back().clear(0, q.width);
    for (std::int64_t i = 0; i < q.width; ++i) {
      for (std::int64_t j = 0; j < y.width; ++j, ++from) {
        minus.back().row(i)[j] = static_cast<T>(-c[from]);
        c[from] = -static_cast<double>(minus.back().row(i)[j]);
      }
    }
  }
  team_.each(parts(), [&](std::int64_t p, int) {
    for (std::size_t b = 0; b < blocks_.size(); ++b) {
      const Thin<T>& q = blocks_[b];
      loops_.rows(q.row(p * kChain), q.ld, count(p), q.width, minus[b].x.get(), minus[b].ld, y.width, y.row(p * kChain), y.ld);
    }
  });
}

template <class T>
std::vector<double> Basis<T>::quick_gram(const Thin<T>& y) const {
  const std::int64_t w = y.width;
  const auto size = static_cast<std::size_t>(w * w);
  std::vector<double> partial(size * static_cast<std::size_t>(parts()));
  team_.each(parts(), [&](std::int64_t p, int) {
    Local<T, 2048> z(w * y.ld);
    std::memset(z.get(), 0, static_cast<std::size_t>(w * y.ld) * sizeof(T));
    loops_.columns(y.row(p * kChain), y.ld, count(p), w, y.row(p * kChain), y.ld, w, z.get(), y.ld);
    double* to = partial.data() + size * static_cast<std::size_t>(p);
    for (std::int64_t i = 0; i < w; ++i) {
      for (std::int64_t j = 0; j < w; ++j) *to++ = static_cast<double>(z.get()[i * y.ld + j]);
    }
  });
  return sum(partial, size);
}

template <class T>
std::vector<double> Basis<T>::gram(const Thin<T>& y) const {
  const std::int64_t w = y.width;
  const auto size = static_cast<std::size_t>(w * w);
  std::vector<double> partial(size * static_cast<std::size_t>(parts()));
  team_.each(parts(), [&](std::int64_t p, int) {
    Local<double, 8192> work((count(p) + w) * y.ld);
    double *const wide = work.get(), *const z = wide + count(p) * y.ld;
    loops_.widen(y.row(p * kChain), count(p), y.ld, wide);
    std::memset(z, 0, static_cast<std::size_t>(w * y.ld) * sizeof(double));
    twice_.columns(wide, y.ld, count(p), w, wide, y.ld, w, z, y.ld);
    double* to = partial.data() + size * static_cast<std::size_t>(p);
    for (std::int64_t i = 0; i < w; ++i, to += w) std::copy(z + i * y.ld, z + i * y.ld + w, to);
  });
  return sum(partial, size);
}

// y <- y c
template <class T>
void Basis<T>::multiply(const Thin<T>& y, const std::vector<double>& c) const {
  const Thin<T> factor(y.width, y.width, loops_.lanes);
  factor.clear(0, y.width);
  for (std::int64_t i = 0; i < y.width; ++i) {
    for (std::int64_t j = 0; j < y.width; ++j) factor.row(i)[j] = static_cast<T>(c[static_cast<std::size_t>(i * y.width + j)]);
  }
  team_.each(parts(), [&](std::int64_t p, int) {
    Local<T, 8192> before(count(p) * y.ld);
    std::memcpy(before.get(), y.row(p * kChain), static_cast<std::size_t>(count(p) * y.ld) * sizeof(T));
    y.clear(p * kChain, count(p));
    loops_.rows(before.get(), y.ld, count(p), y.width, factor.x.get(), factor.ld, y.width, y.row(p * kChain), y.ld);
  });
}

template <class T>
typename Basis<T>::Refill Basis<T>::random() const {
  return [this](std::uint64_t draw, std::int64_t column, std::vector<double>& out) {
    for (std::int64_t i = 0; i < rows_; ++i) out[static_cast<std::size_t>(i)] = uniform(seed_, stream_ + draw, column * rows_ + i);
  };
}

template <class T>
Coefficients Basis<T>::orthonormalize(const Thin<T>& block, double size, const Refill& refill, bool rough, bool wanted) {
  const std::int64_t w = block.width;
  Coefficients all{width_, w, {}, {}, 0.0};
  std::vector<double> above, r, inverse, rounding(static_cast<std::size_t>(w)), before(static_cast<std::size_t>(w));
  for (int round = 0; round < kMostRounds; ++round) {
    if (width_ > 0) {
      above = overlap(block);
      subtract(block, above);
    }
    std::vector<double> g;
    if (rough && width_ == 0) {  // columns far from depending on each other need no more than this
      g = quick_gram(block);
      const double pivot = cholesky(g, w, kEvenPivot, r, inverse);
      if (pivot > 0.0) {
        multiply(block, inverse);
        all.pivot = pivot;
        return all;
      }
    }
    g = gram(block);
    for (std::int64_t j = 0; j < w; ++j) before[static_cast<std::size_t>(j)] = g[static_cast<std::size_t>(j * w + j)];
    for (std::int64_t i = 0; i < width_; ++i) {
      const double* const row = above.data() + i * w;
      for (std::int64_t j = 0; j < w; ++j) before[static_cast<std::size_t>(j)] += row[j] * row[j];
    }
    bool there = true, kept = true;  // more than rounding is left; more than half of each column's length
    for (std::int64_t j = 0; j < w; ++j) {
      const double left = g[static_cast<std::size_t>(j * w + j)], whole = before[static_cast<std::size_t>(j)];
      const double noise = std::max(kRounding<T> * std::sqrt(whole), round == 0 ? kRounding<T> / 4 * size : 0.0);
      there = there && left > noise * noise;
      kept = kept && left > 0.25 * whole;
      rounding[static_cast<std::size_t>(j)] = noise;
    }
    const double pivot = there && round + 1 < kMostRounds ? cholesky(g, w, kLeastPivot<T>, r, inverse) : 0.0;
    if (pivot == 0.0) break;
    multiply(block, inverse);
    if (wanted) compose(all, above, r);
    all.pivot = round == 0 ? pivot : 0.0;
    if (rough || (kept && (round > 0 || pivot > 1.0 / 16))) return all;
  }
  Coefficients rest = by_columns(block, rounding, refill);  // of what the last round has taken `above` from
  for (std::size_t i = 0; i < rest.above.size(); ++i) rest.above[i] += above[i];
  if (wanted) compose(all, rest.above, rest.corner);
  return all;
}

template <class T>
void Basis<T>::polish(const Thin<T>& y) const {
  std::vector<double> r, inverse;
  if (cholesky(gram(y), y.width, kLeastPivot<T>, r, inverse) > 0.0) multiply(y, inverse);
}

template <class T>
Coefficients Basis<T>::by_columns(const Thin<T>& y, const std::vector<double>& noise, const Refill& refill) const {
  const std::int64_t w = y.width;
  Coefficients out{width_, w, std::vector<double>(static_cast<std::size_t>(width_ * w), 0.0),
                   std::vector<double>(static_cast<std::size_t>(w * w), 0.0), 0.0};
  std::vector<double> column(static_cast<std::size_t>(rows_));
  const auto length = [&] {
    double total = 0.0;
    for (const double x : column) total += x * x;
    return std::sqrt(total);
  };
  // column -= its part along column j of q; returns how much it was
  const auto take = [&](const Thin<T>& q, std::int64_t j) {
    double dot = 0.0;
    for (std::int64_t i = 0; i < rows_; ++i) dot += static_cast<double>(q.row(i)[j]) * column[static_cast<std::size_t>(i)];
    for (std::int64_t i = 0; i < rows_; ++i) column[static_cast<std::size_t>(i)] -= dot * static_cast<double>(q.row(i)[j]);
    return dot;
  };
  for (std::int64_t c = 0; c < w; ++c) {
    team_.check();
    for (std::int64_t i = 0; i < rows_; ++i) column[static_cast<std::size_t>(i)] = static_cast<double>(y.row(i)[c]);
    bool own = true;
    double rounding = noise[static_cast<std::size_t>(c)], before = 0.0, after = length();
    std::uint64_t drawn = 0;
    for (int pass = 0; pass < 2 || after < 0.5 * before; ++pass) {
      before = after;
      std::int64_t k = 0;
      for (const Thin<T>& q : blocks_) {
        for (std::int64_t j = 0; j < q.width; ++j, ++k) {
          const double dot = take(q, j);
          if (own) out.above[static_cast<std::size_t>(k * w + c)] += dot;
        }
      }
      for (std::int64_t j = 0; j < c; ++j) {
        const double dot = take(y, j);
        if (own) out.corner[static_cast<std::size_t>(j * w + c)] += dot;
      }
      after = length();
      if (after > rounding) continue;
      own = false;
      refill(drawn++, width_ + c, column);
      after = length();
      rounding = kRounding<T> * after;
      pass = -1;
    }
    out.corner[static_cast<std::size_t>(c * w + c)] = own ? after : 0.0;
    for (std::int64_t i = 0; i < rows_; ++i) y.row(i)[c] = static_cast<T>(column[static_cast<std::size_t>(i)] / after);
  }
  return out;
}

template <class T>
Thin<T> Basis<T>::combine(const double* c, std::int64_t k, double sign) const {
  Thin<T> out(rows_, k, loops_.lanes);
  std::vector<Thin<T>> factors;
  for (const Thin<T>& q : blocks_) {
    factors.emplace_back(q.width, k, loops_.lanes);
    factors.back().clear(0, q.width);
    for (std::int64_t i = 0; i < q.width; ++i, c += k) {
      for (std::int64_t j = 0; j < k; ++j) factors.back().row(i)[j] = static_cast<T>(sign * c[j]);
    }
  }
  team_.each(parts(), [&](std::int64_t p, int) {
    out.clear(p * kChain, count(p));
    for (std::size_t b = 0; b < blocks_.size(); ++b) {
      const Thin<T>& q = blocks_[b];
      loops_.rows(q.row(p * kChain), q.ld, count(p), q.width, factors[b].x.get(), factors[b].ld, k, out.row(p * kChain), out.ld);
    }
  });
  return out;
}

template class Basis<float>;
template class Basis<double>;

}  // namespace sf
