// Parts of strided matrices of any format as rows of floats or doubles.
#pragma once
#include "core/half.h"
#include "core/simd.h"
#include "randomized_svd/loops.h"

namespace sf::SF_ISA {
namespace {

void fetch(const char* from, int64_t stride, int64_t rows, int64_t bytes) {
  for (int64_t i = 0; i < rows; ++i, from += stride)
    for (int64_t b = 0; b < bytes; b += 64) __builtin_prefetch(from + b, 0, 2);  // to L2: L1 is full of what is worked on
}

template <class From, class T, class Read>
inline void convert_rows(const From* from, int64_t row_stride, int64_t col_stride, int64_t rows, int64_t cols, double scale, T* to,
                         int64_t ldto, const Read& read) {
  for (int64_t i = 0; i < rows; ++i, from += row_stride, to += ldto) {
    if (col_stride == 1 && scale == 1.0) {
      for (int64_t j = 0; j < cols; ++j) to[j] = static_cast<T>(read(from[j]));
    } else {
      for (int64_t j = 0; j < cols; ++j) to[j] = static_cast<T>(static_cast<double>(read(from[j * col_stride])) * scale);
    }
  }
}

#if defined(__AVX2__)
inline void bfloat16_rows(const uint16_t* from, int64_t row_stride, int64_t rows, int64_t cols, float* to, int64_t ldto) {
  for (int64_t i = 0; i < rows; ++i, from += row_stride, to += ldto) {
    int64_t j = 0;
    for (; j + 16 <= cols; j += 16) {
      const __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + j));
      const __m256i low = _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm256_castsi256_si128(x)), 16);
      const __m256i high = _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm256_extracti128_si256(x, 1)), 16);
      _mm256_storeu_ps(to + j, _mm256_castsi256_ps(low));
      _mm256_storeu_ps(to + j + 8, _mm256_castsi256_ps(high));
    }
    for (; j < cols; ++j) to[j] = float_of_bfloat16(from[j]);
  }
}
#endif

#if defined(__F16C__)
inline void float16_rows(const uint16_t* from, int64_t row_stride, int64_t rows, int64_t cols, float* to, int64_t ldto) {
  for (int64_t i = 0; i < rows; ++i, from += row_stride, to += ldto) {
    int64_t j = 0;
    for (; j + 8 <= cols; j += 8) _mm256_storeu_ps(to + j, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + j))));
    for (; j < cols; ++j) to[j] = float_of_float16(from[j]);
  }
}
#endif

template <class T>
void convert(const void* from, DType dtype, int64_t row_stride, int64_t col_stride, int64_t rows, int64_t cols, double scale, T* to,
             int64_t ldto) {
  switch (dtype) {
    case DType::f64:
      convert_rows(static_cast<const double*>(from), row_stride, col_stride, rows, cols, scale, to, ldto, [](double x) { return x; });
      return;
    case DType::f32:
      convert_rows(static_cast<const float*>(from), row_stride, col_stride, rows, cols, scale, to, ldto, [](float x) { return x; });
      return;
    case DType::bf16:
#if defined(__AVX2__)
      if constexpr (sizeof(T) == sizeof(float)) {
        if (col_stride == 1 && scale == 1.0) return bfloat16_rows(static_cast<const uint16_t*>(from), row_stride, rows, cols, to, ldto);
      }
#endif
      convert_rows(static_cast<const uint16_t*>(from), row_stride, col_stride, rows, cols, scale, to, ldto,
                   [](uint16_t x) { return float_of_bfloat16(x); });
      return;
    case DType::f16:
#if defined(__F16C__)
      if constexpr (sizeof(T) == sizeof(float)) {
        if (col_stride == 1 && scale == 1.0) return float16_rows(static_cast<const uint16_t*>(from), row_stride, rows, cols, to, ldto);
      }
#endif
      convert_rows(static_cast<const uint16_t*>(from), row_stride, col_stride, rows, cols, scale, to, ldto,
                   [](uint16_t x) { return float_of_float16(x); });
      return;
  }
}

}  // namespace
}  // namespace sf::SF_ISA
