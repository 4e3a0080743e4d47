// The Python module _native.
#include <pybind11/stl.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "bindings/ops.h"
#include "core/isa.h"
#include "core/parallel.h"
#include "decode/decode.h"
#include "lanczos/lanczos.h"
#include "marchenko_pastur/marchenko_pastur.h"
#include "power_law/numerics.h"
#include "power_law/power_law.h"
#include "randomized_svd/randomized_svd.h"
#include "singular_values/singular_values.h"
#include "storage_noise/storage_noise.h"

#if defined(__GLIBC__)
#include <malloc.h>
#endif

namespace {

namespace py = pybind11;
using sf::without_gil;

// glibc keeps what it gets back while anything lies above it. In a scan, where blocks of megabytes come and go between the small objects of
// the results, 80 MB were held after twenty matrices of 8192 x 512 that need 5 MB each.
void release_memory() {
#if defined(__GLIBC__)
  malloc_trim(0);
#endif
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
py::tuple spectra(const sf::Matrices& a, const std::string& accuracy, const std::optional<std::string>& level, int threads,
                  const Work& work) {
  const bool high = accuracy == "high", fast = accuracy == "fast";
  sf::require(high || fast || accuracy == "standard", "accuracy: got " + accuracy + "; known: standard, high, fast");
  sf::require(threads >= 0, "threads: wanted a number >= 0, got " + std::to_string(threads));
  sf::SingularValueOptions options;
  options.accuracy = high ? sf::Accuracy::high : fast ? sf::Accuracy::fast : sf::Accuracy::standard;
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

py::tuple singular_values(const py::array& a, const std::string& format, const std::string& accuracy,
                          const std::optional<std::string>& level, int threads) {
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

py::tuple marchenko_pastur(const py::array_t<double>& values, std::int64_t d_max, double start, double quantile, std::int64_t min_bulk,
                           const std::optional<std::string>& level, int threads) {
  sf::require(values.ndim() == 2 && (values.flags() & py::array::c_style) != 0, "values: wanted a C-contiguous (spectra, d_min) array");
  const std::int64_t spectra = values.shape(0), width = values.shape(1);
  sf::require(1 <= width && width <= d_max,
              "d_max: wanted at least as much as there are values, at least one, got " + std::to_string(d_max));
  sf::require(min_bulk >= 1, "min_bulk: wanted at least 1, got " + std::to_string(min_bulk));
  sf::require(threads >= 0, "threads: wanted a number >= 0, got " + std::to_string(threads));
  const sf::Level l = sf::find_level(level.value_or(""));
  std::vector<sf::Bulk> bulks(static_cast<std::size_t>(spectra));
  const double* const x = values.data();
  without_gil([&](const auto& interrupted) {
    sf::marchenko_pastur(x, spectra, width, {d_max, start, quantile, min_bulk}, bulks.data(), l, threads, interrupted);
  });
  py::array_t<double> log_var(spectra), distance(spectra);
  py::array_t<std::int64_t> spikes(spectra), rounds(spectra);
  py::array_t<bool> settled(spectra);
  for (std::int64_t s = 0; s < spectra; ++s) {
    const sf::Bulk& bulk = bulks[static_cast<std::size_t>(s)];
    log_var.mutable_data()[s] = bulk.log_var;
    distance.mutable_data()[s] = bulk.distance;
    spikes.mutable_data()[s] = bulk.spikes;
    rounds.mutable_data()[s] = bulk.rounds;
    settled.mutable_data()[s] = bulk.settled;
  }
  return py::make_tuple(log_var, distance, spikes, rounds, settled);
}

py::tuple storage_noise(const py::array& w, const std::string& format, std::int64_t floor, const std::optional<std::string>& level,
                        int threads) {
  const sf::Matrices a = sf::matrices_view(w, format, "w");
  sf::require(a.batch == 1, "w: wanted one matrix, got " + std::to_string(a.batch));
  const std::int64_t least = a.dtype == sf::DType::f64 ? -1022 : -126;
  sf::require(least <= floor && floor <= -least, "floor: wanted an exponent of normal numbers, got " + std::to_string(floor));
  sf::require(threads >= 0, "threads: wanted a number >= 0, got " + std::to_string(threads));
  const sf::Level l = sf::find_level(level.value_or(""));
  sf::EntryCounts c;
  without_gil([&](const auto& interrupted) {
    c = sf::storage_noise({a.data, a.dtype, a.rows, a.cols, a.row_stride, a.col_stride}, floor, l, threads, interrupted);
  });
  return py::make_tuple(c.bad, py::make_tuple(c.bad_row, c.bad_col), c.zero_rows, c.zero_columns, c.nonzero, c.top, c.precision,
                        c.with_last_bit, c.last_place, c.with_last_place, c.row_sum, c.column_sum);
}

void decode(const py::array& raw, const py::array& out, const std::string& format, const std::optional<py::array>& steps,
            const std::string& byteorder, const std::optional<std::string>& level, int threads) {
  const sf::CodeLayout& layout = sf::code_layout(format);
  const auto bytes = sf::rows_view<std::uint8_t>(raw, layout.nbytes, "raw", format);
  const std::int64_t count = bytes.shape[0];
  sf::CodeBlocks blocks{layout.format, byteorder == "big", bytes.data, bytes.strides[0], count, nullptr, nullptr};
  blocks.out = sf::rows_to_fill<float>(out, count, layout.elements, "out", format);
  if (steps) blocks.steps = sf::rows_to_fill<float>(*steps, count, layout.runs, "steps", format);
  sf::require(blocks.big_endian || byteorder == "little", "byteorder: got " + byteorder + "; known: little, big");
  sf::require(threads >= 0, "threads: wanted a number >= 0, got " + std::to_string(threads));
  const sf::Level l = sf::find_level(level.value_or(""));
  without_gil([&](const auto& interrupted) { sf::decode(layout, blocks, l, threads, interrupted); });
}

py::tuple randomized_svd(const py::array& a, const std::string& format, std::int64_t rank, std::int64_t width, std::int64_t blocks,
                         bool krylov, std::int64_t sketch, std::int64_t sketch_width, std::int64_t sketch_blocks, std::int64_t n_iter,
                         double tol, std::uint64_t seed, const std::optional<py::array_t<double>>& omega,
                         const std::optional<std::string>& level, int threads) {
  const sf::Matrices matrices = sf::matrices_view(a, format, "a");
  const std::int64_t m = matrices.rows, n = matrices.cols, batch = matrices.batch, d = std::min(m, n);
  const auto within = [](const char* name, std::int64_t value, std::int64_t least, std::int64_t most) {
    sf::require(least <= value && value <= most, std::string(name) + ": wanted a number from " + std::to_string(least) + " to " +
                                                     std::to_string(most) + ", got " + std::to_string(value));
  };
  constexpr std::int64_t kMost = 1 << 20;
  within("rank", rank, 1, d);
  within("width", width, 1, d);
  within("blocks", blocks, 1, kMost);
  within("sketch", sketch, 0, kMost);
  if (sketch > 0) {
    sf::require(sketch % 4 == 0 && !omega && tol == 0.0, "sketch: wanted a multiple of 4, and neither omega nor tol");
    within("width", width, 1, std::min(sketch, d));
    within("sketch_width", sketch_width, 1, std::min(sketch, d));
    within("sketch_blocks", sketch_blocks, 1, kMost);
  }
  within("n_iter", n_iter, 0, kMost);
  within("threads", threads, 0, kMost);
  sf::require(tol >= 0.0 && tol < 1.0, "tol: wanted a number in [0, 1), got " + std::to_string(tol));
  sf::LowRankOptions options;
  options.rank = rank;
  options.width = width;
  options.blocks = blocks;
  options.krylov = krylov;
  options.n_iter = n_iter;
  options.tol = tol;
  options.seed = seed;
  options.sketch = sketch;
  options.sketch_width = sketch_width;
  options.sketch_blocks = sketch_blocks;
  options.level = sf::find_level(level.value_or(""));
  options.threads = threads;
  if (omega) {
    sf::require(omega->ndim() == 2 && omega->shape(0) == n && omega->shape(1) == width && (omega->flags() & py::array::c_style) != 0,
                "omega: wanted a C-contiguous (n, width) array");
    options.omega = omega->data();
  }
  const auto array = [&](const std::vector<py::ssize_t>& shape) -> py::array {
    return py::module_::import("numpy").attr("zeros")(shape, sf::works_in_double(matrices.dtype) ? "float64" : "float32");
  };
  py::array u = array({batch, m, rank}), s = array({batch, rank}), vt = array({batch, rank, n});
  py::array_t<double> error(batch);
  py::array_t<std::int64_t> ranks(batch);
  py::array_t<bool> reached(batch);
  const sf::LowRankResults out{u.mutable_data(),     s.mutable_data(),     vt.mutable_data(),
                               error.mutable_data(), ranks.mutable_data(), reached.mutable_data()};
  without_gil([&](const auto& interrupted) {
    options.interrupted = interrupted;
    sf::randomized_svd(matrices, options, out);
  });
  return py::make_tuple(u, s, vt, error, ranks, reached);
}

// A C-contiguous (rows, columns) float64 array that is read.
const double* table(const py::array_t<double>& a, std::int64_t rows, std::int64_t columns, const char* name) {
  sf::require(a.ndim() == 2 && a.shape(0) == rows && a.shape(1) == columns && (a.flags() & py::array::c_style) != 0,
              std::string(name) + ": wanted a C-contiguous (" + std::to_string(rows) + ", " + std::to_string(columns) + ") array");
  return a.data();
}

sf::KrylovOptions krylov_options(const std::optional<std::string>& level, int threads) {
  sf::require(threads >= 0, "threads: wanted a number >= 0, got " + std::to_string(threads));
  sf::KrylovOptions options;
  options.level = sf::find_level(level.value_or(""));
  options.threads = threads;
  return options;
}

py::tuple orthogonalize(const py::array& basis, std::int64_t t, const py::array& w, const py::array_t<double>& floor, double relative,
                        const std::optional<py::function>& reduce, const std::optional<std::string>& level, int threads) {
  const sf::Rows vectors = sf::rows_in_place(w, 0, "w", false);
  const std::int64_t b = w.shape(0);
  sf::require(t >= 0, "t: wanted a number >= 0, got " + std::to_string(t));
  const sf::Rows rows = sf::rows_in_place(basis, t, "basis", true);
  sf::require(rows.n == vectors.n, "w: wanted rows of " + std::to_string(rows.n) + " numbers, got " + std::to_string(vectors.n));
  sf::require(floor.ndim() == 1 && floor.shape(0) == b, "floor: wanted one for each of the " + std::to_string(b) + " vectors");
  sf::KrylovOptions options = krylov_options(level, threads);
  options.relative = relative;
  options.room = basis.shape(0);
  if (reduce) {
    options.reduce = [&](double* sums, std::int64_t count) {
      const py::gil_scoped_acquire gil;
      (*reduce)(py::array_t<double>(count, sums, py::capsule(sums, [](void*) {})));
    };
  }
  py::array_t<double> coefficients({t + b, b});
  py::array_t<bool> kept(b);
  const std::vector<double> least(floor.data(), floor.data() + b);
  double* const c = coefficients.mutable_data();
  bool* const k = kept.mutable_data();
  {
    const py::gil_scoped_release nogil;  // not to be interrupted: rows half written are no basis
    sf::orthogonalize(rows, t, vectors, b, least.data(), c, k, options);
  }
  return py::make_tuple(coefficients, kept);
}

void recombine(const py::array& basis, std::int64_t m, const py::array_t<double>& s, const py::array& into,
               const std::optional<std::string>& level, int threads) {
  const sf::Rows rows = sf::rows_in_place(basis, m, "basis", true);
  sf::require(m >= 0 && s.ndim() == 2, "s: wanted an (m, q) array");
  const std::int64_t q = s.shape(1);
  const double* const factors = table(s, m, q, "s");
  const sf::Rows out = sf::rows_in_place(into, q, "into", true);
  sf::require(out.n == rows.n, "into: wanted rows of " + std::to_string(rows.n) + " numbers, got " + std::to_string(out.n));
  const sf::KrylovOptions options = krylov_options(level, threads);
  const py::gil_scoped_release nogil;
  sf::recombine(rows, m, factors, q, out, options);
}

}  // namespace

PYBIND11_MODULE(_native, m) {
  m.doc() = "Compiled kernels for the CPU; used through spectral_fast.kernels.native_kernels.";
  m.def("levels", &sf::runnable_levels, "Instruction-set levels that run on this CPU, slowest first.");
  m.def("release_memory", &release_memory, py::call_guard<py::gil_scoped_release>(), "Give memory that is free back to the system.");
  m.def("default_level", [] { return sf::level_name(sf::find_level("")); }, "The level used when none is named.");
  m.def("threads", &sf::default_threads, "Threads used when no number is given.");
  m.def("power_law", &power_law, py::arg("values").noconvert(), py::arg("offsets").noconvert(), py::kw_only(),
        py::arg("level") = py::none(), py::arg("threads") = 0, "See spectral_fast.kernels.numpy_kernels.power_law.");
  m.def("singular_values", &singular_values, py::arg("a").noconvert(), py::kw_only(), py::arg("format"), py::arg("accuracy") = "standard",
        py::arg("level") = py::none(), py::arg("threads") = 0,
        "Values (batch, min(m, n)) and thread seconds by stage; see spectral_fast.kernels.numpy_kernels.singular_values.");
  m.def("complex_singular_values", &complex_singular_values, py::arg("re").noconvert(), py::arg("im").noconvert(), py::kw_only(),
        py::arg("level") = py::none(), py::arg("threads") = 0, "The same of re + i im, float64, with standard accuracy.");
  m.def("marchenko_pastur", &marchenko_pastur, py::arg("values").noconvert(), py::arg("d_max"), py::arg("start"), py::arg("quantile"),
        py::kw_only(), py::arg("min_bulk"), py::arg("level") = py::none(), py::arg("threads") = 0,
        "See spectral_fast.kernels.numpy_kernels.marchenko_pastur.");
  m.def("randomized_svd", &randomized_svd, py::arg("a").noconvert(), py::kw_only(), py::arg("format"), py::arg("rank"), py::arg("width"),
        py::arg("blocks"), py::arg("krylov"), py::arg("sketch"), py::arg("sketch_width"), py::arg("sketch_blocks"), py::arg("n_iter"),
        py::arg("tol"), py::arg("seed"), py::arg("omega").noconvert() = py::none(), py::arg("level") = py::none(), py::arg("threads") = 0,
        "u, s, vt, error, ranks, reached of every matrix; see spectral_fast.kernels.numpy_kernels.randomized_svd.");
  m.def("storage_noise", &storage_noise, py::arg("w").noconvert(), py::kw_only(), py::arg("format"), py::arg("floor"),
        py::arg("level") = py::none(), py::arg("threads") = 0,
        "The fields of EntryCounts of one matrix (1, m, n); see spectral_fast.kernels.numpy_kernels.storage_noise.");
  m.def("decode", &decode, py::arg("raw").noconvert(), py::arg("out").noconvert(), py::kw_only(), py::arg("format"),
        py::arg("steps").noconvert() = py::none(), py::arg("byteorder") = "little", py::arg("level") = py::none(), py::arg("threads") = 0,
        "See spectral_fast.kernels.numpy_kernels.decode.");
  m.def("orthogonalize", &orthogonalize, py::arg("basis").noconvert(), py::arg("t"), py::arg("w").noconvert(), py::arg("floor").noconvert(),
        py::kw_only(), py::arg("relative") = 0.0, py::arg("reduce") = py::none(), py::arg("level") = py::none(), py::arg("threads") = 0,
        "See spectral_fast.kernels.numpy_kernels.orthogonalize.");
  m.def("recombine", &recombine, py::arg("basis").noconvert(), py::arg("m"), py::arg("s").noconvert(), py::arg("into").noconvert(),
        py::kw_only(), py::arg("level") = py::none(), py::arg("threads") = 0, "See spectral_fast.kernels.numpy_kernels.recombine.");
  sf::bind_class_moments(m);
  sf::bind_gradient_gram(m);
  // shared numerics, for their tests
  m.def("exp_neg", &sf::exp_neg, py::arg("t"), "exp(-t), t >= 0");
  m.def("log_ratio", &sf::log_ratio, py::arg("a"), py::arg("b"), "ln(b/a), 0 < a <= b");
}
