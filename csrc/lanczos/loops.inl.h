// A stripe of columns of a Krylov basis: dots with vectors, and sums of its rows, all in double.
#pragma once
#include <type_traits>

#include "core/half.h"
#include "core/simd.h"
#include "lanczos/lanczos.h"

namespace sf::SF_ISA {
namespace {

inline Vec lanes_at(const double* p) { return load(p); }
inline Vec lanes_at(const float* p) { return load_float(p); }
inline Vec lanes_at(const uint16_t* p) {
#if defined(__AVX512F__)
  const __m256i wide = _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))), 16);
  return _mm512_cvtps_pd(_mm256_castsi256_ps(wide));
#elif defined(__AVX2__)
  const __m128i wide = _mm_slli_epi32(_mm_cvtepu16_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))), 16);
  return _mm256_cvtps_pd(_mm_castsi128_ps(wide));
#else
  float both[kLanes];
  for (int k = 0; k < kLanes; ++k) both[k] = float_of_bfloat16(p[k]);
  return load_float(both);
#endif
}

// Two vectors side by side.
template <class T>
inline void lanes_at(const T* p, Vec& a, Vec& b) {
  a = lanes_at(p);
  b = lanes_at(p + kLanes);
}
#if defined(__AVX2__) && !defined(__AVX512F__)
inline void lanes_at(const uint16_t* p, Vec& a, Vec& b) {  // widened together: five instructions for eight numbers
  const __m256i wide = _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))), 16);
  const __m256 singles = _mm256_castsi256_ps(wide);
  a = _mm256_cvtps_pd(_mm256_castps256_ps128(singles));
  b = _mm256_cvtps_pd(_mm256_extractf128_ps(singles, 1));
}
#endif

inline double number_at(const double* p) { return *p; }
inline double number_at(const float* p) { return static_cast<double>(*p); }
inline double number_at(const uint16_t* p) { return static_cast<double>(float_of_bfloat16(*p)); }

inline void put_number(double* p, double x) { *p = x; }
inline void put_number(float* p, double x) { *p = static_cast<float>(x); }
inline void put_number(uint16_t* p, double x) {
  const float single = static_cast<float>(x);
  uint32_t bits_of;
  memcpy(&bits_of, &single, sizeof bits_of);
  *p = static_cast<uint16_t>((bits_of + 0x7FFFu + ((bits_of >> 16) & 1u)) >> 16);
}

template <class Work>
inline void by_type(DType dtype, const void* rows, const Work& work) {
  if (dtype == DType::f64) {
    work(static_cast<const double*>(rows));
  } else if (dtype == DType::f32) {
    work(static_cast<const float*>(rows));
  } else {
    work(static_cast<const uint16_t*>(rows));
  }
}

void load_row(const void* from, DType dtype, int64_t cols, double* x) {
  by_type(dtype, from, [&](const auto* p) {
    int64_t j = 0;
    for (; j + kLanes <= cols; j += kLanes) store(x + j, lanes_at(p + j));
    for (; j < cols; ++j) x[j] = number_at(p + j);
  });
}

template <class T>
inline void save_as(const double* x, int64_t cols, double factor, T* to) {
  for (int64_t j = 0; j < cols; ++j) put_number(to + j, x[j] * factor);
}

void save_row(const double* x, int64_t cols, double factor, void* to, DType dtype) {
  if (dtype == DType::f64) {
    save_as(x, cols, factor, static_cast<double*>(to));
  } else if (dtype == DType::f32) {
    save_as(x, cols, factor, static_cast<float*>(to));
  } else {
    save_as(x, cols, factor, static_cast<uint16_t*>(to));
  }
}

// What a row will be asked for soon: the hardware's own prefetch stops at the end of a page of 4 KB, and every row has pages of its own.
constexpr int64_t kAhead = 1024;  // bytes
template <bool kFar, class T>
inline void ask_ahead(const T* p) {
  if constexpr (kFar) __builtin_prefetch(reinterpret_cast<const char*>(p) + kAhead);
}

// work<rows>(r, i, far) for all rows r in groups of four and one by one, each with all vectors i; far: they come from memory
template <class Work>
inline void by_groups(const Stripe& stripe, const Work& work) {
  int64_t r = 0;
  for (; r + 4 <= stripe.count; r += 4)
    for (int64_t i = 0; i < stripe.b; ++i) work.template operator()<4>(r, i, !stripe.near && i == 0);
  for (; r < stripe.count; ++r)
    for (int64_t i = 0; i < stripe.b; ++i) work.template operator()<1>(r, i, !stripe.near && i == 0);
}

// x -= sum of kRows rows times c[0], c[step], ...; kFar: the rows come from memory
template <int kRows, bool kFar, class T>
inline void subtract_rows(const T* rows, int64_t stride, int64_t cols, const double* c, int64_t step, double* x) {
  Vec factor[kRows];
  for (int k = 0; k < kRows; ++k) factor[k] = broadcast(c[k * step]);
  int64_t j = 0;
  for (; j + 2 * kLanes <= cols; j += 2 * kLanes) {
    Vec even = load(x + j), odd = load(x + j + kLanes), a, b;
    for (int k = 0; k < kRows; ++k) {
      ask_ahead<kFar>(rows + k * stride + j);
      lanes_at(rows + k * stride + j, a, b);
      even = fnma(factor[k], a, even);
      odd = fnma(factor[k], b, odd);
    }
    store(x + j, even);
    store(x + j + kLanes, odd);
  }
  for (; j < cols; ++j)
    for (int k = 0; k < kRows; ++k) x[j] -= c[k * step] * number_at(rows + k * stride + j);
}

void subtract(const Stripe& stripe, const double* c) {
  by_type(stripe.dtype, stripe.rows, [&](const auto* rows) {
    by_groups(stripe, [&]<int kRows>(int64_t r, int64_t i, bool far) {
      const auto work = far ? subtract_rows<kRows, true, std::remove_cvref_t<decltype(*rows)>>
                            : subtract_rows<kRows, false, std::remove_cvref_t<decltype(*rows)>>;
      work(rows + r * stripe.stride, stripe.stride, stripe.cols, c + r * stripe.b + i, stripe.b, stripe.x + i * stripe.ldx);
    });
  });
}

template <int kRows, bool kFar, class T>
inline void dot_rows(const T* rows, int64_t stride, int64_t cols, const double* x, double* out, int64_t step) {
  Vec even[kRows], odd[kRows];
  for (int k = 0; k < kRows; ++k) even[k] = odd[k] = zeros();
  int64_t j = 0;
  for (; j + 2 * kLanes <= cols; j += 2 * kLanes) {
    const Vec first = load(x + j), second = load(x + j + kLanes);
    Vec a, b;
    for (int k = 0; k < kRows; ++k) {
      ask_ahead<kFar>(rows + k * stride + j);
      lanes_at(rows + k * stride + j, a, b);
      even[k] = fma(first, a, even[k]);
      odd[k] = fma(second, b, odd[k]);
    }
  }
  for (int k = 0; k < kRows; ++k) {
    double total = sum(add(even[k], odd[k]));
    for (int64_t rest = j; rest < cols; ++rest) total += x[rest] * number_at(rows + k * stride + rest);
    out[k * step] = total;
  }
}

void dots(const Stripe& stripe, double* out) {
  by_type(stripe.dtype, stripe.rows, [&](const auto* rows) {
    by_groups(stripe, [&]<int kRows>(int64_t r, int64_t i, bool far) {
      const auto work =
          far ? dot_rows<kRows, true, std::remove_cvref_t<decltype(*rows)>> : dot_rows<kRows, false, std::remove_cvref_t<decltype(*rows)>>;
      work(rows + r * stripe.stride, stripe.stride, stripe.cols, stripe.x + i * stripe.ldx, out + r * stripe.b + i, stripe.b);
    });
  });
}

void squares(const Stripe& stripe, double* out) {
  for (int64_t i = 0; i < stripe.b; ++i)
    dot_rows<1, false>(stripe.x + i * stripe.ldx, 0, stripe.cols, stripe.x + i * stripe.ldx, out + i, 1);
}

// kOut combinations at once, two vectors of columns wide
template <int kOut, class T>
inline void combine_rows(const Stripe& stripe, const T* rows, const double* s, double* x) {
  int64_t j = 0;
  for (; j + 2 * kLanes <= stripe.cols; j += 2 * kLanes) {
    Vec even[kOut], odd[kOut];
    for (int k = 0; k < kOut; ++k) even[k] = odd[k] = zeros();
    for (int64_t r = 0; r < stripe.count; ++r) {
      Vec a, b;
      lanes_at(rows + r * stripe.stride + j, a, b);
      for (int k = 0; k < kOut; ++k) {
        const Vec factor = broadcast(s[r * stripe.b + k]);
        even[k] = fma(factor, a, even[k]);
        odd[k] = fma(factor, b, odd[k]);
      }
    }
    for (int k = 0; k < kOut; ++k) {
      store(x + k * stripe.ldx + j, even[k]);
      store(x + k * stripe.ldx + j + kLanes, odd[k]);
    }
  }
  for (; j < stripe.cols; ++j) {
    for (int k = 0; k < kOut; ++k) {
      double total = 0.0;
      for (int64_t r = 0; r < stripe.count; ++r) total += s[r * stripe.b + k] * number_at(rows + r * stripe.stride + j);
      x[k * stripe.ldx + j] = total;
    }
  }
}

void combine(const Stripe& stripe, const double* s) {
  by_type(stripe.dtype, stripe.rows, [&](const auto* rows) {
    int64_t i = 0;
    for (; i + 4 <= stripe.b; i += 4) combine_rows<4>(stripe, rows, s + i, stripe.x + i * stripe.ldx);
    for (; i < stripe.b; ++i) combine_rows<1>(stripe, rows, s + i, stripe.x + i * stripe.ldx);
  });
}

}  // namespace
}  // namespace sf::SF_ISA
