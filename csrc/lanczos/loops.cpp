// Compiled once per instruction set; see csrc/cmake/SfIsa.cmake for what may stand here.
#include "lanczos/loops.inl.h"

namespace sf::SF_ISA {
extern const KrylovLoops krylov_loops;
const KrylovLoops krylov_loops{&load_row, &save_row, &subtract, &dots, &squares, &combine};
}  // namespace sf::SF_ISA
