// Single instructions on packed registers.
#pragma once
#include <cstdint>

// Both bf16 products of two packed pairs, rounded to nearest even; subnormals are kept, in and out.
__device__ __forceinline__ uint32_t mul_bf16x2(uint32_t a, uint32_t b) {
    uint32_t product;
    asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(product) : "r"(a), "r"(b));
    return product;
}

// Bits of `a` where `mask` is set, bits of `b` elsewhere.
__device__ __forceinline__ uint32_t select_bits(uint32_t mask, uint32_t a, uint32_t b) {
    uint32_t merged;
    asm("lop3.b32 %0, %1, %2, %3, 0xCA;" : "=r"(merged) : "r"(mask), "r"(a), "r"(b));
    return merged;
}

__device__ __forceinline__ uint32_t rotate_right(uint32_t x, int n_bits) {
    return __funnelshift_r(x, x, n_bits);
}

// A warp's 8x8 matrix of 16-bit values, transposed: lane 4 g + q has row g, columns 2 q (low half) and 2 q + 1, in and out.
__device__ __forceinline__ uint32_t transpose_8x8(uint32_t pair) {
    uint32_t transposed;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(transposed) : "r"(pair));
    return transposed;
}

__device__ __forceinline__ uint32_t pack_bf16x2(float low, float high) {
    uint32_t pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}
