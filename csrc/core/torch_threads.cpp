#include "core/torch_threads.h"

#include <cstddef>  // says whether this is glibc

#if defined(__linux__) && defined(__GLIBC__)
#include <dirent.h>
#include <dlfcn.h>
#include <link.h>
#include <pthread.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstring>
#include <string>

namespace sf {
namespace {

// libgomp's entry point, which libiomp5 and libomp have too: what a compiler makes of `#pragma omp parallel`.
using Parallel = void (*)(void (*work)(void*), void* data, unsigned threads, unsigned flags);
using MostThreads = int (*)();

struct Runtime {
  Parallel parallel = nullptr;
  MostThreads most_threads = nullptr;
};

// Whether this process is a fork that has not executed another program since: the flag PF_FORKNOEXEC of the kernel's.
bool is_a_fork() {
  char text[1024];
  std::FILE* const file = std::fopen("/proc/self/stat", "r");
  if (file == nullptr) return true;
  const std::size_t size = std::fread(text, 1, sizeof text - 1, file);
  std::fclose(file);
  text[size] = '\0';
  const char* const name_end = std::strrchr(text, ')');
  unsigned flags = 0;
  if (name_end == nullptr || std::sscanf(name_end + 1, " %*c %*d %*d %*d %*d %*d %u", &flags) != 1) return true;
  return (flags & 0x40u) != 0;
}

const pid_t home = is_a_fork() ? -1 : getpid();

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
Runtime torch_runtime() {
  static Runtime found;
  static unsigned long long looked_at = 0;
  if (found.parallel != nullptr) return found;
  Search search;
  dl_iterate_phdr(count_loads, &search);
  if (search.loads == looked_at || !several_threads()) return {};
  looked_at = search.loads;
  dl_iterate_phdr(find_torch, &search);
  if (search.path.empty()) return {};
  // the library is there and stays; of those it needs, the first that has the name
  if (void* const torch = dlopen(search.path.c_str(), RTLD_LAZY | RTLD_NOLOAD)) {
    const auto parallel = reinterpret_cast<Parallel>(dlsym(torch, "GOMP_parallel"));
    const auto most_threads = reinterpret_cast<MostThreads>(dlsym(torch, "omp_get_max_threads"));
    if (parallel != nullptr && most_threads != nullptr) found = {parallel, most_threads};
  }
  return found;
}

// A team of another size than torch's own would end some of its threads, and torch make them anew: the ones too many return at once.
struct Crew {
  void (*work)(void* data);
  void* data;
  std::atomic<int> others;
  pthread_t caller = pthread_self();
};

void join(void* given) {
  Crew& crew = *static_cast<Crew*>(given);
  if (pthread_equal(pthread_self(), crew.caller) || crew.others.fetch_sub(1) > 0) crew.work(crew.data);
}

}  // namespace

bool run_on_torch_threads(void (*work)(void* data), void* data, int threads) {
  if (getpid() != home || syscall(SYS_gettid) != home) return false;
  const Runtime torch = torch_runtime();
  if (torch.parallel == nullptr) return false;
  // Where torch has fewer threads than are wanted (one for each of two hyperthreads, say), as many do: whoever comes takes the next task.
  const int most = torch.most_threads();
  if (most < 2) return false;
  Crew crew{work, data, {(most < threads ? most : threads) - 1}};
  torch.parallel(join, &crew, 0, 0);
  return true;
}

}  // namespace sf

#else

namespace sf {
bool run_on_torch_threads(void (*)(void*), void*, int) { return false; }
}  // namespace sf

#endif
