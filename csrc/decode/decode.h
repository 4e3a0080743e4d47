// contract: numpy_kernels.decode
//
// Work and bytes. An element costs its share of a block (34/32 bytes in Q8_0, 144/256 in Q4_K, 2 in bfloat16), 4 bytes written, and 4 more
// because a cache line is fetched before it is written: 8.6 to 10 bytes, so memory of 24 GB/s sets a limit of 2.4 to 2.8 billion elements a
// second. Instructions: in vectors of 8, two to four per element, which one core runs at about that rate. The codes of one block are
// gathered in L1 first, then multiplied.
#pragma once
#include <cstdint>
#include <functional>
#include <string>

#include "core/isa.h"

namespace sf {

enum class CodeFormat {
  float16,
  bfloat16,
  float8_e4m3fn,
  float8_e4m3fnuz,
  float8_e5m2,
  float8_e5m2fnuz,
  q4_0,
  q4_1,
  q5_0,
  q5_1,
  q8_0,
  q2_k,
  q3_k,
  q4_k,
  q5_k,
  q6_k,
  q8_k
};

// Sizes of a block; a float is a block of one element without runs.
struct CodeLayout {
  const char* name;
  CodeFormat format;
  std::int64_t elements, nbytes, runs;
};

constexpr std::int64_t kMostElements = 256, kMostRuns = 16;  // of a block

// Throws std::invalid_argument for an unknown name.
const CodeLayout& code_layout(const std::string& name);

// `count` blocks that somebody else owns, the first byte of each `stride` behind that of the one before, and where their values
// [count][elements] go, and their steps [count][runs] or nullptr.
struct CodeBlocks {
  CodeFormat format;
  bool big_endian;
  const std::uint8_t* raw;
  std::int64_t stride, count;
  float* out;
  float* steps;
};

// Throws Cancelled.
void decode(const CodeLayout& layout, const CodeBlocks& blocks, Level level, int threads, const std::function<bool()>& interrupted);

struct DecodeLoops {
  void (*decode)(const CodeBlocks& blocks);
};

}  // namespace sf
