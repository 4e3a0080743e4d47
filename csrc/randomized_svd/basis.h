// Orthonormal bases that grow by blocks of columns.
//
// A block is made orthogonal to what is there, then to itself; a second time (twice is enough: Giraud, Langou, Rozloznik & van den Eshof
// 2005) where the first took away so much, or had columns so close to each other, that rounding shows. To itself by Cholesky's
// decomposition of its Gram matrix in double precision (CholeskyQR2: Yamamoto et al. 2015). Where that cannot work, because columns depend
// on each other or on the basis to rounding, column by column; one that is nothing but rounding is replaced by another, whose coefficient
// is zero.
#pragma once
#include <functional>
#include <span>

#include "core/philox.h"
#include "randomized_svd/thin.h"

namespace sf {

// What a block was in terms of the basis: block = basis above + itself corner; row-major, (columns before, width) and (width, width).
struct Coefficients {
  std::int64_t before = 0, width = 0;
  std::vector<double> above, corner;
  double pivot = 0.0;  // the smallest of Cholesky's decomposition, relative to the diagonal, where that did it all
};

template <class T>
class Basis {
 public:
  Basis(std::int64_t rows, const LowRankLoops& loops, Team& team, std::uint64_t seed, std::uint64_t stream)
      : loops_(product_loops<T>(loops)), twice_(loops.twice), team_(team), rows_(rows), seed_(seed), stream_(stream) {}

  // What takes the place of a column that has vanished: draws 0, 1, ... until one is not in the basis; the later ones random.
  using Refill = std::function<void(std::uint64_t draw, std::int64_t column, std::vector<double>& out)>;
  Refill random() const;

  // Makes `block`, a product with a matrix of norm `size`, orthonormal and orthogonal to the basis, in place. rough: as a basis to go on
  // multiplying with, no more. wanted: whether anybody asks for the
  // coefficients.
  Coefficients orthonormalize(const Thin<T>& block, double size, const Refill& refill, bool rough = false, bool wanted = true);

  // Makes columns that are orthonormal but for some rounding orthonormal to rounding.
  void polish(const Thin<T>& y) const;

  void push(Thin<T>&& block) {
    width_ += block.width;
    blocks_.push_back(std::move(block));
  }
  void clear() {
    width_ = 0;
    blocks_.clear();
  }
  const Thin<T>& last() const { return blocks_.back(); }
  std::int64_t width() const { return width_; }

  // (rows, k) = basis times the (width, k) row-major coefficients c
  Thin<T> combine(const double* c, std::int64_t k) const;

 private:
  std::int64_t parts() const { return parts_of(rows_, kChain); }
  std::int64_t count(std::int64_t part) const { return std::min(kChain, rows_ - part * kChain); }

  std::vector<double> products(std::span<const Thin<T>> blocks, const Thin<T>& y) const;
  std::vector<Thin<T>> factors(const double* c, std::int64_t k, double sign) const;
  void add(const std::vector<Thin<T>>& factors, const Thin<T>& y) const;
  void subtract(const Thin<T>& y, std::vector<double>& c) const;
  std::vector<double> gram(const Thin<T>& y) const;  // in double precision
  void multiply(const Thin<T>& y, const std::vector<double>& c) const;
  std::vector<double> sum(const std::vector<double>& partial, std::size_t size) const;
  Coefficients by_columns(const Thin<T>& y, const std::vector<double>& noise, const Refill& refill) const;

  const ProductLoops<T>& loops_;
  const ProductLoops<double>& twice_;
  Team& team_;
  const std::int64_t rows_;
  const std::uint64_t seed_, stream_;
  std::int64_t width_ = 0;
  std::vector<Thin<T>> blocks_;
};

}  // namespace sf
