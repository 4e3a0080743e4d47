#include "randomized_svd/decompose.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "core/buffer.h"

namespace sf {

namespace {

// Columns of w (r x k) that `known` says nothing of, each made a unit vector orthogonal to all known ones: the unit vector of the
// coordinate that these have least of, less its parts along them.
void complete(std::vector<double>& w, std::int64_t r, std::int64_t k, std::vector<char>& known) {
  const auto at = [k](std::int64_t i, std::int64_t c) { return static_cast<std::size_t>(i * k + c); };
  for (std::int64_t c = 0; c < k; ++c) {
    if (known[static_cast<std::size_t>(c)]) continue;
    std::int64_t best = 0;
    double least = std::numeric_limits<double>::infinity();
    for (std::int64_t i = 0; i < r; ++i) {
      double taken = 0.0;
      for (std::int64_t j = 0; j < k; ++j) {
        if (known[static_cast<std::size_t>(j)]) taken += w[at(i, j)] * w[at(i, j)];
      }
      if (taken < least) {
        least = taken;
        best = i;
      }
    }
    for (std::int64_t i = 0; i < r; ++i) w[at(i, c)] = i == best ? 1.0 : 0.0;
    for (int pass = 0; pass < 3; ++pass) {
      for (std::int64_t j = 0; j < k; ++j) {
        if (!known[static_cast<std::size_t>(j)]) continue;
        double dot = 0.0;
        for (std::int64_t i = 0; i < r; ++i) dot += w[at(i, c)] * w[at(i, j)];
        for (std::int64_t i = 0; i < r; ++i) w[at(i, c)] -= dot * w[at(i, j)];
      }
    }
    double length = 0.0;
    for (std::int64_t i = 0; i < r; ++i) length += w[at(i, c)] * w[at(i, c)];
    length = std::sqrt(length);
    for (std::int64_t i = 0; i < r; ++i) w[at(i, c)] /= length;
    known[static_cast<std::size_t>(c)] = 1;
  }
}

// The known columns of w (r x k), each made orthogonal to those before it, from which rounding alone sets it apart, and of length 1.
void orthonormalize(std::vector<double>& w, std::int64_t r, std::int64_t k, const std::vector<char>& known) {
  std::vector<double> turned(w.size()), dots(static_cast<std::size_t>(k));
  for (std::int64_t i = 0; i < r; ++i) {
    for (std::int64_t c = 0; c < k; ++c) turned[static_cast<std::size_t>(c * r + i)] = w[static_cast<std::size_t>(i * k + c)];
  }
  const auto dot = [r](const double* a, const double* b) {
    double part[4] = {};
    std::int64_t i = 0;
    for (; i + 4 <= r; i += 4) {
      for (int l = 0; l < 4; ++l) part[l] += a[i + l] * b[i + l];
    }
    for (; i < r; ++i) part[0] += a[i] * b[i];
    return (part[0] + part[1]) + (part[2] + part[3]);
  };
  for (std::int64_t c = 0; c < k; ++c) {
    if (!known[static_cast<std::size_t>(c)]) continue;
    double* const x = turned.data() + c * r;
    for (int pass = 0; pass < 3; ++pass) {
      const double unit = 1.0 / std::sqrt(dot(x, x));
      for (std::int64_t i = 0; i < r; ++i) x[i] *= unit;
      if (pass == 2) break;
      for (std::int64_t j = 0; j < c; ++j) {
        if (!known[static_cast<std::size_t>(j)]) continue;
        const double* const y = turned.data() + j * r;
        const double along = dot(x, y);
        for (std::int64_t i = 0; i < r; ++i) x[i] -= along * y[i];
      }
    }
  }
  for (std::int64_t i = 0; i < r; ++i) {
    for (std::int64_t c = 0; c < k; ++c) w[static_cast<std::size_t>(i * k + c)] = turned[static_cast<std::size_t>(c * r + i)];
  }
}

}  // namespace

Decomposition decompose(const std::vector<double>& t, std::int64_t r, std::int64_t k, double cosine, const LowRankLoops& loops) {
  constexpr int kMostSweeps = 30;
  const std::int64_t lanes = loops.lanes, h = ((r + 1) / 2 + lanes - 1) / lanes * lanes, ld = 2 * h;
  Buffer<double> memory(r * ld + ld);
  double* const x = memory.get();
  for (std::int64_t i = 0; i < r; ++i) {
    for (std::int64_t c = 0; c < ld; ++c) x[i * ld + c] = c < r ? t[static_cast<std::size_t>(c * r + i)] : 0.0;  // t^T
  }
  for (int sweep = 0; sweep < kMostSweeps; ++sweep) {
    if (!loops.jacobi(x, r, h, cosine, memory + r * ld)) break;
  }
  // t^T rotated = right diag(s)
  struct Column {
    double length;
    std::int64_t at;
  };
  std::vector<double> squares(static_cast<std::size_t>(ld), 0.0);
  for (std::int64_t i = 0; i < r; ++i) {
    for (std::int64_t c = 0; c < ld; ++c) squares[static_cast<std::size_t>(c)] += x[i * ld + c] * x[i * ld + c];
  }
  std::vector<Column> columns;
  columns.reserve(static_cast<std::size_t>(ld));
  for (std::int64_t c = 0; c < ld; ++c) columns.push_back({std::sqrt(squares[static_cast<std::size_t>(c)]), c});
  std::sort(columns.begin(), columns.end(),
            [](const Column& a, const Column& b) { return a.length != b.length ? a.length > b.length : a.at < b.at; });
  Decomposition out;
  for (std::int64_t c = 0; c < r; ++c) out.s.push_back(columns[static_cast<std::size_t>(c)].length);
  out.left.assign(static_cast<std::size_t>(r * k), 0.0);
  out.right.assign(static_cast<std::size_t>(r * k), 0.0);
  const double rounding = 4.0 * static_cast<double>(r) * std::numeric_limits<double>::epsilon() * out.s[0];
  std::vector<char> known(static_cast<std::size_t>(k));
  for (std::int64_t c = 0; c < k; ++c) known[static_cast<std::size_t>(c)] = columns[static_cast<std::size_t>(c)].length > rounding;
  for (std::int64_t i = 0; i < r; ++i) {
    for (std::int64_t c = 0; c < k; ++c) {
      const Column& column = columns[static_cast<std::size_t>(c)];
      if (known[static_cast<std::size_t>(c)]) out.right[static_cast<std::size_t>(i * k + c)] = x[i * ld + column.at] / column.length;
    }
  }
  std::vector<char> left_known = known;
  complete(out.right, r, k, known);
  // t right = left diag(s), as long as that is more than rounding
  for (std::int64_t i = 0; i < r; ++i) {
    double* const to = out.left.data() + i * k;
    for (std::int64_t j = 0; j < r; ++j) {
      const double factor = t[static_cast<std::size_t>(i * r + j)];
      const double* const from = out.right.data() + j * k;
      for (std::int64_t c = 0; factor != 0.0 && c < k; ++c) to[c] += factor * from[c];
    }
  }
  double weakest = out.s[0];
  for (std::int64_t c = 0; c < k; ++c) {
    const double length = out.s[static_cast<std::size_t>(c)];
    if (!left_known[static_cast<std::size_t>(c)]) continue;
    weakest = std::min(weakest, length);
    for (std::int64_t i = 0; i < r; ++i) out.left[static_cast<std::size_t>(i * k + c)] /= length;
  }
  // those of small values are uncertain by the rounding of large ones
  if (std::numeric_limits<double>::epsilon() * out.s[0] > 0.1 * cosine * weakest) orthonormalize(out.left, r, k, left_known);
  complete(out.left, r, k, left_known);
  return out;
}

}  // namespace sf
