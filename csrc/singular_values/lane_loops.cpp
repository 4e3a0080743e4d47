#include "singular_values/lanes.h"

#include "core/simd.h"

namespace sf::SF_ISA {
namespace {
template <int N>
struct Number {
  static constexpr int value = N;
};
}  // namespace
}  // namespace sf::SF_ISA

#include "singular_values/pack.inl.h"
//
#include "singular_values/bidiagonal_lanes.inl.h"
//
#include "singular_values/tridiagonal_lanes.inl.h"
//
#include "singular_values/qd_lanes.inl.h"
//
#include "singular_values/bisect_one.inl.h"

namespace sf::SF_ISA {
extern const LaneLoops lane_loops;
const LaneLoops lane_loops{kLanes, pack, largest_entry, load_rows, rescale, bidiagonalize, square, root_free_qr, qd, bisect, sort, finish};
}  // namespace sf::SF_ISA
