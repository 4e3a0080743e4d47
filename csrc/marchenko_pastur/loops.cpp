// Compiled once per instruction set; see csrc/cmake/SfIsa.cmake for what may stand here.
#include "marchenko_pastur/loops.inl.h"

namespace sf::SF_ISA {
extern const MarchenkoPasturLoops marchenko_pastur_loops;
const MarchenkoPasturLoops marchenko_pastur_loops{&compare};
}  // namespace sf::SF_ISA
