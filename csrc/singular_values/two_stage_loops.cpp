// Compiled once per instruction set; see csrc/cmake/SfIsa.cmake for what may stand here.
#include "singular_values/two_stage_loops.h"

#include "singular_values/band.inl.h"
#include "singular_values/chase.inl.h"
#include "singular_values/gram_blocks.inl.h"
#include "singular_values/gram_single.inl.h"
#include "singular_values/sturm.inl.h"

namespace sf::SF_ISA {
extern const TwoStageLoops two_stage_loops;
const TwoStageLoops two_stage_loops{kPackWidth,
                                    &pack_transposed,
                                    &gram,
                                    kSingleWidth,
                                    &pack_transposed_single,
                                    &gram_single,
                                    &update,
                                    &update_paired,
                                    &symmetric_tile,
                                    &symmetric_diagonal,
                                    &general_tile,
                                    &product_tile,
                                    &panel_qr,
                                    &thin_gram,
                                    &reflector_triangle,
                                    &update_factors,
                                    &paired_factors,
                                    &subtract_reflected,
                                    &add_sums,
                                    &combine,
                                    &transpose,
                                    {&symmetric_start<16>, &symmetric_step<16>},
                                    {&symmetric_start<32>, &symmetric_step<32>},
                                    {&general_start<16>, &general_step<16>},
                                    {&general_start<32>, &general_step<32>},
                                    &sturm};
}  // namespace sf::SF_ISA
