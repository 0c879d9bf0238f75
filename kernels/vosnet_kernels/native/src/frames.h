// Buffers for packed frames, and the order in which channels are walked.
#pragma once

#include <cstdlib>
#include <memory>
#include <new>
#include <numeric>

#include "pack.h"

namespace vosnet {

struct FreeDeleter {
  void operator()(void* p) const { std::free(p); }
};
template <typename T>
using Buffer = std::unique_ptr<T[], FreeDeleter>;
template <typename T>
Buffer<T> allocate(int64_t count) {
  size_t bytes = (static_cast<size_t>(count) * sizeof(T) + 127) / 64 * 64;
  void* p = std::aligned_alloc(64, bytes);
  if (p == nullptr) throw std::bad_alloc();
  return Buffer<T>(static_cast<T*>(p));
}

// Storage of some packed frames.
struct PackedFrames {
  PackedFrames(int frames, int64_t patches, int64_t cells, const Channels& channels)
      : patch_bytes(static_cast<int64_t>(channels.num_steps) * kStepBytes), patches_per_frame(patches),
        row_floats(kHalfPrecision ? cells * channels.padded : 0), num_checks(channels.num_checks),
        patch(allocate<char>(frames * patches * patch_bytes)), norm(allocate<float>(frames * patches * 16)),
        residual(allocate<float>(frames * patches * 16)),
        rest(allocate<float>(std::max<int64_t>(1, frames * patches * 16 * num_checks))),
        rows(allocate<float>(frames * row_floats + 16)) {}

  PackedFrame frame(int i) const {
    const int64_t first = i * patches_per_frame;
    return {patch.get() + first * patch_bytes,  norm.get() + 16 * first, residual.get() + 16 * first,
            rest.get() + 16 * num_checks * first, rows.get() + i * row_floats, 16 * patches_per_frame};
  }

  int64_t patch_bytes, patches_per_frame, row_floats, num_checks;
  Buffer<char> patch;
  Buffer<float> norm, residual, rest, rows;
};

// Strongest channels first; bounds are checked after 1/8, 1/4 and 1/2 of them, where that many steps exist.
inline Channels walk(const Problem& p, const std::vector<float>& energy) {
  Channels channels;
  channels.order.resize(p.C);
  std::iota(channels.order.begin(), channels.order.end(), 0);
  std::stable_sort(channels.order.begin(), channels.order.end(), [&](int a, int b) { return energy[a] > energy[b]; });
  const int multiple = kStepMultiple * kChannelsPerStep;
  channels.padded = ceil_div(p.C, multiple) * multiple;
  channels.num_steps = channels.padded / kChannelsPerStep;
  channels.num_checks = 0;
  for (int part : {8, 4, 2}) {
    int step = channels.num_steps / part / kStepMultiple * kStepMultiple;
    int previous = channels.num_checks ? channels.check[channels.num_checks - 1] : 0;
    if (p.prune && step >= previous + kStepMultiple) channels.check[channels.num_checks++] = step;
  }
  return channels;
}

}  // namespace vosnet
