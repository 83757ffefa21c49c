// mma.sync: a warp's D[16, 8] += A[16, 16] B[16, 8], bf16 operands, float32 sums, and the loads of B.
//
// A is as mxfp4.cuh has it. With g = lane / 4 and q = lane % 4, b[h] is column g, rows 2 q + 8 h and the next; d[2 h + i] is
// row g + 8 h, column 2 q + i (PTX ISA, mma m16n8k16).
#pragma once
#include <cstdint>

__device__ __forceinline__ void mma(float* d, const uint32_t* a, const uint32_t* b) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Four 8x8 matrices of 16-bit values; lane 8 i + r gives the shared address of matrix i's row r, of 16 bytes. Register i has,
// of matrix i, row lane / 4, columns 2 (lane % 4) and the next.
__device__ __forceinline__ void load_matrices(uint32_t address, uint32_t* to) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(address));
}

// The same, each matrix transposed: register i has, of matrix i, column lane / 4, rows 2 (lane % 4) and the next.
__device__ __forceinline__ void load_matrices_transposed(uint32_t address, uint32_t* to) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(address));
}
