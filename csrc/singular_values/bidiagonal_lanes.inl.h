// Householder bidiagonalization (Golub & Kahan 1965) of kLanes matrices at once.
//
// The rank-1 updates of step k are not applied at once but by step k + 1. For a block of columns, one pass over the rows applies them and
// forms z = A^T u; with y = beta z the block's part r of the row to be reflected next is known, and A r is summed while the block is in L1.
// The row's reflector has v = r but for its first entry, v = r + h e_1, so A v = A r + h a_1. Each element of the remaining matrix is thus
// fetched and written once per step (after Howell et al. 2008, GEBD2.5), with 4 fused operations: 8/3 n^3 flops in all.
//
// Groups of matrices take turns within a step, so that one group's square roots and divisions hide behind another's products.

namespace sf::SF_ISA {
namespace {

// Squares of norms below this are taken for zero: entries that small, 2^-450 of the largest, change nothing, and products of
// subnormal numbers would no longer give an orthogonal reflector.
constexpr double kNothing = 0x1p-900;

struct Reflector {
  Vec head;   // first entry of u; the others are those of x
  Vec beta;   // H = I - beta u u^T, 0 where there is nothing to reflect
  Vec image;  // H x = image e_1
};

// rest2: the sum of squares of all entries but the first.
inline Reflector reflector(Vec first, Vec rest2) {
  const Vec norm2 = fma(first, first, rest2);
  const Mask live = less(broadcast(kNothing), norm2);
  const Vec norm = with_sign(square_root(select(live, norm2, broadcast(1.0))), first);
  const Vec head = add(first, norm);
  const Vec beta = div(broadcast(1.0), mul(norm, head));
  return {select(live, head, zeros()), select(live, beta, zeros()), select(live, sub(zeros(), norm), first)};
}

struct Group {
  double* a = nullptr;  // column j, row i at (j * m + i) * kLanes
  double *d = nullptr, *e = nullptr;
  double *y = nullptr, *v = nullptr;   // by column; v: the old row reflector until a column is updated, the new row from then on
  double *x = nullptr, *w = nullptr;   // by row; x = beta (A v - u y^T v), w = A r
  Vec head = zeros(), beta = zeros();  // of the column's reflector
  Vec scale = zeros(), shift = zeros(), yv = zeros();  // of the row's: beta, h, y^T v
};

struct Sums {  // four partial sums hide the latency of the additions
  Vec part[4] = {zeros(), zeros(), zeros(), zeros()};
  Vec total() const { return add(add(part[0], part[1]), add(part[2], part[3])); }
};

// Applies what is pending to column k and makes its reflector; its u stays in place of the column.
inline void reflect_column(Group& g, int64_t m, int64_t k) {
  double* now = g.a + (k * m + k) * kLanes;
  const int64_t rows = m - k;
  Sums squares;
  Vec first;
  if (k == 0) {
    first = load(now);
    for (int64_t i = 1; i < rows; ++i) squares.part[i & 3] = fma(load(now + i * kLanes), load(now + i * kLanes), squares.part[i & 3]);
  } else {
    const double* before = now - m * kLanes;
    const double* w = g.w + k * kLanes;
    double* x = g.x + k * kLanes;
    const Vec yk = load(g.y + k * kLanes), vk = load(g.v + k * kLanes), scale = g.scale, shift = g.shift, yv = g.yv;
    const auto update = [&](int64_t i) {
      const Vec old = load(now + i * kLanes), u = load(before + i * kLanes);
      const Vec xi = mul(scale, fnma(u, yv, fma(shift, old, load(w + i * kLanes))));
      store(x + i * kLanes, xi);
      const Vec fresh = fnma(xi, vk, fnma(u, yk, old));
      store(now + i * kLanes, fresh);
      return fresh;
    };
    first = update(0);
    int64_t i = 1;
    for (; i + 4 <= rows; i += 4) {
      for (int j = 0; j < 4; ++j) {
        const Vec fresh = update(i + j);
        squares.part[j] = fma(fresh, fresh, squares.part[j]);
      }
    }
    for (; i < rows; ++i) {
      const Vec fresh = update(i);
      squares.part[0] = fma(fresh, fresh, squares.part[0]);
    }
  }
  const Reflector left = reflector(first, squares.total());
  store(g.d + k * kLanes, left.image);
  store(now, left.head);
  g.head = left.head;
  g.beta = left.beta;
}

// Columns j .. j + C - 1 of step k, the first block of the step with kFirst.
template <int C, bool kPending, bool kFirst>
inline void update_columns(Group& g, int64_t m, int64_t k, int64_t j) {
  const int64_t ld = m * kLanes, rows = m - k;
  double* a = g.a + (j * m + k) * kLanes;
  const double* now = g.a + (k * m + k) * kLanes;
  const double* u = now - (kPending ? ld : 0);
  const double* x = g.x + k * kLanes;
  Vec z[C], yj[C], vj[C], r[C];
  for (int c = 0; c < C; ++c) {
    z[c] = zeros();
    if (kPending) yj[c] = load(g.y + (j + c) * kLanes), vj[c] = load(g.v + (j + c) * kLanes);
  }
  for (int64_t i = 0; i < rows; ++i) {
    const Vec at = load(now + i * kLanes);
    const Vec ui = kPending ? load(u + i * kLanes) : at, xi = kPending ? load(x + i * kLanes) : at;
    for (int c = 0; c < C; ++c) {
      double* place = a + c * ld + i * kLanes;
      Vec e = load(place);
      if (kPending) {
        e = fnma(ui, yj[c], e);
        e = fnma(xi, vj[c], e);
        store(place, e);
      }
      z[c] = fma(e, at, z[c]);
    }
  }
  for (int c = 0; c < C; ++c) {
    const Vec y = mul(g.beta, z[c]);
    r[c] = fnma(g.head, y, load(a + c * ld));
    store(g.y + (j + c) * kLanes, y);
    store(g.v + (j + c) * kLanes, r[c]);
  }
  double* w = g.w + k * kLanes;
  for (int64_t i = 1; i < rows; ++i) {
    Vec sum = kFirst ? mul(load(a + i * kLanes), r[0]) : fma(load(a + i * kLanes), r[0], load(w + i * kLanes));
    for (int c = 1; c < C; ++c) sum = fma(load(a + c * ld + i * kLanes), r[c], sum);
    store(w + i * kLanes, sum);
  }
}

template <bool kPending>
inline void update_all(Group* groups, int count, int64_t m, int64_t n, int64_t k) {
  int64_t j = k + 1;
  for (int g = 0; g < count; ++g) {
    switch ((n - j) % 4) {
      case 1:
        update_columns<1, kPending, true>(groups[g], m, k, j);
        break;
      case 2:
        update_columns<2, kPending, true>(groups[g], m, k, j);
        break;
      case 3:
        update_columns<3, kPending, true>(groups[g], m, k, j);
        break;
      default:
        update_columns<4, kPending, true>(groups[g], m, k, j);
    }
  }
  for (j += (n - j) % 4 ? (n - j) % 4 : 4; j < n; j += 4) {
    for (int g = 0; g < count; ++g) update_columns<4, kPending, false>(groups[g], m, k, j);
  }
}

// The row's reflector from r in v.
inline void reflect_row(Group& g, int64_t n, int64_t k) {
  const double* y = g.y + (k + 1) * kLanes;
  double* v = g.v + (k + 1) * kLanes;
  Sums squares, products;
  const Vec first = load(v);
  products.part[0] = mul(load(y), first);
  for (int64_t j = 1; j < n - k - 1; ++j) {
    const Vec r = load(v + j * kLanes);
    squares.part[j & 3] = fma(r, r, squares.part[j & 3]);
    products.part[j & 3] = fma(load(y + j * kLanes), r, products.part[j & 3]);
  }
  const Reflector right = reflector(first, squares.total());
  store(g.e + k * kLanes, right.image);
  store(v, right.head);
  g.scale = right.beta;
  g.shift = sub(right.head, first);
  g.yv = fma(g.shift, load(y), products.total());
}

void bidiagonalize(double* a, int64_t m, int64_t n, int count, double* d, double* e, double* work) {
  Group groups[kMaxBlocks];
  for (int i = 0; i < count; ++i) {
    Group& g = groups[i];
    g.a = a + i * m * n * kLanes;
    g.d = d + i * n * kLanes;
    g.e = e + i * n * kLanes;
    g.y = work + i * 2 * (m + n) * kLanes;
    g.v = g.y + n * kLanes;
    g.x = g.v + n * kLanes;
    g.w = g.x + m * kLanes;
  }
  for (int64_t k = 0; k < n; ++k) {
    for (int g = 0; g < count; ++g) reflect_column(groups[g], m, k);
    if (k == n - 1) break;
    if (k == 0) {
      update_all<false>(groups, count, m, n, k);
    } else {
      update_all<true>(groups, count, m, n, k);
    }
    for (int g = 0; g < count; ++g) reflect_row(groups[g], n, k);
  }
}

void square(const double* d, const double* e, int64_t n, double* diagonal, double* off2) {
  Vec above2 = zeros();
  for (int64_t k = 0; k < n; ++k) {
    const Vec q = mul(load(d + k * kLanes), load(d + k * kLanes));
    store(diagonal + k * kLanes, add(q, above2));
    if (k + 1 < n) {
      above2 = mul(load(e + k * kLanes), load(e + k * kLanes));
      store(off2 + k * kLanes, mul(q, above2));
    }
  }
}

}  // namespace
}  // namespace sf::SF_ISA
