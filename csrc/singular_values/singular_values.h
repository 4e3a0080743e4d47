// contract: numpy_kernels.singular_values
#pragma once
#include <functional>

#include "core/isa.h"
#include "singular_values/lanes.h"

namespace sf {

// fast: "standard" with a Gram matrix in single precision where that is worth it, above kOneStage columns.
enum class Accuracy { standard, high, fast };

struct SingularValueOptions {
  Accuracy accuracy = Accuracy::standard;
  Level level = Level::baseline;
  int threads = 0;  // 0: default_threads()
  std::function<bool()> interrupted{};
};

// Seconds of thread time by stage, summed over threads.
struct SingularValueStages {
  double pack = 0.0, gram = 0.0, qr = 0.0, reduce = 0.0, chase = 0.0, solve = 0.0;

  struct Named {
    const char* name;
    double SingularValueStages::* seconds;
  };
  static const Named all[6];
};

inline constexpr SingularValueStages::Named SingularValueStages::all[6] = {
    {"pack", &SingularValueStages::pack},     {"gram", &SingularValueStages::gram},   {"qr", &SingularValueStages::qr},
    {"reduce", &SingularValueStages::reduce}, {"chase", &SingularValueStages::chase}, {"solve", &SingularValueStages::solve}};

// Up to this many columns one reduction on one thread per matrix, above it two stages: where the matrix no longer fits into L2.
constexpr std::int64_t kOneStage = 320;

// Values of every matrix, descending, in s (batch x min(rows, cols)). Throws Cancelled.
void singular_values(Matrices a, double* s, const SingularValueOptions& options, SingularValueStages* stages = nullptr);

// The same of complex matrices given by their real and imaginary parts, always with "standard" accuracy.
void complex_singular_values(Matrices re, Matrices im, double* s, const SingularValueOptions& options,
                             SingularValueStages* stages = nullptr);

}  // namespace sf
