// Work shared among PyTorch's own threads, so that torch.set_num_threads holds and no second pool
// exists.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

namespace flashmix {

#define FLASHMIX_EXPORT extern "C" __attribute__((visibility("default")))

using ParallelFor = int (*)(int64_t, int64_t, int64_t, void (*)(int64_t, int64_t, void*), void*);

extern ParallelFor torch_parallel_for;

// body(begin, end) over parts of [0, count). What body computes for an index must not depend on
// the part it falls in: results are then the same for any number of threads.
template <class Body>
void parallel(int64_t count, const Body& body) {
  auto call = [](int64_t begin, int64_t end, void* context) {
    (*static_cast<const Body*>(context))(begin, end);
  };
  if (count > 0 &&
      torch_parallel_for(0, count, 1, call, const_cast<void*>(static_cast<const void*>(&body))))
    throw std::bad_alloc();  // the one exception that a body throws
}

// Runs what may throw, behind an interface of C: zero, or one where memory ran out.
template <class Work>
int guarded(const Work& work) {
  try {
    work();
    return 0;
  } catch (const std::bad_alloc&) {
    return 1;
  }
}

// Memory of one thread, kept from call to call: fresh pages cost more than what they are used for.
// Each slot is memory of its own.
template <class T, int slot = 0>
T* scratch(int64_t count) {
  struct Free {
    void operator()(void* p) const { free(p); }
  };
  thread_local std::unique_ptr<void, Free> memory;
  thread_local size_t held = 0;
  size_t bytes = (size_t(count) * sizeof(T) + 63) / 64 * 64;
  if (bytes > held) {
    held = 0;
    memory.reset(aligned_alloc(64, bytes));
    if (!memory) throw std::bad_alloc();
    held = bytes;
  }
  return static_cast<T*>(memory.get());
}

}  // namespace flashmix
