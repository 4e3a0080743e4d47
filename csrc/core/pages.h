// Memory that goes back to the system at once when it is given back.
//
// The allocator keeps what it gets back while anything later lies above it: in a scan, where blocks of megabytes come and go between the
// small objects of the results, 80 MB were held after twenty matrices of 8192 x 512 that need 5 MB each. Large blocks therefore are
// mappings of their own.
#pragma once
#include <cstddef>
#include <new>

#if defined(__linux__) && !defined(__SANITIZE_ADDRESS__)
#include <sys/mman.h>
#define SF_OWN_PAGES 1
#else
#define SF_OWN_PAGES 0  // AddressSanitizer sees what leaves a block only where it made it itself
#endif

namespace sf {

constexpr std::size_t kOwnPages = std::size_t{1} << 19;  // bytes from which a block has pages of its own

// 64-byte aligned bytes, not initialized. Throws std::bad_alloc.
inline void* take_memory(std::size_t bytes) {
#if SF_OWN_PAGES
  if (bytes >= kOwnPages) {
    void* block = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (block == MAP_FAILED) throw std::bad_alloc();
    ::madvise(block, bytes, MADV_HUGEPAGE);  // a hint: kernels without large pages refuse it
    return block;
  }
#endif
  return ::operator new(bytes, std::align_val_t{64});
}

// bytes: as they were asked for.
inline void give_memory(void* block, std::size_t bytes) noexcept {
#if SF_OWN_PAGES
  if (bytes >= kOwnPages) {
    ::munmap(block, bytes);
    return;
  }
#endif
  (void)bytes;
  ::operator delete(block, std::align_val_t{64});
}

}  // namespace sf
