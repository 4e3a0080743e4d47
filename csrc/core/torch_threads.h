// The threads that torch computes with. After every parallel loop they wait for the next one by spinning, for some milliseconds: an op
// between two of torch's that brought threads of its own would share its cores with them. So it uses them.
#pragma once

namespace sf {

// Calls work(data) on `threads` threads of torch's OpenMP runtime at once, the calling one among them. False, and nothing is called, where
// torch is not loaded or uses fewer threads, the process has no second thread yet (most likely torch's were never started), this is not
// its first thread (each thread has a set of its own), or it was forked, before or after this was loaded (threads do not survive that).
bool run_on_torch_threads(void (*work)(void* data), void* data, int threads);

}  // namespace sf
