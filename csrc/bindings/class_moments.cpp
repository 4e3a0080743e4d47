#include "class_moments/class_moments.h"

#include <pybind11/stl.h>

#include <optional>
#include <string>

#include "bindings/ops.h"

namespace sf {
namespace {

// The elements of a contiguous vector that is written to.
template <class T>
T* vector_to_fill(const py::array& a, std::int64_t n, const char* name) {
  const auto v = vector_view<T>(a, name);
  const std::string wanted = std::string(name) + ": wanted " + std::to_string(n) + " adjacent and writable elements, got ";
  require(v.shape[0] == n, wanted + std::to_string(v.shape[0]));
  require((n <= 1 || v.strides[0] == 1) && a.writeable(), wanted + "others");
  return const_cast<T*>(v.data);
}

void merge(const py::array& features, const std::string& format, const py::array& labels, const py::array& counts, const py::array& means,
           const py::array& scatter, const py::array& spread, const std::optional<std::string>& level, int threads) {
  const Matrices a = matrices_view(features, format, "features");
  require(a.batch == 1 && (a.rows == 0 || a.cols <= 1 || a.col_stride == 1), "features: wanted one matrix with rows of adjacent elements");
  LabelledRows rows{a.data, a.dtype, a.rows, a.cols, a.row_stride, vector_view<std::int64_t>(labels, "labels")};
  require(rows.labels.shape[0] == a.rows,
          "labels: wanted one for each of the " + std::to_string(a.rows) + " rows, got " + std::to_string(rows.labels.shape[0]));
  require(counts.ndim() == 1, "counts: wanted a one-dimensional array");
  const std::int64_t classes = counts.shape(0);
  const MomentState state{classes, vector_to_fill<std::int64_t>(counts, classes, "counts"),
                          rows_to_fill<double>(means, classes, a.cols, "means", "class means"),
                          rows_to_fill<double>(scatter, a.cols, a.cols, "scatter", "sums"),
                          vector_to_fill<double>(spread, classes, "spread")};
  require(threads >= 0, "threads: wanted a number >= 0, got " + std::to_string(threads));
  MomentOptions options;
  options.level = find_level(level.value_or(""));
  options.threads = threads;
  without_gil([&](const auto& interrupted) {
    options.interrupted = interrupted;
    class_moments(rows, state, options);
  });
}

}  // namespace

void bind_class_moments(py::module_& m) {
  m.def("class_moments", &merge, py::arg("features").noconvert(), py::kw_only(), py::arg("format"), py::arg("labels").noconvert(),
        py::arg("counts").noconvert(), py::arg("means").noconvert(), py::arg("scatter").noconvert(), py::arg("spread").noconvert(),
        py::arg("level") = py::none(), py::arg("threads") = 0,
        "See spectral_fast.kernels.numpy_kernels.class_moments; features (1, B, d).");
}

}  // namespace sf
