// AVX-512, its bf16 instructions and (with VOSNET_AMX) AMX tiles as plain loops: included before the kernel, it lets
// a processor that has only AVX2 run the half-precision paths, slowly and with the same rounding.
#pragma once

#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cmath>
#include <cstdint>
#include <cstring>

#pragma GCC diagnostic ignored "-Wpsabi"

namespace by_loops {

template <typename To, typename From>
To bits(From from) {
  static_assert(sizeof(To) == sizeof(From), "a cast keeps the size");
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}
template <typename T>
T load(const void* from) {
  T to;
  std::memcpy(&to, from, sizeof to);
  return to;
}
template <typename T>
void store(void* to, T from) {
  std::memcpy(to, &from, sizeof from);
}

struct Words {
  uint32_t at[16];
};
struct Halves {
  uint16_t at[32];
};
struct Floats {
  float at[16];
};

// Round to nearest, ties to even: what the processor does (not-a-number does not occur in the tests).
inline uint16_t to_bf16(float x) {
  const uint32_t word = bits<uint32_t>(x);
  return static_cast<uint16_t>((word + 0x7fff + (word >> 16 & 1)) >> 16);
}
inline float from_bf16(uint32_t half) { return bits<float>(half << 16); }
inline float product_of_pairs(float sum, uint32_t a, uint32_t b) {
  sum = std::fma(from_bf16(a >> 16), from_bf16(b >> 16), sum);
  return std::fma(from_bf16(a & 0xffff), from_bf16(b & 0xffff), sum);
}

template <typename Body>
__m512 each(Body body) {
  Floats to;
  for (int i = 0; i < 16; ++i) to.at[i] = body(i);
  return bits<__m512>(to);
}
inline __m512 broadcast(float x) {
  return each([&](int) { return x; });
}
inline __m512i broadcast_word(int32_t x) { return bits<__m512i>(broadcast(bits<float>(x))); }
inline __m512 fused(__m512 a, __m512 b, __m512 c) {
  return each([&](int i) { return std::fma(a[i], b[i], c[i]); });
}
inline __m512 minus(__m512 a, __m512 b) {
  return each([&](int i) { return a[i] - b[i]; });
}
inline float sum_of(__m512 a) {
  for (int width = 8; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) a[i] += a[i + width];
  return a[0];
}
inline unsigned at_least(__m512 a, __m512 b) {
  unsigned mask = 0;
  for (int i = 0; i < 16; ++i) mask |= (a[i] >= b[i] ? 1u : 0u) << i;
  return mask;
}

inline __m256i narrow(__m512 x) {
  uint16_t half[16];
  for (int i = 0; i < 16; ++i) half[i] = to_bf16(x[i]);
  return load<__m256i>(half);
}
inline __m512i narrow_two(__m512 high, __m512 low) {
  Halves to;
  for (int i = 0; i < 16; ++i) {
    to.at[i] = to_bf16(low[i]);
    to.at[16 + i] = to_bf16(high[i]);
  }
  return bits<__m512i>(to);
}
inline __m512i widen(__m256i x) {
  uint16_t half[16];
  store(half, x);
  Words to;
  for (int i = 0; i < 16; ++i) to.at[i] = half[i];
  return bits<__m512i>(to);
}
inline __m512i shifted(__m512i x, int by) {
  Words words = bits<Words>(x);
  for (uint32_t& word : words.at) word <<= by;
  return bits<__m512i>(words);
}
inline __m512i permuted(__m512i order, __m512i x) {
  const Halves from = bits<Halves>(x), index = bits<Halves>(order);
  Halves to;
  for (int i = 0; i < 32; ++i) to.at[i] = from.at[index.at[i] % 32];
  return bits<__m512i>(to);
}
template <typename Key>
__m512 product_of_halves(__m512 sum, __m512i query, Key key) {
  const Words a = bits<Words>(query), b = bits<Words>(key);
  return each([&](int i) { return product_of_pairs(sum[i], a.at[i], b.at[i]); });
}

// Interleaves units of `unit` floats of a and b within each part of four floats, from its low or its high half.
inline __m512 unpacked(__m512 a, __m512 b, int unit, int half) {
  return each([&](int i) {
    const int in_part = i % 4, from = i - in_part + 2 * half + (unit == 1 ? in_part / 2 : in_part % 2);
    return in_part / unit % 2 == 0 ? a[from] : b[from];
  });
}
inline __m512d unpacked(__m512d a, __m512d b, int half) {
  return bits<__m512d>(unpacked(bits<__m512>(a), bits<__m512>(b), 2, half));
}
inline __m512 parts(__m512 a, __m512 b, int chosen) {
  return each([&](int i) {
    const int from = 4 * (chosen >> 2 * (i / 4) & 3) + i % 4;
    return i < 8 ? a[from] : b[from];
  });
}

struct TileFile {
  uint32_t word[8][16][16];  // 8 tiles of 16 rows of 64 bytes
};
inline TileFile& tile_file() {
  static thread_local TileFile file;
  return file;
}
inline void tile_zero(int d) { std::memset(tile_file().word[d], 0, sizeof tile_file().word[d]); }
inline void tile_load(int d, const void* base, int64_t stride) {
  for (int r = 0; r < 16; ++r) std::memcpy(tile_file().word[d][r], static_cast<const char*>(base) + r * stride, 64);
}
inline void tile_store(int s, void* base, int64_t stride) {
  for (int r = 0; r < 16; ++r) std::memcpy(static_cast<char*>(base) + r * stride, tile_file().word[s][r], 64);
}
// d[m][n] += sum over p of a[m][2p] b[p][2n] + a[m][2p + 1] b[p][2n + 1]
inline void tile_multiply(int d, int a, int b) {
  TileFile& f = tile_file();
  for (int m = 0; m < 16; ++m)
    for (int p = 0; p < 16; ++p)
      for (int n = 0; n < 16; ++n) {
        const float sum = product_of_pairs(bits<float>(f.word[d][m][n]), f.word[a][m][p], f.word[b][p][n]);
        f.word[d][m][n] = bits<uint32_t>(sum);
      }
}

}  // namespace by_loops

#define __AVX512F__ 1
#define _mm512_castpd_ps(x) by_loops::bits<__m512>(x)
#define _mm512_castps_pd(x) by_loops::bits<__m512d>(x)
#define _mm512_castsi512_ps(x) by_loops::bits<__m512>(x)
#define _mm512_cmp_ps_mask(a, b, relation) by_loops::at_least(a, b)
#define _mm512_cvtepu16_epi32(x) by_loops::widen(x)
#define _mm512_cvtne2ps_pbh(high, low) by_loops::narrow_two(high, low)
#define _mm512_cvtneps_pbh(x) by_loops::narrow(x)
#define _mm512_dpbf16_ps(sum, a, b) by_loops::product_of_halves(sum, by_loops::bits<__m512i>(a), b)
#define _mm512_fmadd_ps(a, b, c) by_loops::fused(a, b, c)
#define _mm512_load_si512(p) by_loops::load<__m512i>(p)
#define _mm512_loadu_ps(p) by_loops::load<__m512>(p)
#define _mm512_loadu_si512(p) by_loops::load<__m512i>(p)
#define _mm512_permutexvar_epi16(order, x) by_loops::permuted(order, x)
#define _mm512_reduce_add_ps(x) by_loops::sum_of(x)
#define _mm512_set1_epi32(x) by_loops::broadcast_word(x)
#define _mm512_set1_ps(x) by_loops::broadcast(x)
#define _mm512_setzero_ps() by_loops::broadcast(0)
#define _mm512_shuffle_f32x4(a, b, chosen) by_loops::parts(a, b, chosen)
#define _mm512_slli_epi32(x, by) by_loops::shifted(x, by)
#define _mm512_storeu_ps(p, x) by_loops::store(p, x)
#define _mm512_storeu_si512(p, x) by_loops::store(p, x)
#define _mm512_sub_ps(a, b) by_loops::minus(a, b)
#define _mm512_unpackhi_pd(a, b) by_loops::unpacked(a, b, 1)
#define _mm512_unpackhi_ps(a, b) by_loops::unpacked(a, b, 1, 1)
#define _mm512_unpacklo_pd(a, b) by_loops::unpacked(a, b, 0)
#define _mm512_unpacklo_ps(a, b) by_loops::unpacked(a, b, 1, 0)
#undef _tile_dpbf16ps
#define _tile_dpbf16ps(d, a, b) by_loops::tile_multiply(d, a, b)
#define _tile_loadconfig(config) (void)(config)
#undef _tile_loadd
#define _tile_loadd(d, base, stride) by_loops::tile_load(d, base, stride)
#define _tile_release() (void)0
#undef _tile_stored
#define _tile_stored(s, base, stride) by_loops::tile_store(s, base, stride)
#undef _tile_zero
#define _tile_zero(d) by_loops::tile_zero(d)
#define syscall(...) 0  // permission to use tiles that are loops
