// The Python module _cuda. It knows addresses, sizes and a stream, and is not built against torch.
#include <pybind11/pybind11.h>

#include "core/require.h"
#include "lanczos/cuda.h"
#include "power_law/cuda.h"
#include "randomized_svd/cuda.h"
#include "singular_values/cuda.h"

namespace {

namespace py = pybind11;

template <class T>
T* at(std::uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

void power_law(std::uintptr_t values, std::uintptr_t offsets, std::int64_t total, std::int64_t n_spectra, std::uintptr_t alpha,
               std::uintptr_t D, std::uintptr_t best, std::uintptr_t work, int device, std::uintptr_t stream) {
  constexpr std::int64_t most = (std::int64_t{1} << 31) - 1;  // blocks in a grid
  sf::require(total >= 0 && total <= most && n_spectra >= 0 && n_spectra <= most, "values: more than 2^31 - 1 values in one call");
  const py::gil_scoped_release nogil;
  sf::power_law_cuda(at<const double>(values), at<const std::int64_t>(offsets), total, n_spectra, at<double>(alpha), at<double>(D),
                     at<std::int64_t>(best), at<double>(work), device, at<void>(stream));
}

void symmetric_eigenvalues(std::uintptr_t a, std::int64_t batch, std::int64_t n, std::uintptr_t values, int device, std::uintptr_t stream) {
  sf::require(n >= 1 && n <= sf::kMostEigenvalues, "a: wanted matrices of 1 to 512 rows");
  sf::require(batch >= 0 && batch < (std::int64_t{1} << 31), "a: more than 2^31 - 1 matrices in one call");
  const py::gil_scoped_release nogil;
  sf::symmetric_eigenvalues_cuda(at<double>(a), batch, n, at<double>(values), device, at<void>(stream));
}

void band_eigenvalues(std::uintptr_t band, std::int64_t batch, std::int64_t n, std::int64_t width, std::uintptr_t work,
                      std::uintptr_t values, int device, std::uintptr_t stream) {
  sf::require(batch >= 0 && batch < (std::int64_t{1} << 31), "band: more than 2^31 - 1 matrices in one call");
  const py::gil_scoped_release nogil;
  sf::band_eigenvalues_cuda(at<double>(band), batch, n, width, at<double>(work), at<double>(values), device, at<void>(stream));
}

void jacobi_rows(std::uintptr_t x, std::int64_t batch, std::int64_t r, std::int64_t n, std::uintptr_t u, std::uintptr_t done, int device,
                 std::uintptr_t stream) {
  sf::require(batch >= 0 && batch < (std::int64_t{1} << 31), "x: more than 2^31 - 1 matrices in one call");
  const py::gil_scoped_release nogil;
  sf::jacobi_rows_cuda(at<double>(x), batch, r, n, at<double>(u), at<double>(done), device, at<void>(stream));
}

sf::DType dtype_named(const std::string& name, const char* argument) {
  if (name == "float64") return sf::DType::f64;
  if (name == "float32") return sf::DType::f32;
  sf::require(name == "bfloat16", std::string(argument) + ": wanted float64, float32 or bfloat16, got " + name);
  return sf::DType::bf16;
}

void gram_schmidt_sweep(std::uintptr_t v, const std::string& v_dtype, std::int64_t ld, std::int64_t t, std::uintptr_t w,
                        const std::string& w_dtype, std::int64_t n, std::uintptr_t minus, std::uintptr_t sums, std::uintptr_t work,
                        bool dots, int device, std::uintptr_t stream) {
  const sf::DType rows = dtype_named(v_dtype, "v"), vector = dtype_named(w_dtype, "w");
  const py::gil_scoped_release nogil;
  sf::gram_schmidt_sweep_cuda(at<void>(v), rows, ld, t, at<void>(w), vector, n, at<const double>(minus), at<double>(sums), at<double>(work),
                              dots, device, at<void>(stream));
}

}  // namespace

PYBIND11_MODULE(_cuda, m) {
  m.doc() = "Compiled kernels for CUDA devices; used through spectral_fast.kernels.cuda_kernels.";
  m.def(
      "device_count",
      [] {
        const char* why = "";
        const int count = sf::cuda_device_count(&why);
        return py::make_tuple(count, why);
      },
      "(number of visible devices, why there is none)");
  m.def("power_law", &power_law, py::kw_only(), py::arg("values"), py::arg("offsets"), py::arg("total"), py::arg("n_spectra"),
        py::arg("alpha"), py::arg("D"), py::arg("best"), py::arg("work"), py::arg("device"), py::arg("stream"),
        "Device addresses in, results in place; see csrc/power_law/cuda.h.");
  m.def("symmetric_eigenvalues", &symmetric_eigenvalues, py::kw_only(), py::arg("a"), py::arg("batch"), py::arg("n"), py::arg("values"),
        py::arg("device"), py::arg("stream"), "Device addresses in, values in place, a destroyed; see csrc/singular_values/cuda.h.");
  m.def("band_eigenvalues", &band_eigenvalues, py::kw_only(), py::arg("band"), py::arg("batch"), py::arg("n"), py::arg("width"),
        py::arg("work"), py::arg("values"), py::arg("device"), py::arg("stream"),
        "Device addresses in, values in place, band destroyed; see csrc/singular_values/cuda.h.");
  m.def("gram_schmidt_sweep", &gram_schmidt_sweep, py::kw_only(), py::arg("v"), py::arg("v_dtype"), py::arg("ld"), py::arg("t"),
        py::arg("w"), py::arg("w_dtype"), py::arg("n"), py::arg("minus"), py::arg("sums"), py::arg("work"), py::arg("dots"),
        py::arg("device"), py::arg("stream"),
        "Device addresses in (minus 0: nothing is subtracted), w and sums in place; see csrc/lanczos/cuda.h.");
  m.def("jacobi_rows", &jacobi_rows, py::kw_only(), py::arg("x"), py::arg("batch"), py::arg("r"), py::arg("n"), py::arg("u"),
        py::arg("done"), py::arg("device"), py::arg("stream"),
        "Device addresses in, x, u and done in place; see csrc/randomized_svd/cuda.h.");
  m.attr("MOST_JACOBI_ROWS") = sf::kMostJacobiRows;
  m.def("most_swept_rows", &sf::most_swept_rows, py::arg("device"), "Rows of a basis that gram_schmidt_sweep takes.");
  m.def("most_band_rows", &sf::most_band_rows, py::arg("width"), py::arg("device"), "Rows of a band that band_eigenvalues takes.");
  m.attr("SWEEP_BLOCKS") = sf::kSweepBlocks;
  m.attr("MOST_EIGENVALUES") = sf::kMostEigenvalues;
}
