#include "randomized_svd/product.inl.h"
//
#include "randomized_svd/convert.inl.h"
//
#include "randomized_svd/jacobi.inl.h"

namespace sf::SF_ISA {
extern const LowRankLoops low_rank_loops;
const LowRankLoops low_rank_loops{
    kLanes,
    {kSingles, rows_product<float>, columns_product<float>, add_to<float>, squares<float>, convert<float>, fetch, widen_single},
    {kLanes, rows_product<double>, columns_product<double>, add_to<double>, squares<double>, convert<double>, fetch, widen_double},
    jacobi};
}  // namespace sf::SF_ISA
