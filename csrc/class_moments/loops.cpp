// Compiled once per instruction set; see csrc/cmake/SfIsa.cmake for what may stand here.
#include "class_moments/loops.inl.h"

namespace sf::SF_ISA {
extern const MomentLoops moment_loops;
const MomentLoops moment_loops{&load_row, &add_difference, &centre_row};
}  // namespace sf::SF_ISA
