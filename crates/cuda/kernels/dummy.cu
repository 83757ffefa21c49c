// Weights that no file holds, made in place: those of `tessera_model::synth` for the same seed, value for value.
//
// Every value is a function of a key (of seed, part and layer) and of its index in the checkpoint's tensor, so a thread
// makes what it stores. Bound by integer arithmetic, most of it for the codes: four threads make the same words, of which
// each keeps its bytes.
#include <cstdint>

#include "pack.cuh"

// Splitmix64, whose state after i steps is a product.
__device__ __forceinline__ uint64_t random_word(uint64_t key, uint64_t i) {
    uint64_t z = key + i * 0x9E3779B97F4A7C15ull;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ z >> 27) * 0x94D049BB133111EBull;
    return z ^ z >> 31;
}

struct Distribution {
    uint64_t key;
    float mean;
    float deviation;
};
static_assert(sizeof(Distribution) == 16);

// mean + deviation * x, rounded to bf16; the host has no fused multiply-add.
__device__ __forceinline__ uint32_t value_of(const Distribution& from, uint32_t sum_of_bytes) {
    constexpr float kInverseDeviation = 1.0f / 147.79941f;  // of a sum of four bytes
    const float x = __fmul_rn(float(sum_of_bytes) - 4.0f * 127.5f, kInverseDeviation);
    const uint32_t bits = __float_as_uint(__fadd_rn(from.mean, __fmul_rn(from.deviation, x)));
    return (bits + 0x7FFFu + (bits >> 16 & 1)) >> 16;
}

// The bf16 values of indices 2 i (low half) and 2 i + 1: nearly normal numbers, sums of four bytes.
__device__ __forceinline__ uint32_t value_pair(const Distribution& from, uint64_t i) {
    const uint64_t word = random_word(from.key, i);
    const uint64_t pairs = (word & 0x00FF00FF00FF00FFull) + (word >> 8 & 0x00FF00FF00FF00FFull);
    const uint64_t sums = (pairs & 0x0000FFFF0000FFFFull) + (pairs >> 16 & 0x0000FFFF0000FFFFull);
    return value_of(from, uint32_t(sums)) | value_of(from, uint32_t(sums >> 32)) << 16;
}

// Eight values from an index that is a multiple of 8.
__device__ __forceinline__ uint4 values_8(const Distribution& from, uint64_t index) {
    const uint64_t i = index / 2;
    return make_uint4(value_pair(from, i), value_pair(from, i + 1), value_pair(from, i + 2), value_pair(from, i + 3));
}

struct DummyRowsArgs {
    Distribution from;
    uint4* target;  // bf16 [n]
    uint64_t n;     // a multiple of 8
};
static_assert(sizeof(DummyRowsArgs) == 32);

// As the checkpoint has them; grid (n / 2048).
extern "C" __global__ void __launch_bounds__(256) dummy_rows(const __grid_constant__ DummyRowsArgs args) {
    const uint64_t piece = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (8 * piece < args.n) args.target[piece] = values_8(args.from, 8 * piece);
}

struct DummyDenseArgs {
    Distribution from;
    uint4* records;  // bf16 [strips, k_records, 16, 64]
    uint32_t rows;
    uint32_t cols;   // a multiple of 8
};
static_assert(sizeof(DummyDenseArgs) == 32);

// Grid (k_records, strips), as pack_dense.
extern "C" __global__ void __launch_bounds__(pack::kDensePieces) dummy_dense(const __grid_constant__ DummyDenseArgs args) {
    const uint32_t row = blockIdx.y * pack::kDenseRows + pack::dense_row(threadIdx.x);
    const uint32_t column = blockIdx.x * pack::kDenseColumns + pack::dense_column(threadIdx.x);
    uint4 piece = {};
    if (row < args.rows && column < args.cols) piece = values_8(args.from, uint64_t(row) * args.cols + column);
    args.records[(size_t(blockIdx.y) * gridDim.x + blockIdx.x) * pack::kDensePieces + threadIdx.x] = piece;
}

struct DummyWidenArgs {
    Distribution from;
    float* target;         // [matrices, packed_rows]
    uint32_t rows;
    uint32_t packed_rows;
    uint32_t order;        // pack::Order
    uint32_t padding;
};
static_assert(sizeof(DummyWidenArgs) == 40);

// Grid (rows / 256, matrices), as widen.
extern "C" __global__ void __launch_bounds__(256) dummy_widen(const __grid_constant__ DummyWidenArgs args) {
    const uint32_t packed = blockIdx.x * blockDim.x + threadIdx.x;
    if (packed >= args.packed_rows) return;
    const uint32_t row = pack::source_row(packed, args.order);
    const uint64_t index = uint64_t(blockIdx.y) * args.rows + row;
    const uint32_t pair = row < args.rows ? value_pair(args.from, index / 2) : 0;
    const uint32_t bits = index % 2 == 0 ? pair << 16 : pair & 0xFFFF0000u;
    args.target[size_t(blockIdx.y) * args.packed_rows + packed] = __uint_as_float(bits);
}

struct DummyExpertsArgs {
    uint64_t block_key;
    uint64_t scale_key;
    uint8_t* records;        // [experts, strips, k_records, 2176]
    uint32_t rows;
    uint32_t cols;           // a multiple of 32
    uint32_t order;          // pack::Order
    uint32_t base_field;     // of the commonest scale byte
    uint32_t padding_field;  // of what is beyond the matrix, whose codes are 0
    uint32_t padding;
};
static_assert(sizeof(DummyExpertsArgs) == 48);

// Random codes, one nibble of them a large one.
__device__ __forceinline__ uint4 random_codes(uint64_t key, uint64_t block) {
    constexpr uint32_t kLargeCode = 0x6;
    const uint64_t low = random_word(key, 2 * block), high = random_word(key, 2 * block + 1);
    uint32_t words[4] = {uint32_t(low), uint32_t(low >> 32), uint32_t(high), uint32_t(high >> 32)};
    const uint32_t large = uint32_t(low >> 60);  // the byte, of 16
#pragma unroll
    for (uint32_t i = 0; i < 4; i++) words[i] |= large / 4 == i ? kLargeCode << (8 * (large % 4)) : 0u;
    return make_uint4(words[0], words[1], words[2], words[3]);
}

// -2 to 2, by a random nibble.
__device__ __forceinline__ uint32_t scale_distance(uint64_t key, uint64_t block) {
    constexpr uint64_t kDistancesPlus2 = 0x4333222222111100ull;
    const uint32_t nibble = uint32_t(random_word(key, block / 16) >> (4 * (block % 16))) & 0xFu;
    return (uint32_t(kDistancesPlus2 >> (4 * nibble)) & 0xFu) - 2;
}

__device__ __forceinline__ pack::RowTile row_tile(const DummyExpertsArgs& args, uint32_t packed, uint32_t k_record) {
    pack::RowTile tile = {{}, {args.padding_field, args.padding_field}};
    const uint32_t row = pack::source_row(packed, args.order);
    const uint32_t n_blocks = args.cols / 32;
#pragma unroll
    for (uint32_t i = 0; i < 2; i++) {
        const uint32_t in_row = 2 * k_record + i;
        if (row < args.rows && in_row < n_blocks) {
            const uint64_t block = (uint64_t(blockIdx.z) * args.rows + row) * n_blocks + in_row;
            tile.codes[i] = random_codes(args.block_key, block);
            tile.fields[i] = (args.base_field + scale_distance(args.scale_key, block)) & 0xFFu;
        }
    }
    return tile;
}

// Grid (k_records, strips, experts), as pack_experts.
extern "C" __global__ void __launch_bounds__(mxfp4::kThreads) dummy_experts(const __grid_constant__ DummyExpertsArgs args) {
    const uint32_t packed = blockIdx.y * mxfp4::kRows + pack::low_row(threadIdx.x);
    const size_t strip = size_t(blockIdx.z) * gridDim.y + blockIdx.y;
    uint8_t* record = args.records + (strip * gridDim.x + blockIdx.x) * mxfp4::kRecordBytes;
    pack::store_record(record, threadIdx.x, row_tile(args, packed, blockIdx.x), row_tile(args, packed + 8, blockIdx.x));
}
