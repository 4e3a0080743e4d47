#include "core/isa.h"

#include <cstdlib>

#include "core/require.h"

namespace sf {
namespace {

struct Known {
  Level level;
  const char* name;
  bool built;
  bool runs;
};

std::vector<Known> known_levels() {
  std::vector<Known> known{{Level::baseline, "baseline", true, true}};
#if defined(SF_HAVE_AVX2)
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  known.push_back({Level::avx2, "avx2", true, avx2});
#else
  known.push_back({Level::avx2, "avx2", false, false});
#endif
#if defined(SF_HAVE_AVX512)
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  known.push_back({Level::avx512, "avx512", true, avx512});
#else
  known.push_back({Level::avx512, "avx512", false, false});
#endif
  return known;
}

}  // namespace

std::vector<std::string> runnable_levels() {
  std::vector<std::string> names;
  for (const Known& k : known_levels()) {
    if (k.runs) names.emplace_back(k.name);
  }
  return names;
}

Level find_level(const std::string& name) {
  const char* forced = std::getenv("SPECTRAL_FAST_ISA");
  const bool from_environment = name.empty() && forced != nullptr && *forced != '\0';
  const std::string wanted = from_environment ? forced : name;
  const std::string argument = from_environment ? "SPECTRAL_FAST_ISA" : "level";
  Level fastest = Level::baseline;
  std::string runnable;
  for (const Known& k : known_levels()) {
    if (wanted == k.name) {
      require(k.built, argument + "=" + wanted + " is not built into this installation");
      require(k.runs, argument + "=" + wanted + " is not supported by this CPU");
      return k.level;
    }
    if (k.runs) {
      fastest = k.level;
      runnable += std::string(runnable.empty() ? "" : ", ") + k.name;
    }
  }
  require(wanted.empty(), argument + "=" + wanted + " is not an instruction-set level; runnable here: " + runnable);
  return fastest;
}

std::string level_name(Level level) {
  for (const Known& k : known_levels()) {
    if (k.level == level) return k.name;
  }
  return "unknown";
}

}  // namespace sf
