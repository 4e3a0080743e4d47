// Working memory of one op call: as many aligned buffers as threads use at once, returned and taken again by later tasks.
#pragma once
#include <cstddef>
#include <mutex>
#include <vector>

#include "core/buffer.h"

namespace sf {

template <class Memory>
class ScratchOf {
 public:
  // doubles: size of each buffer. The memory comes at the first take() and goes with this object.
  explicit ScratchOf(std::size_t doubles) : doubles_(doubles) {}

  class Lease {
   public:
    explicit Lease(ScratchOf& from) : from_(from), data_(from.pop()) {}
    ~Lease() { from_.push(data_); }
    Lease(const Lease&) = delete;
    Lease& operator=(const Lease&) = delete;
    double* data() const { return data_; }

   private:
    ScratchOf& from_;
    double* data_;
  };

  ScratchOf(const ScratchOf&) = delete;
  ScratchOf& operator=(const ScratchOf&) = delete;

 private:
  double* pop() {
    const std::lock_guard<std::mutex> hold(lock_);
    if (free_.empty()) {
      all_.emplace_back(static_cast<std::int64_t>(doubles_));
      return all_.back().get();
    }
    double* last = free_.back();
    free_.pop_back();
    return last;
  }

  void push(double* p) {
    const std::lock_guard<std::mutex> hold(lock_);
    free_.push_back(p);
  }

  std::size_t doubles_;
  std::mutex lock_;
  std::vector<double*> free_;
  std::vector<Buffer<double, Memory>> all_;
};

using Scratch = ScratchOf<FreshMemory>;
using KeptScratch = ScratchOf<KeptMemory>;

}  // namespace sf
