#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>

#include "core/blocks.h"

namespace sf {

// 64-byte aligned numbers, not initialized.
template <class T>
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(std::int64_t count) : data_(static_cast<T*>(take_block(static_cast<std::size_t>(count) * sizeof(T)))) {}
  T* get() const { return data_.get(); }
  T* operator+(std::int64_t i) const { return data_.get() + i; }
  T& operator[](std::int64_t i) const { return data_.get()[i]; }

 private:
  struct Free {
    void operator()(T* p) const { give_block(p); }
  };
  std::unique_ptr<T, Free> data_;
};

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
