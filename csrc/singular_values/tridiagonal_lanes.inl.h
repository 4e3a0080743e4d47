// Eigenvalues of symmetric tridiagonals, one per lane, G blocks of kLanes interleaved so that one block's divisions hide behind the
// others' arithmetic.
//
// The implicit QR iteration without square roots of Pal, Walker & Kahan (Parlett, The Symmetric Eigenvalue Problem, 8.15), here with
// Wilkinson's shift, from the top (the largest entries of a Householder reduction) to the bottom, where values split off. With
// c = cos^2, s = sin^2 of the rotation, p = gamma^2 / c and r = p + b^2 the classical step needs c = p/r and later 1/c; all is scaled by c
// here, g = gamma^2, q = b^2 c, r = g + q, so that one reciprocal, 1/(g r), gives both. Entries have to be at most about 2^60 in size
// (fourth powers are formed).
//
// A lane that has converged at an index keeps its numbers (they are not stored), so that no lane depends on its neighbours.

namespace sf::SF_ISA {
namespace {

constexpr double kEps = 0x1p-52;

template <int G>
struct QrState {
  Vec limit[G];  // squared off-diagonals up to here count as zero: (eps/2 |T|)^2
  Vec floor[G];  // gamma^2 is kept above: an error of 2^-10 eps |T| in a diagonal entry, and no division by zero
};

constexpr unsigned kEvery = (1u << kLanes) - 1u;

template <bool kAll>
inline void keep(double* place, Mask active, Vec fresh) {
  store(place, kAll ? fresh : select(active, fresh, load(place)));
}

// kAll: every lane is active.
template <int G, bool kAll>
void sweep(double* diagonal, double* off2, int64_t n, int64_t last, const Mask* active, const QrState<G>& state) {
  const int64_t block = n * kLanes;
  Vec sigma[G], gamma[G], g[G], c[G], t[G];
  for (int b = 0; b < G; ++b) {
    const double* d = diagonal + b * block + last * kLanes;
    const double* o = off2 + b * block + last * kLanes;
    // the eigenvalue of the last 2 x 2 nearer to its last entry
    const Vec p = load(d), root = square_root(load(o - kLanes));
    const Vec half = div(sub(load(d - kLanes), p), add(root, root));
    const Vec away = square_root(fma(half, half, broadcast(1.0)));
    sigma[b] = sub(p, div(root, add(half, with_sign(away, half))));
    gamma[b] = sub(load(diagonal + b * block), sigma[b]);
    g[b] = most(mul(gamma[b], gamma[b]), state.floor[b]);
    c[b] = broadcast(1.0);
    t[b] = zeros();
  }
  for (int64_t i = 0; i < last; ++i) {
    for (int b = 0; b < G; ++b) {
      double* d = diagonal + b * block + i * kLanes;
      double* o = off2 + b * block + i * kLanes;
      const Vec alpha = load(d + kLanes);
      const Vec q = mul(load(o), c[b]);
      const Vec r = add(g[b], q);
      const Vec inverse = div(broadcast(1.0), mul(g[b], r));
      if (i > 0) keep<kAll>(o - kLanes, active[b], mul(t[b], r));
      // next = c (alpha - sigma) - s gamma with c = g/r, s = q/r; what does not need the division is done beside it
      const Vec top = mul(g[b], fms(g[b], sub(alpha, sigma[b]), mul(q, gamma[b])));
      const Vec next = mul(top, inverse);
      c[b] = mul(mul(g[b], g[b]), inverse);
      t[b] = mul(mul(q, r), inverse);  // s / c
      keep<kAll>(d, active[b], add(gamma[b], sub(alpha, next)));
      gamma[b] = next;
      g[b] = most(mul(next, next), state.floor[b]);
    }
  }
  for (int b = 0; b < G; ++b) {
    double* d = diagonal + b * block + last * kLanes;
    double* o = off2 + b * block + (last - 1) * kLanes;
    keep<kAll>(o, active[b], mul(t[b], g[b]));
    keep<kAll>(d, active[b], add(sigma[b], gamma[b]));
  }
}

template <int G>
void root_free_qr_blocks(double* diagonal, double* off2, int64_t n, unsigned* failed) {
  constexpr int kMostSweeps = 40;  // per eigenvalue; 2 are usual
  QrState<G> state;
  for (int b = 0; b < G; ++b) {
    Vec norm = zeros();
    for (int64_t k = 0; k < n; ++k) {
      const double* o = off2 + (b * n + k) * kLanes;
      Vec row = magnitude(load(diagonal + (b * n + k) * kLanes));
      if (k + 1 < n) row = add(row, square_root(load(o)));
      norm = most(row, norm);
    }
    const Vec small = mul(norm, broadcast(kEps / 2));
    state.limit[b] = mul(small, small);
    state.floor[b] = most(mul(state.limit[b], broadcast(0x1p-18)), broadcast(0x1p-900));
    failed[b] = 0;
  }
  for (int64_t last = n - 1; last > 0; --last) {
    for (int sweeps = 0;; ++sweeps) {
      Mask active[G];
      bool more = false, all = true;
      for (int b = 0; b < G; ++b) {
        active[b] = less(state.limit[b], load(off2 + (b * n + last - 1) * kLanes));
        more = more || any(active[b]);
        all = all && bits(active[b]) == kEvery;
      }
      if (!more) break;
      if (sweeps == kMostSweeps) {
        for (int b = 0; b < G; ++b) failed[b] |= bits(active[b]);
        break;
      }
      if (all) {
        sweep<G, true>(diagonal, off2, n, last, active, state);
      } else {
        sweep<G, false>(diagonal, off2, n, last, active, state);
      }
    }
  }
}

void root_free_qr(double* diagonal, double* off2, int64_t n, int blocks, unsigned* failed) {
  switch (blocks) {
    case 1:
      return root_free_qr_blocks<1>(diagonal, off2, n, failed);
    case 2:
      return root_free_qr_blocks<2>(diagonal, off2, n, failed);
    case 3:
      return root_free_qr_blocks<3>(diagonal, off2, n, failed);
    default:
      return root_free_qr_blocks<4>(diagonal, off2, n, failed);
  }
}

// Knuth's merge exchange (The Art of Computer Programming 3, 5.2.2, algorithm M): the same comparisons whatever the values.
void sort(double* values, int64_t n, int blocks) {
  int64_t top = 1;
  while (2 * top < n) top *= 2;
  for (int b = 0; b < blocks; ++b, values += n * kLanes) {
    for (int64_t p = top; p > 0; p /= 2) {
      int64_t q = top, r = 0, d = p;
      while (true) {
        for (int64_t i = 0; i + d < n; ++i) {
          if ((i & p) != r) continue;
          const Vec x = load(values + i * kLanes), y = load(values + (i + d) * kLanes);
          store(values + i * kLanes, most(x, y));
          store(values + (i + d) * kLanes, least(x, y));
        }
        if (q == p) break;
        d = q - p;
        q /= 2;
        r = p;
      }
    }
  }
}

void finish(double* values, int64_t n, const int* exponents, int used, double* s) {
  double factor[kLanes], rest[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) {
    const int all = exponents[lane], part = all < -1000 ? -1000 : all > 1000 ? 1000 : all;
    factor[lane] = all == kNotFinite ? NAN : ldexp(1.0, part);
    rest[lane] = all == kNotFinite ? NAN : ldexp(1.0, all - part);  // a result below the normal range is rounded once, here
  }
  const Vec f = load(factor), r = load(rest);
  for (int64_t k = 0; k < n; ++k) {
    double x[kLanes];
    store(x, mul(mul(square_root(most(load(values + k * kLanes), zeros())), f), r));
    for (int lane = 0; lane < used; ++lane) s[lane * n + k] = x[lane];
  }
}

}  // namespace
}  // namespace sf::SF_ISA
