// k nearest neighbors over a space-time window, softmax, copied values: one call per batch element.
//
// Frames are taken in rounds, latest first: a round packs some frames into cache-sized buffers, then every query tile
// searches its window in them. Scores are summed channel block by channel block; after a block the rest is bounded
// by Cauchy-Schwarz (sum so far + |rest of query| |rest of key|), and whole patches that cannot reach the bar of any
// of their queries are dropped. In half precision the bound and the bar carry a margin for bf16 rounding, and what
// passes is re-scored in float32 (neighbors.h): the result does not depend on the precision of the search.
#include "frames.h"
#include "neighbors.h"
#include "threads.h"
#include "window.h"

namespace vosnet {

constexpr int kWave = 48;       // patches in flight at once: their partial sums stay in the cache
constexpr int kFirstWave = 9;   // the nearest ones go first and raise the bar
constexpr float kMaxNorm = 1e15f;  // beyond it float32 sums may overflow: the caller uses another implementation

class Search {
 public:
  explicit Search(const Problem& problem, int64_t* counters)
      : p_(problem), counters_(counters), ny_(ceil_div(p_.h, 4)), nx_(ceil_div(p_.w, 4)), tiles_(ny_ * nx_),
        team_(std::min(p_.num_threads, ceil_div(tiles_, 4))), channels_(walk(p_, channel_energy())),
        query_(1, tiles_, static_cast<int64_t>(p_.h) * p_.w, channels_),
        local_(neighborhood(p_.radius, p_.disc, false, ny_, nx_)),
        global_(p_.global_frames ? neighborhood(p_.radius, p_.disc, true, ny_, nx_) : std::vector<Neighbor>()),
        entries_(allocate<Candidate>(static_cast<int64_t>(tiles_) * 16 * p_.k)), counts_(tiles_ * 16, 0) {}

  // Returns false if a feature is not finite or so large that float32 sums could overflow.
  bool run(int64_t workspace_bytes) {
    team_.run(ny_, [&](int py) {
      pack_row({p_.query, p_.dtype, 0, p_.query_strides[0], p_.query_strides[1], p_.h, p_.w}, py, true, channels_,
               query_.frame(0));
    });
    if (!(largest(query_.norm.get(), tiles_) < kMaxNorm)) return false;
    const int64_t cells = static_cast<int64_t>(p_.h) * p_.w;
    const int64_t frame_bytes = tiles_ * query_.patch_bytes + 4 * query_.row_floats + 1;
    const int per_round = static_cast<int>(std::clamp<int64_t>(workspace_bytes / frame_bytes, 1, p_.T));
    PackedFrames memory(per_round, tiles_, cells, channels_);
    for (int last = p_.T; last > 0; last -= per_round) {
      const int first = std::max(0, last - per_round);
      if (!search_round(memory, first, last)) return false;
    }
    team_.run(ny_, [&](int py) { copy_row(py); });
    return true;
  }

 private:
  // Sum of squares of each channel over every other row of the query frame.
  std::vector<float> channel_energy() {
    std::vector<float> energy(p_.C, 0.0f);
    const FrameView frame = {p_.query, p_.dtype, 0, p_.query_strides[0], p_.query_strides[1], p_.h, p_.w};
    team_.run(p_.C, [&](int c) {
      const float sum = channel_energy_of(frame, c);
      energy[c] = sum < kMaxNorm ? sum : 0.0f;  // not a number must not reach the sort
    });
    return energy;
  }

  // NaN if any norm is.
  static float largest(const float* norm, int64_t patches) {
    float most = 0;
    for (int64_t i = 0; i < 16 * patches; ++i) {
      if (std::isnan(norm[i])) return norm[i];
      most = std::max(most, norm[i]);
    }
    return most;
  }

  bool search_round(const PackedFrames& memory, int first, int last) {
    const int frames = last - first;
    team_.run(frames * ny_, [&](int task) {
      const int i = task / ny_, py = task % ny_;
      pack_row({p_.memory, p_.dtype, (first + i) * p_.memory_strides[0], p_.memory_strides[1], p_.memory_strides[2],
                p_.h, p_.w},
               py, false, channels_, memory.frame(i));
    });
    const float norm = largest(memory.norm.get(), frames * static_cast<int64_t>(tiles_));
    if (!(norm < kMaxNorm)) return false;
    const float residual = largest(memory.residual.get(), frames * static_cast<int64_t>(tiles_));
    const int per_task = std::clamp(tiles_ / (team_.size() * 16), 1, nx_);  // neighbors share most of their keys
    std::atomic<int64_t> full{0}, all{0}, rescored{0};
    team_.run(ceil_div(tiles_, per_task), [&](int task) {
      TileSearch search(*this, memory, first, norm, residual);
      for (int tile = task * per_task; tile < std::min(tiles_, (task + 1) * per_task); ++tile)
        for (int t = last - 1; t >= first; --t) search.frame(tile, t);
      full += search.full_pairs;
      all += search.all_pairs;
      rescored += search.rescored;
    });
    counters_[0] += all;
    counters_[1] += full;
    counters_[2] += rescored;
    return true;
  }

  // The search of one thread through one packed round.
  struct TileSearch {
    TileSearch(Search& search, const PackedFrames& memory, int first, float norm, float residual)
        : s(search), memory(memory), first(first), key_norm(norm), key_residual(residual),
          sums(allocate<float>(kWave * kRows * 16)) {
      configure_tiles();
      for (int i = 0; i < kWave; ++i) slot[i] = sums.get() + i * kRows * 16;
    }
    ~TileSearch() { release_tiles(); }
    TileSearch(const TileSearch&) = delete;
    TileSearch& operator=(const TileSearch&) = delete;

    // |q.k - bf16(q).bf16(k)| <= |q - bf16(q)| |k| + |bf16(q)| |k - bf16(k)|, and summing C products in float32
    // adds at most about C / 2^24 of |q| |k|, here and in the exact score (counted twice, with a factor 2 to spare).
    float margin_of(int i) const {
      const float norm = query.norm[i], lost = query.residual[i];
      const float rounding = static_cast<float>(s.channels_.padded + 16) * 4 / (1 << 24);
      return 1.001f * (lost * key_norm + (norm + lost) * key_residual) + rounding * norm * key_norm + 1e-30f;
    }

    void frame(int tile, int t) {
      const int ty = tile / s.nx_, tx = tile % s.nx_;
      begin(tile, ty, tx);
      keys = memory.frame(t - first);
      const auto& neighbors = t < s.p_.global_frames ? s.global_ : s.local_;
      int n = 0, limit = kFirstWave;
      for (const Neighbor& neighbor : neighbors) {
        const int py = ty + neighbor.dy, px = tx + neighbor.dx;
        if (py < 0 || py >= s.ny_ || px < 0 || px >= s.nx_) continue;
        wave[n++] = {&neighbor, py, px};
        if (n == limit) {
          search_wave(n, t);
          n = 0;
          limit = kWave;
        }
      }
      if (n > 0) search_wave(n, t);
    }

    void begin(int tile, int ty, int tx) {
      const PackedFrame all = s.query_.frame(0);
      query = {all.patches + tile * s.query_.patch_bytes, all.norm + 16 * tile, all.residual + 16 * tile,
               all.rest + 16 * tile, all.rows, all.rest_stride};
      for (int q = 0; q < 16; ++q) {
        const int64_t i = static_cast<int64_t>(tile) * 16 + q;
        const int y = 4 * ty + q / 4, x = 4 * tx + q % 4;
        nearest[q] = {s.entries_.get() + i * s.p_.k, s.p_.k, &s.counts_[i]};
        row[q] = query.rows + (static_cast<int64_t>(y) * s.p_.w + x) * s.channels_.padded;
        margin[q] = margin_of(q);
        exists[q] = y < s.p_.h && x < s.p_.w;
        raise_bar(q);
      }
    }

    void raise_bar(int q) {
      bar[q] = exists[q] ? nearest[q].bar() - margin[q] : std::numeric_limits<float>::infinity();
    }

    void search_wave(int n, int t) {
      all_pairs += static_cast<int64_t>(n) * 256;
      for (int block = 0; block < 16; block += kRows) {
        int alive[kWave];
        std::iota(alive, alive + n, 0);
        int count = n, from = 0;
        for (int check = 0; check < s.channels_.num_checks && count > 0; ++check) {
          count = advance_all(block, alive, count, from, s.channels_.check[check], check);
          from = s.channels_.check[check];
        }
        finish(block, alive, count, from, t);
      }
      for (int q = 0; q < 16; ++q)
        if (pending[q].count > 0) settle(q);
    }

    const char* patch(int i) const {
      return keys.patches + (static_cast<int64_t>(wave[i].py) * s.nx_ + wave[i].px) * memory.patch_bytes;
    }

    // Continues the sums of the patches `alive`; keeps, at the front, those that can still matter.
    int advance_all(int block, int* alive, int count, int from, int to, int check) {
      int kept = 0;
      for (int i = 0; i < count; i += kMaxPatches) {
        const int group = std::min(kMaxPatches, count - i);
        advance_group(block, alive + i, i, group, from, to);
        for (int j = i; j < i + group; ++j) {
          if (!can_matter(block, alive[j], slot[j], check)) continue;
          alive[kept] = alive[j];
          std::swap(slot[kept++], slot[j]);
        }
      }
      return kept;
    }

    void advance_group(int block, const int* alive, int first_slot, int group, int from, int to) {
      const char* key[kMaxPatches];
      for (int j = 0; j < group; ++j) key[j] = patch(alive[j]);
      advance(query.patches + 4 * block, s.channels_.num_steps, key, group, from, to, slot + first_slot);
    }

    bool can_matter(int block, int i, const float* sum, int check) const {
      const int64_t cell = 16 * (static_cast<int64_t>(wave[i].py) * s.nx_ + wave[i].px);
      const Lanes key_rest = load(keys.rest + check * keys.rest_stride + cell);
      const float* query_rest = query.rest + check * query.rest_stride;
      unsigned any = 0;
      for (int m = 0; m < kRows; ++m) {
        Lanes bound = multiply_add(broadcast(query_rest[block + m]), key_rest, load(sum + 16 * m));
        any |= at_least(bound, broadcast(bar[block + m]));
      }
      return any != 0;
    }

    // Completes the sums of the surviving patches and collects every candidate above its query's bar.
    void finish(int block, const int* alive, int count, int from, int t) {
      full_pairs += static_cast<int64_t>(count) * kRows * 16;
      for (int i = 0; i < count; i += kMaxPatches) {
        const int group = std::min(kMaxPatches, count - i);
        advance_group(block, alive + i, i, group, from, s.channels_.num_steps);
        for (int j = i; j < i + group; ++j) collect(block, wave[alive[j]], slot[j], t);
      }
    }

    struct Visit {
      const Neighbor* neighbor;
      int py, px;
    };

    void collect(int block, const Visit& visit, const float* sum, int t) {
      const uint16_t inside = cells_in_frame(visit.py, visit.px, s.p_.h, s.p_.w);
      int32_t cell[16];
      bool have_cells = false;
      for (int m = 0; m < kRows; ++m) {
        const int q = block + m;
        unsigned mask = at_least(load(sum + 16 * m), broadcast(bar[q])) & visit.neighbor->allowed[q] & inside;
        if (mask == 0) continue;
        if (!have_cells) {
          have_cells = true;
          for (int i = 0; i < 16; ++i)
            cell[i] = (t * s.p_.h + 4 * visit.py + i / 4) * s.p_.w + 4 * visit.px + i % 4;
        }
        if (!pending[q].has_room()) settle(q);
        pending[q].add(mask, sum + 16 * m, cell);
      }
    }

    void settle(int q) {
      const float* rows = memory.rows.get();
      const int64_t skip = static_cast<int64_t>(first) * s.p_.h * s.p_.w;
      const int padded = s.channels_.padded;
      rescored += pending[q].settle(nearest[q], margin[q], row[q], padded,
                                    [&](int32_t cell) { return rows + (cell - skip) * padded; });
      raise_bar(q);
    }

    Search& s;
    const PackedFrames& memory;
    int first;
    float key_norm, key_residual;
    Buffer<float> sums;
    float* slot[kWave];  // each holds the sums of kRows queries with the 16 cells of a patch
    PackedFrame query, keys;
    Nearest nearest[16];
    const float* row[16];
    float margin[16], bar[16];
    bool exists[16];
    Pending pending[16];
    Visit wave[kWave];
    int64_t full_pairs = 0, all_pairs = 0, rescored = 0;
  };

  // Softmax over the neighbors of the queries of one row of tiles, and the weighted sum of their values.
  void copy_row(int py) {
    std::vector<float> weight(p_.k);
    std::vector<int64_t> from(p_.k);
    const int64_t area = static_cast<int64_t>(p_.h) * p_.w;
    for (int y = 4 * py; y < std::min(4 * py + 4, p_.h); ++y)
      for (int x = 0; x < p_.w; ++x) {
        const int64_t i = (static_cast<int64_t>(py) * nx_ + x / 4) * 16 + 4 * (y % 4) + x % 4;
        const Candidate* best = entries_.get() + i * p_.k;
        const int n = counts_[i];
        float total = 0;
        for (int j = 0; j < n; ++j) {
          weight[j] = std::exp((best[j].score - best[0].score) / p_.temperature);
          total += weight[j];
          const int64_t t = best[j].cell / area, rest = best[j].cell % area;
          from[j] = t * p_.value_strides[0] + rest / p_.w * p_.value_strides[2] + rest % p_.w * p_.value_strides[3];
        }
        for (int m = 0; m < p_.M; ++m) {
          float sum = 0;
          for (int j = 0; j < n; ++j) sum += weight[j] * p_.value[from[j] + m * p_.value_strides[1]];
          p_.out[m * area + static_cast<int64_t>(y) * p_.w + x] = sum / total;
        }
      }
  }

  const Problem& p_;
  int64_t* counters_;
  int ny_, nx_, tiles_;
  Team team_;
  Channels channels_;
  PackedFrames query_;
  std::vector<Neighbor> local_, global_;
  Buffer<Candidate> entries_;
  std::vector<int> counts_;
};

}  // namespace vosnet

extern "C" {

// 0: ready. 1: the operating system denies the tile registers.
int vosnet_prepare() { return vosnet::request_tiles() ? 0 : 1; }

// 0: done. 1: features not finite or too large. 2: out of memory.
int vosnet_knn_propagate(vosnet::Problem* p, int64_t workspace_bytes) {
  try {
    return vosnet::Search(*p, p->counters).run(workspace_bytes) ? 0 : 1;
  } catch (const std::bad_alloc&) {
    return 2;
  }
}
}
