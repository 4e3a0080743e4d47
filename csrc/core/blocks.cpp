#include "core/blocks.h"

#include <array>
#include <atomic>
#include <new>

namespace sf {
namespace {

constexpr std::size_t kLeast = std::size_t{1} << 17, kMost = std::size_t{1} << 24;
#if defined(__SANITIZE_ADDRESS__)
constexpr std::size_t kKept = 0;  // it watches what is fresh and what is freed
#else
constexpr std::size_t kKept = std::size_t{1} << 25;
#endif
constexpr std::align_val_t kAlign{64};

// In front of every block, in a cache line of its own.
struct alignas(64) Header {
  std::size_t bytes;
};

// A block is owned by whoever has taken its pointer out of a place: no lock that a fork could leave closed.
std::array<std::atomic<Header*>, 8> places{};
std::atomic<std::size_t> kept{0};

void forget(Header* block) { ::operator delete(block, kAlign); }

// Into a free place, if there is one.
bool keep(Header* block) {
  if (kept.fetch_add(block->bytes) + block->bytes <= kKept) {
    for (auto& place : places) {
      Header* nothing = nullptr;
      if (place.compare_exchange_strong(nothing, block)) return true;
    }
  }
  kept.fetch_sub(block->bytes);
  return false;
}

}  // namespace

void* take_block(std::size_t bytes) {
  if (bytes >= kLeast && bytes <= kMost) {
    for (auto& place : places) {
      Header* const block = place.exchange(nullptr);
      if (block == nullptr) continue;
      kept.fetch_sub(block->bytes);
      if (block->bytes >= bytes && block->bytes <= 2 * bytes) return block + 1;
      if (!keep(block)) forget(block);
    }
  }
  void* const memory = ::operator new(sizeof(Header) + bytes, kAlign);
  return new (memory) Header{bytes} + 1;
}

void give_block(void* data) noexcept {
  if (data == nullptr) return;
  Header* const block = static_cast<Header*>(data) - 1;
  if (block->bytes < kLeast || block->bytes > kMost || !keep(block)) forget(block);
}

}  // namespace sf
