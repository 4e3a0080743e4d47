// Every format and stride is read in place, and nothing beyond it; powers of two change nothing but the exponent.
#include <numeric>

#include "tests/singular_values_checks.h"

namespace sf::tests {
namespace {

using std::int64_t;

// float16 and bfloat16 bits, written out: sign, exponent, fraction.
double from_half(unsigned bits, int fraction_bits, int bias) {
  const int fraction = static_cast<int>(bits & ((1u << fraction_bits) - 1u)), exponent = static_cast<int>(bits & 0x7fffu) >> fraction_bits;
  const double size = exponent == 0 ? std::ldexp(fraction, 1 - bias - fraction_bits)
                                    : std::ldexp(fraction + (1 << fraction_bits), exponent - bias - fraction_bits);
  return bits & 0x8000u ? -size : size;
}

// `count` numbers of a format, and the same as float64. 16-bit ones are any finite bits, subnormal ones among them.
struct Numbers {
  std::vector<std::uint16_t> halves;
  std::vector<float> floats;
  std::vector<double> doubles;
  const void* data = nullptr;
};

Numbers numbers(DType dtype, int64_t count, Random& random) {
  Numbers all;
  const std::size_t size = static_cast<std::size_t>(count);  // reserved: what is read beyond the last one is then beyond the memory
  all.doubles.reserve(size);
  if (dtype == DType::f32) all.floats.reserve(size);
  if (size_of(dtype) == 2) all.halves.reserve(size);
  for (int64_t k = 0; k < count; ++k) {
    if (dtype == DType::f64) {
      all.doubles.push_back(random.normal());
    } else if (dtype == DType::f32) {
      all.floats.push_back(static_cast<float>(random.normal()));
      all.doubles.push_back(all.floats.back());
    } else {
      const bool f16 = dtype == DType::f16;
      const int fraction_bits = f16 ? 10 : 7, bias = f16 ? 15 : 127;
      // exponents of a matrix within a factor of 2^14, lest all but one entry be negligible; in float16 from the subnormal ones up
      const unsigned low = f16 ? 0 : 120, exponent = low + static_cast<unsigned>(random.bits() % 14);
      const unsigned rest = static_cast<unsigned>(random.bits()) & (0x8000u | ((1u << fraction_bits) - 1u));
      const unsigned bits = rest | exponent << fraction_bits;
      all.halves.push_back(static_cast<std::uint16_t>(bits));
      all.doubles.push_back(from_half(bits, fraction_bits, bias));
    }
  }
  all.data = dtype == DType::f64   ? static_cast<const void*>(all.doubles.data())
             : dtype == DType::f32 ? static_cast<const void*>(all.floats.data())
                                   : static_cast<const void*>(all.halves.data());
  return all;
}

const char* name_of(DType dtype) {
  constexpr const char* names[] = {"float16", "bfloat16", "float32", "float64"};
  return names[static_cast<int>(dtype)];
}

// One layout of a batch of matrices in memory: strides in elements, and the place of element (0, 0) of the first.
struct Layout {
  const char* name;
  int64_t batch_stride, row_stride, col_stride, first;
};

void run(int64_t batch, int64_t m, int64_t n, DType dtype, Accuracy accuracy) {
  const Layout layouts[] = {
      {"rows", m * n, n, 1, 0},
      {"columns", m * n, 1, m, 0},
      {"rows and columns backwards", -m * n, -n, -1, batch * m * n - 1},
      {"every second row, every third column", 6 * m * n, 6 * n, 3, 0},
      {"columns with a gap, backwards", m * (n + 1), -1, m, m - 1},
      {"one matrix again and again", 0, n, 1, 0},
  };
  for (const Layout& layout : layouts) {
    // exactly as long as what the view reaches
    int64_t last = layout.first;
    for (const auto& [stride, count] : {std::pair{layout.batch_stride, batch}, {layout.row_stride, m}, {layout.col_stride, n}}) {
      last += std::max<int64_t>(stride, 0) * (count - 1);
    }
    Random random(static_cast<std::uint64_t>(100 * m + n));
    const Numbers all = numbers(dtype, last + 1, random);
    const char* start = static_cast<const char*>(all.data) + layout.first * size_of(dtype);
    const Matrices a{start, dtype, batch, m, n, layout.batch_stride, layout.row_stride, layout.col_stride};
    std::vector<double> plain;
    for (int64_t b = 0; b < batch; ++b) {
      for (int64_t i = 0; i < m; ++i) {
        for (int64_t j = 0; j < n; ++j) {
          const int64_t at = layout.first + b * layout.batch_stride + i * layout.row_stride + j * layout.col_stride;
          plain.push_back(all.doubles[static_cast<std::size_t>(at)]);
        }
      }
    }
    for (const std::string& level : levels()) {
      const std::vector<double> got = values_of(a, options_for(level, accuracy, 2));
      const std::vector<double> expected = values_of(matrices(plain, batch, m, n), options_for(level, accuracy, 2));
      const int64_t d = std::min(m, n);
      const std::string what = std::string(name_of(dtype)) + " " + std::to_string(m) + "x" + std::to_string(n) + " " + layout.name + ", " +
                               tests::name_of(accuracy) + " at " + level;
      if (dtype == DType::f64) {
        check(same_bits(got, expected), what);  // the same numbers: the same bits
        continue;
      }
      bool right = true;
      for (int64_t b = 0; b < batch; ++b) {
        const std::vector<long double> exact(expected.begin() + b * d, expected.begin() + (b + 1) * d);
        right = right && error_of(got.data() + b * d, exact, 0.0L, accuracy) <= 1.0L;
      }
      check(right, what);
    }
  }
}

struct Example {
  int64_t m, n;
};

// s(2^e A) = 2^e s(A) to the bit.
void powers_of_two(const Example& shape, Accuracy accuracy) {
  constexpr int64_t kBatch = 2;
  Random random(5);
  std::vector<double> a;
  for (int64_t k = 0; k < kBatch * shape.m * shape.n; ++k) a.push_back(random.normal());
  for (const std::string& level : levels()) {
    const SingularValueOptions options = options_for(level, accuracy, 2);
    std::vector<double> plain = values_of(matrices(a, kBatch, shape.m, shape.n), options);
    for (const int exponent : {-960, 1000}) {
      std::vector<double> scaled = a, expected = plain;
      for (double& x : scaled) x = std::ldexp(x, exponent);
      for (double& x : expected) x = std::ldexp(x, exponent);
      check(same_bits(values_of(matrices(scaled, kBatch, shape.m, shape.n), options), expected),
            std::to_string(shape.m) + "x" + std::to_string(shape.n) + " times 2^" + std::to_string(exponent) + " at " + level);
    }
    // whole multiples of the smallest number there is
    std::vector<double> whole, tiny;
    for (std::size_t k = 0; k < a.size(); ++k) whole.push_back(static_cast<double>(static_cast<int>(random.bits() % 15) - 7));
    for (const double x : whole) tiny.push_back(std::ldexp(x, -1074));
    const std::vector<double> expected = values_of(matrices(whole, kBatch, shape.m, shape.n), options);
    const std::vector<double> got = values_of(matrices(tiny, kBatch, shape.m, shape.n), options);
    bool right = true;
    for (std::size_t k = 0; k < got.size(); ++k) right = right && std::abs(std::ldexp(got[k], 1074) - expected[k]) <= 0.5;
    check(right, std::to_string(shape.m) + "x" + std::to_string(shape.n) + " denormal at " + level);
  }
}

constexpr Example kShapes[] = {{5, 5}, {64, 40}, {90, 100}, {300, 20}, {330, 325}};

}  // namespace

// Sizes one less than a multiple of every vector: one number too many would be the easiest to read.
void test_views() {
  for (const DType dtype : {DType::f16, DType::bf16, DType::f32, DType::f64}) {
    for (const Accuracy accuracy : {Accuracy::standard, Accuracy::high}) {
      for (const int64_t batch : {1, 9}) {
        run(batch, 7, 5, dtype, accuracy);
        run(batch, 39, 47, dtype, accuracy);
      }
      run(2, 300, 9, dtype, accuracy);
      run(2, 71, 79, dtype, accuracy);
    }
  }
  run(1, 327, 335, DType::bf16, Accuracy::standard);
  run(1, 399, 327, DType::f16, Accuracy::high);
}

void test_scales() {
  for (const Example& shape : kShapes) {
    for (const Accuracy accuracy : {Accuracy::standard, Accuracy::high}) powers_of_two(shape, accuracy);
  }
}

}  // namespace sf::tests
