// _native.gradient_gram
#include "gradient_gram/gradient_gram.h"

#include <pybind11/stl.h>

#include <optional>
#include <string>

#include "bindings/ops.h"
#include "core/isa.h"

namespace sf {
namespace {

// A (samples, positions, width) or (samples, width) array of which the last axis is contiguous.
Positions positions_of(const py::array& a, const char* name) {
  const std::string wanted =
      std::string(name) +
      ": wanted a (samples, positions, width) or (samples, width) float32 or float64 array with adjacent last entries, got ";
  const std::string got(py::str(a.dtype()));
  if (got != "float32" && got != "float64") throw py::type_error(wanted + "dtype " + got);
  require(a.ndim() == 2 || a.ndim() == 3, wanted + std::to_string(a.ndim()) + " dimensions");
  const py::ssize_t size = a.itemsize(), last = a.ndim() - 1;
  require(a.shape(last) <= 1 || a.size() == 0 || a.strides(last) == size, wanted + "other strides");
  bool whole = reinterpret_cast<std::uintptr_t>(a.data()) % static_cast<std::uintptr_t>(size) == 0;
  for (py::ssize_t k = 0; k < last; ++k) whole = whole && a.strides(k) % size == 0;
  require(whole, wanted + "unaligned data");
  Positions x;
  x.data = a.data();
  x.dtype = got == "float64" ? DType::f64 : DType::f32;
  x.samples = a.shape(0);
  x.positions = a.ndim() == 3 ? a.shape(1) : 1;
  x.width = a.shape(last);
  x.sample_stride = a.strides(0) / size;
  x.position_stride = a.ndim() == 3 ? a.strides(1) / size : 0;
  return x;
}

GramSide side_of(const py::array& a, const std::optional<py::array>& b, const char* a_name, const char* b_name) {
  GramSide side;
  side.first = positions_of(a, a_name);
  if (b) {
    side.second = positions_of(*b, b_name);
    require(side.second.dtype == side.first.dtype, std::string(b_name) + ": wanted the dtype of " + a_name);
    require(side.second.samples == side.first.samples && side.second.positions == side.first.positions,
            std::string(b_name) + ": wanted the samples and positions of " + a_name);
  } else {
    require(side.first.positions == 1, std::string(a_name) + ": wanted rows (samples, width) where " + b_name + " is not given");
  }
  return side;
}

void gradient_gram_of(const py::array& gram, const py::array& a, const std::optional<py::array>& b, const std::optional<py::array>& a2,
                      const std::optional<py::array>& b2, const std::string& algorithm,
                      const std::optional<py::array_t<double, py::array::c_style>>& times, const std::optional<std::string>& level,
                      int threads) {
  require(b2.has_value() == (a2.has_value() && b.has_value()), "b2: wanted with b and a2, and only with them");
  const GramSide left = side_of(a, b, "a", "b");
  const GramSide right = a2 ? side_of(*a2, b2, "a2", "b2") : left;
  require(right.first.dtype == left.first.dtype && right.first.width == left.first.width, "a2: wanted the dtype and the width of a");
  require(right.second.width == left.second.width, "b2: wanted the width of b");
  double* const out = rows_to_fill<double>(gram, left.first.samples, right.first.samples, "gram", "products");
  require(algorithm == "positions" || algorithm == "gradients", "algorithm: unknown " + algorithm + "; known: positions, gradients");
  require(threads >= 0, "threads: wanted a number >= 0, got " + std::to_string(threads));
  require(!times || !b, "times: wanted only where b is not given");
  require(!times || (times->ndim() == 2 && times->shape(0) == left.first.samples && times->shape(1) == right.first.samples),
          "times: wanted the shape of gram");
  GramOptions options;
  options.times = times ? times->data() : nullptr;
  options.level = find_level(level.value_or(""));
  options.threads = threads;
  const GramAlgorithm how = algorithm == "positions" ? GramAlgorithm::positions : GramAlgorithm::gradients;
  without_gil([&](const auto& interrupted) {
    options.interrupted = interrupted;
    gradient_gram(left, right, !a2.has_value(), how, out, right.first.samples, options);
  });
}

}  // namespace

void bind_gradient_gram(py::module_& m) {
  m.def("gradient_gram", &gradient_gram_of, py::arg("gram").noconvert(), py::arg("a").noconvert(), py::arg("b").noconvert() = py::none(),
        py::arg("a2").noconvert() = py::none(), py::arg("b2").noconvert() = py::none(), py::kw_only(), py::arg("algorithm"),
        py::arg("times").noconvert() = py::none(), py::arg("level") = py::none(), py::arg("threads") = 0,
        "See spectral_fast.kernels.numpy_kernels.gradient_gram.");
}

}  // namespace sf
