// What the library is given when it is loaded.

#include "parallel.h"

namespace flashmix {
ParallelFor torch_parallel_for = nullptr;
}

FLASHMIX_EXPORT void flashmix_initialise(flashmix::ParallelFor parallel_for) {
  flashmix::torch_parallel_for = parallel_for;
}
