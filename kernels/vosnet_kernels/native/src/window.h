// Which patches a query tile (4 x 4 cells) must look at, nearest first, and which of their 16 keys each query may take.
#pragma once

#include <algorithm>
#include <array>
#include <cstdlib>
#include <vector>

#include "problem.h"

namespace vosnet {

struct Neighbor {
  int dy, dx;                        // in patches
  std::array<uint16_t, 16> allowed;  // per query cell of the tile, a bit per key cell of the patch
};

inline bool in_window(int dy, int dx, int radius, bool disc) {
  if (disc) return static_cast<int64_t>(dy) * dy + static_cast<int64_t>(dx) * dx < static_cast<int64_t>(radius) * radius;
  return std::abs(dy) <= radius && std::abs(dx) <= radius;
}

// All relative patches with a cell in somebody's window; `everywhere` ignores the window.
inline std::vector<Neighbor> neighborhood(int radius, bool disc, bool everywhere, int ny, int nx) {
  const int reach = everywhere ? std::max(ny, nx) : ceil_div(radius, 4);
  const int reach_y = std::min(reach, ny - 1), reach_x = std::min(reach, nx - 1);
  std::vector<Neighbor> list;
  for (int dy = -reach_y; dy <= reach_y; ++dy)
    for (int dx = -reach_x; dx <= reach_x; ++dx) {
      Neighbor n{dy, dx, {}};
      bool any = false;
      for (int q = 0; q < 16; ++q)
        for (int key = 0; key < 16; ++key)
          if (everywhere || in_window(4 * dy + key / 4 - q / 4, 4 * dx + key % 4 - q % 4, radius, disc)) {
            n.allowed[q] |= 1u << key;
            any = true;
          }
      if (any) list.push_back(n);
    }
  std::stable_sort(list.begin(), list.end(), [](const Neighbor& a, const Neighbor& b) {
    return a.dy * a.dy + a.dx * a.dx < b.dy * b.dy + b.dx * b.dx;
  });
  return list;
}

// Bits of the key cells of patch (py, px) that lie inside the frame.
inline uint16_t cells_in_frame(int py, int px, int h, int w) {
  if (4 * py + 4 <= h && 4 * px + 4 <= w) return 0xffff;
  uint16_t mask = 0;
  for (int i = 0; i < 16; ++i)
    if (4 * py + i / 4 < h && 4 * px + i % 4 < w) mask |= 1u << i;
  return mask;
}

}  // namespace vosnet
