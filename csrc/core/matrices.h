#pragma once
#include <stdint.h>

#include "core/dtype.h"

namespace sf {

// A batch of matrices that somebody else owns; strides in elements, of any sign.
struct Matrices {
  const void* data;
  DType dtype;
  int64_t batch, rows, cols;
  int64_t batch_stride, row_stride, col_stride;
};

}  // namespace sf
