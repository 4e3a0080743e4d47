// decode: blocks written out by hand, and every format the same at every level, with any number of threads, in either byte order and at any
// stride. What is read lies in memory that is exactly as long as that.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <utility>
#include <vector>

#include "decode/decode.h"
#include "tests/check.h"
#include "tests/problems.h"

namespace sf::tests {
namespace {

using std::int64_t;
using Bytes = std::vector<std::uint8_t>;

constexpr const char* kFormats[] = {"float16",       "bfloat16",
                                    "float8_e4m3fn", "float8_e4m3fnuz",
                                    "float8_e5m2",   "float8_e5m2fnuz",
                                    "Q4_0",          "Q4_1",
                                    "Q5_0",          "Q5_1",
                                    "Q8_0",          "Q2_K",
                                    "Q3_K",          "Q4_K",
                                    "Q5_K",          "Q6_K",
                                    "Q8_K"};

struct Decoded {
  std::vector<float> values, steps;
};

// The blocks begin `stride` bytes apart, the first one where a negative stride leaves room for the others.
Decoded decoded(const CodeLayout& layout, const Bytes& raw, int64_t count, int64_t stride, bool big, Level level, int threads,
                bool with_steps = true) {
  Decoded out{std::vector<float>(static_cast<std::size_t>(count * layout.elements), 7.0f),
              std::vector<float>(static_cast<std::size_t>(with_steps ? count * layout.runs : 0), 7.0f)};
  const std::uint8_t* first = raw.data() + (stride < 0 && count > 0 ? -stride * (count - 1) : 0);
  decode(layout, {layout.format, big, first, stride, count, out.values.data(), with_steps ? out.steps.data() : nullptr}, level, threads,
         {});
  return out;
}

bool same(const std::vector<float>& a, const std::vector<float>& b) {
  if (a.size() != b.size()) return false;
  for (std::size_t k = 0; k < a.size(); ++k) {
    if (std::isnan(a[k]) && std::isnan(b[k])) continue;
    if (std::memcmp(&a[k], &b[k], sizeof a[k]) != 0) return false;
  }
  return true;
}

Bytes random_bytes(int64_t count, Random& random) {
  Bytes raw(static_cast<std::size_t>(count));
  for (std::uint8_t& b : raw) b = static_cast<std::uint8_t>(random.bits() >> 40);
  return raw;
}

void alike(const CodeLayout& layout, int64_t count, bool big) {
  Random random(static_cast<std::uint64_t>(count + 1));
  const Bytes raw = random_bytes(count * layout.nbytes, random);
  const Decoded first = decoded(layout, raw, count, layout.nbytes, big, Level::baseline, 1);
  // the same blocks with a gap, and backwards
  const int64_t stride = layout.nbytes + 3;
  Bytes wide(static_cast<std::size_t>(count > 0 ? stride * (count - 1) + layout.nbytes : 0)), back(raw.size());
  for (int64_t k = 0; k < count; ++k) {
    const auto from = raw.begin() + k * layout.nbytes;
    std::copy(from, from + layout.nbytes, wide.begin() + k * stride);
    std::copy(from, from + layout.nbytes, back.begin() + (count - 1 - k) * layout.nbytes);
  }
  for (const std::string& level : levels()) {
    for (const int threads : {1, 2, 3}) {
      const std::string what = std::string(layout.name) + (big ? ", big-endian, " : ", ") + std::to_string(count) + " blocks at " + level +
                               ", threads " + std::to_string(threads);
      const Level l = find_level(level);
      const Decoded got = decoded(layout, raw, count, layout.nbytes, big, l, threads);
      check(same(got.values, first.values) && same(got.steps, first.steps), what);
      check(same(decoded(layout, raw, count, layout.nbytes, big, l, threads, false).values, first.values), what + ", no steps");
      check(same(decoded(layout, wide, count, stride, big, l, threads).values, first.values), what + ", with gaps");
      check(same(decoded(layout, back, count, -layout.nbytes, big, l, threads).values, first.values), what + ", backwards");
    }
  }
}

// Element k of the block at every level and in both byte orders; halves: where two bytes are turned for the other one.
void known(const char* format, Bytes raw, const std::vector<int>& halves, int64_t k, float value, float step) {
  const CodeLayout& layout = code_layout(format);
  for (const bool big : {false, true}) {
    for (const std::string& level : levels()) {
      const Decoded got = decoded(layout, raw, 1, layout.nbytes, big, find_level(level), 1);
      check(got.values[static_cast<std::size_t>(k)] == value, std::string(format) + ", element " + std::to_string(k) + " at " + level);
      check(layout.runs == 0 || got.steps[static_cast<std::size_t>(k * layout.runs / layout.elements)] == step,
            std::string(format) + ", its step");
    }
    for (const int at : halves) std::swap(raw[static_cast<std::size_t>(at)], raw[static_cast<std::size_t>(at + 1)]);
  }
}

Bytes block(const char* format, std::vector<std::pair<int, int>> bytes) {
  Bytes raw(static_cast<std::size_t>(code_layout(format).nbytes));
  for (const auto& [at, value] : bytes) raw[static_cast<std::size_t>(at)] = static_cast<std::uint8_t>(value);
  return raw;
}

}  // namespace

void test_decode() {
  // 0x3800 is 0.5 and 0xc000 is -2 in float16
  known("Q4_0", block("Q4_0", {{1, 0x38}, {2 + 3, 0xb5}}), {0}, 3, 0.5f * (5 - 8), 0.5f);
  known("Q4_0", block("Q4_0", {{1, 0x38}, {2 + 3, 0xb5}}), {0}, 16 + 3, 0.5f * (11 - 8), 0.5f);
  known("Q4_1", block("Q4_1", {{1, 0xc0}, {3, 0x38}, {4 + 15, 0x70}}), {0, 2}, 31, -2.0f * 7 + 0.5f, 2.0f);
  known("Q8_0", block("Q8_0", {{1, 0x38}, {2 + 30, 0x80}}), {0}, 30, -64.0f, 0.5f);
  known("Q2_K", block("Q2_K", {{9, 0x53}, {16 + 32 + 16, 0x01}, {81, 0x38}, {83, 0xc0}}), {80, 82}, 144, 0.5f * 3 * 1 + 2.0f * 5, 1.5f);
  known("Q4_K", block("Q4_K", {{1, 0x38}, {3, 0x38}, {4 + 1, 0x80}, {4 + 5, 0x40}, {4 + 9, 0xa7}, {16 + 64 + 4, 0xf0}}), {0, 2}, 5 * 32 + 4,
        0.5f * (7 + 32) * 15 - 0.5f * (10 + 16), 0.5f * 39);
  known("Q6_K", block("Q6_K", {{64 + 2, 0xc0}, {128 + 32 + 2, 0x30}, {192 + 12, 0xfe}, {209, 0x38}}), {208}, 128 + 64 + 2,
        0.5f * -2 * (12 + 48 - 32), 1.0f);
  known("float8_e4m3fn", {0xfe}, {}, 0, -448.0f, 0.0f);
  known("float8_e5m2", {0x01}, {}, 0, 0x1p-16f, 0.0f);
  known("float8_e4m3fnuz", {0x7f}, {}, 0, 240.0f, 0.0f);
  known("float8_e5m2fnuz", {0xff}, {}, 0, -57344.0f, 0.0f);
  known("bfloat16", {0x80, 0xbf}, {0}, 0, -1.0f, 0.0f);
  known("float16", {0x01, 0x80}, {0}, 0, -0x1p-24f, 0.0f);
  for (const char* format : kFormats) {
    const CodeLayout& layout = code_layout(format);
    for (const bool big : {false, true}) {
      for (const int64_t count : {0, 1, 7, 9, 31}) alike(layout, count, big);
    }
    alike(layout, 150000 / layout.elements + 3, false);  // of several tasks
  }
  check_throws<std::invalid_argument>([] { code_layout("Q9_9"); }, "an unknown format");
}

}  // namespace sf::tests
