// What the dense matrix products have in common: arguments, the layout of weights, and what becomes of the sums.
//
// Weights are records of 16 rows by 64 columns, bf16: two groups of 8 rows, each as a group of tokens is (moe_tokens.cuh): row r
// at 128 r, its 16-byte piece c at 16 (c ^ r). A strip is the records of 16 rows along k, one after the other. Four strips'
// records side by side in shared memory are 64 rows as wgmma reads them.
//
// A sum runs over k in steps of 16 from 0 to the end in one accumulator, whatever the body and whatever stands in the other
// columns: results do not depend on the batch.
#pragma once
#include <cstdint>

#include "moe_tokens.cuh"

constexpr uint32_t kStripRows = 16;
constexpr uint32_t kDenseRecordBytes = 2 * kGroupBytes;

struct DenseArgs {
    const uint8_t* records;  // [strips, k_records] records
    const float* bias;       // [strips * 16]; padding is 0
    const uint8_t* tokens;   // [k_records, ceil(n_tokens / 8)] groups of 8 rows by 64 columns
    float* out;              // [n_tokens, rows]
    uint32_t k_records;      // ceil(k / 64)
    uint32_t strips;         // ceil(rows / 16)
    uint32_t rows;
    uint32_t n_tokens;
    uint32_t adds;        // 1: to what `out` holds; 0: in its place
    uint32_t stages;      // of the ring, of each warp's in the stream body
    uint32_t tile_units;  // of a tile, 64 rows each; not used by the stream body
    uint32_t tile_groups; // of a tile, 8 tokens each; not used by the stream body
    uint32_t same_rows;   // of two blocks: 1: they have the same rows; 0: the same tokens; not used by the stream body
    uint32_t unused;
};
static_assert(sizeof(DenseArgs) == 72);

// Where a thread's part of a warp's strip goes: rows g and g + 8, of each eight tokens the 2 q-th and the next.
struct StripOut {
    float* at;  // row g of token 2 q; may lie beyond the end, where `has_row` is not set
    bool has_row, has_row_8;
    uint32_t n_tokens;  // from token 2 q on
    float bias, bias_8;

    __device__ __forceinline__ StripOut(const DenseArgs& args, uint32_t strip, uint32_t first_token, uint32_t n_tokens) {
        const uint32_t lane = threadIdx.x % 32, row = strip * kStripRows + lane / 4, token = lane % 4 * 2;
        at = args.out + size_t(first_token + token) * args.rows + row;
        has_row = row < args.rows;
        has_row_8 = row + 8 < args.rows;
        this->n_tokens = n_tokens - min(n_tokens, token);
        bias = args.bias[row];
        bias_8 = args.bias[row + 8];
    }

    // Element `i` of a fragment of D: of eight tokens, row g + 8 (i / 2 % 2) and token 2 q + i % 2 (ptx/mma.cuh, ptx/wgmma.cuh).
    __device__ __forceinline__ bool has(uint32_t i) const {
        return (i / 2 % 2 == 0 ? has_row : has_row_8) && i / 4 * 8 + i % 2 < n_tokens;
    }
    __device__ __forceinline__ float* element(const DenseArgs& args, uint32_t i) const {
        return at + size_t(i / 4 * 8 + i % 2) * args.rows + i / 2 % 2 * 8;
    }
    __device__ __forceinline__ float bias_of(uint32_t i) const { return i / 2 % 2 == 0 ? bias : bias_8; }
};
