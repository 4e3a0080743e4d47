// Reductions of one middle-sized matrix on one thread: Gram matrix, tridiagonal and bidiagonal forms, QR of a tall matrix by panels.
//
// All matrices are row-major. Base pointers are 64-byte aligned, leading dimensions multiples of 8 and at least padded_columns(n); the
// padding columns may be read and written, whatever they hold. Entries are finite and scaled by the caller (largest magnitude about 1):
// parts of a vector below 1e-100 are dropped. Results do not depend on anything but the entries, the sizes and the level.
#pragma once
#include <stdint.h>

namespace sf {

// An odd number of cache lines, so that the rows of a column spread over all sets of the cache.
static constexpr int64_t padded_columns(int64_t n) { return ((n + 15) / 8 | 1) * 8; }

// Doubles of work space. 64-byte aligned; contents need no preparation.
static constexpr int64_t tridiagonalize_work(int64_t n) { return 5 * padded_columns(n); }
static constexpr int64_t tridiagonalize_complex_work(int64_t n) { return 10 * padded_columns(n); }
static constexpr int64_t bidiagonalize_work(int64_t m, int64_t n) { return 12 * padded_columns(m) + 4 * padded_columns(n); }
static constexpr int64_t qr_append_work(int64_t rows) { return 128 * rows; }

struct DenseLoops {
  // G += P^T P for P (rows x n). Only the lower triangle of G (columns 0..i of row i) is meaningful; up to 8 entries right of the
  // diagonal and the padding columns are written too.
  void (*gram)(const double* p, int64_t rows, int64_t ldp, int64_t n, double* g, int64_t ldg);

  // Eigenvalue-preserving reduction of the symmetric G, given by its lower triangle, to diagonal d (n) and off-diagonal e (n-1).
  void (*tridiagonalize)(double* g, int64_t n, int64_t ldg, double* d, double* e, double* work);

  // Reduction of A (m x n, m >= n; destroyed) to upper bidiagonal form with the same singular values: diagonal d (n), above it e (n-1).
  void (*bidiagonalize)(double* a, int64_t m, int64_t n, int64_t lda, double* d, double* e, double* work);

  // R (n x n, upper triangle, row-major; zeros before the first call) <- R of the QR decomposition of [R; P]; P (rows x n) is destroyed.
  // The diagonal of R may have either sign. Best with 256 to 512 rows at a time, a multiple of 8.
  void (*qr_append)(double* r, int64_t n, int64_t ldr, double* p, int64_t rows, int64_t ldp, double* work);

  // The first two for complex matrices in planes of real and imaginary parts, each as a real matrix: G += P^H P, lower triangle, and the
  // reduction of the Hermitian G to real d (n) and e (n-1) >= 0 with the same eigenvalues.
  void (*gram_complex)(const double* p_re, const double* p_im, int64_t rows, int64_t ldp, int64_t n, double* g_re, double* g_im,
                       int64_t ldg);
  void (*tridiagonalize_complex)(double* g_re, double* g_im, int64_t n, int64_t ldg, double* d, double* e, double* work);
};

}  // namespace sf
