#include "core/torch_threads.h"

#include <cstddef>  // says whether this is glibc

#if defined(__linux__) && defined(__GLIBC__)
#include <dirent.h>
#include <dlfcn.h>
#include <link.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <string>

namespace sf {
namespace {

// libgomp's entry point, which libiomp5 and libomp have too: what a compiler makes of `#pragma omp parallel`.
using Parallel = void (*)(void (*work)(void*), void* data, unsigned threads, unsigned flags);

const pid_t home = getpid();

struct Search {
  unsigned long long loads = 0;  // libraries loaded so far
  std::string path;
};

int count_loads(dl_phdr_info* info, std::size_t, void* search) {
  static_cast<Search*>(search)->loads = info->dlpi_adds;
  return 1;
}

int find_torch(dl_phdr_info* info, std::size_t, void* search) {
  const std::string path = info->dlpi_name != nullptr ? info->dlpi_name : "";
  const std::string name = "/libtorch_cpu.so";
  if (path.size() < name.size() || path.compare(path.size() - name.size(), name.size(), name) != 0) return 0;
  static_cast<Search*>(search)->path = path;
  return 1;
}

bool several_threads() {
  DIR* const tasks = opendir("/proc/self/task");
  if (tasks == nullptr) return false;
  int entries = 0;
  while (readdir(tasks) != nullptr) ++entries;
  closedir(tasks);
  return entries > 3;  // "." and ".." are two
}

// Called on the first thread only.
Parallel torch_parallel() {
  static Parallel found = nullptr;
  static unsigned long long looked_at = 0;
  if (found != nullptr) return found;
  Search search;
  dl_iterate_phdr(count_loads, &search);
  if (search.loads == looked_at || !several_threads()) return nullptr;
  looked_at = search.loads;
  dl_iterate_phdr(find_torch, &search);
  if (search.path.empty()) return nullptr;
  // the library is there and stays; of those it needs, the first that has the name
  if (void* const torch = dlopen(search.path.c_str(), RTLD_LAZY | RTLD_NOLOAD))
    found = reinterpret_cast<Parallel>(dlsym(torch, "GOMP_parallel"));
  return found;
}

}  // namespace

bool run_on_torch_threads(void (*work)(void* data), void* data, int threads) {
  if (getpid() != home || syscall(SYS_gettid) != home) return false;
  const Parallel parallel = torch_parallel();
  if (parallel == nullptr) return false;
  parallel(work, data, static_cast<unsigned>(threads), 0);
  return true;
}

}  // namespace sf

#else

namespace sf {
bool run_on_torch_threads(void (*)(void*), void*, int) { return false; }
}  // namespace sf

#endif
