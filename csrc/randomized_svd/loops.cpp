#include "randomized_svd/sketch.inl.h"
//
#include "randomized_svd/jacobi.inl.h"

namespace sf::SF_ISA {
extern const LowRankLoops low_rank_loops;
const LowRankLoops low_rank_loops{
    kLanes,
    {kSingles, rows_product<float, float>, columns_product<float, float>, rows_product<float, uint16_t>, columns_product<float, uint16_t>,
     add_to<float>, squares<float>, convert<float>, fetch, widen_single, scatter<float>, turn<float>},
    {kLanes, rows_product<double, double>, columns_product<double, double>, nullptr, nullptr, add_to<double>, squares<double>,
     convert<double>, fetch, widen_double, scatter<double>, turn<double>},
    jacobi};
}  // namespace sf::SF_ISA
