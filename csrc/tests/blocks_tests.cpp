// Memory that one op leaves to the next.
#include "core/blocks.h"

#include <cstdint>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "tests/check.h"

namespace sf::tests {
namespace {

constexpr std::size_t kKilo = 1024;

void aligned_and_apart() {
  std::vector<unsigned char*> held;
  const std::vector<std::size_t> sizes{0, 1, 64, 200 * kKilo, 300 * kKilo, 5000 * kKilo, 20000 * kKilo};
  for (int round = 0; round < 3; ++round) {
    for (std::size_t k = 0; k < sizes.size(); ++k) {
      held.push_back(static_cast<unsigned char*>(take_block(sizes[k])));
      check(reinterpret_cast<std::uintptr_t>(held.back()) % 64 == 0, "a block of " + std::to_string(sizes[k]) + " bytes is aligned");
      std::memset(held.back(), static_cast<int>(k + 1), sizes[k]);
    }
    for (std::size_t k = 0; k < sizes.size(); ++k) {
      bool own = true;
      for (std::size_t i = 0; i < sizes[k]; ++i) own = own && held[k][i] == k + 1;
      check(own, "a block of " + std::to_string(sizes[k]) + " bytes is nobody else's");
      give_block(held[k]);
    }
    held.clear();
  }
  give_block(nullptr);
}

void the_same_again() {
#if !defined(__SANITIZE_ADDRESS__)
  void* const first = take_block(300 * kKilo);
  give_block(first);
  void* const again = take_block(290 * kKilo);
  check(again == first, "what was given back is taken again");
  void* const other = take_block(300 * kKilo);
  check(other != again, "but not by two at once");
  give_block(again);
  give_block(other);
#endif
}

void by_many_threads() {
  std::vector<std::thread> threads;
  std::vector<int> spoiled(4, 0);
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([t, &spoiled] {
      for (int k = 0; k < 200; ++k) {
        const std::size_t bytes = static_cast<std::size_t>(150 + 37 * (k % 7)) * kKilo;
        auto* const block = static_cast<unsigned char*>(take_block(bytes));
        for (std::size_t i = 0; i < bytes; i += 4096) block[i] = static_cast<unsigned char>(t + 1);
        for (std::size_t i = 0; i < bytes; i += 4096) spoiled[static_cast<std::size_t>(t)] += block[i] != t + 1;
        give_block(block);
      }
    });
  }
  for (std::thread& t : threads) t.join();
  for (const int s : spoiled) check(s == 0, "a block has one owner");
}

}  // namespace

void test_blocks() {
  the_same_again();
  aligned_and_apart();
  by_many_threads();
}

}  // namespace sf::tests
