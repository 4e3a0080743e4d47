// The Python module _native.
#include <pybind11/stl.h>

#include <algorithm>
#include <optional>

#include "bindings/arrays.h"
#include "core/isa.h"
#include "core/parallel.h"
#include "power_law/numerics.h"
#include "power_law/power_law.h"
#include "singular_values/singular_values.h"

namespace {

namespace py = pybind11;

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
    } catch (const sf::Cancelled&) {
      cancelled = true;
    }
  }
  if (cancelled) throw py::error_already_set();
}

py::tuple power_law(const py::array& values, const py::array& offsets, const std::optional<std::string>& level, int threads) {
  const auto x = sf::vector_view<double>(values, "values");
  const auto o = sf::vector_view<std::int64_t>(offsets, "offsets");
  sf::require(o.shape[0] >= 1 && o(0) == 0 && o(o.shape[0] - 1) == x.shape[0],
              "offsets: wanted the n_spectra + 1 bounds of the spectra, from 0 to " + std::to_string(x.shape[0]));
  for (std::int64_t s = 1; s < o.shape[0]; ++s) sf::require(o(s - 1) <= o(s), "offsets: have to ascend");
  sf::require(threads >= 0, "threads: wanted a number >= 0, got " + std::to_string(threads));
  const sf::Level l = sf::find_level(level.value_or(""));
  py::array_t<double> alpha(x.shape[0]), D(x.shape[0]);
  py::array_t<std::int64_t> best(o.shape[0] - 1);
  double* const a = alpha.mutable_data();
  double* const d = D.mutable_data();
  std::int64_t* const b = best.mutable_data();
  without_gil([&](const auto& interrupted) { sf::power_law(x, o, a, d, b, l, threads, interrupted); });
  return py::make_tuple(alpha, D, best);
}

// Runs `work(out, options, stages)` for a batch; values (batch, d_min) and thread seconds by stage.
template <class Work>
py::tuple spectra(const sf::Matrices& a, const std::string& accuracy, const std::optional<std::string>& level, int threads, const Work& work) {
  sf::require(accuracy == "standard" || accuracy == "high", "accuracy: got " + accuracy + "; known: standard, high");
  sf::require(threads >= 0, "threads: wanted a number >= 0, got " + std::to_string(threads));
  sf::SingularValueOptions options;
  options.accuracy = accuracy == "high" ? sf::Accuracy::high : sf::Accuracy::standard;
  options.level = sf::find_level(level.value_or(""));
  options.threads = threads;
  py::array_t<double> s({a.batch, std::min(a.rows, a.cols)});
  double* const out = s.mutable_data();
  sf::SingularValueStages stages;
  without_gil([&](const auto& interrupted) {
    options.interrupted = interrupted;
    work(out, options, &stages);
  });
  py::dict seconds;
  for (const auto& stage : sf::SingularValueStages::all) seconds[stage.name] = stages.*stage.seconds;
  return py::make_tuple(s, seconds);
}

py::tuple singular_values(const py::array& a, const std::string& format, const std::string& accuracy, const std::optional<std::string>& level,
                          int threads) {
  const sf::Matrices matrices = sf::matrices_view(a, format, "a");
  return spectra(matrices, accuracy, level, threads,
                 [&](double* out, const auto& options, auto* stages) { sf::singular_values(matrices, out, options, stages); });
}

py::tuple complex_singular_values(const py::array& re, const py::array& im, const std::optional<std::string>& level, int threads) {
  const sf::Matrices x = sf::matrices_view(re, "float64", "re"), y = sf::matrices_view(im, "float64", "im");
  sf::require(x.batch == y.batch && x.rows == y.rows && x.cols == y.cols, "im: wanted the shape of re");
  return spectra(x, "standard", level, threads,
                 [&](double* out, const auto& options, auto* stages) { sf::complex_singular_values(x, y, out, options, stages); });
}

}  // namespace

PYBIND11_MODULE(_native, m) {
  m.doc() = "Compiled kernels for the CPU; used through spectral_fast.kernels.native_kernels.";
  m.def("levels", &sf::runnable_levels, "Instruction-set levels that run on this CPU, slowest first.");
  m.def("default_level", [] { return sf::level_name(sf::find_level("")); }, "The level used when none is named.");
  m.def("threads", &sf::default_threads, "Threads used when no number is given.");
  m.def("power_law", &power_law, py::arg("values").noconvert(), py::arg("offsets").noconvert(), py::kw_only(),
        py::arg("level") = py::none(), py::arg("threads") = 0, "See spectral_fast.kernels.numpy_kernels.power_law.");
  m.def("singular_values", &singular_values, py::arg("a").noconvert(), py::kw_only(), py::arg("format"), py::arg("accuracy") = "standard",
        py::arg("level") = py::none(), py::arg("threads") = 0,
        "Values (batch, min(m, n)) and thread seconds by stage; see spectral_fast.kernels.numpy_kernels.singular_values.");
  m.def("complex_singular_values", &complex_singular_values, py::arg("re").noconvert(), py::arg("im").noconvert(), py::kw_only(),
        py::arg("level") = py::none(), py::arg("threads") = 0, "The same of re + i im, float64, with standard accuracy.");
  // shared numerics, for their tests
  m.def("exp_neg", &sf::exp_neg, py::arg("t"), "exp(-t), t >= 0");
  m.def("log_ratio", &sf::log_ratio, py::arg("a"), py::arg("b"), "ln(b/a), 0 < a <= b");
}
