// One Householder reflector H = I - tau v v^T that maps x = (alpha, rest) onto (beta, 0), in the unscaled form v = x - beta e_1.
#pragma once
#include <math.h>

namespace sf::SF_ISA {
namespace {

struct Reflector {
  double head;  // v's entry in alpha's place; the others are those of x
  double beta;
  double tau;  // 0: H = I, v is to be taken as zero
};

// Sums of squares below this are dropped: the entries are less than 1e-100 of the matrix, and reciprocals would leave the range.
constexpr double kNegligible = 1e-200;

// rest: sum of squares of x without alpha.
inline Reflector reflector(double alpha, double rest) {
  if (!(rest > kNegligible)) return {0.0, alpha, 0.0};
  const double size = sqrt(alpha * alpha + rest);
  const double beta = alpha > 0.0 ? -size : size;
  const double head = alpha - beta;
  return {head, beta, -1.0 / (beta * head)};
}

}  // namespace
}  // namespace sf::SF_ISA
