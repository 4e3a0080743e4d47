// numpy arrays as views: the only place where the two meet. Nothing is copied or converted; what does not fit is an error
// that names the argument, what came and what is wanted.
#pragma once
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <string>

#include "core/require.h"
#include "core/view.h"

namespace sf {

namespace py = pybind11;

template <class T>
View<const T, 1> vector_view(const py::array& a, const char* name) {
  const std::string wanted = std::string(name) + ": wanted a one-dimensional " + std::string(py::str(py::dtype::of<T>())) + " array, got ";
  if (!py::isinstance<py::array_t<T>>(a)) throw py::type_error(wanted + "dtype " + std::string(py::str(a.dtype())));
  require(a.ndim() == 1, wanted + std::to_string(a.ndim()) + " dimensions");
  const py::ssize_t stride = a.strides(0);
  const auto address = reinterpret_cast<std::uintptr_t>(a.data());
  require(stride % static_cast<py::ssize_t>(sizeof(T)) == 0 && address % alignof(T) == 0, wanted + "unaligned data");
  View<const T, 1> view;
  view.data = static_cast<const T*>(a.data());
  view.shape[0] = a.shape(0);
  view.strides[0] = stride / static_cast<py::ssize_t>(sizeof(T));
  return view;
}

}  // namespace sf
