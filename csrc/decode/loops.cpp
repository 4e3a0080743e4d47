// Compiled once per instruction set; see csrc/cmake/SfIsa.cmake for what may stand here.
#include "decode/blocks.inl.h"
#include "decode/floats.inl.h"

namespace sf::SF_ISA {
namespace {

void decode(const CodeBlocks& blocks) {
  switch (blocks.format) {
    case CodeFormat::float16:
      return decode_floats<Float16>(blocks);
    case CodeFormat::bfloat16:
      return decode_floats<BFloat16>(blocks);
    case CodeFormat::float8_e4m3fn:
      return decode_floats<E4M3Fn>(blocks);
    case CodeFormat::float8_e4m3fnuz:
      return decode_floats<E4M3Fnuz>(blocks);
    case CodeFormat::float8_e5m2:
      return decode_floats<E5M2>(blocks);
    case CodeFormat::float8_e5m2fnuz:
      return decode_floats<E5M2Fnuz>(blocks);
    case CodeFormat::q4_0:
      return decode_blocks<Q4_0>(blocks);
    case CodeFormat::q4_1:
      return decode_blocks<Q4_1>(blocks);
    case CodeFormat::q5_0:
      return decode_blocks<Q5_0>(blocks);
    case CodeFormat::q5_1:
      return decode_blocks<Q5_1>(blocks);
    case CodeFormat::q8_0:
      return decode_bytes<32, 2>(blocks);
    case CodeFormat::q2_k:
      return decode_blocks<Q2_K>(blocks);
    case CodeFormat::q3_k:
      return decode_blocks<Q3_K>(blocks);
    case CodeFormat::q4_k:
      return decode_blocks<Q4_K>(blocks);
    case CodeFormat::q5_k:
      return decode_blocks<Q5_K>(blocks);
    case CodeFormat::q6_k:
      return decode_blocks<Q6_K>(blocks);
    case CodeFormat::q8_k:
      return decode_bytes<256, 4>(blocks);
  }
}

}  // namespace

extern const DecodeLoops decode_loops;
const DecodeLoops decode_loops{&decode};
}  // namespace sf::SF_ISA
