#include "randomized_svd/basis.h"

#include <limits>

#include "randomized_svd/triangle.h"

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

// The smallest pivot with which a Gram matrix in the working precision is enough, for a rough basis.
constexpr double kEvenPivot = 1e-3;

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

// q^T y of all the blocks q, one after the other
template <class T>
std::vector<double> Basis<T>::products(std::span<const Thin<T>> blocks, const Thin<T>& y) const {
  std::size_t size = 0;
  for (const Thin<T>& q : blocks) size += static_cast<std::size_t>(q.width * y.width);
  std::vector<double> partial(size * static_cast<std::size_t>(parts()));
  team_.each(parts(), [&](std::int64_t p, int) {
    double* to = partial.data() + size * static_cast<std::size_t>(p);
    for (const Thin<T>& q : blocks) {
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

// The (width, k) coefficients c, times `sign`, block by block in the working precision
template <class T>
std::vector<Thin<T>> Basis<T>::factors(const double* c, std::int64_t k, double sign) const {
  std::vector<Thin<T>> out;
  for (const Thin<T>& q : blocks_) {
    out.emplace_back(q.width, k, loops_.lanes);
    out.back().clear(0, q.width);
    for (std::int64_t i = 0; i < q.width; ++i, c += k) {
      for (std::int64_t j = 0; j < k; ++j) out.back().row(i)[j] = static_cast<T>(sign * c[j]);
    }
  }
  return out;
}

// y += basis factors
template <class T>
void Basis<T>::add(const std::vector<Thin<T>>& factors, const Thin<T>& y) const {
  team_.each(parts(), [&](std::int64_t p, int) {
    for (std::size_t b = 0; b < blocks_.size(); ++b) {
      const Thin<T>& q = blocks_[b];
      loops_.rows(q.row(p * kChain), q.ld, count(p), q.width, factors[b].x.get(), factors[b].ld, y.width, y.row(p * kChain), y.ld);
    }
  });
}

// y -= basis c, and c as it was used
template <class T>
void Basis<T>::subtract(const Thin<T>& y, std::vector<double>& c) const {
  add(factors(c.data(), y.width, -1.0), y);
  for (double& x : c) x = static_cast<double>(static_cast<T>(x));
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
      above = products(blocks_, block);
      subtract(block, above);
    }
    std::vector<double> g;
    if (rough && width_ == 0) {  // columns far from depending on each other need no more than this
      g = products({&block, 1}, block);
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
  // column -= its parts along the first `columns` columns of q, which are added to sums, `step` apart, where they are asked for
  std::vector<double> partial, dots;
  const auto take = [&](const Thin<T>& q, std::int64_t columns, double* sums, std::int64_t step) {
    partial.assign(static_cast<std::size_t>(parts() * columns), 0.0);
    team_.each(parts(), [&](std::int64_t p, int) {
      double* const to = partial.data() + p * columns;
      for (std::int64_t i = p * kChain; i < p * kChain + count(p); ++i) {
        const double x = column[static_cast<std::size_t>(i)];
        const T* const row = q.row(i);
        for (std::int64_t j = 0; j < columns; ++j) to[j] += x * static_cast<double>(row[j]);
      }
    });
    dots = sum(partial, static_cast<std::size_t>(columns));
    team_.each(parts(), [&](std::int64_t p, int) {
      for (std::int64_t i = p * kChain; i < p * kChain + count(p); ++i) {
        double along = 0.0;
        const T* const row = q.row(i);
        for (std::int64_t j = 0; j < columns; ++j) along += dots[static_cast<std::size_t>(j)] * static_cast<double>(row[j]);
        column[static_cast<std::size_t>(i)] -= along;
      }
    });
    for (std::int64_t j = 0; sums && j < columns; ++j) sums[j * step] += dots[static_cast<std::size_t>(j)];
  };
  for (std::int64_t c = 0; c < w; ++c) {
    team_.check();
    for (std::int64_t i = 0; i < rows_; ++i) column[static_cast<std::size_t>(i)] = static_cast<double>(y.row(i)[c]);
    bool own = true;
    double rounding = noise[static_cast<std::size_t>(c)], before = 0.0, after = length();
    std::uint64_t drawn = 0;
    for (int pass = 0; pass < 2 || after < 0.5 * before; ++pass) {
      before = after;
      double* above = out.above.data() + c;
      for (const Thin<T>& q : blocks_) {
        take(q, q.width, own ? above : nullptr, w);
        above += q.width * w;
      }
      if (c > 0) take(y, c, own ? out.corner.data() + c : nullptr, w);
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
Thin<T> Basis<T>::combine(const double* c, std::int64_t k) const {
  Thin<T> out(rows_, k, loops_.lanes);
  team_.each(parts(), [&](std::int64_t p, int) { out.clear(p * kChain, count(p)); });
  add(factors(c, k, 1.0), out);
  return out;
}

template class Basis<float>;
template class Basis<double>;

}  // namespace sf
