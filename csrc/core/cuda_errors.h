// What every launch does: the device it was asked for, and an error that says which kernel, how it was launched and where.
#pragma once
#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

namespace sf {

inline void cuda_check(cudaError_t status, const std::string& doing) {
  if (status != cudaSuccess) throw std::runtime_error("CUDA, " + doing + ": " + cudaGetErrorString(status));
}

// Makes `device` the current one, and the one before again when it goes.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    cuda_check(cudaGetDevice(&before_), "asking for the current device");
    cuda_check(cudaSetDevice(device), "choosing device " + std::to_string(device));
  }
  ~DeviceGuard() { cudaSetDevice(before_); }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int before_ = 0;
};

// Bytes of shared memory that a block may ask for on `device`.
inline std::size_t most_shared_bytes(int device) {
  int most = 0;
  cuda_check(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), "asking for the shared memory of a block");
  return static_cast<std::size_t>(most);
}

// After a launch.
inline void cuda_launched(const char* kernel, unsigned blocks, unsigned threads, std::size_t shared_bytes, int device) {
  const cudaError_t status = cudaGetLastError();
  if (status == cudaSuccess) return;
  cuda_check(status, std::string(kernel) + " in " + std::to_string(blocks) + " blocks of " + std::to_string(threads) + " threads with " +
                         std::to_string(shared_bytes) + " bytes of shared memory on device " + std::to_string(device));
}

}  // namespace sf
