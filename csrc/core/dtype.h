// The number formats a kernel reads in place.
#pragma once
#include <stdint.h>

namespace sf {

enum class DType : int { f16, bf16, f32, f64 };

static inline int64_t size_of(DType t) { return t == DType::f64 ? 8 : t == DType::f32 ? 4 : 2; }

}  // namespace sf
