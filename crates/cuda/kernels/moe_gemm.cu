// The experts' matrix products: ragged groups of tokens, MXFP4 weights decoded into wgmma's A registers, tokens as columns.
//
// A block is some consumer warpgroups and one warp that copies. Its tile is some tokens of one expert and, for each warpgroup,
// a strip of 64 weight rows. Weights and tokens come in chunks of k64 records by bulk copies: both lie in memory as
// shared memory wants them. Blocks are persistent and take tiles in turn: expert by expert, token tile by token tile, strips
// fastest, so that what a token tile needs stays in L2 while it is used.
//
// Of the down products for many tokens, blocks start as those of gate and up end, which is up to a tile's time before the last
// one does. They wait for the strips of their tile's expert alone.
//
// A row's sum runs over k in steps of 16 from 0 to the end in one accumulator, whatever the body and whatever stands in the
// other columns: results do not depend on the batch.
#include <cuda_bf16.h>

#include <cstdint>
#include <type_traits>

#include "moe_gemm.cuh"
#include "moe_tokens.cuh"
#include "mxfp4.cuh"
#include "ptx/async.cuh"
#include "ptx/bits.cuh"
#include "ptx/wgmma.cuh"
#include "ring.cuh"

namespace {

// `Consumers` warpgroups, `MaxN` tokens at most in products of multiples of `Step`, `Chunk` records of each strip in a stage,
// of which `Operands` are decoded before the products of the first are done.
template <int Consumers_, int MaxN_, int Step_, int Chunk_, int Stages_, int Operands_>
struct Body {
    static constexpr int Consumers = Consumers_, MaxN = MaxN_, Step = Step_, Chunk = Chunk_, Stages = Stages_;
    static constexpr int Operands = Operands_;
    static constexpr int Threads = (Consumers + 1) * 128;
    // A thread's at launch, and a consumer's after the copying warpgroup gave up the others.
    static constexpr int LaunchRegisters = 65536 / Threads / 8 * 8, CopierRegisters = 32;
    static constexpr int Registers = (LaunchRegisters * (Consumers + 1) - CopierRegisters) / Consumers / 8 * 8;
    static_assert(MaxN % Step == 0 && Step % 8 == 0);
};

// The numbers are measured: more warpgroups hide the decode's latency, longer chunks read memory in longer runs, and
// accumulators and operands together must fit the registers that ptxas grants, which are those at launch.
using Mid = Body<4, 48, 8, 5, 3, 2>;
using Prefill = Body<3, 176, 16, 2, 3, 2>;

// Whether the products count their strips and wait for them. Where tiles are short it gains little, and ptxas, short of uniform
// registers then, gives Mid one instruction more for each product.
template <class B>
constexpr bool kCountsStrips = std::is_same_v<B, Prefill>;
template <class B, Epilogue E>
constexpr bool kCounts = kCountsStrips<B> && E == Epilogue::SwiGlu;
template <class B, Epilogue E>
constexpr bool kWaits = kCountsStrips<B> && E == Epilogue::Plain;

template <class B>
struct Stage {
    alignas(1024) uint8_t tokens[B::Chunk][B::MaxN * 128];
    alignas(128) uint8_t weights[B::Consumers][B::Chunk * mxfp4::kRecordBytes];
};

template <class B>
struct Shared {
    Stage<B> stages[B::Stages];
    uint64_t full[B::Stages];
    uint64_t empty[B::Stages];
    uint64_t stored;   // a tile's results are written
    uint64_t noticed;  // by the thread that counts them: those of the next tile may be, too
    TokenTiles<B::MaxN / 8> tiles;
};

struct Tile : TokenTile {
    uint32_t strip, n_strips;
};

struct Plan {
    uint32_t tile_strips, strip_tiles, n_tiles;
};

template <class B>
__device__ __forceinline__ Tile tile_at(const MoeGemmArgs& args, const Shared<B>& shared, const Plan& plan, uint32_t index) {
    const uint32_t strip = index % plan.strip_tiles * plan.tile_strips;
    return {shared.tiles.at(args.experts, index / plan.strip_tiles), strip,
            min(plan.tile_strips, args.strips - strip)};
}

template <class B>
__device__ Plan plan_tiles(const MoeGemmArgs& args, Shared<B>& shared) {
    if (threadIdx.x < 32) shared.tiles.fill_routed(args);
    __syncthreads();
    const uint32_t token_tiles = shared.tiles.first_tile[args.experts];
    // With little to do, fewer strips a block and more blocks.
    const uint32_t tile_strips = min(uint32_t(B::Consumers), (token_tiles * args.strips + gridDim.x - 1) / gridDim.x);
    const uint32_t strip_tiles = tile_strips == 0 ? 0 : (args.strips + tile_strips - 1) / tile_strips;
    return {tile_strips, strip_tiles, token_tiles * strip_tiles};
}

// The chunks that this block copies, in order.
template <class B>
struct Cursor {
    Tile tile;
    uint32_t index, chunk = 0;

    __device__ __forceinline__ Cursor(const MoeGemmArgs& args, const Shared<B>& shared, const Plan& plan)
        : index(blockIdx.x) {
        if (index < plan.n_tiles) tile = tile_at(args, shared, plan, index);
    }

    __device__ __forceinline__ void next(const MoeGemmArgs& args, const Shared<B>& shared, const Plan& plan) {
        if (++chunk * B::Chunk < args.k_records) return;
        chunk = 0;
        index += gridDim.x;
        if (index < plan.n_tiles) tile = tile_at(args, shared, plan, index);
    }
};

// Lane s copies strip s.
template <class B>
__device__ __forceinline__ void copy_weights(const MoeGemmArgs& args, Shared<B>& shared, const Cursor<B>& at, uint32_t stage) {
    const uint32_t lane = threadIdx.x % 32;
    const uint32_t first = at.chunk * B::Chunk, n_records = min(uint32_t(B::Chunk), args.k_records - first);
    const uint32_t full = shared_address(&shared.full[stage]), n_bytes = n_records * mxfp4::kRecordBytes;
    if (lane == 0) barrier_expect(full, at.tile.n_strips * n_bytes + n_records * at.tile.n_groups * kGroupBytes);
    __syncwarp();
    if (lane < at.tile.n_strips) {
        const size_t strip = size_t(at.tile.expert) * args.strips + at.tile.strip + lane;
        copy_bulk(shared_address(shared.stages[stage].weights[lane]),
                  args.records + (strip * args.k_records + first) * mxfp4::kRecordBytes, n_bytes, full);
    }
}

// Lane p copies panel p.
template <class B>
__device__ __forceinline__ void copy_tokens(const MoeGemmArgs& args, Shared<B>& shared, const Cursor<B>& at, uint32_t stage) {
    const Tile& tile = at.tile;
    const uint32_t lane = threadIdx.x % 32, panel = at.chunk * B::Chunk + lane;
    if (lane < B::Chunk && panel < args.k_records) {
        const size_t group = size_t(tile.expert_group) * args.k_records + size_t(panel) * tile.panel_stride
            + (tile.first_group - tile.expert_group);
        copy_bulk(shared_address(shared.stages[stage].tokens[lane]), args.tokens + group * kGroupBytes,
                  tile.n_groups * kGroupBytes, shared_address(&shared.full[stage]));
    }
}

// One warp waits until the rows of an expert are there, which the kernel before makes.
template <class B>
struct Arrivals {
    bool all = false;
    uint32_t expert = kMaxExperts;  // the last one whose are

    __device__ __forceinline__ void wait(const MoeGemmArgs& args, const Shared<B>& shared, const Tile& tile) {
        if (args.strips_done == nullptr || all || tile.expert == expert) return;
        expert = tile.expert;
        const uint32_t n_tiles = shared.tiles.first_tile[expert + 1] - shared.tiles.first_tile[expert];
        // After the first tiles nothing is left to wait for, nor to ask.
        all = load_acquire(args.strips_done + args.experts) == shared.tiles.first_tile[args.experts] * args.strips_before;
        while (!all && load_acquire(args.strips_done + expert) < n_tiles * args.strips_before) __nanosleep(32);
        global_proxy_fence();
    }
};

// One warp. Weights do not depend on the kernel before: they come first, as far as there is room.
template <class B, Epilogue E>
__device__ __forceinline__ void produce(const MoeGemmArgs& args, Shared<B>& shared, const Plan& plan) {
    Cursor<B> at(args, shared, plan), waiting = at;
    Arrivals<B> arrivals;
    Ring ring;
    uint32_t n_ahead = 0;
    for (; n_ahead < B::Stages && at.index < plan.n_tiles; n_ahead++) {
        copy_weights(args, shared, at, n_ahead);
        at.next(args, shared, plan);
    }
    const bool goes_by_counts = kWaits<B, E> && args.strips_done != nullptr;
    if (E == Epilogue::Plain && !goes_by_counts) grid_wait_for_previous();
    for (uint32_t i = 0; i < n_ahead; i++) {
        if constexpr (kWaits<B, E>) arrivals.wait(args, shared, waiting.tile);
        copy_tokens(args, shared, waiting, i);
        waiting.next(args, shared, plan);
        ring.next(B::Stages);
    }
    for (; at.index < plan.n_tiles; ring.next(B::Stages)) {
        barrier_wait(shared_address(&shared.empty[ring.stage]), ring.parity ^ 1);
        copy_weights(args, shared, at, ring.stage);
        if constexpr (kWaits<B, E>) arrivals.wait(args, shared, at.tile);
        copy_tokens(args, shared, at, ring.stage);
        at.next(args, shared, plan);
    }
    // The end of this kernel means the end of the one before.
    if (goes_by_counts) grid_wait_for_previous();
}

// One thread: counts the strips of this block's tiles. It waits for what others wrote, which a consumer need not.
template <class B>
__device__ __forceinline__ void count_strips(const MoeGemmArgs& args, Shared<B>& shared, const Plan& plan) {
    uint32_t parity = 0;
    for (uint32_t index = blockIdx.x; index < plan.n_tiles; index += gridDim.x, parity ^= 1) {
        const Tile tile = tile_at(args, shared, plan, index);
        barrier_wait(shared_address(&shared.stored), parity);
        barrier_arrive(shared_address(&shared.noticed));
        add_release(args.strips_done + tile.expert, tile.n_strips);
        add_release(args.strips_done + args.experts, tile.n_strips);
    }
}

// D += A B over one record: four steps of k16.
template <int N, int Step = 0>
__device__ __forceinline__ void multiply(float (&acc)[N / 2], const uint32_t* a, uint32_t tokens) {
    Wgmma<N>::template run<Step * 2>(acc, a + 4 * Step, tokens);
    if constexpr (Step < 3) multiply<N, Step + 1>(acc, a, tokens);
}

// One strip of a tile, in products of `N` columns.
template <class B, int N, Epilogue E>
__device__ __forceinline__ void consume_tile(const MoeGemmArgs& args, Shared<B>& shared, const Plan& plan, uint32_t index,
                                             uint32_t slot, Ring& ring) {
    float acc[N / 2];
#pragma unroll
    for (int i = 0; i < N / 2; i++) acc[i] = 0.0f;
    uint32_t a[B::Operands][mxfp4::kRegisters];
    uint32_t first = 0;
#pragma unroll 1
    for (; first + B::Chunk <= args.k_records; first += B::Chunk) {
        const Stage<B>& stage = shared.stages[ring.stage];
        barrier_wait(shared_address(&shared.full[ring.stage]), ring.parity);
        const uint32_t tokens = __shfl_sync(~0u, wgmma_descriptor(shared_address(stage.tokens)), 0);
#pragma unroll
        for (int r = 0; r < B::Chunk; r++) {
            const mxfp4::Codes codes = mxfp4::load_codes(stage.weights[slot] + r * mxfp4::kRecordBytes, threadIdx.x % 128);
            if (r >= B::Operands) wgmma_wait<B::Operands - 1>();
            mxfp4::decode_k64(codes, a[r % B::Operands]);
            wgmma_fence();
            multiply<N>(acc, a[r % B::Operands], tokens + r * B::MaxN * 8);
            wgmma_commit();
        }
        wgmma_wait<0>();
        barrier_arrive(shared_address(&shared.empty[ring.stage]));
        ring.next(B::Stages);
    }
    if (B::Chunk > 1 && first < args.k_records) {
        const Stage<B>& stage = shared.stages[ring.stage];
        barrier_wait(shared_address(&shared.full[ring.stage]), ring.parity);
        const uint32_t tokens = __shfl_sync(~0u, wgmma_descriptor(shared_address(stage.tokens)), 0);
#pragma unroll 1
        for (uint32_t r = 0; first + r < args.k_records; r++) {
            mxfp4::decode_k64(mxfp4::load_codes(stage.weights[slot] + r * mxfp4::kRecordBytes, threadIdx.x % 128), a[0]);
            wgmma_fence();
            multiply<N>(acc, a[0], tokens + r * B::MaxN * 8);
            wgmma_commit();
            wgmma_wait<0>();
        }
        barrier_arrive(shared_address(&shared.empty[ring.stage]));
        ring.next(B::Stages);
    }
    // Found again: kept through the loop, it would cost registers that the sums need.
    asm volatile("" : "+r"(index));
    const Tile tile = tile_at(args, shared, plan, index);
    const float2 bias = load_bias(args, tile, tile.strip + slot);
    store<N, E>(args, tile, tile.strip + slot, bias, acc);
}

template <class B, Epilogue E, int N = B::Step>
__device__ __forceinline__ void consume_n(const MoeGemmArgs& args, Shared<B>& shared, const Plan& plan, uint32_t index,
                                          uint32_t n_groups, uint32_t slot, Ring& ring) {
    if constexpr (N < B::MaxN) {
        if (n_groups * 8 > N) return consume_n<B, E, N + B::Step>(args, shared, plan, index, n_groups, slot, ring);
    }
    consume_tile<B, N, E>(args, shared, plan, index, slot, ring);
}

template <class B, Epilogue E>
__device__ __forceinline__ void consume(const MoeGemmArgs& args, Shared<B>& shared, const Plan& plan) {
    const uint32_t slot = __shfl_sync(~0u, threadIdx.x / 128 - 1, 0);
    Ring ring;
    for (uint32_t index = blockIdx.x; index < plan.n_tiles; index += gridDim.x) {
        const Tile tile = tile_at(args, shared, plan, index);
        if (slot < tile.n_strips) {
            consume_n<B, E>(args, shared, plan, index, tile.n_groups, slot, ring);
        } else {
            for (uint32_t first = 0; first < args.k_records; first += B::Chunk, ring.next(B::Stages)) {
                barrier_wait(shared_address(&shared.full[ring.stage]), ring.parity);
                barrier_arrive(shared_address(&shared.empty[ring.stage]));
            }
        }
        if (kCounts<B, E> && args.strips_done != nullptr) {
            barrier_wait(shared_address(&shared.noticed), index / gridDim.x % 2 ^ 1);
            barrier_arrive(shared_address(&shared.stored));
        }
    }
}

template <class B, Epilogue E>
__device__ __forceinline__ void moe_gemm(const MoeGemmArgs& args) {
    extern __shared__ __align__(1024) uint8_t memory[];
    Shared<B>& shared = *reinterpret_cast<Shared<B>*>(memory);
    if (threadIdx.x == 0) {
        for (int i = 0; i < B::Stages; i++) {
            barrier_init(shared_address(&shared.full[i]), 1);
            barrier_init(shared_address(&shared.empty[i]), B::Consumers * 128);
        }
        if constexpr (kCounts<B, E>) {
            barrier_init(shared_address(&shared.stored), B::Consumers * 128);
            barrier_init(shared_address(&shared.noticed), 1);
        }
        barrier_init_fence();
    }
    // The products before SwiGLU come right after the routing, whose counts they need; the others know that it is done.
    if constexpr (E == Epilogue::SwiGlu) grid_wait_for_previous();
    grid_launch_next();
    const Plan plan = plan_tiles<B>(args, shared);
    if (threadIdx.x < 128) {
        registers_shrink<B::CopierRegisters>();
        if (threadIdx.x < 32) produce<B, E>(args, shared, plan);
        if (kCounts<B, E> && threadIdx.x == 32 && args.strips_done != nullptr) {
            count_strips(args, shared, plan);
        }
    } else {
        registers_grow<B::Registers>();
        consume<B, E>(args, shared, plan);
    }
}

}  // namespace

#define MOE_GEMM(name, Body)                                                            \
    extern "C" __global__ void __launch_bounds__(Body::Threads, 1)                      \
        moe_gate_up_##name(const __grid_constant__ MoeGemmArgs args) {                  \
        moe_gemm<Body, Epilogue::SwiGlu>(args);                                         \
    }                                                                                   \
    extern "C" __global__ void __launch_bounds__(Body::Threads, 1)                      \
        moe_down_##name(const __grid_constant__ MoeGemmArgs args) {                     \
        moe_gemm<Body, Epilogue::Plain>(args);                                          \
    }
MOE_GEMM(mid, Mid)
MOE_GEMM(prefill, Prefill)
