// Single instructions on registers, packed ones and others.
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

// The smaller and the larger number; NaN if one is.
__device__ __forceinline__ float min_nan(float a, float b) {
    float smaller;
    asm("min.NaN.f32 %0, %1, %2;" : "=f"(smaller) : "f"(a), "f"(b));
    return smaller;
}

__device__ __forceinline__ float max_nan(float a, float b) {
    float larger;
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(larger) : "f"(a), "f"(b));
    return larger;
}

// 2^x and 1 / x to about two units in the last place (PTX ISA); subnormals are zero.
__device__ __forceinline__ float exp2_approx(float x) {
    float power;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
    return power;
}

__device__ __forceinline__ float reciprocal_approx(float x) {
    float reciprocal;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(reciprocal) : "f"(x));
    return reciprocal;
}
