// Weights of a checkpoint, copied as they are to the device, to the forms that the kernels read. A kernel takes one matrix,
// or whole strips of it. The copy that brings its input takes far longer than any of them.
#include <cstdint>

#include "pack.cuh"

struct PackExpertsArgs {
    const uint8_t* blocks;   // [rows, cols / 2], low nibble = even column
    const uint8_t* scales;   // [rows, cols / 32], E8M0
    uint8_t* records;        // [strips, k_records, 2176]
    uint32_t rows;
    uint32_t cols;           // a multiple of 32
    uint32_t order;          // pack::Order
    uint32_t field_offset;   // what is added to a scale byte, modulo 256
    uint32_t padding_field;  // of what is beyond the matrix, whose codes are 0
    uint32_t padding;
};
static_assert(sizeof(PackExpertsArgs) == 48);

__device__ __forceinline__ pack::RowTile row_tile(const PackExpertsArgs& args, uint32_t packed, uint32_t k_record) {
    pack::RowTile tile = {{}, {args.padding_field, args.padding_field}};
    const uint32_t row = pack::source_row(packed, args.order);
    const uint32_t n_blocks = args.cols / 32;
#pragma unroll
    for (uint32_t i = 0; i < 2; i++) {
        const uint32_t block = 2 * k_record + i;
        if (row < args.rows && block < n_blocks) {
            const size_t at = size_t(row) * n_blocks + block;
            tile.codes[i] = reinterpret_cast<const uint4*>(args.blocks)[at];
            tile.fields[i] = (args.scales[at] + args.field_offset) & 0xFFu;
        }
    }
    return tile;
}

// Grid (k_records, strips): a block makes a record.
extern "C" __global__ void __launch_bounds__(mxfp4::kThreads) pack_experts(const __grid_constant__ PackExpertsArgs args) {
    const uint32_t packed = blockIdx.y * mxfp4::kRows + pack::low_row(threadIdx.x);
    uint8_t* record = args.records + (size_t(blockIdx.y) * gridDim.x + blockIdx.x) * mxfp4::kRecordBytes;
    pack::store_record(record, threadIdx.x, row_tile(args, packed, blockIdx.x), row_tile(args, packed + 8, blockIdx.x));
}

struct PackDenseArgs {
    const uint4* source;  // bf16 [rows, cols]
    uint4* records;       // bf16 [strips, k_records, 16, 64]
    uint32_t rows;
    uint32_t cols;        // a multiple of 8
};
static_assert(sizeof(PackDenseArgs) == 24);

// Grid (k_records, strips): a block makes a record, zero beyond the matrix.
extern "C" __global__ void __launch_bounds__(pack::kDensePieces) pack_dense(const __grid_constant__ PackDenseArgs args) {
    const uint32_t row = blockIdx.y * pack::kDenseRows + pack::dense_row(threadIdx.x);
    const uint32_t column = blockIdx.x * pack::kDenseColumns + pack::dense_column(threadIdx.x);
    uint4 piece = {};
    if (row < args.rows && column < args.cols) {
        piece = args.source[(size_t(row) * args.cols + column) / pack::kPieceColumns];
    }
    args.records[(size_t(blockIdx.y) * gridDim.x + blockIdx.x) * pack::kDensePieces + threadIdx.x] = piece;
}

struct WidenArgs {
    const uint16_t* source;  // bf16 [matrices, rows]
    float* target;           // [matrices, packed_rows]
    uint32_t rows;
    uint32_t packed_rows;
    uint32_t order;          // pack::Order
    uint32_t padding;
};
static_assert(sizeof(WidenArgs) == 32);

// One value per row of each matrix to float32, in the order of the packed rows, zero beyond them; grid (rows / 256,
// matrices).
extern "C" __global__ void __launch_bounds__(256) widen(const __grid_constant__ WidenArgs args) {
    const uint32_t packed = blockIdx.x * blockDim.x + threadIdx.x;
    if (packed >= args.packed_rows) return;
    const uint32_t row = pack::source_row(packed, args.order);
    const uint32_t bits = row < args.rows ? args.source[size_t(blockIdx.y) * args.rows + row] : 0;
    args.target[size_t(blockIdx.y) * args.packed_rows + packed] = __uint_as_float(bits << 16);
}
