// The tile registers of the AMX path; nothing to do for the others.
#pragma once

#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>

namespace vosnet {

#if defined(VOSNET_AMX)

// Linux gives the tile registers only to a process that asks: ARCH_REQ_XCOMP_PERM for XFEATURE_XTILEDATA.
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

#else

inline bool request_tiles() { return true; }
inline void configure_tiles() {}
inline void release_tiles() {}

#endif

}  // namespace vosnet
