// The call: sizes, strides, pointers. Filled by Python through ctypes; the two layouts must agree.
#pragma once

#include <cstdint>

namespace vosnet {

enum DType : int32_t { kFloat32 = 0, kFloat16 = 1, kBFloat16 = 2 };

extern "C" struct Problem {
  const void* query;        // [C, h, w]
  const void* memory;       // [T, C, h, w]
  const float* value;       // [T, M, h, w]
  float* out;               // [M, h, w], contiguous
  int64_t query_strides[2];   // of C and h, in elements; w has stride 1
  int64_t memory_strides[3];  // of T, C and h
  int64_t value_strides[4];   // of T, M, h and w
  int64_t counters[3];        // out: pairs looked at, summed over all channels, re-scored exactly
  int32_t T, C, h, w, M, k;
  int32_t radius, disc, global_frames;
  int32_t dtype, num_threads, prune;
  float temperature;
};

inline int ceil_div(int a, int b) { return (a + b - 1) / b; }
inline int floor_div(int a, int b) { return a >= 0 ? a / b : -((-a + b - 1) / b); }

}  // namespace vosnet
