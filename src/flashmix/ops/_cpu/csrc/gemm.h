// Products of a few rows with packed columns, the heart of the attention kernels.
#pragma once

#include <algorithm>

#include "shuffle.h"
#include "simd.h"

namespace flashmix {

// Columns of a tile: two vectors.
template <class T>
constexpr int64_t PANEL = 2 * Lanes<T>::W;

inline int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

// Turns up to PANEL rows of width `dh`, row j at row(j), into a panel [dh][PANEL], scaled; columns
// beyond the last row are zero.
template <class T, class Row>
void pack_panel(T* panel, const Row& row, int64_t count, int64_t dh, T scale) {
  using L = Lanes<T>;
  constexpr int64_t P = PANEL<T>, W = L::W;
  count = std::min(count, P);
  for (int64_t j = 0; j < P; j += W) {
    int64_t d = 0;
    if (j + W <= count)
      for (; d + W <= dh; d += W) {
        typename L::V square[W];
        for (int64_t i = 0; i < W; ++i) square[i] = L::load(row(j + i) + d) * scale;
        transpose<T>(square);
        for (int64_t i = 0; i < W; ++i) L::store(panel + (d + i) * P + j, square[i]);
      }
    for (int64_t i = 0; i < W; ++i) {
      const T* from = j + i < count ? row(j + i) : nullptr;
      for (int64_t e = d; e < dh; ++e) panel[e * P + j + i] = from ? from[e] * scale : T(0);
    }
  }
}

// The way back: row(j) of width `dh`, j < count, from a panel.
template <class T, class Row>
void unpack_panel(const T* panel, const Row& row, int64_t count, int64_t dh) {
  using L = Lanes<T>;
  constexpr int64_t P = PANEL<T>, W = L::W;
  count = std::min(count, P);
  for (int64_t j = 0; j < count; j += W) {
    int64_t d = 0;
    if (j + W <= count)
      for (; d + W <= dh; d += W) {
        typename L::V square[W];
        for (int64_t i = 0; i < W; ++i) square[i] = L::load(panel + (d + i) * P + j);
        transpose<T>(square);
        for (int64_t i = 0; i < W; ++i) L::store(row(j + i) + d, square[i]);
      }
    for (int64_t i = 0; i < std::min(W, count - j); ++i)
      for (int64_t e = d; e < dh; ++e) row(j + i)[e] = panel[e * P + j + i];
  }
}

// Packs rows into [dh][ROWS], scaled; rows beyond the end are zero.
template <class T, class Source>
void pack_rows(T* packed, const Source& source, int64_t count, int64_t dh, T scale) {
  for (int64_t r = 0; r < ROWS; ++r) {
    const T* row = r < count ? source(r) : nullptr;
    for (int64_t d = 0; d < dh; ++d) packed[d * ROWS + r] = row ? row[d] * scale : T(0);
  }
}

// out[ROWS][stride], PANEL columns of it, = rows [dh][ROWS] by one panel [dh][PANEL].
template <class T>
inline void tile(T* out, int64_t stride, const T* rows, const T* panel, int64_t dh) {
  using L = Lanes<T>;
  typename L::V sum[ROWS][2] = {};
  for (int64_t d = 0; d < dh; ++d) {
    typename L::V left = L::load(panel + d * PANEL<T>), right = L::load(panel + d * PANEL<T> + L::W);
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; ++r) {
      typename L::V x = L::all(rows[d * ROWS + r]);
      sum[r][0] += x * left;
      sum[r][1] += x * right;
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; ++r) {
    L::store(out + r * stride, sum[r][0]);
    L::store(out + r * stride + L::W, sum[r][1]);
  }
}

// out[R][PANEL] (added to what is there, if `add`) = a by a panel [steps][PANEL], where a's element
// (r, t) is a[r * row + t * step].
template <class T, int R>
void product(T* out, bool add, const T* a, int64_t row, int64_t step, const T* panel,
             int64_t steps) {
  using L = Lanes<T>;
  typename L::V sum[R][2] = {};
  for (int64_t t = 0; t < steps; ++t) {
    typename L::V left = L::load(panel + t * PANEL<T>), right = L::load(panel + t * PANEL<T> + L::W);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      typename L::V x = L::all(a[r * row + t * step]);
      sum[r][0] += x * left;
      sum[r][1] += x * right;
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
    T* to = out + r * PANEL<T>;
    L::store(to, add ? L::load(to) + sum[r][0] : sum[r][0]);
    L::store(to + L::W, add ? L::load(to + L::W) + sum[r][1] : sum[r][1]);
  }
}

// The same for any number of rows.
template <class T>
void products(T* out, bool add, const T* a, int64_t rows, int64_t row, int64_t step,
              const T* panel, int64_t steps) {
  constexpr int R = ROWS / 4 * 4;
  int64_t r = 0;
  for (; r + R <= rows; r += R)
    product<T, R>(out + r * PANEL<T>, add, a + r * row, row, step, panel, steps);
  for (; r + 4 <= rows; r += 4)
    product<T, 4>(out + r * PANEL<T>, add, a + r * row, row, step, panel, steps);
  for (; r < rows; ++r)
    product<T, 1>(out + r * PANEL<T>, add, a + r * row, row, step, panel, steps);
}

}  // namespace flashmix
