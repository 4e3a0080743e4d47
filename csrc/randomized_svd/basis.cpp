#include "randomized_svd/basis.h"

#include <limits>

namespace sf {

namespace {

// Smallest pivot of Cholesky's decomposition, relative to the diagonal, with which one step of CholeskyQR leaves columns that the next one can
// make orthonormal to rounding.
template <class T>
constexpr double kLeastPivot = sizeof(T) == sizeof(float) ? 4e-9 : 1e-11;

constexpr int kMostRounds = 5;

// What is left of a column, as a share of its length, below which it is nothing but rounding; a fourth of it as a share of the norm of what it is
// a product with.
template <class T>
constexpr double kRounding = 16.0 * static_cast<double>(std::numeric_limits<T>::epsilon());

// g (w x w), symmetric, to the upper triangle r with r^T r = g and its inverse; false where a pivot is too small.
bool cholesky(const std::vector<double>& g, std::int64_t w, double least, std::vector<double>& r, std::vector<double>& inverse) {
  r.assign(g.size(), 0.0);
  inverse.assign(g.size(), 0.0);
  const auto at = [w](std::int64_t i, std::int64_t j) { return static_cast<std::size_t>(i * w + j); };
  for (std::int64_t i = 0; i < w; ++i) {
    double* const ri = r.data() + i * w;
    for (std::int64_t j = i; j < w; ++j) ri[j] = g[at(i, j)];
    for (std::int64_t k = 0; k < i; ++k) {
      const double* const rk = r.data() + k * w;
      const double factor = rk[i];
      for (std::int64_t j = i; j < w; ++j) ri[j] -= factor * rk[j];
    }
    if (!(ri[i] > least * g[at(i, i)]) || !(ri[i] > 0.0)) return false;
    const double pivot = 1.0 / std::sqrt(ri[i]);
    for (std::int64_t j = i; j < w; ++j) ri[j] *= pivot;
  }
  for (std::int64_t i = w - 1; i >= 0; --i) {  // row i of the inverse: (e_i - r_i,i+1.. inverse) / r_ii
    double* const xi = inverse.data() + i * w;
    const double* const ri = r.data() + i * w;
    xi[i] = 1.0;
    for (std::int64_t k = i + 1; k < w; ++k) {
      const double* const xk = inverse.data() + k * w;
      for (std::int64_t j = k; j < w; ++j) xi[j] -= ri[k] * xk[j];
    }
    for (std::int64_t j = i; j < w; ++j) xi[j] /= ri[i];
  }
  return true;
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
      const Thin<T> z(q.width, y.width, loops_.lanes);
      z.clear(0, z.rows);
      loops_.columns(q.row(p * kChain), q.ld, count(p), q.width, y.row(p * kChain), y.ld, y.width, z.x.get(), z.ld);
      for (std::int64_t i = 0; i < q.width; ++i) {
        for (std::int64_t j = 0; j < y.width; ++j) *to++ = static_cast<double>(z.row(i)[j]);
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
std::vector<double> Basis<T>::gram(const Thin<T>& y) const {
  const std::int64_t w = y.width;
  const auto size = static_cast<std::size_t>(w * w);
  std::vector<double> partial(size * static_cast<std::size_t>(parts()));
  std::vector<Buffer<double>> scratch(static_cast<std::size_t>(team_.size()));
  team_.each(parts(), [&](std::int64_t p, int rank) {
    Buffer<double>& work = scratch[static_cast<std::size_t>(rank)];
    if (!work.get()) work = Buffer<double>((kChain + w) * y.ld);
    double *const wide = work.get(), *const z = work + kChain * y.ld;
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
  std::vector<Buffer<T>> scratch(static_cast<std::size_t>(team_.size()));
  team_.each(parts(), [&](std::int64_t p, int rank) {
    Buffer<T>& before = scratch[static_cast<std::size_t>(rank)];
    if (!before.get()) before = Buffer<T>(kChain * y.ld);
    std::memcpy(before.get(), y.row(p * kChain), static_cast<std::size_t>(count(p) * y.ld) * sizeof(T));
    y.clear(p * kChain, count(p));
    loops_.rows(before.get(), y.ld, count(p), y.width, factor.x.get(), factor.ld, y.width, y.row(p * kChain), y.ld);
  });
}

template <class T>
typename Basis<T>::Refill Basis<T>::random() const {
  return [this](std::uint64_t draw, std::int64_t column, std::vector<double>& out) {
    rademacher(seed_, stream_ + draw, column * rows_, rows_,
               [&](std::int64_t i, bool negative) { out[static_cast<std::size_t>(i)] = negative ? -1.0 : 1.0; });
  };
}

template <class T>
Coefficients Basis<T>::orthonormalize(const Thin<T>& block, double size, const Refill& refill, bool rough) {
  const std::int64_t w = block.width;
  Coefficients all{width_, w, {}, {}};
  std::vector<double> above, r, inverse, rounding(static_cast<std::size_t>(w));
  for (int round = 0; round < kMostRounds; ++round) {
    if (width_ > 0) {
      above = overlap(block);
      subtract(block, above);
    }
    const std::vector<double> g = gram(block);
    bool there = true, kept = true;  // more than rounding is left; of columns of length 1 more than half
    for (std::int64_t j = 0; j < w; ++j) {
      const double left = g[static_cast<std::size_t>(j * w + j)];
      double before = left;
      for (std::int64_t i = 0; i < width_; ++i) before += above[static_cast<std::size_t>(i * w + j)] * above[static_cast<std::size_t>(i * w + j)];
      const double noise = std::max(kRounding<T> * std::sqrt(before), round == 0 ? kRounding<T> / 4 * size : 0.0);
      there = there && left > noise * noise;
      kept = kept && left > 0.25;
      rounding[static_cast<std::size_t>(j)] = noise;
    }
    if (!there || round + 1 == kMostRounds || !cholesky(g, w, kLeastPivot<T>, r, inverse)) break;
    multiply(block, inverse);
    compose(all, above, r);
    if (rough || (round > 0 && kept)) return all;
  }
  Coefficients rest = by_columns(block, rounding, refill);  // of what the last round has taken `above` from
  for (std::size_t i = 0; i < rest.above.size(); ++i) rest.above[i] += above[i];
  compose(all, rest.above, rest.corner);
  return all;
}

template <class T>
Coefficients Basis<T>::by_columns(const Thin<T>& y, const std::vector<double>& noise, const Refill& refill) const {
  const std::int64_t w = y.width;
  Coefficients out{width_, w, std::vector<double>(static_cast<std::size_t>(width_ * w), 0.0),
                   std::vector<double>(static_cast<std::size_t>(w * w), 0.0)};
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
