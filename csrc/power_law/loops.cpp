// Compiled once per instruction set; see csrc/cmake/SfIsa.cmake for what may stand here.
#include "power_law/loops.inl.h"

namespace sf::SF_ISA {
extern const PowerLawLoops power_law_loops;
const PowerLawLoops power_law_loops{&deviations};
}  // namespace sf::SF_ISA
