// One row of features of any format against another row, in double.
#pragma once
#include "class_moments/class_moments.h"
#include "core/half.h"
#include "core/simd.h"

namespace sf::SF_ISA {
namespace {

// The 16-bit formats are widened a vector at a time; of all the work that is little.
struct Float16 {
  uint16_t bits;
};
struct Bfloat16 {
  uint16_t bits;
};

inline double number(double x) { return x; }
inline double number(float x) { return static_cast<double>(x); }
inline double number(Float16 x) { return static_cast<double>(float_of_float16(x.bits)); }
inline double number(Bfloat16 x) { return static_cast<double>(float_of_bfloat16(x.bits)); }

inline Vec lanes(const double* p) { return load(p); }
inline Vec lanes(const float* p) { return load_float(p); }
template <class T>
inline Vec lanes(const T* p) {
  double wide[kLanes];
  for (int k = 0; k < kLanes; ++k) wide[k] = number(p[k]);
  return load(wide);
}

template <class Work>
inline void by_type(DType dtype, const Work& work) {
  if (dtype == DType::f64) {
    work(static_cast<const double*>(nullptr));
  } else if (dtype == DType::f32) {
    work(static_cast<const float*>(nullptr));
  } else if (dtype == DType::f16) {
    work(static_cast<const Float16*>(nullptr));
  } else {
    work(static_cast<const Bfloat16*>(nullptr));
  }
}

void load_row(const void* row, DType dtype, int64_t dim, double* out) {
  by_type(dtype, [&](const auto* type) {
    const auto* x = static_cast<decltype(type)>(row);
    for (int64_t j = 0; j < dim; ++j) out[j] = number(x[j]);
  });
}

void add_difference(const void* row, const void* from, DType dtype, int64_t dim, double* sums) {
  by_type(dtype, [&](const auto* type) {
    const auto* x = static_cast<decltype(type)>(row);
    const auto* y = static_cast<decltype(type)>(from);
    int64_t j = 0;
    for (; j + kLanes <= dim; j += kLanes) store(sums + j, add(load(sums + j), sub(lanes(x + j), lanes(y + j))));
    for (; j < dim; ++j) sums[j] += number(x[j]) - number(y[j]);
  });
}

double centre_row(const void* row, DType dtype, int64_t dim, const double* mean, double* out) {
  double squares = 0.0;
  by_type(dtype, [&](const auto* type) {
    const auto* x = static_cast<decltype(type)>(row);
    Vec one = zeros(), other = zeros();
    int64_t j = 0;
    for (; j + 2 * kLanes <= dim; j += 2 * kLanes) {
      const Vec a = sub(lanes(x + j), load(mean + j)), b = sub(lanes(x + j + kLanes), load(mean + j + kLanes));
      store(out + j, a);
      store(out + j + kLanes, b);
      one = fma(a, a, one);
      other = fma(b, b, other);
    }
    squares = sum(add(one, other));
    for (; j < dim; ++j) {
      out[j] = number(x[j]) - mean[j];
      squares += out[j] * out[j];
    }
  });
  return squares;
}

}  // namespace
}  // namespace sf::SF_ISA
