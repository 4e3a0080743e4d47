// Working memory of one op call: as many aligned buffers as threads use at once, returned and taken again by later tasks.
#pragma once
#include <cstddef>
#include <mutex>
#include <vector>

#include "core/buffer.h"

namespace sf {

class Scratch {
 public:
  // doubles: size of each buffer. The memory comes at the first take() and goes with this object.
  explicit Scratch(std::size_t doubles) : doubles_(doubles) {}

  class Lease {
   public:
    explicit Lease(Scratch& from) : from_(from), data_(from.pop()) {}
    ~Lease() { from_.push(data_); }
    Lease(const Lease&) = delete;
    Lease& operator=(const Lease&) = delete;
    double* data() const { return data_; }

   private:
    Scratch& from_;
    double* data_;
  };

  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

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
  std::vector<Buffer<double>> all_;
};

}  // namespace sf
