#pragma once
#include <pybind11/pybind11.h>

namespace sf {

void bind_class_moments(pybind11::module_& m);

}  // namespace sf
