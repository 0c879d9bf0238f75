// Packing: a frame [C, h, w] becomes 4 x 4 patches, each [step][16 cells] contiguous, so that the matrix product
// streams through memory. In half precision the float32 rows [h * w][C] are kept too, for exact re-scoring.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "block.h"
#include "problem.h"

namespace vosnet {

constexpr int kMaxChecks = 3;

// How the channels are walked: the strongest first, so that early sums bound the rest tightly.
struct Channels {
  std::vector<int> order;  // [C] channel at each place
  int padded;              // C rounded up; the padding is zero
  int num_steps;
  int num_checks;          // bounds are checked after check[0] < check[1] < ... steps
  int check[kMaxChecks];
};

// Where a frame's packed cells go. Norms are rounded up a little, so that bounds made from them hold.
struct PackedFrame {
  char* patches;      // [ny * nx][num_steps * 64]
  float* norm;        // [ny * nx][16] Euclidean norm of each cell
  float* residual;    // [ny * nx][16] norm of what bf16 rounding took away
  float* rest;        // [num_checks][ny * nx][16] norm of the channels after each check
  float* rows;        // [h * w][padded], half precision only
  int64_t rest_stride;
};

struct Float16 {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};
inline __m128 load4(const float* p) { return _mm_loadu_ps(p); }
inline __m128 load4(const Float16* p) { return _mm_cvtph_ps(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))); }
inline __m128 load4(const BFloat16* p) {
  __m128i bits = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
  return _mm_castsi128_ps(_mm_slli_epi32(_mm_cvtepu16_epi32(bits), 16));
}
// The first `n` of four elements; the others, which may lie outside of the tensor, become zero.
template <typename T>
__m128 load_some(const T* p, int n) {
  T four[4] = {};
  std::memcpy(four, p, sizeof(T) * n);
  return load4(four);
}

// One patch as float32 [padded][16]; cells beyond the frame are zero.
template <typename T>
void gather_patch(const T* corner, int64_t stride_c, int64_t stride_y, int rows, int cols, const Channels& channels,
                  float* cells) {
  const int C = static_cast<int>(channels.order.size());
  std::memset(cells + 16 * C, 0, sizeof(float) * 16 * (channels.padded - C));
  if (rows == 4 && cols == 4) {
    for (int c = 0; c < C; ++c) {
      const T* from = corner + channels.order[c] * stride_c;
      for (int r = 0; r < 4; ++r) _mm_storeu_ps(cells + 16 * c + 4 * r, load4(from + r * stride_y));
    }
    return;
  }
  std::memset(cells, 0, sizeof(float) * 16 * C);
  for (int c = 0; c < C; ++c) {
    const T* from = corner + channels.order[c] * stride_c;
    for (int r = 0; r < rows; ++r) _mm_storeu_ps(cells + 16 * c + 4 * r, load_some(from + r * stride_y, cols));
  }
}

#if defined(VOSNET_BF16)

inline __m512i interleave_pairs(__m512 even, __m512 odd) {
  alignas(64) static constexpr uint16_t kOrder[32] = {0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23,
                                                      8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  __m512i both = (__m512i)_mm512_cvtne2ps_pbh(odd, even);
  return _mm512_permutexvar_epi16(_mm512_load_si512(kOrder), both);
}
inline __m512 round_bf16(__m512 x) {
  __m512i wide = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(x));
  return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}

// Rows and columns of a 16 x 16 block change places; row i goes to `to[i]`.
inline void transpose16(const float* from, float* const* to) {
  __m512 a[16], b[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) a[i] = _mm512_loadu_ps(from + 16 * i);
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    b[i] = _mm512_unpacklo_ps(a[i], a[i + 1]);
    b[i + 1] = _mm512_unpackhi_ps(a[i], a[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4)
#pragma GCC unroll 2
    for (int j = 0; j < 2; ++j) {
      __m512d lo = _mm512_castps_pd(b[i + j]), hi = _mm512_castps_pd(b[i + j + 2]);
      a[i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(lo, hi));
      a[i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(lo, hi));
    }
  // a[4 g + j] holds, in its 128-bit part p, rows 4 g .. 4 g + 3 of column 4 p + j
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    __m512 low02 = _mm512_shuffle_f32x4(a[j], a[4 + j], 0x88), low13 = _mm512_shuffle_f32x4(a[j], a[4 + j], 0xdd);
    __m512 high02 = _mm512_shuffle_f32x4(a[8 + j], a[12 + j], 0x88),
           high13 = _mm512_shuffle_f32x4(a[8 + j], a[12 + j], 0xdd);
    _mm512_storeu_ps(to[j], _mm512_shuffle_f32x4(low02, high02, 0x88));
    _mm512_storeu_ps(to[4 + j], _mm512_shuffle_f32x4(low13, high13, 0x88));
    _mm512_storeu_ps(to[8 + j], _mm512_shuffle_f32x4(low02, high02, 0xdd));
    _mm512_storeu_ps(to[12 + j], _mm512_shuffle_f32x4(low13, high13, 0xdd));
  }
}

// cells [padded][16] -> rows: cell (r, x) of the patch goes to `to + r * row_stride + x * padded`.
inline void write_rows(const float* cells, int padded, int rows, int cols, float* to, int64_t row_stride) {
  alignas(64) float nowhere[16];  // for cells beyond the frame
  for (int c = 0; c < padded; c += 16) {
    float* row[16];
    for (int i = 0; i < 16; ++i)
      row[i] = i / 4 < rows && i % 4 < cols ? to + i / 4 * row_stride + i % 4 * static_cast<int64_t>(padded) + c
                                            : nowhere;
    transpose16(cells + 16 * c, row);
  }
}

#endif

// Norms of the 16 cells: whole, after each check, and (half precision) of the rounding residual.
inline void measure(const float* cells, const Channels& channels, int64_t patch, const PackedFrame& to) {
  const auto round_up = [](Lanes square, float* to) {
    float x[16];
    store(x, square);
    for (int i = 0; i < 16; ++i) to[i] = 1.0001f * std::sqrt(x[i]) + 1e-17f;  // squares below 1e-38 vanish
  };
  Lanes square[2] = {broadcast(0), broadcast(0)}, lost = broadcast(0);  // two sums hide the latency of the addition
  int check = channels.num_checks - 1;
  for (int last = channels.padded; last > 0;) {
    const int first = check < 0 ? 0 : channels.check[check] * kChannelsPerStep;
    for (int c = first; c < last; c += 2)
      for (int j = 0; j < 2; ++j) {
        const Lanes x = load(cells + 16 * (c + j));
        square[j] = multiply_add(x, x, square[j]);
#if defined(VOSNET_BF16)
        const Lanes away = {_mm512_sub_ps(x.v, round_bf16(x.v))};
        lost = multiply_add(away, away, lost);
#endif
      }
    const Lanes sum = multiply_add(square[0], broadcast(1), square[1]);
    round_up(sum, check < 0 ? to.norm + 16 * patch : to.rest + check * to.rest_stride + 16 * patch);
    last = first;
    --check;
  }
  round_up(lost, to.residual + 16 * patch);
}

// cells [padded][16] -> the patch in the layout that advance() reads.
inline void write_patch(const float* cells, const Channels& channels, bool row_major, char* patch) {
#if defined(VOSNET_BF16)
  if (row_major) {  // queries of the AMX path: [16 cells][padded] bf16
    auto* to = reinterpret_cast<uint16_t*>(patch);
    for (int c = 0; c < channels.padded; ++c) {
      alignas(32) uint16_t half[16];
      _mm256_store_si256(reinterpret_cast<__m256i*>(half), (__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(cells + 16 * c)));
      for (int i = 0; i < 16; ++i) to[static_cast<int64_t>(i) * channels.padded + c] = half[i];
    }
    return;
  }
  for (int step = 0; step < channels.num_steps; ++step)
    _mm512_storeu_si512(patch + step * kStepBytes, interleave_pairs(_mm512_loadu_ps(cells + 32 * step),
                                                                    _mm512_loadu_ps(cells + 32 * step + 16)));
#else
  (void)row_major;
  std::memcpy(patch, cells, static_cast<size_t>(channels.num_steps) * kStepBytes);
#endif
}

// A frame [C, h, w] in memory, in any of the dtypes.
struct FrameView {
  const void* data;
  int32_t dtype;
  int64_t offset, stride_c, stride_y;  // in elements
  int h, w;

  template <typename Body>
  auto visit(Body body) const {
    if (dtype == kFloat16) return body(static_cast<const Float16*>(data) + offset);
    if (dtype == kBFloat16) return body(static_cast<const BFloat16*>(data) + offset);
    return body(static_cast<const float*>(data) + offset);
  }
};

// Sum of squares of one channel over every other row.
inline float channel_energy_of(const FrameView& frame, int c) {
  return frame.visit([&](const auto* data) {
    __m128 squares = _mm_setzero_ps();
    for (int y = 0; y < frame.h; y += 2)
      for (int x = 0; x < frame.w; x += 4) {
        const auto* from = data + c * frame.stride_c + y * frame.stride_y + x;
        const __m128 v = x + 4 <= frame.w ? load4(from) : load_some(from, frame.w - x);
        squares = _mm_fmadd_ps(v, v, squares);
      }
    float part[4];
    _mm_storeu_ps(part, squares);
    return part[0] + part[1] + part[2] + part[3];
  });
}

// Packs row `py` of the frame's patches.
inline void pack_row(const FrameView& frame, int py, bool is_query, const Channels& channels, const PackedFrame& to) {
  const int nx = ceil_div(frame.w, 4), rows = std::min(4, frame.h - 4 * py);
  std::vector<float> cells(16 * static_cast<size_t>(channels.padded));
  for (int px = 0; px < nx; ++px) {
    const int cols = std::min(4, frame.w - 4 * px);
    const int64_t patch = static_cast<int64_t>(py) * nx + px;
    frame.visit([&](const auto* data) {
      gather_patch(data + 4 * py * frame.stride_y + 4 * px, frame.stride_c, frame.stride_y, rows, cols, channels,
                   cells.data());
    });
    measure(cells.data(), channels, patch, to);
    write_patch(cells.data(), channels, is_query && kQueryRowMajor,
                to.patches + patch * channels.num_steps * kStepBytes);
#if defined(VOSNET_BF16)
    write_rows(cells.data(), channels.padded, rows, cols,
               to.rows + (static_cast<int64_t>(4 * py) * frame.w + 4 * px) * channels.padded,
               static_cast<int64_t>(frame.w) * channels.padded);
#endif
  }
}

}  // namespace vosnet
