// Kernels of the two-stage reductions (two_stage.h), compiled once per instruction set. They know nothing of threads.
//
// Names used throughout: b is the band width of the first stage; "thin" matrices have b columns and are row-major with leading
// dimension thin_ld(b). A *pack* holds rows in panels of `width`: entry (i, k) of a matrix with `depth` columns is at
// [(i / width * depth + k) * width + i % width], rows beyond the last are zero.
#pragma once
#include <stdint.h>

#include "core/isa.h"

namespace sf {

static constexpr int64_t kBandTile = 144;    // rows and columns of one tile of the first stage: a multiple of every pack width
static constexpr int64_t kBandStrip = 48;    // rows of it that are worked on at a time, likewise
static constexpr int64_t kPanelColumns = 8;  // columns of a panel factored at a time
static constexpr int64_t panel_work(int64_t rows, int64_t b) { return kPanelColumns * (rows + 16 + 2 * kPanelColumns + 2 * b); }
static constexpr int64_t thin_ld(int64_t b) { return b + 8; }

// Part of the trailing matrix in the pass over it: rows x cols at t.
struct BandTile {
  double* t;
  int64_t ldt, rows, cols, b;
  const double *pack_rows, *pack_cols;  // the pending update, depth 2b, at the tile's first row and column; null: none
  const double *thin_rows, *thin_cols;  // the thin matrices multiplied with, at the tile's first row and first column
  double *sum_rows, *sum_cols;          // T thin_cols and T^T thin_rows are added here
  const double* next;                   // what is worked on next (rows like this tile's), or null
};

// Second stage for one band width. `own`: the sweep's state, v (b entries) and tau, 2b + 8 doubles.
struct ChaseLoops {
  // The reflector that clears the sweep's first column (lower band) or row (upper band); at: the diagonal entry.
  void (*start)(double* at, int64_t ld, double* own);
  // The next block along the band; at: its first diagonal entry; last: nothing but zeros beyond it.
  void (*step)(double* at, int64_t ld, bool last, double* own);
};

struct TwoStageLoops {
  int64_t width;  // of the packs

  // Rows of a matrix with n columns, `depth` of them in all, to rows k... of the packs of its transpose.
  void (*pack_transposed)(const double* p, int64_t rows, int64_t ldp, int64_t n, int64_t k, int64_t depth, double* pack);
  // Rows [first, end) of G (in panels) op= those of P^T P, lower triangle; `fresh`: set, not added to. P^T given as a pack.
  void (*gram)(const double* pack, int64_t depth, int64_t n, int64_t first, int64_t end, bool fresh, double* g, int64_t ldg);

  // The same in single precision, its errors at most 64 * 2^-24 |P|^T |P|.
  int64_t single_width;
  void (*pack_transposed_single)(const double* p, int64_t rows, int64_t ldp, int64_t n, int64_t k, int64_t depth, float* pack);
  void (*gram_single)(const float* pack, int64_t depth, int64_t n, int64_t first, int64_t end, bool fresh, double* g, int64_t ldg);

  // T -= V_i W_j^T + W_i V_j^T, the packs holding [V W]; paired: T -= V_i Z_j^T + X_i W_j^T, the packs holding [V X] and [Z W].
  void (*update)(const BandTile& tile);
  void (*update_paired)(const BandTile& tile);
  // The update, then both products with the thin matrices. On the diagonal: one strip, rows == cols, lower triangle only.
  void (*symmetric_tile)(const BandTile& tile);
  void (*symmetric_diagonal)(const BandTile& tile);
  // The paired update, then T^T thin_rows; T thin_cols alone.
  void (*general_tile)(const BandTile& tile);
  void (*product_tile)(const BandTile& tile);

  // Householder QR of the thin C, V replacing C, unit lower trapezoidal with its ones and zeros; R (b x b, column-major), its zeros
  // included; tau.
  void (*panel_qr)(double* c, int64_t rows, int64_t b, double* r, double* tau, double* work);

  // C (b x b) op= A^T B for thin A, B of `rows` rows; C row-major with leading dimension b.
  void (*thin_gram)(const double* a, const double* b_thin, int64_t rows, int64_t b, bool fresh, double* c);
  // Upper triangular T with H_1 ... H_b = I - V T V^T, from S = V^T V and tau. All b x b here are row-major.
  void (*reflector_triangle)(const double* s, const double* tau, int64_t b, double* t);
  // M (2b x b) = [T; -1/2 T^T S T].
  void (*update_factors)(const double* s, const double* t, int64_t b, double* m, double* work);
  // M (2b x b) = [T; -S T].
  void (*paired_factors)(const double* s, const double* t, int64_t b, double* m);
  // P (cols x b) = (A - V Z^T)^T for b rows of A; P, V (b x b) and Z (cols x b) thin. work: b x b.
  void (*subtract_reflected)(const double* a, int64_t lda, const double* v, const double* z, int64_t cols, int64_t b, double* p,
                             double* work);
  // total += what is stride, ... count * stride further; `size` entries, a multiple of 8.
  void (*add_sums)(double* total, int64_t stride, int64_t count, int64_t size);
  // out (rows x b, thin) = [Y V] M, or Y M where V is null.
  void (*combine)(const double* y, const double* v, const double* m, int64_t rows, int64_t b, double* out);
  void (*transpose)(const double* from, int64_t rows, int64_t cols, int64_t ld_from, double* to, int64_t ld_to);

  ChaseLoops symmetric_chase_16, symmetric_chase_32, general_chase_16, general_chase_32;

  // At `shifts` (a multiple of 8) shifts x: eigenvalues below x of the tridiagonal matrix with diagonal d (null: zeros), squared
  // off-diagonals e2[1] ... e2[n-1], and det(T - x I) = value * 2^exponent (as frexp has it).
  void (*sturm)(const double* d, const double* e2, int64_t n, const double* x, int64_t shifts, int64_t* counts, double* value,
                int64_t* exponents);
};

}  // namespace sf
