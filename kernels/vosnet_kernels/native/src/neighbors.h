// The k best cells of one query, exact: larger float32 score first, then lower (frame, y, x).
//
// Candidates arrive with a score that may be approximate (half precision) and at most `margin` away from the exact
// one. Every candidate that could still belong to the k best is kept pending and re-scored exactly before it is
// judged, so nothing is lost to rounding: a cell is passed over only if score < kth exact score - margin.
#pragma once

#include <algorithm>
#include <limits>

#include "block.h"

namespace vosnet {

struct Candidate {
  float score;
  int32_t cell;
};

inline bool better(const Candidate& a, const Candidate& b) {
  return a.score > b.score || (a.score == b.score && a.cell < b.cell);
}

// A sorted list of at most k entries in memory that outlives it.
struct Nearest {
  Candidate* entry;
  int k;
  int* count;

  float bar() const { return *count < k ? -std::numeric_limits<float>::infinity() : entry[k - 1].score; }

  void offer(Candidate c) {
    if (*count == k) {
      if (!better(c, entry[k - 1])) return;
    } else {
      ++*count;
    }
    int i = *count - 1;
    for (; i > 0 && better(c, entry[i - 1]); --i) entry[i] = entry[i - 1];
    entry[i] = c;
  }
};

#if defined(__AVX512F__)
// Exact scores of four keys. Every score is summed in the same order, so equal keys get equal scores.
inline void dot4(const float* query, const float* const* key, int padded, float* score) {
  __m512 sum[4] = {_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps()};
  for (int c = 0; c < padded; c += 16) {
    __m512 q = _mm512_loadu_ps(query + c);
    for (int i = 0; i < 4; ++i) sum[i] = _mm512_fmadd_ps(q, _mm512_loadu_ps(key[i] + c), sum[i]);
  }
  for (int i = 0; i < 4; ++i) score[i] = _mm512_reduce_add_ps(sum[i]);
}
#endif

// Candidates of one query that still await judgment.
struct Pending {
  static constexpr int kCapacity = 96;
  Candidate entry[kCapacity];
  int count = 0;

  bool has_room() const { return count + 16 <= kCapacity; }

  // Adds the candidates of one patch whose bit is set.
  void add(unsigned mask, const float* score, const int32_t* cell) {
    for (; mask; mask &= mask - 1) {
      int i = __builtin_ctz(mask);
      entry[count++] = {score[i], cell[i]};
    }
  }

  // Judges everything pending. In half precision `row(cell)` gives a cell's float32 features for exact re-scoring.
  // Returns how many were re-scored.
  template <typename Row>
  int settle(Nearest& nearest, float margin, const float* query, int padded, Row row) {
    int rescored = 0;
#if defined(VOSNET_BF16)
    if (*nearest.count < nearest.k && count > nearest.k)  // the likely best first: they raise the bar for the rest
      std::nth_element(entry, entry + nearest.k, entry + count, better);
    for (int i = 0; i < count;) {
      Candidate batch[4];
      const float* keys[4];
      int n = 0;
      const float bar = nearest.bar() - margin;
      for (; i < count && n < 4; ++i)
        if (entry[i].score >= bar) batch[n++] = entry[i];
      if (n == 0) break;
      for (int j = 0; j < 4; ++j) keys[j] = row(batch[j < n ? j : 0].cell);
      float score[4];
      dot4(query, keys, padded, score);
      for (int j = 0; j < n; ++j) nearest.offer({score[j], batch[j].cell});
      rescored += n;
    }
#else
    (void)margin, (void)query, (void)padded, (void)row;
    for (int i = 0; i < count; ++i) nearest.offer(entry[i]);
#endif
    count = 0;
    return rescored;
  }
};

}  // namespace vosnet
