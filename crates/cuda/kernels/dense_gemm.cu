// Dense matrix products for many tokens: wgmma with both operands in shared memory, tokens as columns.
//
// A block is some warpgroups. Its tile is some units of 64 weight rows, one or two for each warpgroup, and some groups of 8
// tokens; the launch says how many, so that there are tiles for all blocks. Both operands come in stages of 64 columns by bulk
// copies, and lie in memory as shared memory wants them; small tiles have many stages. Blocks are persistent and take tiles in
// turn, token tile by token tile, so that what a token tile needs stays in L2 while it is used.
//
// No warp does nothing but copy: that would cost registers, which ptxas grants as at launch, and sums of 256 columns need them.
// The first warp refills a stage between its products, while those of the next stage run.
#include <cstdint>

#include "dense.cuh"
#include "ptx/async.cuh"
#include "ptx/wgmma_ss.cuh"

namespace {

// `Consumers` warpgroups, `Units` of 64 rows each, `MaxN` tokens at most.
template <int Consumers_, int Units_, int MaxN_>
struct Body {
    static constexpr int Consumers = Consumers_, Units = Units_, MaxN = MaxN_, Threads = Consumers * 128;
};

using Mid = Body<3, 2, 128>;
using Wide = Body<3, 1, 256>;

// Products have multiples of so many columns.
constexpr int kStep = 32;
constexpr uint32_t kMaxStages = 16, kHeaderBytes = 1024;
constexpr uint32_t kUnitStrips = 4, kUnitBytes = kUnitStrips * kDenseRecordBytes;

struct Tile {
    uint32_t strip, n_strips;  // the first, and how many there are
    uint32_t group, n_groups;
    uint32_t n_tokens;
};

// The tiles of the product, and those of this block in order.
struct Tiles {
    uint32_t groups, row_tiles, count;

    __device__ __forceinline__ explicit Tiles(const DenseArgs& args) {
        groups = (args.n_tokens + 7) / 8;
        row_tiles = (args.strips + args.tile_units * kUnitStrips - 1) / (args.tile_units * kUnitStrips);
        count = row_tiles * ((groups + args.tile_groups - 1) / args.tile_groups);
    }

    __device__ __forceinline__ Tile at(const DenseArgs& args, uint32_t index) const {
        const uint32_t strip = index % row_tiles * args.tile_units * kUnitStrips;
        const uint32_t group = index / row_tiles * args.tile_groups, n_groups = min(args.tile_groups, groups - group);
        return {strip, min(args.tile_units * kUnitStrips, args.strips - strip), group, n_groups,
                min(n_groups * 8, args.n_tokens - group * 8)};
    }
};

// Place in the ring of stages, and the parity of its phase.
struct Ring {
    uint32_t stage = 0, parity = 0;
    __device__ __forceinline__ void next(const DenseArgs& args) {
        if (++stage == args.stages) { stage = 0; parity ^= 1; }
    }
};

// The stages that this block copies, in order.
struct Cursor {
    Tile tile;
    uint32_t index, record;

    __device__ __forceinline__ void begin(const DenseArgs& args, const Tiles& tiles, uint32_t index) {
        this->index = index;
        record = 0;
        if (index < tiles.count) tile = tiles.at(args, index);
    }
    __device__ __forceinline__ void next(const DenseArgs& args, const Tiles& tiles) {
        if (++record == args.k_records) begin(args, tiles, index + gridDim.x);
    }
};

// Before the stages in shared memory. The cursor lies here, and not in registers: those are for the sums.
struct Header {
    uint64_t full[kMaxStages], empty[kMaxStages];
    Cursor cursor;
};
static_assert(sizeof(Header) <= kHeaderBytes);

// The ring in shared memory; a stage is the units of a tile and its groups of tokens.
struct Stages {
    Header& header;

    __device__ __forceinline__ uint32_t full(uint32_t i) const { return shared_address(&header.full[i]); }
    __device__ __forceinline__ uint32_t empty(uint32_t i) const { return shared_address(&header.empty[i]); }
    __device__ __forceinline__ uint32_t weights(const DenseArgs& args, uint32_t i) const {
        const uint32_t tokens_bytes = (args.tile_groups * 8 + kStep - 1) / kStep * kStep * 128;
        return shared_address(&header) + kHeaderBytes + i * (args.tile_units * kUnitBytes + tokens_bytes);
    }
    __device__ __forceinline__ uint32_t tokens(const DenseArgs& args, uint32_t i) const {
        return weights(args, i) + args.tile_units * kUnitBytes;
    }
};

// Lane s copies strip s.
__device__ __forceinline__ void copy_weights(const DenseArgs& args, const Stages& stages, const Cursor& at, uint32_t stage) {
    const uint32_t lane = threadIdx.x % 32, full = stages.full(stage);
    if (lane == 0) barrier_expect(full, at.tile.n_strips * kDenseRecordBytes + at.tile.n_groups * kGroupBytes);
    __syncwarp();
    if (lane < at.tile.n_strips) {
        copy_bulk(stages.weights(args, stage) + lane * kDenseRecordBytes,
                  args.records + (size_t(at.tile.strip + lane) * args.k_records + at.record) * kDenseRecordBytes,
                  kDenseRecordBytes, full);
    }
}

__device__ __forceinline__ void copy_tokens(const DenseArgs& args, const Stages& stages, const Tiles& tiles, const Cursor& at,
                                            uint32_t stage) {
    if (threadIdx.x % 32 == 0) {
        copy_bulk(stages.tokens(args, stage),
                  args.tokens + (size_t(at.record) * tiles.groups + at.tile.group) * kGroupBytes,
                  at.tile.n_groups * kGroupBytes, stages.full(stage));
    }
}

// One warp fills all stages. Weights do not depend on the kernel before: they come first.
__device__ __forceinline__ void fill(const DenseArgs& args, const Stages& stages, const Tiles& tiles) {
    Cursor at;
    at.begin(args, tiles, blockIdx.x);
    Cursor waiting = at;
    uint32_t n_ahead = 0;
    for (; n_ahead < args.stages && at.index < tiles.count; n_ahead++) {
        copy_weights(args, stages, at, n_ahead);
        at.next(args, tiles);
    }
    grid_wait_for_previous();
    for (uint32_t i = 0; i < n_ahead; i++) {
        copy_tokens(args, stages, tiles, waiting, i);
        waiting.next(args, tiles);
    }
    if (threadIdx.x == 0) stages.header.cursor = at;
    __syncwarp();
}

// The same warp fills a stage again, when nobody needs it any more.
__device__ __forceinline__ void refill(const DenseArgs& args, const Stages& stages, const Tiles& tiles, const Ring& ring) {
    Cursor at = stages.header.cursor;
    if (at.index >= tiles.count) return;
    barrier_wait(stages.empty(ring.stage), ring.parity);
    copy_weights(args, stages, at, ring.stage);
    copy_tokens(args, stages, tiles, at, ring.stage);
    at.next(args, tiles);
    if (threadIdx.x == 0) stages.header.cursor = at;
    __syncwarp();
}

// This warp is done with the stage.
__device__ __forceinline__ void release(const DenseArgs& args, const Stages& stages, const Tiles& tiles, const Ring& ring) {
    if (threadIdx.x % 32 == 0) barrier_arrive(stages.empty(ring.stage));
    if (threadIdx.x < 32) refill(args, stages, tiles, ring);
}

// D += A B over one record: four steps of k16.
template <int N, int Step = 0>
__device__ __forceinline__ void multiply(float (&acc)[N / 2], uint32_t weights, uint32_t tokens) {
    WgmmaShared<N>::template run<Step * 2, Step * 2>(acc, weights, tokens);
    if constexpr (Step < 3) multiply<N, Step + 1>(acc, weights, tokens);
}

// A unit's sums to `out`. All that `out` held is read before anything is written: that takes a while.
template <int N>
__device__ __forceinline__ void store(const DenseArgs& args, const Tile& tile, uint32_t unit, float (&acc)[N / 2]) {
    const uint32_t strip = tile.strip + unit * kUnitStrips + threadIdx.x % 128 / 32;
    if (strip >= args.strips) return;
    const StripOut out(args, strip, tile.group * 8, tile.n_tokens);
    if (args.adds) {
        const float* at = out.at;
#pragma unroll
        for (uint32_t i = 0; i < N / 2; i += 2) {
            acc[i] += out.bias_of(i);
            acc[i + 1] += out.bias_of(i);
            if (out.has(i)) acc[i] = at[i / 2 % 2 * 8] + acc[i];
            if (out.has(i + 1)) acc[i + 1] = at[args.rows + i / 2 % 2 * 8] + acc[i + 1];
            if (i % 4 == 2) at += size_t(8) * args.rows;
        }
    } else {
#pragma unroll
        for (uint32_t i = 0; i < N / 2; i++) acc[i] += out.bias_of(i);
    }
    float* at = out.at;
#pragma unroll
    for (uint32_t i = 0; i < N / 2; i += 2) {
        if (out.has(i)) at[i / 2 % 2 * 8] = acc[i];
        if (out.has(i + 1)) at[args.rows + i / 2 % 2 * 8] = acc[i + 1];
        if (i % 4 == 2) at += size_t(8) * args.rows;
    }
}

// `Units` units of a tile, the first of them `unit` and `step` the way to the next, in products of `N` columns.
template <int N, int Units>
__device__ __forceinline__ void consume_units(const DenseArgs& args, const Stages& stages, const Tiles& tiles, uint32_t index,
                                              uint32_t unit, uint32_t step, Ring& ring) {
    float acc[Units][N / 2];
#pragma unroll
    for (int u = 0; u < Units; u++) {
#pragma unroll
        for (int i = 0; i < N / 2; i++) acc[u][i] = 0.0f;
    }
    Ring before;
#pragma unroll 1
    for (uint32_t record = 0; record < args.k_records; record++) {
        barrier_wait(stages.full(ring.stage), ring.parity);
        const uint32_t weights = __shfl_sync(~0u, wgmma_descriptor(stages.weights(args, ring.stage) + unit * kUnitBytes), 0);
        const uint32_t tokens = __shfl_sync(~0u, wgmma_descriptor(stages.tokens(args, ring.stage)), 0);
        wgmma_fence();
#pragma unroll
        for (int u = 0; u < Units; u++) multiply<N>(acc[u], weights + u * step * (kUnitBytes / 16), tokens);
        wgmma_commit();
        // All but this record's products are done.
        wgmma_wait<1>();
        if (record > 0) release(args, stages, tiles, before);
        before = ring;
        ring.next(args);
    }
    wgmma_wait<0>();
    release(args, stages, tiles, before);
    // Found again: kept through the loop, it would cost registers that the sums need.
    asm volatile("" : "+r"(index));
    const Tile tile = tiles.at(args, index);
#pragma unroll
    for (int u = 0; u < Units; u++) store<N>(args, tile, unit + u * step, acc[u]);
}

template <class B, int N = kStep>
__device__ __forceinline__ void consume_tile(const DenseArgs& args, const Stages& stages, const Tiles& tiles, uint32_t index,
                                             const Tile& tile, uint32_t unit, uint32_t step, Ring& ring) {
    if constexpr (N < B::MaxN) {
        if (tile.n_groups * 8 > N) {
            return consume_tile<B, N + kStep>(args, stages, tiles, index, tile, unit, step, ring);
        }
    }
    if constexpr (B::Units == 2) {
        if ((unit + step) * kUnitStrips < tile.n_strips) {
            return consume_units<N, 2>(args, stages, tiles, index, unit, step, ring);
        }
    }
    consume_units<N, 1>(args, stages, tiles, index, unit, step, ring);
}

template <class B>
__device__ __forceinline__ void dense_gemm(const DenseArgs& args) {
    extern __shared__ __align__(1024) uint8_t memory[];
    const Stages stages{*reinterpret_cast<Header*>(memory)};
    const Tiles tiles(args);
    // With fewer units than warpgroups, some have nothing to do.
    const uint32_t consumer = __shfl_sync(~0u, threadIdx.x / 128, 0), n_consumers = min(uint32_t(B::Consumers), args.tile_units);
    if (threadIdx.x == 0) {
        for (uint32_t i = 0; i < args.stages; i++) {
            barrier_init(stages.full(i), 1);
            barrier_init(stages.empty(i), n_consumers * 4);
        }
        barrier_init_fence();
    }
    __syncthreads();
    grid_launch_next();
    if (consumer >= n_consumers) return;
    if (threadIdx.x < 32) fill(args, stages, tiles);
    else grid_wait_for_previous();
    Ring ring;
    for (uint32_t index = blockIdx.x; index < tiles.count; index += gridDim.x) {
        const Tile tile = tiles.at(args, index);
        if (consumer * kUnitStrips < tile.n_strips) {
            consume_tile<B>(args, stages, tiles, index, tile, consumer, n_consumers, ring);
            continue;
        }
        for (uint32_t record = 0; record < args.k_records; record++, ring.next(args)) {
            barrier_wait(stages.full(ring.stage), ring.parity);
            if (threadIdx.x % 32 == 0) barrier_arrive(stages.empty(ring.stage));
        }
    }
}

}  // namespace

extern "C" __global__ void __launch_bounds__(Mid::Threads, 1) dense_gemm_mid(const __grid_constant__ DenseArgs args) {
    dense_gemm<Mid>(args);
}
extern "C" __global__ void __launch_bounds__(Wide::Threads, 1) dense_gemm_wide(const __grid_constant__ DenseArgs args) {
    dense_gemm<Wide>(args);
}
