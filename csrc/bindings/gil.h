// Long work while other Python threads run.
#pragma once
#include <pybind11/pybind11.h>

#include "core/parallel.h"

namespace sf {

// Runs `work(interrupted)` without the GIL; Ctrl-C becomes KeyboardInterrupt.
template <class Work>
void without_gil(const Work& work) {
  const auto interrupted = [] {
    const pybind11::gil_scoped_acquire gil;
    return PyErr_CheckSignals() != 0;
  };
  bool cancelled = false;
  {
    const pybind11::gil_scoped_release nogil;
    try {
      work(interrupted);
    } catch (const Cancelled&) {
      cancelled = true;
    }
  }
  if (cancelled) throw pybind11::error_already_set();
}

}  // namespace sf
