// Checks of the stand-alone tests: one that does not hold is printed and counted, and the run goes on.
#pragma once
#include <cstdio>
#include <string>
#include <vector>

#include "core/isa.h"

namespace sf::tests {

inline int checked = 0, failed = 0;

inline void check(bool holds, const std::string& what) {
  ++checked;
  if (holds) return;
  if (++failed <= 20) std::printf("FAILED: %s\n", what.c_str());
}

// Runs `code`, which has to throw an Error.
template <class Error, class Code>
void check_throws(const Code& code, const std::string& what) {
  bool thrown = false;
  try {
    code();
  } catch (const Error&) {
    thrown = true;
  }
  check(thrown, what);
}

// The levels to run. Who shares what among threads does not depend on them, and under the thread sanitizer all is slow: the fastest there.
inline std::vector<std::string> levels() {
#if defined(__SANITIZE_THREAD__)
  return {level_name(find_level(""))};
#else
  return runnable_levels();
#endif
}

void test_threads();
void test_power_law();
void test_lanes();
void test_families();
void test_views();
void test_scales();
void test_large();
void test_largest();
void test_complex();
void test_low_rank();
void test_decode();
void test_krylov();
void test_class_moments();
void test_gradient_gram();
void test_blocks();
void test_team_eigenvalues();
void test_team_sweep();
void test_team_jacobi();
void test_team_chase();

}  // namespace sf::tests
