// What CPU and GPU share: functions that decide results are written once, as SF_HD functions, with these operations.
//
// Each operation rounds exactly once on every target: host code is compiled with -ffp-contract=off, and on the device the
// intrinsics keep the compiler from fusing a multiplication and an addition. Internal linkage throughout, so that a header
// can be included in sources compiled for different instruction sets.
#pragma once
#include <stdint.h>
#include <string.h>

#if defined(__CUDACC__)
#define SF_HD __host__ __device__
#else
#define SF_HD
#endif

namespace sf {

#if defined(__CUDA_ARCH__)
SF_HD static inline double add(double a, double b) { return __dadd_rn(a, b); }
SF_HD static inline double sub(double a, double b) { return __dsub_rn(a, b); }
SF_HD static inline double mul(double a, double b) { return __dmul_rn(a, b); }
SF_HD static inline double div(double a, double b) { return __ddiv_rn(a, b); }
SF_HD static inline uint64_t bits_of(double x) { return (uint64_t)__double_as_longlong(x); }
SF_HD static inline double from_bits(uint64_t u) { return __longlong_as_double((long long)u); }
#else
SF_HD static inline double add(double a, double b) { return a + b; }
SF_HD static inline double sub(double a, double b) { return a - b; }
SF_HD static inline double mul(double a, double b) { return a * b; }
SF_HD static inline double div(double a, double b) { return a / b; }
SF_HD static inline uint64_t bits_of(double x) {
  uint64_t u;
  memcpy(&u, &x, sizeof u);
  return u;
}
SF_HD static inline double from_bits(uint64_t u) {
  double x;
  memcpy(&x, &u, sizeof x);
  return x;
}
#endif

}  // namespace sf
