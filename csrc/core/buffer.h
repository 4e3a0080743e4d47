#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>

#include "core/blocks.h"

namespace sf {

// Where a buffer's memory comes from: the system, or what an earlier op left (core/blocks.h). An op whose peak is promised (svd_workspace)
// takes the first.
struct FreshMemory {
  static void* take(std::size_t bytes) { return ::operator new(bytes, std::align_val_t{64}); }
  static void give(void* data) noexcept { ::operator delete(data, std::align_val_t{64}); }
};
struct KeptMemory {
  static void* take(std::size_t bytes) { return take_block(bytes); }
  static void give(void* data) noexcept { give_block(data); }
};

// 64-byte aligned numbers, not initialized.
template <class T, class Memory = FreshMemory>
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(std::int64_t count) : data_(static_cast<T*>(Memory::take(static_cast<std::size_t>(count) * sizeof(T)))) {}
  T* get() const { return data_.get(); }
  T* operator+(std::int64_t i) const { return data_.get() + i; }
  T& operator[](std::int64_t i) const { return data_.get()[i]; }

 private:
  struct Free {
    void operator()(T* p) const { Memory::give(p); }
  };
  std::unique_ptr<T, Free> data_;
};

template <class T>
using KeptBuffer = Buffer<T, KeptMemory>;

// The same for a short while: on the stack where there is room.
template <class T, std::int64_t kRoom>
class Local {
 public:
  explicit Local(std::int64_t count) : more_(count > kRoom ? Buffer<T>(count) : Buffer<T>()) {}
  T* get() { return more_.get() ? more_.get() : room_; }

 private:
  Buffer<T> more_;
  alignas(64) T room_[kRoom];
};

}  // namespace sf
