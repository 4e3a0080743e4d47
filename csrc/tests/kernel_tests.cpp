// kernel_tests [name ...]: the tests named, or all; the exit status is 0 when every check held. Needs no Python and no BLAS, so that the
// kernels can run under the sanitizers (SF_SANITIZE).
#include <chrono>
#include <cstring>

#include "core/isa.h"
#include "tests/check.h"

namespace {

struct Test {
  const char* name;
  void (*run)();
};

constexpr Test kTests[] = {
    {"threads", sf::tests::test_threads},
    {"power_law", sf::tests::test_power_law},
    {"lanes", sf::tests::test_lanes},
    {"families", sf::tests::test_families},
    {"views", sf::tests::test_views},
    {"scales", sf::tests::test_scales},
    {"large", sf::tests::test_large},
    {"largest", sf::tests::test_largest},
    {"complex", sf::tests::test_complex},
    {"low_rank", sf::tests::test_low_rank},
    {"decode", sf::tests::test_decode},
    {"krylov", sf::tests::test_krylov},
    {"class_moments", sf::tests::test_class_moments},
    {"gradient_gram", sf::tests::test_gradient_gram},
    {"blocks", sf::tests::test_blocks},
    {"team_eigenvalues", sf::tests::test_team_eigenvalues},
    {"team_sweep", sf::tests::test_team_sweep},
    {"team_jacobi", sf::tests::test_team_jacobi},
    {"team_chase", sf::tests::test_team_chase},
};

bool known(const char* name) {
  for (const Test& test : kTests) {
    if (std::strcmp(name, test.name) == 0) return true;
  }
  return false;
}

bool wanted(const char* name, int count, char** names) {
  for (int i = 0; i < count; ++i) {
    if (std::strcmp(name, names[i]) == 0) return true;
  }
  return count == 0;
}

}  // namespace

int main(int argc, char** argv) {
  using Clock = std::chrono::steady_clock;
  for (int i = 1; i < argc; ++i) {
    if (known(argv[i])) continue;
    std::printf("%s: no such test\n", argv[i]);
    return 2;
  }
  std::printf("levels:");
  for (const std::string& level : sf::runnable_levels()) std::printf(" %s", level.c_str());
  std::printf("\n");
  for (const Test& test : kTests) {
    if (!wanted(test.name, argc - 1, argv + 1)) continue;
    const int before = sf::tests::checked;
    const Clock::time_point start = Clock::now();
    test.run();
    std::printf("%-10s %6d checks, %.1f s\n", test.name, sf::tests::checked - before,
                std::chrono::duration<double>(Clock::now() - start).count());
    std::fflush(stdout);
  }
  if (sf::tests::failed > 0) std::printf("%d of %d checks FAILED\n", sf::tests::failed, sf::tests::checked);
  return sf::tests::failed > 0 ? 1 : 0;
}
