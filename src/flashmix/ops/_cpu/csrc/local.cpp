// Sliding-window attention: query i sees keys i - before .. i + after.

#include "sparse.h"
#include "slots.h"

namespace flashmix {
namespace {

struct Window {
  int64_t tokens, before, after;

  int64_t panels(int64_t lanes) const { return (tokens + lanes - 1) / lanes; }
  Run panel(int64_t i, int64_t lanes, int64_t n) const {
    return {i * lanes, std::min(lanes, n - i * lanes)};
  }
  int64_t most_runs() const { return 1; }
  int64_t keys(int64_t, Run queries, int64_t n, Run* runs) const {
    return around(queries, before, after, n, runs);
  }
  int64_t queries(int64_t, Run keys, int64_t n, Run* runs) const {
    return around(keys, after, before, n, runs);
  }

 private:
  static int64_t around(Run tokens, int64_t low, int64_t high, int64_t n, Run* runs) {
    int64_t first = std::max<int64_t>(0, tokens.first - low);
    runs[0] = {first, std::min(n, tokens.first + tokens.count + high) - first};
    return 1;
  }
};

}  // namespace
}  // namespace flashmix

FLASHMIX_EXPORT int local_forward_f32(const flashmix::Shape* shape, int64_t before, int64_t after,
                                      const float* q, const float* k, const float* v,
                                      const flashmix::Strides* at, float* y, float* logarithm) {
  return flashmix::sparse_forward(*shape, flashmix::Window{shape->longest(), before, after}, q, k, v, at, y, logarithm);
}

FLASHMIX_EXPORT int local_forward_f64(const flashmix::Shape* shape, int64_t before, int64_t after,
                                      const double* q, const double* k, const double* v,
                                      const flashmix::Strides* at, double* y, double* logarithm) {
  return flashmix::sparse_forward(*shape, flashmix::Window{shape->longest(), before, after}, q, k, v, at, y, logarithm);
}

FLASHMIX_EXPORT int local_backward_f32(const flashmix::Shape* shape, int64_t before, int64_t after,
                                       const float* grad, const float* q, const float* k, const float* v,
                                       const flashmix::Strides* at, float* logarithm, float* grad_q,
                                       float* grad_k, float* grad_v) {
  return flashmix::sparse_backward(*shape, flashmix::Window{shape->longest(), before, after}, grad, q, k, v, at, logarithm, grad_q, grad_k,
                                   grad_v);
}

FLASHMIX_EXPORT int local_backward_f64(const flashmix::Shape* shape, int64_t before, int64_t after,
                                       const double* grad, const double* q, const double* k, const double* v,
                                       const flashmix::Strides* at, double* logarithm, double* grad_q,
                                       double* grad_k, double* grad_v) {
  return flashmix::sparse_backward(*shape, flashmix::Window{shape->longest(), before, after}, grad, q, k, v, at, logarithm, grad_q, grad_k,
                                   grad_v);
}

FLASHMIX_SLOTS(local_forward_f32)
FLASHMIX_SLOTS(local_forward_f64)
FLASHMIX_SLOTS(local_backward_f32)
FLASHMIX_SLOTS(local_backward_f64)
