// The matrix product in the middle: scores of kRows query cells with the 16 keys of each of a few patches, over a
// range of channel steps. One step is 64 bytes of a patch: 2 bf16 channels or 1 float32 channel of 16 cells.
//
// advance() continues scores[p][row][key] from step `first` to step `last` (it starts at zero when first is 0).
#pragma once

#include "simd16.h"
#include "tiles_amx.h"

namespace vosnet {

constexpr int kStepBytes = 64;
constexpr int kStepMultiple = 16;  // a tile of AMX holds 16 steps
#if defined(VOSNET_BF16)
constexpr bool kHalfPrecision = true;
#else
constexpr bool kHalfPrecision = false;
#endif
constexpr int kChannelsPerStep = kHalfPrecision ? 2 : 1;

#if defined(VOSNET_AMX)

constexpr int kRows = 16, kMaxPatches = 4;
constexpr bool kQueryRowMajor = true;

// Tiles 0 to 3 hold the sums of four patches, 4 the queries [16][32 channels], 5 the keys [16 pairs][16 cells][2].
#define SUM_TILE_BEGIN(p)                                  \
  if (n > p) {                                             \
    if (first == 0) {                                      \
      _tile_zero(p);                                        \
    } else {                                               \
      _tile_loadd(p, scores[p], 64);                         \
    }                                                      \
  }
#define SUM_TILE_ADD(p)                                    \
  if (n > p) {                                             \
    _tile_loadd(5, keys[p] + step * kStepBytes, kStepBytes); \
    _tile_dpbf16ps(p, 4, 5);                                \
  }
#define SUM_TILE_END(p) \
  if (n > p) _tile_stored(p, scores[p], 64);

inline void advance(const char* queries, int num_steps, const char* const* keys, int n, int first, int last,
                    float* const* scores) {
  SUM_TILE_BEGIN(0) SUM_TILE_BEGIN(1) SUM_TILE_BEGIN(2) SUM_TILE_BEGIN(3)
  for (long step = first; step < last; step += 16) {
    _tile_loadd(4, queries + step * 4, num_steps * 4);
    SUM_TILE_ADD(0) SUM_TILE_ADD(1) SUM_TILE_ADD(2) SUM_TILE_ADD(3)
  }
  SUM_TILE_END(0) SUM_TILE_END(1) SUM_TILE_END(2) SUM_TILE_END(3)
}

#elif defined(__AVX512F__)

constexpr int kRows = 8, kMaxPatches = 3;  // 24 sums + 3 keys + 1 query fill the 32 registers
constexpr bool kQueryRowMajor = false;

#if defined(VOSNET_BF16)
inline __m512 product(__m512i query, __m512i key, __m512 sum) {
  return _mm512_dpbf16_ps(sum, (__m512bh)query, (__m512bh)key);
}
#else
inline __m512 product(__m512i query, __m512i key, __m512 sum) {
  return _mm512_fmadd_ps(_mm512_castsi512_ps(query), _mm512_castsi512_ps(key), sum);
}
#endif

template <int N>
inline void advance_n(const char* queries, const char* const* keys, int first, int last, float* const* scores) {
  __m512 sum[kRows][N];
#pragma GCC unroll 8
  for (int m = 0; m < kRows; ++m)
#pragma GCC unroll 3
    for (int p = 0; p < N; ++p)
      sum[m][p] = first == 0 ? _mm512_setzero_ps() : _mm512_loadu_ps(scores[p] + 16 * m);
  for (long offset = first * kStepBytes; offset < last * kStepBytes; offset += kStepBytes) {
    __m512i key[N];
#pragma GCC unroll 3
    for (int p = 0; p < N; ++p) key[p] = _mm512_loadu_si512(keys[p] + offset);
    const int* lane = reinterpret_cast<const int*>(queries + offset);
#pragma GCC unroll 8
    for (int m = 0; m < kRows; ++m) {
      __m512i query = _mm512_set1_epi32(lane[m]);
#pragma GCC unroll 3
      for (int p = 0; p < N; ++p) sum[m][p] = product(query, key[p], sum[m][p]);
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < kRows; ++m)
#pragma GCC unroll 3
    for (int p = 0; p < N; ++p) _mm512_storeu_ps(scores[p] + 16 * m, sum[m][p]);
}

inline void advance(const char* queries, int, const char* const* keys, int n, int first, int last,
                    float* const* scores) {
  if (n == 3) advance_n<3>(queries, keys, first, last, scores);
  if (n == 2) advance_n<2>(queries, keys, first, last, scores);
  if (n == 1) advance_n<1>(queries, keys, first, last, scores);
}

#else  // AVX2 and FMA

constexpr int kRows = 8, kMaxPatches = 1;
constexpr bool kQueryRowMajor = false;

inline void advance(const char* queries, int, const char* const* keys, int, int first, int last,
                    float* const* scores) {
  for (int half = 0; half < kRows; half += 4) {  // 4 x 2 sums hide the latency of two FMA pipes
    __m256 sum[4][2];
#pragma GCC unroll 4
    for (int m = 0; m < 4; ++m)
      for (int j = 0; j < 2; ++j)
        sum[m][j] = first == 0 ? _mm256_setzero_ps() : _mm256_loadu_ps(scores[0] + 16 * (half + m) + 8 * j);
    for (long offset = first * kStepBytes; offset < last * kStepBytes; offset += kStepBytes) {
      const float* key = reinterpret_cast<const float*>(keys[0] + offset);
      const float* lane = reinterpret_cast<const float*>(queries + offset) + half;
      __m256 lo = _mm256_loadu_ps(key), hi = _mm256_loadu_ps(key + 8);
#pragma GCC unroll 4
      for (int m = 0; m < 4; ++m) {
        __m256 query = _mm256_broadcast_ss(lane + m);
        sum[m][0] = _mm256_fmadd_ps(query, lo, sum[m][0]);
        sum[m][1] = _mm256_fmadd_ps(query, hi, sum[m][1]);
      }
    }
#pragma GCC unroll 4
    for (int m = 0; m < 4; ++m)
      for (int j = 0; j < 2; ++j) _mm256_storeu_ps(scores[0] + 16 * (half + m) + 8 * j, sum[m][j]);
  }
}

#endif

}  // namespace vosnet
