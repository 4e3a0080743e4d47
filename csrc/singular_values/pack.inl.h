// Strided matrices of any format to vectors of doubles, one matrix per lane.
#include <string.h>

#include "core/half.h"

namespace sf::SF_ISA {
namespace {

void convert(const void* from, DType dtype, int64_t stride, int64_t count, double* to) {
  switch (dtype) {
    case DType::f64: {
      const double* x = static_cast<const double*>(from);
      if (stride == 1) {
        memcpy(to, x, static_cast<size_t>(count) * sizeof(double));
      } else {
        for (int64_t i = 0; i < count; ++i) to[i] = x[i * stride];
      }
      return;
    }
    case DType::f32: {
      const float* x = static_cast<const float*>(from);
      int64_t i = 0;
      if (stride == 1) {
        for (; i + kLanes <= count; i += kLanes) store(to + i, load_float(x + i));
      }
      for (; i < count; ++i) to[i] = static_cast<double>(x[i * stride]);
      return;
    }
    case DType::bf16: {
      const uint16_t* x = static_cast<const uint16_t*>(from);
      if (stride == 1) {
        for (int64_t i = 0; i < count; ++i) to[i] = static_cast<double>(float_of_bfloat16(x[i]));
      } else {
        for (int64_t i = 0; i < count; ++i) to[i] = static_cast<double>(float_of_bfloat16(x[i * stride]));
      }
      return;
    }
    case DType::f16: {
      const uint16_t* x = static_cast<const uint16_t*>(from);
      int64_t i = 0;
#if defined(__F16C__)
      if (stride == 1) {
        for (; i + 4 <= count; i += 4) {
          const __m128 four = _mm_cvtph_ps(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(x + i)));
          _mm256_storeu_pd(to + i, _mm256_cvtps_pd(four));
        }
      }
#endif
      for (; i < count; ++i) to[i] = static_cast<double>(float_of_float16(x[i * stride]));
      return;
    }
  }
}

constexpr int64_t kRun = 256;  // elements of each lane converted at a time: they stay in L1

struct Seen {
  Vec largest[4] = {zeros(), zeros(), zeros(), zeros()};  // a NaN is not carried on here, but in `spoiled`:
  Vec spoiled[4] = {zeros(), zeros(), zeros(), zeros()};  // 0, or NaN from the first NaN or infinity on
};

inline void put(double* to, Vec x, Seen& seen, int part) {
  store(to, x);
  seen.largest[part] = most(magnitude(x), seen.largest[part]);
  seen.spoiled[part] = fma(x, zeros(), seen.spoiled[part]);
}

// `count` elements of kLanes runs, run `lane` at from + lane * kRun, interleaved.
inline void interleave(const double* from, int64_t count, double* to, Seen& seen) {
  int64_t i = 0;
#if defined(__AVX512F__)
  for (; i + 4 <= count; i += 4) {
    __m512d x[4];
    for (int half = 0; half < 2; ++half) {
      const double* run = from + half * 4 * kRun + i;
      const __m256d a = _mm256_loadu_pd(run), b = _mm256_loadu_pd(run + kRun);
      const __m256d c = _mm256_loadu_pd(run + 2 * kRun), d = _mm256_loadu_pd(run + 3 * kRun);
      const __m256d ab0 = _mm256_unpacklo_pd(a, b), ab1 = _mm256_unpackhi_pd(a, b);
      const __m256d cd0 = _mm256_unpacklo_pd(c, d), cd1 = _mm256_unpackhi_pd(c, d);
      const __m256d y[4] = {_mm256_permute2f128_pd(ab0, cd0, 0x20), _mm256_permute2f128_pd(ab1, cd1, 0x20),
                            _mm256_permute2f128_pd(ab0, cd0, 0x31), _mm256_permute2f128_pd(ab1, cd1, 0x31)};
      for (int k = 0; k < 4; ++k) x[k] = half == 0 ? _mm512_castpd256_pd512(y[k]) : _mm512_insertf64x4(x[k], y[k], 1);
    }
    for (int k = 0; k < 4; ++k) put(to + (i + k) * kLanes, x[k], seen, k);
  }
#elif defined(__AVX2__)
  for (; i + 4 <= count; i += 4) {
    const double* run = from + i;
    const __m256d a = _mm256_loadu_pd(run), b = _mm256_loadu_pd(run + kRun);
    const __m256d c = _mm256_loadu_pd(run + 2 * kRun), d = _mm256_loadu_pd(run + 3 * kRun);
    const __m256d ab0 = _mm256_unpacklo_pd(a, b), ab1 = _mm256_unpackhi_pd(a, b);
    const __m256d cd0 = _mm256_unpacklo_pd(c, d), cd1 = _mm256_unpackhi_pd(c, d);
    put(to + i * kLanes, _mm256_permute2f128_pd(ab0, cd0, 0x20), seen, 0);
    put(to + (i + 1) * kLanes, _mm256_permute2f128_pd(ab1, cd1, 0x20), seen, 1);
    put(to + (i + 2) * kLanes, _mm256_permute2f128_pd(ab0, cd0, 0x31), seen, 2);
    put(to + (i + 3) * kLanes, _mm256_permute2f128_pd(ab1, cd1, 0x31), seen, 3);
  }
#endif
  for (; i < count; ++i) {
    double x[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) x[lane] = from[lane * kRun + i];
    put(to + i * kLanes, load(x), seen, 0);
  }
}

void pack(const Matrices& a, int64_t first, double* to, int* exponents) {
  const int64_t m = a.rows, n = a.cols, size = size_of(a.dtype);
  const int here = static_cast<int>(a.batch - first < kLanes ? a.batch - first : kLanes);
  alignas(64) double run[kLanes * kRun];
  memset(run, 0, sizeof run);  // lanes beyond the batch stay zero
  const char* base = static_cast<const char*>(a.data) + first * a.batch_stride * size;
  const bool whole = a.row_stride == 1 && a.col_stride == m;
  const int64_t columns = whole ? 1 : n, length = whole ? m * n : m;
  Seen seen;
  for (int64_t j = 0; j < columns; ++j) {
    for (int64_t i = 0; i < length; i += kRun) {
      const int64_t count = length - i < kRun ? length - i : kRun;
      for (int lane = 0; lane < here; ++lane) {
        const int64_t at = lane * a.batch_stride + j * a.col_stride + i * a.row_stride;
        convert(base + at * size, a.dtype, a.row_stride, count, run + lane * kRun);
      }
      interleave(run, count, to + (j * length + i) * kLanes, seen);
    }
  }
  double top[kLanes], factor[kLanes], rest[kLanes];
  const Vec largest = most(most(seen.largest[0], seen.largest[1]), most(seen.largest[2], seen.largest[3]));
  const Vec spoiled = add(add(seen.spoiled[0], seen.spoiled[1]), add(seen.spoiled[2], seen.spoiled[3]));
  store(top, largest);
  const unsigned finite = bits(equal(spoiled, zeros()));
  bool touch = false, two_steps = false;
  for (int lane = 0; lane < kLanes; ++lane) {
    exponents[lane] = 0;
    factor[lane] = rest[lane] = 1.0;
    if (!(finite >> lane & 1u)) {
      exponents[lane] = kNotFinite;
      factor[lane] = 0.0;
      touch = true;
    } else if (top[lane] > 0.0) {
      frexp(top[lane], &exponents[lane]);
      if (!scaled_when_packed(a.dtype)) continue;
      // 2^-exponent alone overflows for denormal matrices
      const int most_of_it = exponents[lane] < -1000 ? -1000 : exponents[lane];
      factor[lane] = ldexp(1.0, -most_of_it);
      rest[lane] = ldexp(1.0, most_of_it - exponents[lane]);
      touch = touch || factor[lane] != 1.0;
      two_steps = two_steps || rest[lane] != 1.0;
    }
  }
  if (!touch) return;
  const Vec f = load(factor), r = load(rest);
  const Mask good = less(zeros(), f);
  for (int64_t i = 0; i < m * n; ++i) {
    Vec x = mul(load(to + i * kLanes), f);
    if (two_steps) x = mul(x, r);
    store(to + i * kLanes, select(good, x, zeros()));
  }
}

// The largest magnitude among rows first .. first + count - 1 of one matrix; NaN where an entry is NaN or infinite.
double largest_entry(const Matrices& a, int64_t matrix, int64_t first, int64_t count) {
  const int64_t size = size_of(a.dtype);
  const bool by_rows = (a.col_stride < 0 ? -a.col_stride : a.col_stride) <= (a.row_stride < 0 ? -a.row_stride : a.row_stride);
  const int64_t outer = by_rows ? count : a.cols, inner = by_rows ? a.cols : count;
  const int64_t outer_stride = by_rows ? a.row_stride : a.col_stride, inner_stride = by_rows ? a.col_stride : a.row_stride;
  const char* base = static_cast<const char*>(a.data) + (matrix * a.batch_stride + first * a.row_stride) * size;
  alignas(64) double run[kRun];
  Vec largest = zeros(), spoiled = zeros();
  double rest = 0.0, rest_spoiled = 0.0;
  for (int64_t o = 0; o < outer; ++o) {
    for (int64_t i = 0; i < inner; i += kRun) {
      const int64_t here = inner - i < kRun ? inner - i : kRun;
      convert(base + (o * outer_stride + i * inner_stride) * size, a.dtype, inner_stride, here, run);
      int64_t k = 0;
      for (; k + kLanes <= here; k += kLanes) {
        largest = most(magnitude(load(run + k)), largest);
        spoiled = fma(load(run + k), zeros(), spoiled);
      }
      for (; k < here; ++k) {
        rest = fabs(run[k]) > rest ? fabs(run[k]) : rest;
        rest_spoiled += run[k] * 0.0;
      }
    }
  }
  double top[kLanes];
  store(top, largest);
  for (int lane = 0; lane < kLanes; ++lane) rest = top[lane] > rest ? top[lane] : rest;
  return sum(spoiled) + rest_spoiled == 0.0 ? rest : NAN;
}

// Rows first .. first + count - 1 of one matrix, divided by 2^exponent, to out.
void load_rows(const Matrices& a, int64_t matrix, int64_t first, int64_t count, int exponent, double* out, int64_t ld) {
  const int64_t size = size_of(a.dtype), n = a.cols;
  const char* base = static_cast<const char*>(a.data) + (matrix * a.batch_stride + first * a.row_stride) * size;
  const bool by_rows = (a.col_stride < 0 ? -a.col_stride : a.col_stride) <= (a.row_stride < 0 ? -a.row_stride : a.row_stride);
  if (by_rows) {
    for (int64_t i = 0; i < count; ++i) convert(base + i * a.row_stride * size, a.dtype, a.col_stride, n, out + i * ld);
  } else {
    constexpr int64_t kTile = 32;  // rows of a column converted at a time; eight columns fill the lines of the rows written
    alignas(64) double run[8 * kTile];
    for (int64_t i = 0; i < count; i += kTile) {
      const int64_t rows = count - i < kTile ? count - i : kTile;
      for (int64_t j = 0; j < n; j += 8) {
        const int64_t columns = n - j < 8 ? n - j : 8;
        for (int64_t k = 0; k < columns; ++k) {
          convert(base + (i * a.row_stride + (j + k) * a.col_stride) * size, a.dtype, a.row_stride, rows, run + k * kTile);
        }
        for (int64_t r = 0; r < rows; ++r) {
          for (int64_t k = 0; k < columns; ++k) out[(i + r) * ld + j + k] = run[k * kTile + r];
        }
      }
    }
  }
  if (exponent == 0) return;
  const int part = exponent < -1000 ? -1000 : exponent;  // 2^-exponent alone overflows for denormal matrices
  const double f = ldexp(1.0, -part), rest = ldexp(1.0, part - exponent);
  for (int64_t i = 0; i < count; ++i) {
    double* row = out + i * ld;
    for (int64_t j = 0; j < n; ++j) row[j] *= f;
    for (int64_t j = 0; rest != 1.0 && j < n; ++j) row[j] *= rest;
  }
}

// Condensed matrices that were packed unscaled, divided by their 2^exponents.
void rescale(double* d, double* e, int64_t n, const int* exponents) {
  double factor[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) factor[lane] = exponents[lane] == kNotFinite ? 1.0 : ldexp(1.0, -exponents[lane]);
  const Vec f = load(factor);
  for (int64_t k = 0; k < n; ++k) {
    store(d + k * kLanes, mul(load(d + k * kLanes), f));
    if (k + 1 < n) store(e + k * kLanes, mul(load(e + k * kLanes), f));
  }
}

}  // namespace
}  // namespace sf::SF_ISA
