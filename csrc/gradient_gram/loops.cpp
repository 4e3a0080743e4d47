// Compiled once per instruction set; see csrc/cmake/SfIsa.cmake for what may stand here.
#include "gradient_gram/loops.inl.h"

namespace sf::SF_ISA {
extern const GramLoops<float> gram_single_loops;
extern const GramLoops<double> gram_double_loops;
const GramLoops<float> gram_single_loops{tile_width<float>, kVecs,         kRows,       &pack<float>,
                                         &multiply<float>,  &outer<float>, &dot<float>, &sum_rows<float>};
const GramLoops<double> gram_double_loops{tile_width<double>, kVecs,          kRows,        &pack<double>,
                                          &multiply<double>,  &outer<double>, &dot<double>, &sum_rows<double>};
}  // namespace sf::SF_ISA
