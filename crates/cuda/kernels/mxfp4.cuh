// MXFP4 weights to bf16 matrix operands, in registers.
//
// A record holds 64 rows x 64 columns of weights: 2048 bytes of codes, then 128 bytes of scales. Thread T of 128, with
// lane = T % 32, g = lane / 4, q = lane % 4, reads
//     codes   16 bytes at T * 16              its A fragments of four k16 steps of wgmma m64nNk16
//     scales   4 bytes at 2048 + T / 32 * 32 + g * 4
// and register 4 s + j of its 16 holds the bf16 pair, low half first,
//     row 16 (T / 32) + g + 8 (j % 2),  columns 16 s + 2 q + 8 (j / 2) + {0, 1}.
// mma.sync m16n8k16 has the same A fragment for the warp's 16 rows.
//
// A code's sign and magnitude, put in bits 15 and 8..6 of a half, are as bf16 the code's value * 2^-126. One multiplication
// by 2^(field - 127) finishes it, field = scale byte + 126 - shift: exact for every field from 121 to 254, subnormal
// products included. `shift` is 0 unless a tensor has scale bytes above 128, and then undone on the float32 sum.
//
// 55 instructions for 32 codes, of which 16 are multiplications (sm_90a, nvcc 13.0).
#pragma once
#include <cstdint>

#include "ptx/bits.cuh"

namespace mxfp4 {

constexpr int kRows = 64;
constexpr int kColumns = 64;
constexpr int kCodeBytes = kRows * kColumns / 2;
constexpr int kScaleBytes = kRows * kColumns / 32;
constexpr int kRecordBytes = kCodeBytes + kScaleBytes;
constexpr int kThreads = 128;
constexpr int kRegisters = kRows * kColumns / 2 / kThreads;  // bf16 pairs of one thread
static_assert(kCodeBytes == kThreads * 16 && kRecordBytes == 2176 && kRegisters == 16);

// Sign and magnitude of two codes, at home in the two halves of a register.
constexpr uint32_t kHome = 0x81C081C0u;
// Where the first code word, shifted left by 2, holds the leftover bits; the second holds the others.
constexpr uint32_t kLeftover = 0x180C180Cu;
// A bf16's sign (always 0 here) and exponent, in both halves.
constexpr uint32_t kField = 0x7F807F80u;

__device__ __forceinline__ int code_offset(int thread) { return thread * 16; }
__device__ __forceinline__ int scale_offset(int thread) { return kCodeBytes + thread / 32 * 32 + thread % 32 / 4 * 4; }

// 16 codes of two k16 steps to 8 registers. `scale` is the multiplier of rows g (low half) and g + 8.
__device__ __forceinline__ void decode_k32(uint32_t w0, uint32_t w1, uint32_t scale, uint32_t* a) {
    const uint32_t low = __byte_perm(scale, scale, 0x1010);
    const uint32_t high = __byte_perm(scale, scale, 0x3232);
    const uint32_t leftover = select_bits(kLeftover, w0 << 2, w1);
    a[0] = mul_bf16x2(w0 & kHome, low);
    a[1] = mul_bf16x2(rotate_right(w0, 6) & kHome, high);
    a[2] = mul_bf16x2((w0 << 4) & kHome, low);
    a[3] = mul_bf16x2(rotate_right(leftover, 4) & kHome, high);
    a[4] = mul_bf16x2(w1 & kHome, low);
    a[5] = mul_bf16x2(rotate_right(w1, 6) & kHome, high);
    a[6] = mul_bf16x2((w1 << 4) & kHome, low);
    a[7] = mul_bf16x2((leftover << 6) & kHome, high);
}

// One thread's part of a record: its code words and its scale word.
struct Codes {
    uint4 words;
    uint32_t scales;
};

__device__ __forceinline__ Codes load_codes(const uint8_t* record, uint32_t thread) {
    return {*reinterpret_cast<const uint4*>(record + code_offset(thread)),
            *reinterpret_cast<const uint32_t*>(record + scale_offset(thread))};
}

// To the thread's 16 registers.
__device__ __forceinline__ void decode_k64(const Codes& codes, uint32_t (&a)[kRegisters]) {
    decode_k32(codes.words.x, codes.words.y, codes.scales & kField, a);
    decode_k32(codes.words.z, codes.words.w, rotate_right(codes.scales, 8) & kField, a + 8);
}

}  // namespace mxfp4
