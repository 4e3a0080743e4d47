// The one error for bad input; the binding turns it into Python's ValueError.
#pragma once
#include <stdexcept>
#include <string>

namespace sf {

inline void require(bool holds, const std::string& message) {
  if (!holds) throw std::invalid_argument(message);
}

}  // namespace sf
