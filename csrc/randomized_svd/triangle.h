// Small dense matrices, row-major.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

namespace sf {

// g (w x w), symmetric, to the upper triangle r with r^T r = g and its inverse; returns the smallest pivot relative
// to the diagonal, 0 where that is less than `least`.
inline double cholesky(const std::vector<double>& g, std::int64_t w, double least, std::vector<double>& r, std::vector<double>& inverse) {
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
inline std::vector<double> times_triangle(const std::vector<double>& a, const std::vector<double>& b, std::int64_t n, std::int64_t w) {
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

}  // namespace sf
