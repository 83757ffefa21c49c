// wgmma m64n64k16 with A in registers, for attention: B as it is in wgmma.cuh, or transposed, and sums that begin at 0.
//
// B transposed is N-major with the 128-byte swizzle: 64 columns of row k are the 128 bytes at 128 k of the tile, 16-byte piece
// c at 16 (c ^ k % 8). The descriptor is that of wgmma.cuh: what is 1,024 bytes further on are the next 8 rows.
#pragma once
#include <cstdint>

enum class Order { kKMajor = 0, kNMajor = 1 };
enum class Sum { kBegin = 0, kContinue = 1 };

// B begins `kOffset` units of 16 bytes after `descriptor`.
template <Order kOrder, Sum kSum, int kOffset>
__device__ __forceinline__ void wgmma_tile(float (&d)[8][4], const uint32_t* a, uint32_t descriptor) {
    // clang-format off
    asm volatile(
        "{\n.reg .b64 b;\n.reg .b32 low;\nadd.u32 low, %36, %37;\nmov.b64 b, {low, 0x40000040};\n"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
        "{%32, %33, %34, %35}, b, %38, 1, 1, %39;\n}"
        : "+f"(d[0][0]), "+f"(d[0][1]), "+f"(d[0][2]), "+f"(d[0][3]), "+f"(d[1][0]), "+f"(d[1][1]), "+f"(d[1][2]), "+f"(d[1][3]),
          "+f"(d[2][0]), "+f"(d[2][1]), "+f"(d[2][2]), "+f"(d[2][3]), "+f"(d[3][0]), "+f"(d[3][1]), "+f"(d[3][2]), "+f"(d[3][3]),
          "+f"(d[4][0]), "+f"(d[4][1]), "+f"(d[4][2]), "+f"(d[4][3]), "+f"(d[5][0]), "+f"(d[5][1]), "+f"(d[5][2]), "+f"(d[5][3]),
          "+f"(d[6][0]), "+f"(d[6][1]), "+f"(d[6][2]), "+f"(d[6][3]), "+f"(d[7][0]), "+f"(d[7][1]), "+f"(d[7][2]), "+f"(d[7][3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(descriptor), "n"(kOffset), "n"(int(kSum)), "n"(int(kOrder)));
    // clang-format on
}
