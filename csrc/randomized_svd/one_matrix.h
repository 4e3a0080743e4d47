// Leading triplets of one matrix, by a team of threads.
#pragma once
#include <limits>

#include "randomized_svd/basis.h"
#include "randomized_svd/decompose.h"
#include "randomized_svd/shared.h"

namespace sf {

inline constexpr double kUneven = 64.0, kDrift = 30.0;  // a condition number, and powers of two by which sizes may change

// About the condition number that one product with the matrix gives to orthonormal columns.
inline double unevenness(const Coefficients& c) {
  return c.pivot > 0.0 ? 1.0 / std::sqrt(c.pivot) : std::numeric_limits<double>::infinity();
}

template <class T>
class OneMatrix {
 public:
  OneMatrix(const Shared<T>& shared, std::int64_t index, Team& team)
      : s_(shared),
        o_(shared.options),
        index_(index),
        team_(team),
        lanes_(product_loops<T>(shared.loops).lanes),
        m_(shared.a.rows),
        n_(shared.a.cols),
        source_(shared.a, index, shared.loops, team),
        left_(m_, shared.loops, team, o_.seed, kLeftFill),
        right_(n_, shared.loops, team, o_.seed, kRightFill) {}

  void run() {
    Thin<T> y(m_, o_.width, lanes_);
    first_product(y);
    if (!(total_ >= Precision<T>::least && total_ <= Precision<T>::most)) {
      const double top = source_.largest();
      if (std::isnan(top)) return fill_nan();
      if (top == 0.0) return fill_zero();
      exponent_ = std::clamp(std::ilogb(top) + 1, -1000, 1023);
      scale_ = std::ldexp(1.0, -exponent_);
      source_.set_scale(scale_);
      first_product(y);
    }
    build(std::move(y));
    finish();
  }

 private:
  // y = A test, and the sum of A's squares
  void first_product(const Thin<T>& y) {
    if (o_.sketch > 0) {
      source_.multiply(false, leading(), y, &total_);
    } else {
      source_.multiply(false, s_.omega, y, &total_);
    }
  }

  // Leading right singular vectors of random combinations of A's rows.
  Thin<T> leading() const {
    LowRankOptions o = o_;
    o.rank = o_.width;
    o.width = o_.sketch_width;
    o.blocks = o_.sketch_blocks;
    o.sketch = 0;
    const Thin<T> sums(o_.sketch, n_, lanes_);
    source_.sketch(s_.places.data(), sums);
    const Matrices a{sums.x.get(), sizeof(T) == sizeof(float) ? DType::f32 : DType::f64, 1, o_.sketch, n_, 0, sums.ld, 1};
    std::vector<T> u(static_cast<std::size_t>(o_.sketch * o.rank)), s(static_cast<std::size_t>(o.rank)),
        vt(static_cast<std::size_t>(o.rank * n_));
    double error;
    std::int64_t ranks;
    bool reached;
    const LowRankResults found{u.data(), s.data(), vt.data(), &error, &ranks, &reached};
    const Shared<T> shared(a, o, found, s_.loops);
    OneMatrix<T>(shared, 0, team_).run();
    Thin<T> out(n_, o.rank, lanes_);
    out.clear(0, n_);
    for (std::int64_t c = 0; c < o.rank; ++c) {
      for (std::int64_t j = 0; j < n_; ++j) out.row(j)[c] = vt[static_cast<std::size_t>(c * n_ + j)];
    }
    return out;
  }

  // Grows bases of columns and rows with A = left coefficients right^T on what they span, and what is lost of |A|_F^2.
  void build(Thin<T>&& first) {
    const std::int64_t d = std::min(m_, n_), most = o_.tol > 0.0 ? std::min(o_.rank, d) : d;
    Thin<T> y = std::move(first);
    const bool whole = whole_ || (o_.width == d && !o_.omega);
    if (whole && m_ == d) {
      y.clear(0, m_);
      for (std::int64_t i = 0; i < m_; ++i) y.row(i)[i] = T{1};
    }
    const double size = std::sqrt(total_);
    lost_ = total_;
    std::int64_t further = o_.krylov ? o_.n_iter : 0;  // blocks, so that few triplets suffice
    for (std::int64_t block = 0;; ++block) {
      if (block > 0) y = next(block, std::min(o_.width, d - left_.width()));
      const std::int64_t again = o_.krylov || whole ? 0 : o_.n_iter;
      double uneven = unevenness(left_.orthonormalize(y, size, refill_, again > 0, false)), grown = 1.0, drift = 0.0;
      Thin<T> z(n_, y.width, lanes_);
      // Products are made orthonormal again only once they may have become too dependent, but always against a basis that is there already.
      const auto too_uneven = [&] {
        grown *= uneven;
        drift += std::abs(std::log2(size));
        return grown * uneven > kUneven || drift > kDrift || left_.width() > 0;
      };
      for (std::int64_t i = 1; i <= again; ++i) {
        source_.multiply(true, y, z);
        if (too_uneven()) {
          Basis<T> none(n_, s_.loops, team_, o_.seed, kRightFill);
          uneven = std::max(uneven, unevenness(none.orthonormalize(z, size, none.random(), true, false)));
          grown = 1.0, drift = 0.0;
        }
        source_.multiply(false, z, y);
        if (i < again && !too_uneven()) continue;
        uneven = std::max(uneven, unevenness(left_.orthonormalize(y, size, refill_, i < again, false)));
        grown = 1.0, drift = 0.0;
      }
      source_.multiply(true, y, z);
      left_.push(std::move(y));
      coefficients_.push_back(right_.orthonormalize(z, size, right_.random()));
      right_.push(std::move(z));
      for (const auto* part : {&coefficients_.back().above, &coefficients_.back().corner}) {
        for (const double c : *part) lost_ -= c * c;
      }
      lost_ = std::max(lost_, 0.0);
      const bool full = left_.width() >= d;
      if (o_.tol == 0.0) {
        if (full || block + 1 >= o_.blocks) break;
        continue;
      }
      const double allowed = o_.tol * o_.tol * total_;
      if (full || std::abs(lost_ - allowed) < Precision<T>::room * total_)
        lost_ = explicit_loss();  // the difference of norms does not tell
      if (full && lost_ > allowed && !whole) return build_whole();
      if (full || ((lost_ <= allowed || left_.width() >= most) && further-- == 0)) break;
    }
  }

  // The columns found do not span A to rounding: those of A itself do.
  void build_whole() {
    left_.clear();
    right_.clear();
    coefficients_.clear();
    whole_ = true;
    const std::int64_t d = std::min(m_, n_);
    Thin<T> y(m_, d, lanes_);
    if (m_ > d) {
      Thin<T> unit(n_, d, lanes_);
      unit.clear(0, n_);
      for (std::int64_t i = 0; i < n_; ++i) unit.row(i)[i] = T{1};
      source_.multiply(false, unit, y);
    }
    build(std::move(y));
  }

  Thin<T> next(std::int64_t block, std::int64_t width) const {
    Thin<T> y(m_, width, lanes_);
    if (!o_.krylov) {
      source_.multiply(false, test_matrix<T>(o_, n_, width, kTest + 1 + static_cast<std::uint64_t>(block), lanes_), y);
      return y;
    }
    const Thin<T>& z = right_.last();
    if (width == z.width) {
      source_.multiply(false, z, y);
      return y;
    }
    Thin<T> part(n_, width, lanes_);
    part.clear(0, n_);
    for (std::int64_t i = 0; i < n_; ++i) std::copy(z.row(i), z.row(i) + width, part.row(i));
    source_.multiply(false, part, y);
    return y;
  }

  // r x r: A^T left = right t
  std::vector<double> assemble() const {
    const std::int64_t r = left_.width();
    std::vector<double> t(static_cast<std::size_t>(r * r), 0.0);
    for (const Coefficients& c : coefficients_) {
      for (std::int64_t i = 0; i < c.before + c.width; ++i) {
        const double* from = i < c.before ? c.above.data() + i * c.width : c.corner.data() + (i - c.before) * c.width;
        std::copy(from, from + c.width, t.data() + i * r + c.before);
      }
    }
    return t;
  }

  double explicit_loss() const {
    const std::int64_t r = left_.width();
    const std::vector<double> t = assemble();
    std::vector<double> turned(t.size()), unit(t.size(), 0.0);
    for (std::int64_t i = 0; i < r; ++i) {
      unit[static_cast<std::size_t>(i * r + i)] = 1.0;
      for (std::int64_t k = 0; k < r; ++k) turned[static_cast<std::size_t>(i * r + k)] = t[static_cast<std::size_t>(k * r + i)];
    }
    const Thin<T> left = left_.combine(turned.data(), r), right = right_.combine(unit.data(), r);
    Thin<T> across(r, n_, lanes_);
    across.clear(0, r);
    for (std::int64_t i = 0; i < n_; ++i) {
      for (std::int64_t k = 0; k < r; ++k) across.row(k)[i] = right.row(i)[k];
    }
    return source_.residual(left, across);
  }

  void finish() {
    const std::int64_t r = left_.width(), rank = o_.rank;
    std::int64_t k = std::min(rank, r);
    const Decomposition small = decompose(assemble(), r, k, Precision<T>::cosine, s_.loops);
    bool reached = true;
    if (o_.tol > 0.0) {
      const double allowed = o_.tol * o_.tol * total_;
      std::int64_t least = r;
      double tail = lost_;
      reached = tail <= allowed;
      while (reached && least > 0) {
        const double s = small.s[static_cast<std::size_t>(least - 1)];
        if (tail + s * s > allowed) break;
        tail += s * s;
        --least;
      }
      reached = reached && least <= rank;
      k = std::min(least, rank);
    }
    const std::int64_t stored = std::min(rank, r);
    const Thin<T> left = left_.combine(small.right.data(), stored), right = right_.combine(small.left.data(), stored);
    left_.polish(left);
    right_.polish(right);
    const Thin<T>&u = s_.turned ? right : left, &v = s_.turned ? left : right;
    T *const out_u = static_cast<T*>(s_.out.u) + index_ * u.rows * rank, *const out_vt =
                                                                             static_cast<T*>(s_.out.vt) + index_ * rank * v.rows;
    T* const out_s = static_cast<T*>(s_.out.s) + index_ * rank;
    const std::vector<T> sign = signs(u, k);
    each_rows(u.rows, [&](std::int64_t i) {
      for (std::int64_t c = 0; c < k; ++c) out_u[i * rank + c] = sign[static_cast<std::size_t>(c)] * u.row(i)[c];
    });
    each_rows(v.rows, [&](std::int64_t j) {
      for (std::int64_t c = 0; c < k; ++c) out_vt[c * v.rows + j] = sign[static_cast<std::size_t>(c)] * v.row(j)[c];
    });
    double kept = 0.0;
    std::vector<double> values(static_cast<std::size_t>(k));  // as they are returned, but for the scale
    for (std::int64_t c = 0; c < k; ++c) {
      const double s = small.s[static_cast<std::size_t>(c)];
      kept += s * s;
      values[static_cast<std::size_t>(c)] = static_cast<double>(static_cast<T>(s));
      out_s[c] = static_cast<T>(std::ldexp(s, exponent_));
    }
    s_.out.ranks[index_] = k;
    s_.out.reached[index_] = reached;
    const double eps = static_cast<double>(std::numeric_limits<T>::epsilon()), rest = std::max(total_ - kept, 0.0);
    double error = std::sqrt(rest + Precision<T>::room * total_) + 2.0 * eps * std::sqrt(kept);
    if (rest < Precision<T>::drowned * total_) error = explicit_error(values, left, right) + 2.0 * eps * std::sqrt(total_);
    s_.out.error[index_] = std::ldexp(error, exponent_);
  }

  template <class Work>
  void each_rows(std::int64_t rows, const Work& work) const {
    team_.each(parts_of(rows, kChain), [&](std::int64_t p, int) {
      for (std::int64_t i = p * kChain; i < std::min(rows, (p + 1) * kChain); ++i) work(i);
    });
  }

  // Of the entries of largest magnitude in the first k columns.
  std::vector<T> signs(const Thin<T>& u, std::int64_t k) const {
    std::vector<T> largest(static_cast<std::size_t>(parts_of(u.rows, kChain) * k), T{0}), out(static_cast<std::size_t>(k), T{1});
    each_rows(u.rows, [&](std::int64_t i) {
      T* const here = largest.data() + i / kChain * k;
      for (std::int64_t c = 0; c < k; ++c) {
        if (std::abs(u.row(i)[c]) > std::abs(here[c])) here[c] = u.row(i)[c];
      }
    });
    for (std::int64_t c = 0; c < k; ++c) {
      T most{0};
      for (std::int64_t at = c; at < static_cast<std::int64_t>(largest.size()); at += k) {
        const T x = largest[static_cast<std::size_t>(at)];
        if (std::abs(x) > std::abs(most)) most = x;
      }
      if (most < T{0}) out[static_cast<std::size_t>(c)] = T{-1};
    }
    return out;
  }

  // |A - u s vt|_F of the scaled matrix, formed.
  double explicit_error(const std::vector<double>& values, const Thin<T>& u, const Thin<T>& v) const {
    const std::int64_t k = static_cast<std::int64_t>(values.size());
    const Thin<T> left(m_, k, 1), right(k, n_, lanes_);
    right.clear(0, k);
    for (std::int64_t i = 0; i < m_; ++i) {
      for (std::int64_t c = 0; c < k; ++c) left.row(i)[c] = static_cast<T>(values[static_cast<std::size_t>(c)]) * u.row(i)[c];
    }
    for (std::int64_t j = 0; j < n_; ++j) {
      for (std::int64_t c = 0; c < k; ++c) right.row(c)[j] = v.row(j)[c];
    }
    return std::sqrt(source_.residual(left, right));
  }

  void fill_nan() const {
    const T nan = std::numeric_limits<T>::quiet_NaN();
    const std::int64_t of_u = (s_.turned ? n_ : m_) * o_.rank, of_vt = (s_.turned ? m_ : n_) * o_.rank;
    std::fill_n(static_cast<T*>(s_.out.u) + index_ * of_u, of_u, nan);
    std::fill_n(static_cast<T*>(s_.out.s) + index_ * o_.rank, o_.rank, nan);
    std::fill_n(static_cast<T*>(s_.out.vt) + index_ * of_vt, of_vt, nan);
    s_.out.error[index_] = std::nan("");
    s_.out.ranks[index_] = 0;
    s_.out.reached[index_] = true;
  }

  // Any orthonormal vectors will do.
  void fill_zero() const {
    const std::int64_t m = s_.turned ? n_ : m_, n = s_.turned ? m_ : n_;
    for (std::int64_t c = 0; c < o_.rank; ++c) {
      static_cast<T*>(s_.out.u)[index_ * m * o_.rank + c * o_.rank + c] = T{1};
      static_cast<T*>(s_.out.vt)[index_ * o_.rank * n + c * n + c] = T{1};
    }
    s_.out.error[index_] = 0.0;
    s_.out.ranks[index_] = o_.tol > 0.0 ? 0 : o_.rank;
    s_.out.reached[index_] = true;
  }

  const Shared<T>& s_;
  const LowRankOptions& o_;
  const std::int64_t index_;
  Team& team_;
  const std::int64_t lanes_, m_, n_;
  Source<T> source_;
  Basis<T> left_, right_;
  // A times a random vector, as long as that tells anything new.
  const typename Basis<T>::Refill refill_ = [this](std::uint64_t draw, std::int64_t column, std::vector<double>& out) {
    if (draw > 0 || exhausted_) {
      exhausted_ = true;
      return left_.random()(draw, column, out);
    }
    Thin<T> x(n_, 1, lanes_), y(m_, 1, lanes_);
    x.clear(0, n_);
    std::vector<double> entries(static_cast<std::size_t>(n_));
    right_.random()(1, column, entries);
    for (std::int64_t j = 0; j < n_; ++j) *x.row(j) = static_cast<T>(entries[static_cast<std::size_t>(j)]);
    source_.multiply(false, x, y);
    for (std::int64_t i = 0; i < m_; ++i) out[static_cast<std::size_t>(i)] = static_cast<double>(*y.row(i));
  };
  bool whole_ = false;      // the basis is to be that of the whole space
  bool exhausted_ = false;  // A times a random vector was in the basis: there is no more to A
  std::vector<Coefficients> coefficients_;
  double total_ = 0.0, lost_ = 0.0, scale_ = 1.0;
  int exponent_ = 0;
};

}  // namespace sf
