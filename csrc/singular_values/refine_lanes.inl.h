// From eigenvalues of B^T B that are good to a few ulps of the largest to singular values that are.

namespace sf::SF_ISA {
namespace {

// The logarithmic derivative of det(B^T B - x), by the stationary qd transform (Parlett & Dhillon 2000) and its derivative: pivots
// p_1 = q_1 - x, t_i = p_i - q_i, p_{i+1} = q_{i+1} + e_i t_i / p_i - x. Relatively accurate in q and e, so a Newton step from a value that
// is right to eps |B|^2 gives one that is right to about the square of that over its distance to the others. Four values at a time.
void newton_block(const double* d, const double* e, int64_t n, double* values, unsigned* doubtful) {
  constexpr int kTogether = 4;
  Vec top = zeros();
  for (int64_t k = 0; k < n; ++k) top = most(load(values + k * kLanes), top);
  const Vec tiny = most(mul(top, broadcast(0x1p-200)), broadcast(0x1p-900));
  const Vec reach = mul(top, broadcast(64 * kEps));                                                 // steps beyond cannot be right
  const Vec promise = mul(square_root(top), broadcast(2.5 * sqrt(static_cast<double>(n)) * kEps));  // a quarter of what "high" promises
  const double size = static_cast<double>(n);
  double chosen[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) chosen[lane] = *doubtful >> lane & 1u ? 1.0 : 0.0;
  const Mask wanted = less(zeros(), load(chosen));  // the others keep their values
  unsigned unsure = 0;
  for (int64_t k = 0; k < n; k += kTogether) {
    Vec x[kTogether], t[kTogether], slope[kTogether], sum[kTogether];
    const int here = static_cast<int>(n - k < kTogether ? n - k : kTogether);
    for (int j = 0; j < kTogether; ++j) {
      x[j] = load(values + (k + (j < here ? j : 0)) * kLanes);
      t[j] = sub(zeros(), x[j]);
      slope[j] = broadcast(-1.0);
      sum[j] = zeros();
    }
    for (int64_t i = 0; i < n; ++i) {
      const Vec di = load(d + i * kLanes), ei = i + 1 < n ? load(e + i * kLanes) : zeros();
      const Vec q = mul(di, di), above = mul(ei, ei);
      for (int j = 0; j < kTogether; ++j) {
        Vec pivot = add(q, t[j]);
        pivot = select(less(magnitude(pivot), tiny), tiny, pivot);
        const Vec inverse = div(broadcast(1.0), pivot);
        const Vec ratio = mul(above, inverse);
        sum[j] = fma(slope[j], inverse, sum[j]);
        slope[j] = fms(mul(ratio, slope[j]), mul(q, inverse), broadcast(1.0));
        t[j] = fms(t[j], ratio, x[j]);
      }
    }
    for (int j = 0; j < here; ++j) {
      const Vec step = div(broadcast(1.0), sum[j]);
      const Mask sane = less_equal(magnitude(step), reach);
      const Vec moved = most(select(sane, sub(x[j], step), x[j]), zeros());
      store(values + (k + j) * kLanes, select(wanted, moved, x[j]));
      // There is an eigenvalue within n |f/f'| of x; a step of a few ulps of the value itself is the rounding noise of a converged one.
      // What this does not show to be in order (clusters far below the largest, values that drown) is left to bisection.
      const Vec allowed = mul(promise, square_root(moved));  // of the value's error: half of 2 s |ds|
      const Vec way = magnitude(step);
      const Mask fine =
          both(sane, either(less_equal(mul(way, broadcast(size)), allowed), less_equal(way, mul(moved, broadcast(16 * kEps)))));
      unsure |= ~bits(fine);
    }
  }
  *doubtful &= unsure;
}

void newton(const double* d, const double* e, int64_t n, double* values, int blocks, unsigned* doubtful) {
  for (int b = 0; b < blocks; ++b, d += n * kLanes, e += n * kLanes, values += n * kLanes) newton_block(d, e, n, values, doubtful + b);
}

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
