#include <algorithm>

#include "core/parallel.h"
#include "core/require.h"
#include "decode/decode.h"

namespace sf {

SF_LEVEL_TABLE(DecodeLoops, decode_loops)

namespace {

constexpr std::int64_t kTaskElements = 1 << 16;  // 256 KB of float32: some 30 microseconds

constexpr CodeLayout kLayouts[] = {{"float16", CodeFormat::float16, 1, 2, 0},
                                   {"bfloat16", CodeFormat::bfloat16, 1, 2, 0},
                                   {"float8_e4m3fn", CodeFormat::float8_e4m3fn, 1, 1, 0},
                                   {"float8_e4m3fnuz", CodeFormat::float8_e4m3fnuz, 1, 1, 0},
                                   {"float8_e5m2", CodeFormat::float8_e5m2, 1, 1, 0},
                                   {"float8_e5m2fnuz", CodeFormat::float8_e5m2fnuz, 1, 1, 0},
                                   {"Q4_0", CodeFormat::q4_0, 32, 18, 1},
                                   {"Q4_1", CodeFormat::q4_1, 32, 20, 1},
                                   {"Q5_0", CodeFormat::q5_0, 32, 22, 1},
                                   {"Q5_1", CodeFormat::q5_1, 32, 24, 1},
                                   {"Q8_0", CodeFormat::q8_0, 32, 34, 1},
                                   {"Q2_K", CodeFormat::q2_k, 256, 84, 16},
                                   {"Q3_K", CodeFormat::q3_k, 256, 110, 16},
                                   {"Q4_K", CodeFormat::q4_k, 256, 144, 8},
                                   {"Q5_K", CodeFormat::q5_k, 256, 176, 8},
                                   {"Q6_K", CodeFormat::q6_k, 256, 210, 16},
                                   {"Q8_K", CodeFormat::q8_k, 256, 292, 1}};

}  // namespace

const CodeLayout& code_layout(const std::string& name) {
  std::string known;
  for (const CodeLayout& layout : kLayouts) {
    if (name == layout.name) return layout;
    known += (known.empty() ? "" : ", ") + std::string(layout.name);
  }
  throw std::invalid_argument("format: got " + name + "; known: " + known);
}

void decode(const CodeLayout& layout, const CodeBlocks& blocks, Level level, int threads, const std::function<bool()>& interrupted) {
  const DecodeLoops& loops = decode_loops(level);
  const std::int64_t chunk = kTaskElements / layout.elements;
  parallel_for((blocks.count + chunk - 1) / chunk, threads,
               [&](std::int64_t t) {
                 const std::int64_t first = t * chunk;
                 CodeBlocks part = blocks;
                 part.raw += first * blocks.stride;
                 part.count = std::min(chunk, blocks.count - first);
                 part.out += first * layout.elements;
                 if (part.steps != nullptr) part.steps += first * layout.runs;
                 loops.decode(part);
               },
               interrupted);
}

}  // namespace sf
