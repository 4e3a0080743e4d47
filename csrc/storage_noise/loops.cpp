// Compiled once per instruction set; see csrc/cmake/SfIsa.cmake for what may stand here.
#include "storage_noise/loops.inl.h"

namespace sf::SF_ISA {
extern const StorageNoiseLoops storage_noise_loops;
const StorageNoiseLoops storage_noise_loops{&examine};
}  // namespace sf::SF_ISA
