// contract: numpy_kernels.power_law, on device memory
#pragma once
#include <cstdint>

namespace sf {

// All pointers are device memory of device `device`: values (total,), offsets (n_spectra + 1,), alpha and D (total,), best
// (n_spectra,), work (3 * total,). The caller has checked that spectra are ascending, positive and finite. Runs on
// `stream` and returns without waiting. Throws std::runtime_error with CUDA's words.
void power_law_cuda(const double* values, const std::int64_t* offsets, std::int64_t total, std::int64_t n_spectra, double* alpha, double* D,
                    std::int64_t* best, double* work, int device, void* stream);

// Number of usable devices; why is set where there is none.
int cuda_device_count(const char** why);

}  // namespace sf
