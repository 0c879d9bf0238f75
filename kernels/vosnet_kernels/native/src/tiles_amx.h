// The tile operations of the AMX path: the processor's own, or plain loops with the same meaning for tests.
// Macros because the instructions take the tile's number as a literal.
#pragma once

#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>

#if defined(VOSNET_EMULATE_TILES)

namespace vosnet {

struct TileFile {
  uint32_t word[8][16][16];  // 8 tiles of 16 rows of 64 bytes
};
inline TileFile& tile_file() {
  static thread_local TileFile file;
  return file;
}
inline bool request_tiles() { return true; }
inline void configure_tiles() {}
inline void release_tiles() {}

inline void emulated_zero(int d) { std::memset(tile_file().word[d], 0, sizeof(tile_file().word[d])); }
inline void emulated_load(int d, const void* base, int stride) {
  for (int r = 0; r < 16; ++r) std::memcpy(tile_file().word[d][r], static_cast<const char*>(base) + r * stride, 64);
}
inline void emulated_store(int s, void* base, int stride) {
  for (int r = 0; r < 16; ++r) std::memcpy(static_cast<char*>(base) + r * stride, tile_file().word[s][r], 64);
}
inline float float_of_bf16(uint32_t bits) {
  float x;
  bits <<= 16;
  std::memcpy(&x, &bits, 4);
  return x;
}
// d[m][n] += sum over p of a[m][2p] b[p][2n] + a[m][2p + 1] b[p][2n + 1]
inline void emulated_multiply(int d, int a, int b) {
  TileFile& f = tile_file();
  for (int m = 0; m < 16; ++m)
    for (int p = 0; p < 16; ++p)
      for (int n = 0; n < 16; ++n) {
        float sum;
        std::memcpy(&sum, &f.word[d][m][n], 4);
        sum += float_of_bf16(f.word[a][m][p] & 0xffff) * float_of_bf16(f.word[b][p][n] & 0xffff);
        sum += float_of_bf16(f.word[a][m][p] >> 16) * float_of_bf16(f.word[b][p][n] >> 16);
        std::memcpy(&f.word[d][m][n], &sum, 4);
      }
}

}  // namespace vosnet

#define TILE_ZERO(d) vosnet::emulated_zero(d)
#define TILE_LOAD(d, base, stride) vosnet::emulated_load(d, base, stride)
#define TILE_STORE(s, base, stride) vosnet::emulated_store(s, base, stride)
#define TILE_MULTIPLY(d, a, b) vosnet::emulated_multiply(d, a, b)

#else

namespace vosnet {

// Linux lends the tile registers only to a process that asks: ARCH_REQ_XCOMP_PERM for XFEATURE_XTILEDATA.
inline bool request_tiles() { return syscall(SYS_arch_prctl, 0x1023, 18) == 0; }

inline void configure_tiles() {
  struct alignas(64) {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  } config;
  _tile_loadconfig(&config);
}
inline void release_tiles() { _tile_release(); }

}  // namespace vosnet

#define TILE_ZERO(d) _tile_zero(d)
#define TILE_LOAD(d, base, stride) _tile_loadd(d, base, stride)
#define TILE_STORE(s, base, stride) _tile_stored(s, base, stride)
#define TILE_MULTIPLY(d, a, b) _tile_dpbf16ps(d, a, b)

#endif
