// Attention to whole blocks of keys, kept for each block of queries.

#include <cstdint>

#include "sparse.h"
#include "slots.h"

namespace flashmix {
namespace {

struct Blocks {
  int64_t tokens, size;
  const bool* kept;  // [P, G, G]: whether a block of queries keeps a block of keys
  int64_t before, after;

  Blocks(int64_t tokens, int64_t size, bool causal, const bool* kept)
      : tokens(tokens), size(size), kept(kept), before(tokens), after(causal ? 0 : tokens) {}

  int64_t blocks() const { return (tokens + size - 1) / size; }
  int64_t panels(int64_t lanes) const { return blocks() * each(lanes); }
  // A panel never holds tokens of two blocks.
  Run panel(int64_t i, int64_t lanes, int64_t n) const {
    int64_t block = i / each(lanes), first = block * size + i % each(lanes) * lanes;
    return {first, std::min({lanes, (block + 1) * size - first, n - first})};
  }
  int64_t most_runs() const { return blocks(); }
  int64_t keys(int64_t p, Run queries, int64_t n, Run* runs) const {
    return list(kept + (p * blocks() + queries.first / size) * blocks(), 1, n, runs);
  }
  int64_t queries(int64_t p, Run keys, int64_t n, Run* runs) const {
    return list(kept + p * blocks() * blocks() + keys.first / size, blocks(), n, runs);
  }

 private:
  int64_t each(int64_t lanes) const { return (size + lanes - 1) / lanes; }
  int64_t list(const bool* kept, int64_t step, int64_t n, Run* runs) const {
    int64_t count = 0;
    for (int64_t g = 0; g < blocks(); ++g)
      if (kept[g * step] && g * size < n) runs[count++] = {g * size, std::min(size, n - g * size)};
    return count;
  }
};

}  // namespace
}  // namespace flashmix

FLASHMIX_EXPORT int block_forward_f32(const flashmix::Shape* shape, int64_t size, bool causal, const bool* kept,
                                      const float* q, const float* k, const float* v,
                                      const flashmix::Strides* at, float* y, float* logarithm) {
  return flashmix::sparse_forward(*shape, flashmix::Blocks(shape->tokens, size, causal, kept), q, k, v, at, y, logarithm);
}

FLASHMIX_EXPORT int block_forward_f64(const flashmix::Shape* shape, int64_t size, bool causal, const bool* kept,
                                      const double* q, const double* k, const double* v,
                                      const flashmix::Strides* at, double* y, double* logarithm) {
  return flashmix::sparse_forward(*shape, flashmix::Blocks(shape->tokens, size, causal, kept), q, k, v, at, y, logarithm);
}

FLASHMIX_EXPORT int block_backward_f32(const flashmix::Shape* shape, int64_t size, bool causal, const bool* kept,
                                       const float* grad, const float* q, const float* k, const float* v,
                                       const flashmix::Strides* at, float* logarithm, float* grad_q,
                                       float* grad_k, float* grad_v) {
  return flashmix::sparse_backward(*shape, flashmix::Blocks(shape->tokens, size, causal, kept), grad, q, k, v, at, logarithm, grad_q, grad_k,
                                   grad_v);
}

FLASHMIX_EXPORT int block_backward_f64(const flashmix::Shape* shape, int64_t size, bool causal, const bool* kept,
                                       const double* grad, const double* q, const double* k, const double* v,
                                       const flashmix::Strides* at, double* logarithm, double* grad_q,
                                       double* grad_k, double* grad_v) {
  return flashmix::sparse_backward(*shape, flashmix::Blocks(shape->tokens, size, causal, kept), grad, q, k, v, at, logarithm, grad_q, grad_k,
                                   grad_v);
}

FLASHMIX_SLOTS(block_forward_f32)
FLASHMIX_SLOTS(block_forward_f64)
FLASHMIX_SLOTS(block_backward_f32)
FLASHMIX_SLOTS(block_backward_f64)
