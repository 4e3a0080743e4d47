// Larger pieces of working memory. What one op gives back the next one takes again: the system clears every page it hands out, which costs
// an op of a few milliseconds a third of its time.
#pragma once
#include <cstddef>

namespace sf {

// At least `bytes`, 64-byte aligned, not initialized. Throws std::bad_alloc.
void* take_block(std::size_t bytes);

// What take_block() gave, or nullptr. Some pieces of up to 16 MB, 32 MB in all, are kept.
void give_block(void* data) noexcept;

}  // namespace sf
