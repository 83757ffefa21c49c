// What the experts' matrix products have in common: arguments, tiles of tokens, and what becomes of the sums.
#pragma once
#include <cuda_bf16.h>

#include <cstdint>

#include "moe_tokens.cuh"
#include "ptx/bits.cuh"

struct MoeGemmArgs {
    const uint8_t* records;  // [experts, strips, k_records] records
    const float* bias;       // [experts, strips * 64], in the order of the packed rows; padding is 0
    const uint8_t* tokens;   // grouped rows (moe_tokens.cuh) of k_records panels
    const int32_t* counts;   // [experts] rows of each expert
    // [experts + 1] strips of gate and up whose results are written, of each expert and of all, once for every tile of tokens:
    // SwiGLU counts them, the products after it wait for them. Null: they wait for the kernel before to end.
    uint32_t* strips_done;
    void* out;               // SwiGLU: grouped rows of ceil(strips / 2) panels; else float32 [8 * groups, out_columns]
    uint32_t k_records;      // ceil(k / 64)
    uint32_t strips;         // ceil(weight rows / 64)
    uint32_t out_columns;    // not used by SwiGLU
    uint32_t experts;
    float weight_scale;      // 2^shift of the packed weights
    float swiglu_limit;
    float swiglu_alpha;
    uint32_t strips_before;  // strips of gate and up; not used by SwiGLU
};
static_assert(sizeof(MoeGemmArgs) == 80);

// With few tokens, each block chooses their experts by itself.
struct MoeRoutedArgs {
    MoeGemmArgs gemm;
    const float* logits;     // [tokens, experts]
    const __nv_bfloat16* x;  // [tokens, hidden]; used by SwiGLU alone, as are those that follow
    int32_t* ids;            // [tokens, top_k]
    float* weights;          // [tokens, top_k]
    int32_t* positions;      // [tokens, top_k]
    int32_t* counts;         // [experts]
    uint32_t tokens, top_k, hidden;
};
static_assert(sizeof(MoeRoutedArgs) == 144);

enum class Epilogue { SwiGlu, Plain };

// Some tokens of one expert.
struct TokenTile {
    uint32_t expert, n_rows;        // rows of the tile that exist
    uint32_t first_group, n_groups; // of all, and of the tile
    uint32_t panel_stride;          // groups of the expert
    uint32_t expert_group;          // the expert's first
};

// Each expert's rows, and where its tiles and groups of rows begin, `kMaxGroups` groups at most in a tile.
template <uint32_t kMaxGroups>
struct TokenTiles {
    uint32_t n_rows[kMaxExperts];
    uint32_t first_tile[kMaxExperts + 1];   // tiles of the experts before
    uint32_t first_group[kMaxExperts + 1];  // groups of rows of the experts before

    // By one warp; `count_of` tells an expert's rows.
    template <class CountOf>
    __device__ __forceinline__ void fill(uint32_t experts, const CountOf& count_of) {
        const uint32_t lane = threadIdx.x % 32;
        uint32_t tiles_before = 0, groups_before = 0;
        for (uint32_t base = 0; base < experts; base += 32) {
            const uint32_t e = base + lane;
            const uint32_t rows = e < experts ? count_of(e) : 0, groups = (rows + 7) / 8;
            const uint32_t tiles = (groups + kMaxGroups - 1) / kMaxGroups;
            uint32_t groups_sum = groups, tiles_sum = tiles;
            for (int d = 1; d < 32; d *= 2) {
                const uint32_t more_groups = __shfl_up_sync(~0u, groups_sum, d), more_tiles = __shfl_up_sync(~0u, tiles_sum, d);
                if (lane >= d) { groups_sum += more_groups; tiles_sum += more_tiles; }
            }
            if (e < experts) {
                n_rows[e] = rows;
                first_group[e] = groups_before + groups_sum - groups;
                first_tile[e] = tiles_before + tiles_sum - tiles;
            }
            groups_before += __shfl_sync(~0u, groups_sum, 31);
            tiles_before += __shfl_sync(~0u, tiles_sum, 31);
        }
        if (lane == 0) {
            first_group[experts] = groups_before;
            first_tile[experts] = tiles_before;
        }
    }

    // The same, of the counts that the routing wrote. The down products read them before they wait for anything: not from a cache
    // that may be older.
    __device__ __forceinline__ void fill_routed(const MoeGemmArgs& args) {
        fill(args.experts, [&](uint32_t e) { return uint32_t(__ldcg(args.counts + e)); });
    }

    __device__ __forceinline__ TokenTile at(uint32_t experts, uint32_t index) const {
        const uint32_t e = last_where(experts, [&](uint32_t e) { return first_tile[e] <= index; });
        const uint32_t expert_group = first_group[e], groups = first_group[e + 1] - expert_group;
        const uint32_t each = groups_of_tile(e), first = (index - first_tile[e]) * each;
        const uint32_t n_groups = min(each, groups - first);
        return {e, min(n_groups * 8, n_rows[e] - first * 8), expert_group + first, n_groups, groups, expert_group};
    }

    // Strips, counted over all tiles, are shared out among the blocks in runs of about the same cost, which is, of a strip,
    // `kStripCost` and 1 for each group of tokens. The strip at which the run of block `block` begins, or at which the last
    // one ends.
    template <uint32_t kStripCost>
    __device__ __forceinline__ uint32_t run_begin(uint32_t experts, uint32_t strips, uint32_t block) const {
        const auto cost_before = [&](uint32_t e) { return strips * (kStripCost * first_tile[e] + first_group[e]); };
        const uint32_t total = cost_before(experts);
        const uint32_t cost = total / gridDim.x * block + min(total % gridDim.x, block);
        if (cost == total) return first_tile[experts] * strips;
        const uint32_t e = last_where(experts, [&](uint32_t e) { return cost_before(e) <= cost; });
        const uint32_t groups = first_group[e + 1] - first_group[e], each = groups_of_tile(e);
        const uint32_t tile_cost = strips * (kStripCost + each), rest = cost - cost_before(e), tile = rest / tile_cost;
        const uint32_t strip_cost = kStripCost + min(each, groups - tile * each);
        return (first_tile[e] + tile) * strips + (rest - tile * tile_cost + strip_cost - 1) / strip_cost;
    }

  private:
    // Of an expert that has rows: all its tiles but the last have as many groups.
    __device__ __forceinline__ uint32_t groups_of_tile(uint32_t e) const {
        const uint32_t groups = first_group[e + 1] - first_group[e], tiles = first_tile[e + 1] - first_tile[e];
        return (groups + tiles - 1) / tiles;
    }

    // The last expert for which `is_before` holds: it does for the first one, and for none after one for which it does not.
    template <class IsBefore>
    static __device__ __forceinline__ uint32_t last_where(uint32_t experts, IsBefore is_before) {
        uint32_t low = 0, high = experts;
        while (high - low > 1) {
            const uint32_t middle = (low + high) / 2;
            if (is_before(middle)) low = middle; else high = middle;
        }
        return low;
    }
};

// The record at which a part of k ends, of those in which tokens come: all but the last one that has any are whole chunks.
template <uint32_t kSegments, uint32_t kChunk>
__device__ __forceinline__ uint32_t segment_end(uint32_t k_records, uint32_t segment) {
    constexpr uint32_t kUnit = kSegments * kChunk;
    return min(k_records, (k_records + kUnit - 1) / kUnit * kChunk * (segment + 1));
}

// `exponent_scale` is -alpha log2(e). What is no number stays none.
__device__ __forceinline__ float swiglu(float gate, float up, float limit, float exponent_scale) {
    gate = min_nan(gate, limit);
    up = min_nan(max_nan(up, -limit), limit);
    return gate * reciprocal_approx(1.0f + exp2_approx(exponent_scale * gate)) * (up + 1.0f);
}

// Of this thread's two rows of a strip.
__device__ __forceinline__ float2 load_bias(const MoeGemmArgs& args, const TokenTile& tile, uint32_t strip) {
    const uint32_t row = threadIdx.x % 128 / 32 * 16 + threadIdx.x % 32 / 4;
    const float* bias = args.bias + (size_t(tile.expert) * args.strips + strip) * 64 + row;
    return {bias[0], bias[8]};
}

// Row g of a warp's 16 is a gate, row g + 8 its up projection. `is_wanted` says which of the tile's rows are wanted.
template <int N, class IsWanted>
__device__ __forceinline__ void store_swiglu(const MoeGemmArgs& args, const TokenTile& tile, uint32_t strip, float2 bias,
                                             const float (&acc)[N / 2], IsWanted is_wanted) {
    const uint32_t t = threadIdx.x % 128, warp = t / 32, g = t % 32 / 4, q = t % 4;
    const float exponent_scale = -1.44269504f * args.swiglu_alpha;
    // After the transposition this thread has row g of each eight, columns 2 q and 2 q + 1 of this warp's eight.
    const uint32_t piece = strip % 2 * 4 + warp, panels = (args.strips + 1) / 2;
    uint8_t* out = static_cast<uint8_t*>(args.out)
        + (size_t(tile.expert_group) * panels + size_t(strip / 2) * tile.panel_stride
           + (tile.first_group - tile.expert_group)) * kGroupBytes + g * 128 + q * 4;
    const uint32_t at = (piece ^ g) * 16, padding = ((piece ^ 4) ^ g) * 16;
    const bool pads = strip % 2 == 0 && strip + 1 == args.strips;
#pragma unroll
    for (int i = 0; i < N / 2; i += 4) {
        const float first = swiglu(acc[i] * args.weight_scale + bias.x, acc[i + 2] * args.weight_scale + bias.y,
                                   args.swiglu_limit, exponent_scale);
        const float second = swiglu(acc[i + 1] * args.weight_scale + bias.x, acc[i + 3] * args.weight_scale + bias.y,
                                    args.swiglu_limit, exponent_scale);
        const uint32_t pair = transpose_8x8(pack_bf16x2(first, second));
        if (is_wanted(i * 2 + g)) {
            *reinterpret_cast<uint32_t*>(out + i / 4 * kGroupBytes + at) = pair;
            if (pads) *reinterpret_cast<uint32_t*>(out + i / 4 * kGroupBytes + padding) = 0;
        }
    }
}

template <int N, class IsWanted>
__device__ __forceinline__ void store_plain(const MoeGemmArgs& args, const TokenTile& tile, uint32_t strip, float2 bias,
                                            const float (&acc)[N / 2], IsWanted is_wanted) {
    const uint32_t t = threadIdx.x % 128, warp = t / 32, g = t % 32 / 4, q = t % 4;
    const uint32_t row = strip * 64 + warp * 16 + g, columns = args.out_columns;
    const bool has_row = row < columns, has_row_8 = row + 8 < columns;
    float* at = static_cast<float*>(args.out) + (size_t(tile.first_group) * 8 + 2 * q) * columns + row;
#pragma unroll
    for (int i = 0; i < N / 2; i += 4) {
#pragma unroll
        for (int c = 0; c < 2; c++) {
            const bool is_there = is_wanted(2 * i + c + 2 * q);
            if (is_there && has_row) at[0] = acc[i + c] * args.weight_scale + bias.x;
            if (is_there && has_row_8) at[8] = acc[i + c + 2] * args.weight_scale + bias.y;
            at += c == 0 ? columns : 7 * columns;
        }
    }
}

// What becomes of a strip's sums, for the rows of the tile that exist.
template <int N, Epilogue E>
__device__ __forceinline__ void store(const MoeGemmArgs& args, const TokenTile& tile, uint32_t strip, float2 bias,
                                      const float (&acc)[N / 2]) {
    const auto exists = [&](uint32_t row) { return row < tile.n_rows; };
    if constexpr (E == Epilogue::SwiGlu) store_swiglu<N>(args, tile, strip, bias, acc, exists);
    else store_plain<N>(args, tile, strip, bias, acc, exists);
}
