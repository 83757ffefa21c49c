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
    void* out;               // SwiGLU: grouped rows of ceil(strips / 2) panels; else float32 [8 * groups, out_columns]
    uint32_t k_records;      // ceil(k / 64)
    uint32_t strips;         // ceil(weight rows / 64)
    uint32_t out_columns;    // not used by SwiGLU
    uint32_t experts;
    float weight_scale;      // 2^shift of the packed weights
    float swiglu_limit;
    float swiglu_alpha;
};
static_assert(sizeof(MoeGemmArgs) == 72);

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

    // By one warp.
    __device__ __forceinline__ void fill(const int32_t* counts, uint32_t experts) {
        const uint32_t lane = threadIdx.x % 32;
        uint32_t tiles_before = 0, groups_before = 0;
        for (uint32_t base = 0; base < experts; base += 32) {
            const uint32_t e = base + lane;
            const uint32_t rows = e < experts ? uint32_t(counts[e]) : 0, groups = (rows + 7) / 8;
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

    __device__ __forceinline__ TokenTile at(uint32_t experts, uint32_t index) const {
        uint32_t low = 0, high = experts;  // first_tile[low] <= index < first_tile[high]
        while (high - low > 1) {
            const uint32_t middle = (low + high) / 2;
            if (first_tile[middle] <= index) low = middle; else high = middle;
        }
        const uint32_t expert_group = first_group[low], groups = first_group[low + 1] - expert_group;
        const uint32_t tiles = first_tile[low + 1] - first_tile[low];
        const uint32_t each = (groups + tiles - 1) / tiles, first = (index - first_tile[low]) * each;
        const uint32_t n_groups = first < groups ? min(each, groups - first) : 0;
        const uint32_t rows_left = n_rows[low] - min(n_rows[low], first * 8);
        return {low, min(n_groups * 8, rows_left), expert_group + first, n_groups, groups, expert_group};
    }
};

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

// Row g of a warp's 16 is a gate, row g + 8 its up projection.
template <int N>
__device__ __forceinline__ void store_swiglu(const MoeGemmArgs& args, const TokenTile& tile, uint32_t strip, float2 bias,
                                             const float (&acc)[N / 2]) {
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
        if (i * 2 + g < tile.n_rows) {
            *reinterpret_cast<uint32_t*>(out + i / 4 * kGroupBytes + at) = pair;
            if (pads) *reinterpret_cast<uint32_t*>(out + i / 4 * kGroupBytes + padding) = 0;
        }
    }
}

template <int N>
__device__ __forceinline__ void store_plain(const MoeGemmArgs& args, const TokenTile& tile, uint32_t strip, float2 bias,
                                            const float (&acc)[N / 2]) {
    const uint32_t t = threadIdx.x % 128, warp = t / 32, g = t % 32 / 4, q = t % 4;
    const uint32_t row = strip * 64 + warp * 16 + g, columns = args.out_columns;
    const bool has_row = row < columns, has_row_8 = row + 8 < columns;
    const uint32_t n_rows = tile.n_rows - min(tile.n_rows, 2 * q);
    float* at = static_cast<float*>(args.out) + (size_t(tile.first_group) * 8 + 2 * q) * columns + row;
#pragma unroll
    for (int i = 0; i < N / 2; i += 4) {
#pragma unroll
        for (int c = 0; c < 2; c++) {
            const bool is_there = 2 * i + c < n_rows;
            if (is_there && has_row) at[0] = acc[i + c] * args.weight_scale + bias.x;
            if (is_there && has_row_8) at[8] = acc[i + c + 2] * args.weight_scale + bias.y;
            at += c == 0 ? columns : 7 * columns;
        }
    }
}
