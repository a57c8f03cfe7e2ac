// The CUDA driver, as far as launching a compiled kernel takes it. Its functions are given by
// address, so that neither CUDA's headers nor its libraries are needed to build this.
#pragma once

#include <cstdint>
#include <string>

#include <c10/util/Exception.h>

namespace flashmix {

// What cuda.h calls CUlaunchAttribute and CUlaunchConfig.
struct LaunchAttribute {
  uint32_t id;
  char pad[4];
  union {
    uint32_t values[3];
    char size[64];
  };
};

struct LaunchConfig {
  uint32_t grid[3], block[3], shared;
  void* stream;
  LaunchAttribute* attributes;
  uint32_t count;
};

constexpr uint32_t COOPERATIVE = 2, CLUSTER = 4, CLUSTER_SCHEDULING = 5, PROGRAMMATIC_STREAM = 6;

// Addresses of the driver's functions, and of PyTorch's that gives the current stream.
struct Driver {
  int (*launch)(const LaunchConfig*, void* function, void** parameters, void** extra);
  int (*error_string)(int, const char**);
  int (*context_get_current)(void**);
  int (*context_set_current)(void*);
  int (*device_get)(int*, int);
  int (*context_retain)(void**, int);
  int (*current_stream)(int32_t, void**);

  void check(int code, const std::string& what) const {
    if (code == 0) return;
    const char* text = nullptr;
    if (error_string) error_string(code, &text);
    TORCH_CHECK(false, "flashmix: ", what, " failed: ", text ? text : "error ", text ? "" : std::to_string(code));
  }

  // A thread that never called CUDA's runtime, such as one of autograd's, has no context yet.
  void ensure_context(int device) const {
    void* context = nullptr;
    check(context_get_current(&context), "reading the CUDA context");
    if (context) return;
    int handle = 0;
    check(device_get(&handle, device), "finding the GPU");
    check(context_retain(&context, handle), "retaining the CUDA context");
    check(context_set_current(context), "setting the CUDA context");
  }
};

extern Driver driver;

// A compiled kernel and how it is launched, but for its arguments.
struct Launch {
  std::string name;
  void* function;
  uint32_t grid[3], warps, blocks_a_cluster, shared;
  bool cooperative, early;

  void operator()(void** parameters, void* stream) const {
    if (!grid[0] || !grid[1] || !grid[2]) return;
    LaunchAttribute attributes[4] = {};
    uint32_t count = 0;
    auto add = [&](uint32_t id, uint32_t x, uint32_t y = 0, uint32_t z = 0) {
      attributes[count].id = id;
      attributes[count].values[0] = x;
      attributes[count].values[1] = y;
      attributes[count++].values[2] = z;
    };
    if (early) add(PROGRAMMATIC_STREAM, 1);
    if (cooperative) add(COOPERATIVE, 1);
    if (blocks_a_cluster != 1) {
      add(CLUSTER, blocks_a_cluster, 1, 1);
      add(CLUSTER_SCHEDULING, 1);
    }
    LaunchConfig config{{grid[0] * blocks_a_cluster, grid[1], grid[2]}, {32 * warps, 1, 1}, shared, stream,
                        attributes, count};
    driver.check(driver.launch(&config, function, parameters, nullptr), "launching " + name);
  }
};

}  // namespace flashmix
