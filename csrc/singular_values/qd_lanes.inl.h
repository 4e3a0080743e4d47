// Singular values of upper bidiagonals to full accuracy, one matrix per lane, G blocks of kLanes interleaved so that one block's divisions
// hide behind the others' arithmetic.
//
// The differential qd transformation with shifts (dqds; Fernando & Parlett, Accurate singular values and differential qd algorithms, 1994)
// on q = squared diagonal, e = squared off-diagonal. Two things are as lanes want them:
//
// - Shifts are lower bounds of the smallest eigenvalue (Laguerre's step from the left of all of them; Wilkinson 1965, 7.29), so that none
//   has to be taken back. It needs the traces of the inverse and of its square, which are derivatives of -log det by the shift; the
//   determinant is the product of the new q, whose derivatives a sweep can carry along without another division.
// - Each lane has its own last index. What a lane has split off keeps its place, later sweeps run over it and what they leave there is
//   ignored; so no lane waits for its neighbours, nor depends on them.
//
// No entry goes below kLeast, of a singular value 2^-80: nothing is ever divided by zero, and what is apart is joined by nothing but that.

namespace sf::SF_ISA {
namespace {

constexpr double kLeast = 0x1p-160;

template <int G>
struct QdState {
  Vec last[G];                      // index of the last entry not yet split off; -1: all are
  Vec shift[G];                     // of the next sweep
  Vec sum[G], lost[G];              // of the shifts so far, and what rounding took from it
  Vec one[G], two[G];               // traces of the inverse and of its square, without the last entry
  Vec pivot[G], slope[G], bend[G];  // the last entry's pivot, minus its derivatives
  Vec lowest[G];                    // of the pivots, before they are kept positive
  Vec negligible2[G];               // square of what may be neglected of a singular value
};

// a / b, given 1 / b, as good as rounded once. a times the rounded 1 / b would not do: where e is negligible, q is multiplied by d and
// divided by d in every sweep, and an error that is the same each time adds up.
inline Vec quotient(Vec a, Vec b, Vec inverse) {
  if (kLanes == 2) return div(a, b);  // no fused operations there
  const Vec rough = mul(a, inverse);
  return fma(fnma(b, rough, a), inverse, rough);
}

// Sweeps over entries 0 .. top; up to `low` no lane ends.
template <int G>
void qd_sweep(double* q, double* e, int64_t n, int64_t low, int64_t top, QdState<G>& state) {
  const int64_t block = n * kLanes;
  const Vec least_entry = broadcast(kLeast), unit = broadcast(1.0);
  Vec d[G], slope[G], bend[G], one[G], two[G], lowest[G];
  for (int b = 0; b < G; ++b) {
    lowest[b] = sub(load(q + b * block), state.shift[b]);
    d[b] = most(lowest[b], least_entry);
    slope[b] = unit;  // minus the first and second derivatives of d by the shift
    bend[b] = one[b] = two[b] = zeros();
  }
  int64_t i = 0;
  for (; i < low; ++i) {
    for (int b = 0; b < G; ++b) {
      double *qi = q + b * block + i * kLanes, *ei = e + b * block + i * kLanes;
      const Vec off = load(ei), fresh = add(d[b], off);
      const Vec inverse = div(unit, fresh), ratio = quotient(load(qi + kLanes), fresh, inverse);
      const Vec fresh_off = most(mul(off, ratio), least_entry);
      store(qi, fresh);
      store(ei, fresh_off);
      const Vec first = mul(slope[b], inverse), fade = mul(fresh_off, inverse);
      one[b] = add(one[b], first);
      two[b] = add(two[b], fma(first, first, mul(bend[b], inverse)));
      bend[b] = mul(fade, fma(add(slope[b], slope[b]), first, bend[b]));
      slope[b] = fma(fade, slope[b], unit);
      const Vec raw = fms(d[b], ratio, state.shift[b]);
      lowest[b] = least(raw, lowest[b]);
      d[b] = most(raw, least_entry);
    }
  }
  for (; i <= top; ++i) {
    const Vec index = broadcast(static_cast<double>(i));
    for (int b = 0; b < G; ++b) {
      double *qi = q + b * block + i * kLanes, *ei = e + b * block + i * kLanes;
      const Mask inside = less(index, state.last[b]), here = equal(index, state.last[b]);
      state.pivot[b] = select(here, d[b], state.pivot[b]);
      state.slope[b] = select(here, slope[b], state.slope[b]);
      state.bend[b] = select(here, bend[b], state.bend[b]);
      if (i == top) {
        store(qi, d[b]);
        continue;
      }
      const Vec off = load(ei), fresh = add(d[b], off);
      const Vec inverse = div(unit, fresh), ratio = quotient(load(qi + kLanes), fresh, inverse);
      const Vec fresh_off = select(inside, most(mul(off, ratio), least_entry), least_entry);
      store(qi, select(here, d[b], fresh));
      store(ei, fresh_off);
      const Vec first = mul(slope[b], inverse), fade = mul(fresh_off, inverse);
      one[b] = select(inside, add(one[b], first), one[b]);
      two[b] = select(inside, add(two[b], fma(first, first, mul(bend[b], inverse))), two[b]);
      bend[b] = mul(fade, fma(add(slope[b], slope[b]), first, bend[b]));
      slope[b] = fma(fade, slope[b], unit);
      const Vec raw = fms(d[b], ratio, state.shift[b]);
      lowest[b] = select(inside, least(raw, lowest[b]), lowest[b]);
      d[b] = most(raw, least_entry);
    }
  }
  for (int b = 0; b < G; ++b) {
    state.one[b] = one[b];
    state.two[b] = two[b];
    state.lowest[b] = lowest[b];
  }
}

// Splits off what can be, from the end; in most sweeps one entry or none. Without e, B B^T loses e on its diagonal and sqrt(e q) beside it.
template <int G>
void split(const double* q, double* e, double* values, int64_t low, int64_t top, QdState<G>& state, int b) {
  const Vec n2 = state.negligible2[b];
  for (int64_t i = top; i >= 0; --i) {
    const Mask here = equal(broadcast(static_cast<double>(i)), state.last[b]);
    if (!any(here)) {
      if (i <= low) break;
      continue;
    }
    const Vec qi = load(q + i * kLanes), value = add(state.sum[b], add(qi, state.lost[b]));
    Mask go = here;
    if (i > 0) {
      double* place = e + (i - 1) * kLanes;
      const Vec ei = load(place);
      go = both(here, less_equal(mul(ei, add(qi, ei)), mul(n2, add(value, n2))));
      store(place, select(go, broadcast(kLeast), ei));
    }
    const Vec found = select(less(broadcast(16 * kLeast), value), value, zeros());
    store(values + i * kLanes, select(go, found, load(values + i * kLanes)));
    state.last[b] = select(go, broadcast(static_cast<double>(i - 1)), state.last[b]);
  }
}

// The shift for what is left: Laguerre's lower bound, less what rounding may have added to it. Where entries have been split off the sums
// are without the first of them; where there were more, they still bound the inverse of what is left from above.
template <int G>
void next_shift(QdState<G>& state, int b, double size, Vec before) {
  const Mask whole = equal(before, state.last[b]);
  const Vec inverse = div(broadcast(1.0), state.pivot[b]), first = mul(state.slope[b], inverse);
  const Vec one = add(state.one[b], select(whole, first, zeros()));
  const Vec two = add(state.two[b], select(whole, fma(first, first, mul(state.bend[b], inverse)), zeros()));
  const Vec count = select(whole, add(before, broadcast(1.0)), before);
  // count two - one^2 cancels where all eigenvalues are equal: at least its rounding error
  const Vec all = mul(count, two), variance = fma(all, broadcast(16 * kEps * size), most(sub(all, mul(one, one)), zeros()));
  const Vec spread = mul(sub(count, broadcast(1.0)), variance);
  const Vec laguerre = div(count, add(one, square_root(spread))), newton = div(broadcast(1.0), one);
  state.shift[b] = select(less(zeros(), one), mul(most(laguerre, newton), broadcast(1.0 - 16 * kEps * size)), zeros());
}

template <int G>
void qd_blocks(const double* d, const double* e, int64_t n, double* values, double* work, unsigned* failed) {
  constexpr int64_t kMostSweeps = 12;  // per value; 3 are usual
  const int64_t block = n * kLanes;
  double *q = work, *off = work + G * block;
  const Vec least_entry = broadcast(kLeast);
  const double size = static_cast<double>(n);
  QdState<G> state;
  for (int b = 0; b < G; ++b) {
    const double *db = d + b * block, *eb = e + b * block;
    // from the end with the larger entries to that with the smaller ones
    const Mask flip = less(magnitude(load(db)), magnitude(load(db + (n - 1) * kLanes)));
    Vec top = zeros();
    for (int64_t k = 0; k < n; ++k) {
      const Vec dk = select(flip, load(db + (n - 1 - k) * kLanes), load(db + k * kLanes));
      const Vec ek = k + 1 < n ? select(flip, load(eb + (n - 2 - k) * kLanes), load(eb + k * kLanes)) : zeros();
      const Vec qk = mul(dk, dk), e2 = mul(ek, ek);
      top = most(add(qk, e2), top);
      store(q + b * block + k * kLanes, most(qk, least_entry));
      store(off + b * block + k * kLanes, most(e2, least_entry));
    }
    state.last[b] = broadcast(size - 1.0);
    state.shift[b] = state.sum[b] = state.lost[b] = state.one[b] = state.two[b] = zeros();
    state.pivot[b] = broadcast(HUGE_VAL);  // nothing is known yet: no shift
    state.slope[b] = state.bend[b] = zeros();
    state.lowest[b] = zeros();
    state.negligible2[b] = most(mul(top, broadcast(kEps * kEps / 4)), broadcast(64 * kLeast));  // the latter for matrices of zeros
    failed[b] = 0;
  }
  for (int64_t low = n - 1, top = n - 1, sweeps = 0; top >= 0; ++sweeps) {
    int64_t lowest = n, highest = -1;
    for (int b = 0; b < G; ++b) {
      const Vec before = state.last[b];
      split(q + b * block, off + b * block, values + b * block, low, top, state, b);
      next_shift(state, b, size, before);
      double last[kLanes];
      store(last, state.last[b]);
      for (int lane = 0; lane < kLanes; ++lane) {
        const int64_t i = static_cast<int64_t>(last[lane]);
        if (i < 0) continue;
        lowest = i < lowest ? i : lowest;
        highest = i > highest ? i : highest;
      }
    }
    low = lowest;
    top = highest;
    if (top < 0) break;
    if (sweeps == kMostSweeps * n) {
      for (int b = 0; b < G; ++b) failed[b] |= bits(less_equal(zeros(), state.last[b]));
      break;
    }
    qd_sweep(q, off, n, low, top, state);
    for (int b = 0; b < G; ++b) {
      // the shifts so far, with what rounding loses
      const Vec shift = state.shift[b], sum = add(state.sum[b], shift);
      const Vec lost = sub(shift, sub(sum, state.sum[b]));
      state.sum[b] = sum;
      state.lost[b] = add(state.lost[b], lost);
      // a pivot below zero by no more than rounding, or than may be neglected, moves the eigenvalues by no more than that
      const Vec below = most(sub(zeros(), state.lowest[b]), zeros()), n2 = state.negligible2[b];
      const Mask wrong = both(less(mul(sum, broadcast(8 * kEps * size)), below), less(mul(n2, add(sum, n2)), mul(below, below)));
      failed[b] |= bits(both(wrong, less_equal(zeros(), state.last[b])));
    }
  }
}

void qd(const double* d, const double* e, int64_t n, int blocks, double* values, double* work, unsigned* failed) {
  switch (blocks) {
    case 1:
      return qd_blocks<1>(d, e, n, values, work, failed);
    case 2:
      return qd_blocks<2>(d, e, n, values, work, failed);
    case 3:
      return qd_blocks<3>(d, e, n, values, work, failed);
    default:
      return qd_blocks<4>(d, e, n, values, work, failed);
  }
}

}  // namespace
}  // namespace sf::SF_ISA
