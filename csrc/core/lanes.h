// One name for each operation on vectors of floats and of doubles, for loops that are written once for both.
#pragma once
#include "core/single.h"

// Of a loop that fills the registers: inlined beside others it would have none left for its sums.
#if defined(__GNUC__)
#define SF_APART __attribute__((noinline))
#else
#define SF_APART
#endif

namespace sf::SF_ISA {
namespace {

template <class T>
struct Lanes;
template <>
struct Lanes<float> {
  using Vector = Singles;
  static constexpr int count = kSingles;
};
template <>
struct Lanes<double> {
  using Vector = Vec;
  static constexpr int count = kLanes;
};

inline Singles get(const float* p) { return load_singles(p); }
inline Vec get(const double* p) { return load(p); }
inline void put(float* p, Singles a) { put_singles(p, a); }
inline void put(double* p, Vec a) { store(p, a); }
inline Singles all(float x) { return broadcast_single(x); }
inline Vec all(double x) { return broadcast(x); }
inline Singles plus(Singles a, Singles b) { return add_singles(a, b); }
inline Vec plus(Vec a, Vec b) { return add(a, b); }
inline Singles multiply_add(Singles a, Singles b, Singles c) { return fma_singles(a, b, c); }
inline Vec multiply_add(Vec a, Vec b, Vec c) { return fma(a, b, c); }

// sum += a b, where the sum is: left to itself the compiler moves sums from register to register, and some to memory and back.
inline void accumulate(Singles& sum, Singles a, Singles b) {
#if defined(__GNUC__) && defined(__AVX2__)
  asm("vfmadd231ps %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
#else
  sum = multiply_add(a, b, sum);
#endif
}
inline void accumulate(Vec& sum, Vec a, Vec b) {
#if defined(__GNUC__) && defined(__AVX2__)
  asm("vfmadd231pd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
#else
  sum = multiply_add(a, b, sum);
#endif
}

}  // namespace
}  // namespace sf::SF_ISA
