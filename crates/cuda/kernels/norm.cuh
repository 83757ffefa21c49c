// A row of the residual stream in a block's registers, and its root mean square.
//
// Every kernel that norms has the same threads, columns of a thread and order of sums, so all give the same bits.
#pragma once
#include <cuda_bf16.h>

#include <cstdint>

#include "ptx/bits.cuh"

constexpr uint32_t kNormThreads = 384;
constexpr uint32_t kNormWarps = kNormThreads / 32;

// Eight columns: those of a thread begin at 8 threadIdx.x. Columns beyond the row are 0.
struct Columns {
    float4 low, high;
};

__device__ __forceinline__ Columns load_columns(const float* row, uint32_t hidden) {
    Columns x{};
    if (threadIdx.x * 8 < hidden) {
        const float4* from = reinterpret_cast<const float4*>(row) + threadIdx.x * 2;
        x = {from[0], from[1]};
    }
    return x;
}

__device__ __forceinline__ void store_columns(float* row, uint32_t hidden, const Columns& x) {
    if (threadIdx.x * 8 < hidden) {
        float4* to = reinterpret_cast<float4*>(row) + threadIdx.x * 2;
        to[0] = x.low;
        to[1] = x.high;
    }
}

// The sum of a warp's squares, in all of its lanes.
__device__ __forceinline__ float warp_squares(const Columns& x) {
    const float low = fmaf(x.low.w, x.low.w, fmaf(x.low.z, x.low.z, fmaf(x.low.y, x.low.y, x.low.x * x.low.x)));
    const float high = fmaf(x.high.w, x.high.w, fmaf(x.high.z, x.high.z, fmaf(x.high.y, x.high.y, x.high.x * x.high.x)));
    float sum = __fadd_rn(low, high);
#pragma unroll
    for (int d = 16; d > 0; d /= 2) sum = __fadd_rn(sum, __shfl_xor_sync(~0u, sum, d));
    return sum;
}

// 1 / sqrt(mean + eps) from the sums of all warps, aligned to 16 bytes; `inverse` is 1 / hidden.
__device__ __forceinline__ float norm_scale(const float* warp_sums, float inverse, float eps) {
    static_assert(kNormWarps == 12);
    const float4* sums = reinterpret_cast<const float4*>(warp_sums);
    const float4 a = sums[0], b = sums[1], c = sums[2];
    const float x = __fadd_rn(__fadd_rn(a.x, b.x), c.x), y = __fadd_rn(__fadd_rn(a.y, b.y), c.y);
    const float z = __fadd_rn(__fadd_rn(a.z, b.z), c.z), w = __fadd_rn(__fadd_rn(a.w, b.w), c.w);
    const float sum = __fadd_rn(__fadd_rn(x, y), __fadd_rn(z, w));
    return rsqrtf(fmaf(sum, inverse, eps));
}

// A thread's columns, scaled, weighted and rounded: a 16-byte piece. Beyond the row it is 0, whatever the scale.
__device__ __forceinline__ uint4 norm_piece(const Columns& x, float scale, const Columns& weight, uint32_t hidden) {
    if (threadIdx.x * 8 >= hidden) return uint4{0, 0, 0, 0};
    return {pack_bf16x2(x.low.x * scale * weight.low.x, x.low.y * scale * weight.low.y),
            pack_bf16x2(x.low.z * scale * weight.low.z, x.low.w * scale * weight.low.w),
            pack_bf16x2(x.high.x * scale * weight.high.x, x.high.y * scale * weight.high.y),
            pack_bf16x2(x.high.z * scale * weight.high.z, x.high.w * scale * weight.high.w)};
}

// Where normed rows go: either or both.
struct NormOut {
    uint8_t* panels;      // bf16 panels of n_rows rows, or null
    __nv_bfloat16* rows;  // [n_rows, hidden], or null
};

// A thread's piece of a row. Pieces beyond the row fill the last panel.
__device__ __forceinline__ void store_piece(const NormOut& out, uint32_t row, uint32_t n_rows, uint32_t hidden, uint4 piece) {
    const uint32_t panel = threadIdx.x / 8, c = threadIdx.x % 8, r = row % 8;
    if (out.rows != nullptr && threadIdx.x * 8 < hidden) {
        *reinterpret_cast<uint4*>(out.rows + size_t(row) * hidden + threadIdx.x * 8) = piece;
    }
    if (out.panels != nullptr && panel * 64 < hidden) {
        const size_t group = size_t(panel) * ((n_rows + 7) / 8) + row / 8;
        *reinterpret_cast<uint4*>(out.panels + group * 1024 + r * 128 + (c ^ r) * 16) = piece;
    }
}
