// Instruction-set levels: which were built, which this CPU runs, which one an op call uses.
#pragma once
#include <string>
#include <vector>

namespace sf {

enum class Level { baseline, avx2, avx512 };

// Names of the levels built in and runnable on this CPU, slowest first; "baseline" is always among them.
std::vector<std::string> runnable_levels();

// The level named; an empty name means the default: SPECTRAL_FAST_ISA where that is set, else the fastest runnable one.
// Throws std::invalid_argument for a name that is unknown, not built in or not supported by this CPU.
Level find_level(const std::string& name);

std::string level_name(Level level);

}  // namespace sf

// SF_LEVEL_TABLE(Type, name): inside namespace sf, declares the objects `name` that the ISA sources define in their
// namespaces (sf::baseline, sf::avx2, ...) and a function `const Type& name(Level)` choosing among them.
#if defined(SF_HAVE_AVX512)
#define SF_LEVEL_TABLE(Type, name)   \
  namespace baseline {               \
  extern const Type name;            \
  }                                  \
  namespace avx2 {                   \
  extern const Type name;            \
  }                                  \
  namespace avx512 {                 \
  extern const Type name;            \
  }                                  \
  static const Type& name(Level l) { \
    switch (l) {                     \
      case Level::avx512:            \
        return avx512::name;         \
      case Level::avx2:              \
        return avx2::name;           \
      default:                       \
        return baseline::name;       \
    }                                \
  }
#else
#define SF_LEVEL_TABLE(Type, name) \
  namespace baseline {             \
  extern const Type name;          \
  }                                \
  static const Type& name(Level) { return baseline::name; }
#endif
