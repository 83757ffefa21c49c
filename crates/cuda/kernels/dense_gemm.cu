// Dense matrix products for many tokens: wgmma with both operands in shared memory, tokens as columns.
//
// A block is some warpgroups that multiply. Its tile is some units of 64 weight rows, one or two for each warpgroup, and some
// groups of 8 tokens; the launch says how many, so that there are tiles for all blocks. Both operands come in stages of 64
// columns by bulk copies, and lie in memory as shared memory wants them; small tiles have many stages.
//
// What bounds these products is the L2 cache, which gives a multiprocessor some 24 bytes in a clock. So blocks are in pairs
// whose tiles have the same tokens or the same rows: each copies half of what is the same, to both.
//
// Who copies: with one or two warpgroups, two warps of their own in turn, as a copy takes a warp some 50 clocks. Three leave no
// registers for one more (4 warps of a quarter of the multiprocessor would have 128 each): there the first warp of each copies
// between its products what its warpgroup has of a stage, while the next ones run.
//
// Blocks are persistent and take tiles in turn, token tile by token tile, so that what a token tile needs stays in L2 while it
// is used.
#include <cstdint>

#include "dense.cuh"
#include "ptx/async.cuh"
#include "ptx/cluster.cuh"
#include "ptx/wgmma_ss.cuh"

namespace {

// `Consumers` warpgroups, `Units` of 64 rows each, `MaxN` tokens at most, and `Copiers`: warps that only copy.
template <int Consumers_, int Units_, int MaxN_, int Copiers_>
struct Body {
    static constexpr int Consumers = Consumers_, Units = Units_, MaxN = MaxN_, Copiers = Copiers_;
    static constexpr int Threads = Consumers * 128 + Copiers * 32;
};

using Small = Body<1, 1, 64, 2>;
using Mid = Body<2, 2, 128, 2>;
using Wide = Body<3, 1, 256, 0>;

// Products have multiples of so many columns.
constexpr int kStep = 32;
constexpr uint32_t kMaxStages = 16, kHeaderBytes = 1024;
// So many records before the end of a sum, what it is added to is asked for: some microseconds.
constexpr uint32_t kAhead = 8;
constexpr uint32_t kUnitStrips = 4, kUnitBytes = kUnitStrips * kDenseRecordBytes;
// Blocks of a cluster, and all of them as bits.
constexpr uint32_t kPair = 2;
constexpr uint16_t kBoth = 3;

// One of the two has nothing where the other has the last tile.
struct Tile {
    uint32_t strip, n_strips;  // the first, and how many there are
    uint32_t group, n_groups;
    uint32_t n_tokens;
};

// The tiles of the product, two by two, and those of this block in order.
struct Tiles {
    uint32_t groups, row_tiles, count;

    __device__ __forceinline__ explicit Tiles(const DenseArgs& args) {
        const uint32_t n_strips = args.tile_units * kUnitStrips * (args.same_rows ? 1 : kPair);
        const uint32_t n_groups = args.tile_groups * (args.same_rows ? kPair : 1);
        groups = (args.n_tokens + 7) / 8;
        row_tiles = (args.strips + n_strips - 1) / n_strips;
        count = row_tiles * ((groups + n_groups - 1) / n_groups);
    }

    __device__ __forceinline__ static uint32_t first() { return blockIdx.x / kPair; }
    __device__ __forceinline__ static uint32_t step() { return gridDim.x / kPair; }

    __device__ __forceinline__ Tile at(const DenseArgs& args, uint32_t index) const {
        uint32_t rows = index % row_tiles, tokens = index / row_tiles;
        (args.same_rows ? tokens : rows) *= kPair;
        (args.same_rows ? tokens : rows) += cluster_rank();
        const uint32_t strip = rows * args.tile_units * kUnitStrips, group = tokens * args.tile_groups;
        const uint32_t n_groups = min(args.tile_groups, groups - min(groups, group));
        return {strip, min(args.tile_units * kUnitStrips, args.strips - min(args.strips, strip)), group, n_groups,
                min(n_groups * 8, args.n_tokens - min(args.n_tokens, group * 8))};
    }
};

// Place in the ring of stages, and the parity of its phase.
struct Ring {
    uint32_t stage = 0, parity = 0;
    // There are no less stages than that.
    __device__ __forceinline__ void next(const DenseArgs& args, uint32_t n = 1) {
        stage += n;
        if (stage >= args.stages) { stage -= args.stages; parity ^= 1; }
    }
};

// The stages that this block copies, in order.
struct Cursor {
    Tile tile;
    uint32_t index, record;

    __device__ __forceinline__ void begin(const DenseArgs& args, const Tiles& tiles) {
        index = Tiles::first();
        record = 0;
        tile = tiles.at(args, index);
    }

    __device__ __forceinline__ void next(const DenseArgs& args, const Tiles& tiles, uint32_t n = 1) {
        record += n;
        if (record < args.k_records) return;
        for (; record >= args.k_records; record -= args.k_records) index += Tiles::step();
        if (index < tiles.count) tile = tiles.at(args, index);
    }
};

// Before the stages in shared memory.
struct Header {
    uint64_t full[kMaxStages];   // both operands are there
    uint64_t empty[kMaxStages];  // neither block's warps need the stage any more
    Cursor cursors[3];           // of `refill`, of each warpgroup: registers are for the sums
};
static_assert(sizeof(Header) <= kHeaderBytes);

// The ring in shared memory; a stage is the units of a tile and its groups of tokens.
struct Stages {
    Header& header;
    uint32_t weights_bytes, bytes;

    __device__ __forceinline__ Stages(const DenseArgs& args, Header& header)
        : header(header), weights_bytes(args.tile_units * kUnitBytes),
          bytes(weights_bytes + (args.tile_groups * 8 + kStep - 1) / kStep * kStep * 128) {}

    __device__ __forceinline__ uint32_t full(uint32_t i) const { return shared_address(&header.full[i]); }
    __device__ __forceinline__ uint32_t empty(uint32_t i) const { return shared_address(&header.empty[i]); }
    __device__ __forceinline__ uint32_t weights(uint32_t i) const {
        return shared_address(&header) + kHeaderBytes + i * bytes;
    }
    __device__ __forceinline__ uint32_t tokens(uint32_t i) const { return weights(i) + weights_bytes; }
};

// What a warp copies: of the stages from `stage` on every `step`-th, and of those all, or a warpgroup's unit; the first has the
// tokens as well.
template <class B>
struct Share {
    uint32_t index;  // of the warp, among those that copy

    static constexpr bool Whole = B::Copiers > 0;
    static constexpr uint32_t Step = Whole ? B::Copiers : 1;
    __device__ __forceinline__ uint32_t stage() const { return Whole ? index : 0; }
    __device__ __forceinline__ bool is_first() const { return Whole || index == 0; }
};

// A lane copies a strip; of two blocks with the same rows, one the even and one the odd ones.
template <class B>
__device__ __forceinline__ void copy_weights(const DenseArgs& args, const Stages& stages, const Cursor& at, uint32_t stage,
                                             Share<B> share) {
    const uint32_t lane = threadIdx.x % 32, full = stages.full(stage);
    if (lane == 0 && share.is_first()) {
        barrier_expect(full, at.tile.n_strips * kDenseRecordBytes + at.tile.n_groups * kGroupBytes);
    }
    __syncwarp();
    const uint32_t strip = Share<B>::Whole ? lane : share.index * kUnitStrips + lane;
    if (strip >= at.tile.n_strips || (!Share<B>::Whole && lane >= kUnitStrips)) return;
    const uint32_t target = stages.weights(stage) + strip * kDenseRecordBytes;
    const uint8_t* source = args.records + (size_t(at.tile.strip + strip) * args.k_records + at.record) * kDenseRecordBytes;
    if (!args.same_rows) {
        copy_bulk(target, source, kDenseRecordBytes, full);
    } else if (strip % kPair == cluster_rank()) {
        copy_bulk_to(target, source, kDenseRecordBytes, full, kBoth);
    }
}

// Of two blocks with the same tokens, each copies half of the groups.
template <class B>
__device__ __forceinline__ void copy_tokens(const DenseArgs& args, const Stages& stages, const Tiles& tiles, const Cursor& at,
                                            uint32_t stage, Share<B> share) {
    if (!share.is_first()) return;
    const uint32_t half = (at.tile.n_groups + 1) / 2, first = args.same_rows ? 0 : cluster_rank() * half;
    const uint32_t n_groups = args.same_rows ? at.tile.n_groups : min(half, at.tile.n_groups - first);
    if (threadIdx.x % 32 > 0 || n_groups == 0) return;
    const uint32_t target = stages.tokens(stage) + first * kGroupBytes;
    const uint8_t* source = args.tokens + (size_t(at.record) * tiles.groups + at.tile.group + first) * kGroupBytes;
    if (args.same_rows) copy_bulk(target, source, n_groups * kGroupBytes, stages.full(stage));
    else copy_bulk_to(target, source, n_groups * kGroupBytes, stages.full(stage), kBoth);
}

// A warp fills its stages for the first time, and `at` is what comes next. Weights do not depend on the kernel before: they
// come first.
template <class B>
__device__ __forceinline__ void fill(const DenseArgs& args, const Stages& stages, const Tiles& tiles, Cursor& at,
                                     Share<B> share) {
    at.begin(args, tiles);
    at.next(args, tiles, share.stage());
    Cursor waiting = at;
    for (uint32_t i = share.stage(); i < args.stages && at.index < tiles.count; i += share.Step) {
        copy_weights(args, stages, at, i, share);
        at.next(args, tiles, share.Step);
    }
    grid_wait_for_previous();
    for (uint32_t i = share.stage(); i < args.stages && waiting.index < tiles.count; i += share.Step) {
        copy_tokens(args, stages, tiles, waiting, i, share);
        waiting.next(args, tiles, share.Step);
    }
}

// The same warp fills a stage again, when nobody needs it any more.
template <class B>
__device__ __forceinline__ void fill_again(const DenseArgs& args, const Stages& stages, const Tiles& tiles, Cursor& at,
                                           const Ring& ring, Share<B> share) {
    barrier_wait(stages.empty(ring.stage), ring.parity);
    copy_weights(args, stages, at, ring.stage, share);
    copy_tokens(args, stages, tiles, at, ring.stage, share);
    at.next(args, tiles, share.Step);
    __syncwarp();
}

// One of the warps that do nothing else. The number of stages is a multiple of theirs: a stage is always the same warp's, which
// so never is a phase of it ahead.
template <class B>
__device__ __forceinline__ void copy_in_turn(const DenseArgs& args, const Stages& stages, const Tiles& tiles, Share<B> share) {
    Cursor at;
    fill(args, stages, tiles, at, share);
    Ring ring;
    for (ring.stage = share.stage(); at.index < tiles.count; ring.next(args, share.Step)) {
        fill_again(args, stages, tiles, at, ring, share);
    }
}

// The first warp of a warpgroup, for what this needs.
template <class B>
__device__ __forceinline__ void fill_between(const DenseArgs& args, const Stages& stages, const Tiles& tiles) {
    static_assert(B::Units == 1 && B::Consumers == sizeof(Header::cursors) / sizeof(Cursor));
    Cursor at;
    fill(args, stages, tiles, at, Share<B>{threadIdx.x / 128});
    if (threadIdx.x % 32 == 0) stages.header.cursors[threadIdx.x / 128] = at;
    __syncwarp();
}
template <class B>
__device__ __forceinline__ void refill(const DenseArgs& args, const Stages& stages, const Tiles& tiles, const Ring& ring) {
    Cursor at = stages.header.cursors[threadIdx.x / 128];
    if (at.index >= tiles.count) return;
    fill_again(args, stages, tiles, at, ring, Share<B>{threadIdx.x / 128});
    if (threadIdx.x % 32 == 0) stages.header.cursors[threadIdx.x / 128] = at;
    __syncwarp();
}

// This warp is done with the stage; both blocks want to know.
template <class B>
__device__ __forceinline__ void release(const DenseArgs& args, const Stages& stages, const Tiles& tiles, const Ring& ring) {
    if (threadIdx.x % 32 < kPair) barrier_arrive_at(stages.empty(ring.stage), threadIdx.x % 32);
    if constexpr (B::Copiers == 0) {
        if (threadIdx.x % 128 < 32) refill<B>(args, stages, tiles, ring);
    }
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

// What sums are added to comes from far away: it is asked for while the last products run.
template <int Units>
__device__ __forceinline__ void prefetch_out(const DenseArgs& args, const Tiles& tiles, uint32_t index, uint32_t unit,
                                             uint32_t step) {
    // Of float32 numbers; the rows of a unit are in so many lines and one more, wherever these begin.
    constexpr uint32_t kLine = 32, kLines = kUnitStrips * kStripRows / kLine;
    asm volatile("" : "+r"(index));
    const Tile tile = tiles.at(args, index);
    for (uint32_t i = threadIdx.x % 128; i < tile.n_tokens; i += 128) {
#pragma unroll 1
        for (uint32_t u = 0; u < Units; u++) {
            const uint32_t row = (tile.strip + (unit + u * step) * kUnitStrips) * kStripRows;
            const float* at = args.out + size_t(tile.group * 8 + i) * args.rows + row;
            const uint32_t last = min(kLines * kLine, args.rows - row) - 1;
            for (uint32_t l = 0; l <= kLines; l++) prefetch_l2(at + min(l * kLine, last));
        }
    }
}

// `Units` units of a tile, the first of them `unit` and `step` the way to the next, in products of `N` columns.
template <class B, int N, int Units>
__device__ __forceinline__ void consume_units(const DenseArgs& args, const Stages& stages, const Tiles& tiles, uint32_t index,
                                              uint32_t unit, uint32_t step, Ring& ring) {
    float acc[Units][N / 2];
#pragma unroll
    for (int u = 0; u < Units; u++) {
#pragma unroll
        for (int i = 0; i < N / 2; i++) acc[u][i] = 0.0f;
    }
    const uint32_t weights = __shfl_sync(~0u, wgmma_descriptor(stages.weights(0) + unit * kUnitBytes), 0);
    const uint32_t tokens = __shfl_sync(~0u, wgmma_descriptor(stages.tokens(0)), 0);
    Ring before;
#pragma unroll 1
    for (uint32_t record = 0; record < args.k_records; record++) {
        barrier_wait(stages.full(ring.stage), ring.parity);
        const uint32_t offset = ring.stage * (stages.bytes / 16);
        wgmma_fence();
#pragma unroll
        for (int u = 0; u < Units; u++) multiply<N>(acc[u], weights + offset + u * step * (kUnitBytes / 16), tokens + offset);
        wgmma_commit();
        // All but this record's products are done.
        wgmma_wait<1>();
        if (record > 0) release<B>(args, stages, tiles, before);
        if (args.adds && record + kAhead == args.k_records) prefetch_out<Units>(args, tiles, index, unit, step);
        before = ring;
        ring.next(args);
    }
    wgmma_wait<0>();
    release<B>(args, stages, tiles, before);
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
            return consume_units<B, N, 2>(args, stages, tiles, index, unit, step, ring);
        }
    }
    consume_units<B, N, 1>(args, stages, tiles, index, unit, step, ring);
}

// One warpgroup.
template <class B>
__device__ __forceinline__ void consume(const DenseArgs& args, const Stages& stages, const Tiles& tiles, uint32_t consumer,
                                        uint32_t n_consumers) {
    if constexpr (B::Copiers == 0) {
        if (threadIdx.x % 128 < 32) fill_between<B>(args, stages, tiles);
    }
    grid_wait_for_previous();
    Ring ring;
    for (uint32_t index = Tiles::first(); index < tiles.count; index += Tiles::step()) {
        const Tile tile = tiles.at(args, index);
        if (consumer * kUnitStrips < tile.n_strips && tile.n_groups > 0) {
            consume_tile<B>(args, stages, tiles, index, tile, consumer, n_consumers, ring);
            continue;
        }
        for (uint32_t record = 0; record < args.k_records; record++, ring.next(args)) {
            barrier_wait(stages.full(ring.stage), ring.parity);
            release<B>(args, stages, tiles, ring);
        }
    }
}

template <class B>
__device__ __forceinline__ void dense_gemm(const DenseArgs& args) {
    extern __shared__ __align__(1024) uint8_t memory[];
    const Stages stages(args, *reinterpret_cast<Header*>(memory));
    const Tiles tiles(args);
    const uint32_t n_consumers = min(uint32_t(B::Consumers), args.tile_units);
    const uint32_t consumer = __shfl_sync(~0u, threadIdx.x / 128, 0);
    if (threadIdx.x < args.stages) {
        barrier_init(stages.full(threadIdx.x), 1);
        barrier_init(stages.empty(threadIdx.x), kPair * n_consumers * 4);
        barrier_init_fence();
    }
    cluster_meet();
    grid_launch_next();
    // With fewer units than warpgroups, some have nothing to do.
    if (consumer == B::Consumers) copy_in_turn<B>(args, stages, tiles, {__shfl_sync(~0u, threadIdx.x / 32 % 4, 0)});
    else if (consumer < n_consumers) consume<B>(args, stages, tiles, consumer, n_consumers);
    // The other block may still copy to this one, and arrive at its barriers.
    cluster_meet();
}

}  // namespace

// It leaves room for another kernel's block: weights of tiles that are short are on their way before that one ends.
extern "C" __global__ void __launch_bounds__(Small::Threads, 2) dense_gemm_small(const __grid_constant__ DenseArgs args) {
    dense_gemm<Small>(args);
}
extern "C" __global__ void __launch_bounds__(Mid::Threads, 1) dense_gemm_mid(const __grid_constant__ DenseArgs args) {
    dense_gemm<Mid>(args);
}
extern "C" __global__ void __launch_bounds__(Wide::Threads, 1) dense_gemm_wide(const __grid_constant__ DenseArgs args) {
    dense_gemm<Wide>(args);
}
