// A strided array that somebody else owns.
#pragma once
#include <cstdint>

namespace sf {

template <class T, int Rank>
struct View {
  T* data = nullptr;
  std::int64_t shape[Rank] = {};
  std::int64_t strides[Rank] = {};  // in elements, may be negative or zero

  T& operator()(std::int64_t i) const
    requires(Rank == 1)
  {
    return data[i * strides[0]];
  }
};

}  // namespace sf
