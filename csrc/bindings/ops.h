// What the sources of the Python module share, and the ops that have a source of their own.
#pragma once
#include "bindings/arrays.h"
#include "core/parallel.h"

namespace sf {

// Runs `work(interrupted)` without the GIL; Ctrl-C becomes KeyboardInterrupt.
template <class Work>
void without_gil(const Work& work) {
  const auto interrupted = [] {
    const py::gil_scoped_acquire gil;
    return PyErr_CheckSignals() != 0;
  };
  bool cancelled = false;
  {
    const py::gil_scoped_release nogil;
    try {
      work(interrupted);
    } catch (const Cancelled&) {
      cancelled = true;
    }
  }
  if (cancelled) throw py::error_already_set();
}

void bind_class_moments(py::module_& m);
void bind_gradient_gram(py::module_& m);

}  // namespace sf
