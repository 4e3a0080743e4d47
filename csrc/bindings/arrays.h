// numpy arrays as views: the only place where the two meet. Nothing is copied or converted; what does not fit is an error
// that names the argument, what came and what is wanted.
#pragma once
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <string>

#include "core/matrices.h"
#include "core/require.h"
#include "core/view.h"
#include "lanczos/lanczos.h"

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

// An (n, width) array whose rows lie at any stride, each of adjacent elements.
template <class T>
View<const T, 2> rows_view(const py::array& a, std::int64_t width, const char* name, const std::string& of) {
  const std::string wanted = std::string(name) + ": wanted an (n, " + std::to_string(width) + ") " +
                             std::string(py::str(py::dtype::of<T>())) + " array of " + of + ", got ";
  if (!py::isinstance<py::array_t<T>>(a)) throw py::type_error(wanted + "dtype " + std::string(py::str(a.dtype())));
  require(a.ndim() == 2, wanted + std::to_string(a.ndim()) + " dimensions");
  require(a.shape(1) == width, wanted + std::to_string(a.shape(1)) + " columns");
  const py::ssize_t size = sizeof(T);
  require(width <= 1 || a.size() == 0 || a.strides(1) == size, wanted + "rows of elements that are not adjacent");
  require(a.strides(0) % size == 0 && reinterpret_cast<std::uintptr_t>(a.data()) % alignof(T) == 0, wanted + "unaligned data");
  return {static_cast<const T*>(a.data()), {a.shape(0), width}, {a.strides(0) / size, 1}};
}

// The elements of a C-contiguous (n, width) array that is written to.
template <class T>
T* rows_to_fill(const py::array& a, std::int64_t n, std::int64_t width, const char* name, const std::string& of) {
  const auto rows = rows_view<T>(a, width, name, of);
  const std::string wanted = std::string(name) + ": wanted (" + std::to_string(n) + ", " + std::to_string(width) + "), got ";
  require(rows.shape[0] == n, wanted + std::to_string(rows.shape[0]) + " rows");
  require((a.flags() & py::array::c_style) != 0 && a.writeable(), wanted + "one that is not C-contiguous and writable");
  return const_cast<T*>(rows.data);
}

// Rows of an eigensolver that are written to: (rows, n) float64, float32 or, as uint16, bfloat16, each row of adjacent elements.
inline Rows rows_in_place(const py::array& a, std::int64_t least_rows, const char* name, bool bits) {
  const std::string wanted = std::string(name) + ": wanted (at least " + std::to_string(least_rows) + ", n) writable rows, float64" +
                             (bits ? ", float32 or uint16 (bfloat16)" : " or float32") + ", got ";
  const std::string got(py::str(a.dtype()));
  const bool f64 = got == "float64", f32 = got == "float32";
  if (!f64 && !f32 && !(bits && got == "uint16")) throw py::type_error(wanted + "dtype " + got);
  require(a.ndim() == 2, wanted + std::to_string(a.ndim()) + " dimensions");
  require(a.shape(0) >= least_rows, wanted + std::to_string(a.shape(0)) + " rows");
  const py::ssize_t size = a.itemsize();
  require(a.shape(1) <= 1 || a.strides(1) == size, wanted + "rows of elements that are not adjacent");
  require(a.shape(0) <= 1 || (a.strides(0) % size == 0 && a.strides(0) >= size * a.shape(1)), wanted + "rows that overlap");
  require(reinterpret_cast<std::uintptr_t>(a.data()) % static_cast<std::uintptr_t>(size) == 0 && a.writeable(), wanted + "others");
  return {const_cast<void*>(a.data()),
          f64   ? DType::f64
          : f32 ? DType::f32
                : DType::bf16,
          a.shape(1), a.shape(0) > 1 ? a.strides(0) / size : a.shape(1)};
}

// A (batch, m, n) array as matrices of the format named; arrays without a numpy dtype of their own travel as bits ("bfloat16": uint16).
inline Matrices matrices_view(const py::array& a, const std::string& format, const char* name) {
  struct Known {
    const char* format;
    const char* numpy;
    DType dtype;
  };
  constexpr Known table[] = {{"float16", "float16", DType::f16},
                             {"bfloat16", "uint16", DType::bf16},
                             {"float32", "float32", DType::f32},
                             {"float64", "float64", DType::f64}};
  const std::string got(py::str(a.dtype()));
  for (const Known& known : table) {
    if (format != known.format) continue;
    const std::string wanted = std::string(name) + ": wanted a (batch, m, n) " + known.numpy + " array, got ";
    if (got != known.numpy) throw py::type_error(wanted + "dtype " + got);
    require(a.ndim() == 3, wanted + std::to_string(a.ndim()) + " dimensions");
    const py::ssize_t size = a.itemsize();
    bool whole = reinterpret_cast<std::uintptr_t>(a.data()) % static_cast<std::uintptr_t>(size) == 0;
    for (int k = 0; k < 3; ++k) whole = whole && a.strides(k) % size == 0;
    require(whole, wanted + "unaligned data");
    return {a.data(), known.dtype, a.shape(0), a.shape(1), a.shape(2), a.strides(0) / size, a.strides(1) / size, a.strides(2) / size};
  }
  throw py::value_error(std::string(name) + ": no kernel reads the format " + format + "; known: float16, bfloat16, float32, float64");
}

}  // namespace sf
