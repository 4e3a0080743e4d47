#include "randomized_svd/decompose.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "core/buffer.h"

namespace sf {

namespace {

// Columns of w (r x k) that `known` says nothing of, each made a unit vector orthogonal to all known ones: the unit vector of the coordinate that
// these have least of, less its parts along them.
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

}  // namespace

Decomposition decompose(const std::vector<double>& t, std::int64_t r, std::int64_t k, double cosine, const LowRankLoops& loops) {
  constexpr int kMostSweeps = 30;
  const std::int64_t lanes = loops.lanes, h = ((r + 1) / 2 + lanes - 1) / lanes * lanes, second = h + lanes, ld = 2 * second;
  const std::int64_t size = r * ld;
  Buffer<double> memory(4 * size + 2 * h);
  double *x = memory.get(), *j = x + size, *spare_x = j + size, *spare_j = spare_x + size;
  std::fill(x, x + 4 * size, 0.0);
  const auto place = [&](std::int64_t c) { return c < h ? c : second + c - h; };
  for (std::int64_t i = 0; i < r; ++i) {
    for (std::int64_t c = 0; c < r; ++c) x[i * ld + place(c)] = t[static_cast<std::size_t>(c * r + i)];  // the columns of t^T
    j[i * ld + place(i)] = 1.0;
  }
  for (int sweep = 0; sweep < kMostSweeps; ++sweep) {
    if (loops.jacobi(&x, &j, &spare_x, &spare_j, r, h, memory + 4 * size) <= cosine) break;
  }
  struct Column {
    double length;
    std::int64_t at;
  };
  std::vector<Column> columns;
  for (std::int64_t c = 0; c < 2 * h; ++c) {
    double length = 0.0, turned = 0.0;
    for (std::int64_t i = 0; i < r; ++i) {
      length += x[i * ld + place(c)] * x[i * ld + place(c)];
      turned += j[i * ld + place(c)] * j[i * ld + place(c)];
    }
    if (turned > 0.5) columns.push_back({std::sqrt(length), place(c)});  // not one that only fills the vectors
  }
  std::stable_sort(columns.begin(), columns.end(), [](const Column& a, const Column& b) { return a.length > b.length; });
  Decomposition out;
  for (const Column& c : columns) out.s.push_back(c.length);
  out.left.resize(static_cast<std::size_t>(r * k));
  out.right.resize(static_cast<std::size_t>(r * k));
  // t^T J = W diag(s): the columns of W are the right singular vectors of t, those of J the left ones.
  const double rounding = 4.0 * static_cast<double>(r) * std::numeric_limits<double>::epsilon() * out.s[0];
  std::vector<char> known(static_cast<std::size_t>(k));
  for (std::int64_t c = 0; c < k; ++c) {
    const Column& column = columns[static_cast<std::size_t>(c)];
    known[static_cast<std::size_t>(c)] = column.length > rounding;
    for (std::int64_t i = 0; i < r; ++i) {
      out.left[static_cast<std::size_t>(i * k + c)] = j[i * ld + column.at];
      out.right[static_cast<std::size_t>(i * k + c)] = column.length > rounding ? x[i * ld + column.at] / column.length : 0.0;
    }
  }
  complete(out.right, r, k, known);
  return out;
}

}  // namespace sf
