// Singular values of a single bidiagonal by bisection: where the qd iteration has not converged.

namespace sf::SF_ISA {
namespace {

// How many singular values are below each of the shifts: the negative pivots of the Golub-Kahan matrix [0 B^T; B 0], permuted to a
// tridiagonal with zero diagonal and squared off-diagonals off2 (2n - 1), minus x; n of its eigenvalues are never positive.
template <int V>
inline void count_below(const double* off2, int64_t n, const Vec* x, Vec tiny, Vec* count) {
  Vec pivot[V];
  for (int v = 0; v < V; ++v) {
    pivot[v] = sub(zeros(), most(x[v], tiny));
    count[v] = broadcast(1.0 - static_cast<double>(n));
  }
  for (int64_t i = 0; i < 2 * n - 1; ++i) {
    const Vec b2 = broadcast(off2[i]);
    for (int v = 0; v < V; ++v) {
      const Vec p = sub(sub(zeros(), x[v]), div(b2, pivot[v]));
      const Mask negative = less(p, tiny);  // zero counts as negative: a value equal to the shift is below it
      pivot[v] = select(less(magnitude(p), tiny), sub(zeros(), tiny), p);
      count[v] = add(count[v], select(negative, broadcast(1.0), zeros()));
    }
  }
}

void bisect(const double* d, const double* e, int64_t stride, int64_t n, double* s, double* work) {
  constexpr int kVectors = 4, kShifts = kVectors * kLanes;
  double bound = 0.0, left = 0.0;
  for (int64_t k = 0; k < n; ++k) {
    const double dk = fabs(d[k * stride]), ek = k + 1 < n ? fabs(e[k * stride]) : 0.0;
    work[2 * k] = dk * dk;
    if (k + 1 < n) work[2 * k + 1] = ek * ek;
    bound = dk + left > bound ? dk + left : bound;  // Gershgorin, rows of the Golub-Kahan matrix
    bound = dk + ek > bound ? dk + ek : bound;
    left = ek;
  }
  const Vec tiny = broadcast(bound * 0x1p-120 > 0x1p-500 ? bound * 0x1p-120 : 0x1p-500);
  for (int64_t first = 0; first < n; first += kShifts) {
    double want[kShifts];
    for (int k = 0; k < kShifts; ++k) want[k] = static_cast<double>(first + k < n ? first + k : n - 1);
    Vec low[kVectors], high[kVectors], x[kVectors], count[kVectors];
    for (int v = 0; v < kVectors; ++v) {
      low[v] = zeros();
      high[v] = broadcast(bound * (1.0 + 0x1p-50));
    }
    for (int halving = 0; halving < 54; ++halving) {
      for (int v = 0; v < kVectors; ++v) x[v] = mul(add(low[v], high[v]), broadcast(0.5));
      count_below<kVectors>(work, n, x, tiny, count);
      for (int v = 0; v < kVectors; ++v) {
        const Mask above = less_equal(count[v], load(want + v * kLanes));  // the value wanted is not below x
        low[v] = select(above, x[v], low[v]);
        high[v] = select(above, high[v], x[v]);
      }
    }
    double found[kShifts];
    for (int v = 0; v < kVectors; ++v) store(found + v * kLanes, mul(add(low[v], high[v]), broadcast(0.5)));
    for (int64_t k = first; k < n && k < first + kShifts; ++k) s[k] = found[k - first];
  }
}

}  // namespace
}  // namespace sf::SF_ISA
