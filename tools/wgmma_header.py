"""Writes crates/cuda/kernels/ptx/wgmma.cuh and wgmma_ss.cuh: one instruction takes as many operands as it has accumulators,
so it is written by a program.

    python3 tools/wgmma_header.py > crates/cuda/kernels/ptx/wgmma.cuh
    python3 tools/wgmma_header.py ss > crates/cuda/kernels/ptx/wgmma_ss.cuh
"""

import sys

WIDTHS = range(8, 257, 8)
WIDTHS_SS = range(32, 257, 32)

HEAD = """// wgmma with A in registers: D[64, N] += A[64, 16] B[16, N], bf16 operands, float32 sums.
//
// Written by tools/wgmma_header.py. The thread's part of D, lane = T % 32: d[i] is row 16 (T / 32) + lane / 4 + 8 (i / 2 % 2),
// column 8 (i / 4) + 2 (lane % 4) + i % 2 (PTX ISA, wgmma m64nNk16). A is as mxfp4.cuh has it. B is K-major with the 128-byte
// swizzle: rows of 64 columns, 16-byte piece c of row n at 128 n + 16 (c ^ n % 8), in a tile aligned to 1,024 bytes.
#pragma once
#include <cstdint>

__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

template <int N>
__device__ __forceinline__ void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}

// The low half of B's descriptor, for a tile at a shared address; the high half is the constant 0x40000040: 1,024 bytes
// from 8 rows to the next 8, 128-byte swizzle. Adding n moves it by 16 n bytes.
__device__ __forceinline__ uint32_t wgmma_descriptor(uint32_t address) { return (address & 0x3FFFF) >> 4 | 1u << 16; }

// B begins `Offset` units of 16 bytes after `descriptor`.
template <int N>
struct Wgmma;
"""

HEAD_SS = """// wgmma with both operands in shared memory: D[64, N] += A[64, 16] B[16, N], bf16 operands, float32 sums.
//
// Written by tools/wgmma_header.py. D and B are as wgmma.cuh has them, and A lies like B: rows of 64 columns.
#pragma once
#include <cstdint>

#include "ptx/wgmma.cuh"

// A begins `OffsetA` units of 16 bytes after the descriptor `a`, B `OffsetB` after `b`.
template <int N>
struct WgmmaShared;
"""


def body(n):
    d = n // 2
    registers = ", ".join(f"%{i}" for i in range(d))
    outputs = ", ".join(f'"+f"(d[{i}])' for i in range(d))
    return f"""
template <>
struct Wgmma<{n}> {{
    template <int Offset>
    static __device__ __forceinline__ void run(float (&d)[{d}], const uint32_t* a, uint32_t descriptor) {{
        // clang-format off
        asm volatile(
            "{{\\n.reg .b64 b;\\n.reg .b32 low;\\nadd.u32 low, %{d + 4}, %{d + 5};\\nmov.b64 b, {{low, 0x40000040}};\\n"
            "wgmma.mma_async.sync.aligned.m64n{n}k16.f32.bf16.bf16 {{{registers}}}, "
            "{{%{d}, %{d + 1}, %{d + 2}, %{d + 3}}}, b, 1, 1, 1, 0;\\n}}"
            : {outputs}
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(descriptor), "n"(Offset));
        // clang-format on
    }}
}};
"""


def body_ss(n):
    d = n // 2
    registers = ", ".join(f"%{i}" for i in range(d))
    outputs = ", ".join(f'"+f"(d[{i}])' for i in range(d))
    return f"""
template <>
struct WgmmaShared<{n}> {{
    template <int OffsetA, int OffsetB>
    static __device__ __forceinline__ void run(float (&d)[{d}], uint32_t a, uint32_t b) {{
        // clang-format off
        asm volatile(
            "{{\\n.reg .b64 a, b;\\n.reg .b32 low;\\n"
            "add.u32 low, %{d}, %{d + 2};\\nmov.b64 a, {{low, 0x40000040}};\\n"
            "add.u32 low, %{d + 1}, %{d + 3};\\nmov.b64 b, {{low, 0x40000040}};\\n"
            "wgmma.mma_async.sync.aligned.m64n{n}k16.f32.bf16.bf16 {{{registers}}}, a, b, 1, 1, 1, 0, 0;\\n}}"
            : {outputs}
            : "r"(a), "r"(b), "n"(OffsetA), "n"(OffsetB));
        // clang-format on
    }}
}};
"""


if sys.argv[1:] == ["ss"]:
    print(HEAD_SS + "".join(map(body_ss, WIDTHS_SS)), end="")
else:
    print(HEAD + "".join(map(body, WIDTHS)), end="")
