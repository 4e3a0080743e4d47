// What every launch does: the device it was asked for, and an error that says which kernel, how it was launched and where.
#pragma once
#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

namespace sf {

inline void cuda_check(cudaError_t status, const std::string& doing) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // else the next launch would be blamed for it
  throw std::runtime_error("CUDA, " + doing + ": " + cudaGetErrorString(status));
}

// Makes `device` the current one, and the one before again when it goes.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    cuda_check(cudaGetDevice(&before_), "asking for the current device");
    if (device == before_) return;  // asking for one makes a context on it
    cuda_check(cudaSetDevice(device), "choosing device " + std::to_string(device));
    changed_ = true;
  }
  ~DeviceGuard() {
    if (changed_) cudaSetDevice(before_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int before_ = 0;
  bool changed_ = false;
};

// Bytes of shared memory that a block may ask for on `device`.
inline std::size_t most_shared_bytes(int device) {
  int most = 0;
  cuda_check(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), "asking for the shared memory of a block");
  return static_cast<std::size_t>(most);
}

// Lets `kernel` ask for as much as there is. The limit is the kernel's on the device, for all threads: were each launch to set its own,
// another thread's launch in between would find too little.
template <class Kernel>
void allow_shared_memory(Kernel kernel, int device, const char* name) {
  cuda_check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(most_shared_bytes(device))),
             std::string("shared memory of ") + name);
}

// After a launch.
inline void cuda_launched(const char* kernel, unsigned blocks, unsigned threads, std::size_t shared_bytes, int device) {
  const cudaError_t status = cudaGetLastError();
  if (status == cudaSuccess) return;
  cuda_check(status, std::string(kernel) + " in " + std::to_string(blocks) + " blocks of " + std::to_string(threads) + " threads with " +
                         std::to_string(shared_bytes) + " bytes of shared memory on device " + std::to_string(device));
}

}  // namespace sf
