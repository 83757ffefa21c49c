// Attention: what its kernels have in common, above all the order of every sum.
//
//     out = softmax([q k / sqrt(head_dim), sink]) [v, 0]
//
// Keys come in tiles of 64 positions, tiles in splits of 256, splits in spans of 2,048, all at multiples of their length. In a
// split, sums run over its tiles in ascending order with a running maximum; splits are merged in ascending order within their
// span, then spans, then the sink. A tile, split or span that a query sees nothing of changes no bit. So a result depends on
// positions alone: not on what else is in the step, on who works on which part, nor on the kernel.
//
// Scores and sums are float32; queries, keys, values, and the weights that multiply values, are bf16.
//
// A pool's block of 16 positions is, for each key-value head, 16 rows of head_dim: row r's 16-byte piece c is at piece
// c ^ r % 8 of it where rows have 128 bytes, c ^ r / 2 % 4 where they have 64. So a tile's blocks, one after the other in
// shared memory, are what ldmatrix reads without conflicts, and wgmma with its swizzle of as many bytes.
#pragma once
#include <cuda_bf16.h>

#include <cstdint>

#include "ptx/async.cuh"
#include "ptx/bits.cuh"
#include "ptx/mma.cuh"
#include "step.cuh"

struct AttentionArgs {
    const uint32_t* step;     // StepHeader, and what it tells of
    const __nv_bfloat16* q;   // [tokens, heads, head_dim]; kernels that turn read the next two instead
    const float* qkv;         // [tokens, (heads + 2 kv_heads) * head_dim]: queries, keys, values
    const float2* turns;      // [tokens, head_dim / 2]: cosine and sine
    uint8_t* keys;            // [blocks, kv_heads, 16, head_dim] bf16; written by kernels that turn
    uint8_t* values;          // the same
    const float* sinks;       // [heads]
    uint8_t* out;             // panels of [tokens, heads * head_dim] bf16
    float2* partial_sums;     // [partials, heads]: maximum and sum
    float* partial_outs;      // [partials, heads, head_dim]
    uint32_t* arrivals;       // [merges, kv_heads, 2]: 0 between kernels
    uint32_t token_groups;    // ceil(tokens / 8)
    uint32_t kv_heads;
    uint32_t group;           // heads of a key-value head, 16 at most
    uint32_t window;          // keys that a query sees, itself included; 0 for all
    float scale;              // log2(e) / sqrt(head_dim)
    uint32_t padding;
};
static_assert(sizeof(AttentionArgs) == 112);

namespace attention {

constexpr uint32_t kTileKeys = 64, kBlockKeys = 16;
constexpr uint32_t kSplitTiles = 4, kSpanSplits = 8;
constexpr uint32_t kTileBlocks = kTileKeys / kBlockKeys;
constexpr float kLog2E = 1.4426950408889634f;

template <int kHeadDim>
struct Tile {
    static_assert(kHeadDim == 64 || kHeadDim == 32);
    static constexpr uint32_t kPieces = kHeadDim / 8;  // of a row
    static constexpr uint32_t kRowBytes = kHeadDim * 2, kBlockBytes = kBlockKeys * kRowBytes, kBytes = kTileKeys * kRowBytes;

    // Of a piece in a tile, and in a block.
    static __device__ __forceinline__ uint32_t at(uint32_t row, uint32_t piece) {
        return row * kRowBytes + (piece ^ (kHeadDim == 64 ? row % 8 : row / 2 % 4)) * 16;
    }
};

// The first key that the query at `position` sees.
__device__ __forceinline__ uint32_t first_key(uint32_t position, uint32_t window) {
    return window == 0 || position < window ? 0 : position + 1 - window;
}

// The running maximum, in units of log2, and sum of a row.
struct RowSum {
    float maximum = -INFINITY, sum = 0.0f;
};

// What a maximum is compared with: itself, but for a row that has seen nothing, whose weights are 2^-inf = 0 then.
__device__ __forceinline__ float reference(float maximum) { return maximum == -INFINITY ? 0.0f : maximum; }

// Adds `part` to `row`: what was summed before counts `old_weight`, the part's sums count `part_weight`.
__device__ __forceinline__ void merge_rows(RowSum& row, RowSum part, float& old_weight, float& part_weight) {
    const float maximum = fmaxf(row.maximum, part.maximum), base = reference(maximum);
    old_weight = exp2_approx(row.maximum - base);
    part_weight = exp2_approx(part.maximum - base);
    row = RowSum{maximum, __fmaf_rn(part.sum, part_weight, __fmul_rn(row.sum, old_weight))};
}

__device__ __forceinline__ float merge_outs(float out, float part, float old_weight, float part_weight) {
    return __fmaf_rn(part, part_weight, __fmul_rn(out, old_weight));
}

// The factor that makes a row's sums its result.
__device__ __forceinline__ float finish(RowSum row, float sink) {
    const float scaled = __fmul_rn(sink, kLog2E), base = reference(fmaxf(row.maximum, scaled));
    const float weight = exp2_approx(row.maximum - base);
    const float sum = __fmaf_rn(row.sum, weight, exp2_approx(scaled - base));
    return __fmul_rn(weight, reciprocal_approx(sum));
}

// A warp's 16 query rows over some keys. Lane 4 g + q has rows g and g + 8, and of them columns 8 d + 2 q and the next.
template <int kHeadDim>
struct Sums {
    float outs[kHeadDim / 8][4];  // [d][2 * (row is g + 8) + column]
    RowSum rows[2];

    __device__ __forceinline__ Sums() { clear(); }

    __device__ __forceinline__ void clear() {
        rows[0] = rows[1] = RowSum{};
#pragma unroll
        for (int d = 0; d < kHeadDim / 8; d++) {
#pragma unroll
            for (int i = 0; i < 4; i++) outs[d][i] = 0.0f;
        }
    }

    __device__ __forceinline__ void merge(const Sums& part) {
        float old_weights[2], part_weights[2];
#pragma unroll
        for (int h = 0; h < 2; h++) merge_rows(rows[h], part.rows[h], old_weights[h], part_weights[h]);
#pragma unroll
        for (int d = 0; d < kHeadDim / 8; d++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                outs[d][i] = merge_outs(outs[d][i], part.outs[d][i], old_weights[i / 2], part_weights[i / 2]);
            }
        }
    }

    __device__ __forceinline__ void scale(const float (&weights)[2]) {
#pragma unroll
        for (int d = 0; d < kHeadDim / 8; d++) {
#pragma unroll
            for (int i = 0; i < 4; i++) outs[d][i] = __fmul_rn(outs[d][i], weights[i / 2]);
        }
    }

    // The sum of a split's row over the four lanes that have it: until then, each lane has that of its columns.
    __device__ __forceinline__ void close() {
#pragma unroll
        for (int h = 0; h < 2; h++) {
            rows[h].sum += __shfl_xor_sync(~0u, rows[h].sum, 1);
            rows[h].sum += __shfl_xor_sync(~0u, rows[h].sum, 2);
        }
    }
};

// Scores [16, 64] to weights, in place; `rows` of the split takes them in, and what it has summed counts `old_weights` now.
// scores[n][2 h + i] is row g + 8 h, key 8 n + 2 q + i. Hidden keys have -inf.
__device__ __forceinline__ void weigh(float (&scores)[8][4], float scale, RowSum (&rows)[2], float (&old_weights)[2]) {
#pragma unroll
    for (int h = 0; h < 2; h++) {
        float largest = fmaxf(scores[0][2 * h], scores[0][2 * h + 1]);
#pragma unroll
        for (int n = 1; n < 8; n++) largest = fmaxf(largest, fmaxf(scores[n][2 * h], scores[n][2 * h + 1]));
        largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, 1));
        largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, 2));
        const float maximum = fmaxf(rows[h].maximum, __fmul_rn(largest, scale)), base = reference(maximum);
        old_weights[h] = exp2_approx(rows[h].maximum - base);
        float sum = __fmul_rn(rows[h].sum, old_weights[h]);
#pragma unroll
        for (int n = 0; n < 8; n++) {
            float& first = scores[n][2 * h];
            float& second = scores[n][2 * h + 1];
            first = exp2_approx(__fmaf_rn(first, scale, -base));
            second = exp2_approx(__fmaf_rn(second, scale, -base));
            sum = __fadd_rn(sum, __fadd_rn(first, second));
        }
        rows[h] = RowSum{maximum, sum};
    }
}

// Weights [16, 64] as A fragments of four k16 steps.
__device__ __forceinline__ void pack_weights(const float (&weights)[8][4], uint32_t (&a)[4][4]) {
#pragma unroll
    for (int s = 0; s < 4; s++) {
#pragma unroll
        for (int j = 0; j < 4; j++) {
            a[s][j] = pack_bf16x2(weights[2 * s + j / 2][2 * (j % 2)], weights[2 * s + j / 2][2 * (j % 2) + 1]);
        }
    }
}

// Queries as A fragments, of rows g and g + 8 [head_dim]; null for a row that is nobody's.
template <int kHeadDim>
__device__ __forceinline__ void load_queries(const __nv_bfloat16* const (&rows)[2], uint32_t (&a)[kHeadDim / 16][4]) {
    const uint32_t q = threadIdx.x % 4;
#pragma unroll
    for (int s = 0; s < kHeadDim / 16; s++) {
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const __nv_bfloat16* row = rows[j % 2];
            a[s][j] = row ? *reinterpret_cast<const uint32_t*>(row + 16 * s + 8 * (j / 2) + 2 * q) : 0;
        }
    }
}

// A warp's scores = queries x keys^T by mma.sync; `keys` is the shared address of a tile.
template <int kHeadDim>
__device__ __forceinline__ void mma_scores(float (&scores)[8][4], const uint32_t (&queries)[kHeadDim / 16][4], uint32_t keys) {
    const uint32_t i = threadIdx.x % 32 / 8, r = threadIdx.x % 8;
#pragma unroll
    for (int n = 0; n < 8; n++) {
        scores[n][0] = scores[n][1] = scores[n][2] = scores[n][3] = 0.0f;
#pragma unroll
        for (int s = 0; s < kHeadDim / 16; s += 2) {
            uint32_t b[4];  // of two k16 steps
            load_matrices(keys + Tile<kHeadDim>::at(8 * n + r, 2 * s + i), b);
            mma(scores[n], queries[s], b);
            mma(scores[n], queries[s + 1], b + 2);
        }
    }
}

// A warp's outs += weights x values by mma.sync; `values` is the shared address of a tile.
template <int kHeadDim>
__device__ __forceinline__ void mma_outs(float (&outs)[kHeadDim / 8][4], const uint32_t (&weights)[4][4], uint32_t values) {
    const uint32_t i = threadIdx.x % 32 / 8, r = threadIdx.x % 8;
#pragma unroll
    for (int s = 0; s < 4; s++) {
#pragma unroll
        for (int d = 0; d < kHeadDim / 8; d += 2) {
            uint32_t b[4];  // of two times 8 columns
            load_matrices_transposed(values + Tile<kHeadDim>::at(16 * s + 8 * (i % 2) + r, d + i / 2), b);
            mma(outs[d], weights[s], b);
            mma(outs[d + 1], weights[s], b + 2);
        }
    }
}

// -inf for the keys of tile `tile` that a row does not see; `first` and `last` are what it sees, of rows g and g + 8.
__device__ __forceinline__ void hide_scores(float (&scores)[8][4], uint32_t tile, const uint32_t (&first)[2], const uint32_t (&last)[2]) {
    const uint32_t q = threadIdx.x % 4;
#pragma unroll
    for (int n = 0; n < 8; n++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const uint32_t key = tile * kTileKeys + 8 * n + 2 * q + i % 2;
            if (key < first[i / 2] || key > last[i / 2]) scores[n][i] = -INFINITY;
        }
    }
}

// Zero values for the keys of tile `tile` outside first to last, which may hold anything; by `n_threads` threads.
template <int kHeadDim>
__device__ __forceinline__ void hide_values(uint8_t* values, uint32_t tile, uint32_t first, uint32_t last, uint32_t thread, uint32_t n_threads) {
    constexpr uint32_t kPieces = Tile<kHeadDim>::kPieces;
    for (uint32_t i = thread; i < kTileKeys * kPieces; i += n_threads) {
        const uint32_t key = tile * kTileKeys + i / kPieces;
        if (key < first || key > last) *reinterpret_cast<uint4*>(values + i * 16) = uint4{0, 0, 0, 0};
    }
    proxy_fence();
}

// Blocks of tile `tile` with keys from `first` to `last`: from `begin` to `end`, counted in the tile.
struct TileBlocks {
    uint32_t begin, end;

    __device__ __forceinline__ TileBlocks(uint32_t tile, uint32_t first, uint32_t last)
        : begin(max(first, tile * kTileKeys) / kBlockKeys - tile * kTileBlocks),
          end(min(last / kBlockKeys - tile * kTileBlocks + 1, kTileBlocks)) {}
};

// The address in panels of a token's column, which is even.
__device__ __forceinline__ uint8_t* panel_at(const AttentionArgs& args, uint32_t token, uint32_t column) {
    const size_t group = size_t(column / 64) * args.token_groups + token / 8;
    return args.out + group * 1024 + token % 8 * 128 + (column % 64 / 8 ^ token % 8) * 16 + column % 8 * 2;
}

// Zeros for the columns that fill the last panel, by the lanes with the last head's first 8 columns of a piece each.
template <int kHeadDim>
__device__ __forceinline__ void fill_panel(const AttentionArgs& args, uint32_t token, uint32_t head, uint32_t column) {
    if (kHeadDim == 32 && head % 2 == 0 && head + 1 == args.kv_heads * args.group) {
        *reinterpret_cast<uint32_t*>(panel_at(args, token, head * kHeadDim + kHeadDim + column)) = 0;
    }
}

// A row's result: columns 8 d + 2 q and the next of each lane.
template <int kHeadDim>
__device__ __forceinline__ void store_row(const AttentionArgs& args, uint32_t token, uint32_t head, RowSum row, const float (&outs)[kHeadDim / 8][4], int h) {
    const float factor = finish(row, args.sinks[head]);
#pragma unroll
    for (int d = 0; d < kHeadDim / 8; d++) {
        const uint32_t column = 8 * d + threadIdx.x % 4 * 2;
        *reinterpret_cast<uint32_t*>(panel_at(args, token, head * kHeadDim + column)) =
            pack_bf16x2(__fmul_rn(outs[d][2 * h], factor), __fmul_rn(outs[d][2 * h + 1], factor));
        fill_panel<kHeadDim>(args, token, head, column);
    }
}

}  // namespace attention
