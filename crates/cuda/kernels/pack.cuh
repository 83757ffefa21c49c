// From the checkpoint's order of bytes to the forms that the matrix products read.
//
// MXFP4: a record of 64 rows x 64 columns, as mxfp4.cuh reads it; thread T of 128 makes its own 16 bytes of codes, and the
// first of four threads their scale word. BF16: a record of 16 rows x 64 columns, two groups of 8 rows; row r of a group at
// 128 r, its 16-byte piece c at 16 (c ^ r).
//
// Where values come from (a copy of the checkpoint, or a generator) is the caller's.
#pragma once
#include <cstdint>

#include "mxfp4.cuh"

namespace pack {

constexpr int kDenseRows = 16;
constexpr int kDenseColumns = 64;
constexpr int kGroupRows = 8;
constexpr int kPieceColumns = 8;
constexpr int kDensePieces = kDenseRows * kDenseColumns / kPieceColumns;  // 16 bytes each
static_assert(kDensePieces == 128);

// How the packed rows of an expert's matrix are ordered.
enum Order : uint32_t { kNatural = 0, kGateUp = 1 };

// The checkpoint's row that is packed as row `packed`: of gates and ups by turns, 8 gates and then their 8 ups in every 16.
__device__ __forceinline__ uint32_t source_row(uint32_t packed, uint32_t order) {
    const uint32_t r = packed % 16;
    return order == kNatural ? packed : packed - r + 2 * (r % 8) + r / 8;
}

// The 32 bytes of codes, and the two scale bytes, of a row of a record.
struct RowTile {
    uint4 codes[2];
    uint32_t fields[2];
};

// A byte of the checkpoint where its bf16 pair has sign, exponent and mantissa: the low nibble in the low half.
__device__ __forceinline__ uint32_t home(uint32_t byte) {
    const uint32_t halves = (byte | byte << 12) & 0x000F000Fu;
    return (halves & 0x00080008u) << 12 | (halves & 0x00070007u) << 6;
}

__device__ __forceinline__ uint32_t rotate_left(uint32_t x, int n_bits) { return __funnelshift_l(x, x, n_bits); }

// Eight pairs at home to the two words that mxfp4::decode_k32 takes apart.
__device__ __forceinline__ uint2 merge(const uint32_t (&pairs)[8]) {
    const uint32_t fourths = rotate_left(pairs[3], 4) | pairs[7] >> 6;
    return make_uint2(
        pairs[0] | rotate_left(pairs[1], 6) | pairs[2] >> 4 | (fourths & mxfp4::kLeftover) >> 2,
        pairs[4] | rotate_left(pairs[5], 6) | pairs[6] >> 4 | (fourths & ~mxfp4::kLeftover));
}

__device__ __forceinline__ uint32_t byte_of(uint32_t word, int i) { return word >> (8 * i) & 0xFFu; }

// The words of a k32 step: column 16 s + 2 q + 8 h of a row is byte q of its word 2 s + h.
__device__ __forceinline__ uint2 pack_k32(uint4 low, uint4 high, int q) {
    const uint32_t pairs[8] = {home(byte_of(low.x, q)), home(byte_of(high.x, q)), home(byte_of(low.y, q)),
                               home(byte_of(high.y, q)), home(byte_of(low.z, q)), home(byte_of(high.z, q)),
                               home(byte_of(low.w, q)), home(byte_of(high.w, q))};
    return merge(pairs);
}

// The scale word: exponent fields of (low row, block 0), (high, 0), (low, 1), (high, 1).
__device__ __forceinline__ uint32_t scale_word(const uint32_t (&low)[2], const uint32_t (&high)[2]) {
    return low[0] << 7 | high[0] << 23 | rotate_left(low[1] << 7 | high[1] << 23, 8);
}

// Packed rows of a record that thread T holds: this one and the one 8 below it.
__device__ __forceinline__ uint32_t low_row(uint32_t thread) { return thread / 32 * 16 + thread % 32 / 4; }

// Thread T's part of a record, from its two rows.
__device__ __forceinline__ void store_record(uint8_t* record, uint32_t thread, const RowTile& low, const RowTile& high) {
    const int q = thread % 4;
    const uint2 first = pack_k32(low.codes[0], high.codes[0], q);
    const uint2 second = pack_k32(low.codes[1], high.codes[1], q);
    *reinterpret_cast<uint4*>(record + mxfp4::code_offset(thread)) = make_uint4(first.x, first.y, second.x, second.y);
    if (q == 0) {
        *reinterpret_cast<uint32_t*>(record + mxfp4::scale_offset(thread)) = scale_word(low.fields, high.fields);
    }
}

// Row and first column, within a record, of the 16-byte piece that is stored `piece`-th.
__device__ __forceinline__ uint32_t dense_row(uint32_t piece) { return piece / kPieceColumns; }
__device__ __forceinline__ uint32_t dense_column(uint32_t piece) {
    return (piece % 8 ^ dense_row(piece) % kGroupRows) * kPieceColumns;
}

}  // namespace pack
