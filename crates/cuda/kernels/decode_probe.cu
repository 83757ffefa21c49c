// The MXFP4 decode by itself, for the tests: what one multiplication gives, and what each thread's registers hold.
#include <cstdint>

#include "mxfp4.cuh"

struct MultiplyTableArgs {
    const uint8_t* fields;  // [gridDim.y] exponent fields of the multiplier
    uint32_t* products;     // [gridDim.y, 65536]
};
static_assert(sizeof(MultiplyTableArgs) == 16);

// products[f, x] = {low: x * 2^(fields[f] - 127), high: the same of the bf16 with the bits 65535 - x}; grid (256, fields).
extern "C" __global__ void __launch_bounds__(256) multiply_table(const __grid_constant__ MultiplyTableArgs args) {
    const uint32_t x = blockIdx.x * blockDim.x + threadIdx.x;
    const uint32_t field = args.fields[blockIdx.y];
    const uint32_t pair = x | (65535u - x) << 16;
    args.products[blockIdx.y * 65536u + x] = mul_bf16x2(pair, field << 7 | field << 23);
}

struct DecodeRecordsArgs {
    const uint8_t* records;  // [gridDim.x, mxfp4::kRecordBytes]
    uint32_t* registers;     // [gridDim.x, mxfp4::kThreads, mxfp4::kRegisters]
};
static_assert(sizeof(DecodeRecordsArgs) == 16);

// One record per block, one fragment per thread.
extern "C" __global__ void __launch_bounds__(mxfp4::kThreads)
    decode_records(const __grid_constant__ DecodeRecordsArgs args) {
    const uint8_t* record = args.records + size_t(blockIdx.x) * mxfp4::kRecordBytes;
    uint32_t a[mxfp4::kRegisters];
    mxfp4::decode_k64(mxfp4::load_codes(record, threadIdx.x), a);
    uint4* out = reinterpret_cast<uint4*>(args.registers) + (size_t(blockIdx.x) * mxfp4::kThreads + threadIdx.x) * 4;
#pragma unroll
    for (int i = 0; i < 4; i++) out[i] = make_uint4(a[4 * i], a[4 * i + 1], a[4 * i + 2], a[4 * i + 3]);
}
