// Compiled once per instruction set; see csrc/cmake/SfIsa.cmake for what may stand here.
#include "singular_values/bidiagonal.inl.h"
#include "singular_values/gram.inl.h"
#include "singular_values/hermitian.inl.h"
#include "singular_values/qr.inl.h"
#include "singular_values/tridiagonal.inl.h"

namespace sf::SF_ISA {
extern const DenseLoops dense_loops;
const DenseLoops dense_loops{&gram, &tridiagonalize, &bidiagonalize, &qr_append, &gram_complex, &tridiagonalize_complex};
}  // namespace sf::SF_ISA
