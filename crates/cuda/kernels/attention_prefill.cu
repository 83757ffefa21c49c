// Attention of rows of several tokens: a tile of queries against the keys that they see, from shared memory.
//
// A block has a tile's tokens for one key-value head: query rows are a token's heads of the group, token after token, so that
// a tile's queries see nearly the same keys. Two warpgroups have 64 rows each; one more warp copies tiles of keys and values
// to a ring that both read. In a warpgroup, the next scores are asked for before the values are multiplied, so that its
// tensor core works while it computes weights.
//
// Products are by wgmma where a tile's rows have 128 bytes, by mma.sync else: their sums have the same bits.
#include "attention.cuh"
#include "ring.cuh"
#include "ptx/wgmma.cuh"
#include "ptx/wgmma_tile.cuh"

using namespace attention;

namespace {

constexpr uint32_t kGroups = 2, kGroupThreads = 128, kStages = 4;
constexpr uint32_t kConsumers = kGroups * kGroupThreads, kThreads = kConsumers + kGroupThreads;
// What the copying warpgroup, of which one warp works, gives to the others.
constexpr int kConsumerRegisters = 232, kProducerRegisters = 40;

template <int kHeadDim>
struct Shared {
    alignas(1024) uint8_t keys[kStages][Tile<kHeadDim>::kBytes];
    alignas(1024) uint8_t values[kStages][Tile<kHeadDim>::kBytes];
    // Sums of whole spans, as each thread has them.
    float totals[kHeadDim / 2 + 4][kConsumers];
    uint64_t keys_full[kStages], keys_empty[kStages], values_full[kStages], values_empty[kStages];
};

// A tile of queries, and the keys that any of them sees.
struct Work {
    PrefillTile tile;
    uint32_t kv_head, first, last;

    __device__ __forceinline__ Work(const AttentionArgs& args) : kv_head(blockIdx.x % args.kv_heads) {
        const StepHeader& header = *reinterpret_cast<const StepHeader*>(args.step);
        tile = reinterpret_cast<const PrefillTile*>(args.step + header.tiles)[blockIdx.x / args.kv_heads];
        first = first_key(tile.position, args.window);
        last = tile.position + tile.n_tokens - 1;
    }

    __device__ __forceinline__ uint32_t begin_tile() const { return first / kTileKeys; }
    __device__ __forceinline__ uint32_t end_tile() const { return last / kTileKeys + 1; }
};

// One warp: all tiles of keys and values.
template <int kHeadDim>
__device__ __forceinline__ void produce(const AttentionArgs& args, const Work& work, Shared<kHeadDim>& shared) {
    using Keys = Tile<kHeadDim>;
    const uint32_t lane = threadIdx.x % 32, table = args.window ? work.tile.sliding_table : work.tile.full_table;
    // Lane i's block of a tile, if it is there.
    const auto load_entry = [&](uint32_t tile) {
        const uint32_t block = tile * kTileBlocks + lane;
        const bool is_there = lane < kTileBlocks && block >= work.first / kBlockKeys && block <= work.last / kBlockKeys;
        return is_there ? args.step[table + block] : 0;
    };
    Ring ring;
    uint32_t next_entry = load_entry(work.begin_tile());
    for (uint32_t tile = work.begin_tile(); tile < work.end_tile(); tile++, ring.next(kStages)) {
        const uint32_t entry = next_entry;
        next_entry = load_entry(tile + 1);
        const TileBlocks blocks(tile, work.first, work.last);
        const size_t source = (size_t(entry) * args.kv_heads + work.kv_head) * Keys::kBlockBytes;
        const auto copy = [&](const uint8_t* pool, uint8_t* target, uint64_t& full, uint64_t& empty) {
            barrier_wait(shared_address(&empty), ring.parity ^ 1);
            if (lane == 0) barrier_expect(shared_address(&full), (blocks.end - blocks.begin) * Keys::kBlockBytes);
            __syncwarp();
            if (lane >= blocks.begin && lane < blocks.end) {
                copy_bulk(shared_address(target) + lane * Keys::kBlockBytes, pool + source, Keys::kBlockBytes, shared_address(&full));
            }
        };
        copy(args.keys, shared.keys[ring.stage], shared.keys_full[ring.stage], shared.keys_empty[ring.stage]);
        copy(args.values, shared.values[ring.stage], shared.values_full[ring.stage], shared.values_empty[ring.stage]);
    }
}

// By mma.sync: each call ends when the result is there.
template <int kHeadDim>
struct WarpProducts {
    static __device__ __forceinline__ void begin() {}
    static __device__ __forceinline__ void scores(float (&to)[8][4], const uint32_t (&queries)[kHeadDim / 16][4], uint32_t keys) {
        mma_scores<kHeadDim>(to, queries, keys);
    }
    static __device__ __forceinline__ void outs(float (&to)[kHeadDim / 8][4], const uint32_t (&weights)[4][4], uint32_t values) {
        mma_outs<kHeadDim>(to, weights, values);
    }
    template <int kUnderWay>
    static __device__ __forceinline__ void wait() {}
};

// By wgmma: each call starts one group.
struct GroupProducts {
    static __device__ __forceinline__ void begin() { wgmma_fence(); }

    static __device__ __forceinline__ void scores(float (&to)[8][4], const uint32_t (&queries)[4][4], uint32_t keys) {
        const uint32_t descriptor = wgmma_descriptor(keys);
        wgmma_tile<Order::kKMajor, Sum::kBegin, 0>(to, queries[0], descriptor);
        wgmma_tile<Order::kKMajor, Sum::kContinue, 2>(to, queries[1], descriptor);
        wgmma_tile<Order::kKMajor, Sum::kContinue, 4>(to, queries[2], descriptor);
        wgmma_tile<Order::kKMajor, Sum::kContinue, 6>(to, queries[3], descriptor);
        wgmma_commit();
    }

    static __device__ __forceinline__ void outs(float (&to)[8][4], const uint32_t (&weights)[4][4], uint32_t values) {
        const uint32_t descriptor = wgmma_descriptor(values);
        wgmma_tile<Order::kNMajor, Sum::kContinue, 0>(to, weights[0], descriptor);
        wgmma_tile<Order::kNMajor, Sum::kContinue, 128>(to, weights[1], descriptor);
        wgmma_tile<Order::kNMajor, Sum::kContinue, 256>(to, weights[2], descriptor);
        wgmma_tile<Order::kNMajor, Sum::kContinue, 384>(to, weights[3], descriptor);
        wgmma_commit();
    }

    // Until so many groups at most are under way.
    template <int kUnderWay>
    static __device__ __forceinline__ void wait() {
        wgmma_wait<kUnderWay>();
    }
};

// What this thread keeps of whole spans, out of its registers.
template <int kHeadDim>
struct Totals {
    float (&memory)[kHeadDim / 2 + 4][kConsumers];
    bool is_empty = true;

    __device__ __forceinline__ void load(Sums<kHeadDim>& sums) const {
        sums.clear();
        if (is_empty) return;
#pragma unroll
        for (int i = 0; i < kHeadDim / 2; i++) sums.outs[i / 4][i % 4] = memory[i][threadIdx.x];
#pragma unroll
        for (int h = 0; h < 2; h++) sums.rows[h] = RowSum{memory[kHeadDim / 2 + 2 * h][threadIdx.x], memory[kHeadDim / 2 + 2 * h + 1][threadIdx.x]};
    }

    __device__ __forceinline__ void store(const Sums<kHeadDim>& sums) {
        is_empty = false;
#pragma unroll
        for (int i = 0; i < kHeadDim / 2; i++) memory[i][threadIdx.x] = sums.outs[i / 4][i % 4];
#pragma unroll
        for (int h = 0; h < 2; h++) {
            memory[kHeadDim / 2 + 2 * h][threadIdx.x] = sums.rows[h].maximum;
            memory[kHeadDim / 2 + 2 * h + 1][threadIdx.x] = sums.rows[h].sum;
        }
    }
};

// Query rows g and g + 8 of a warp.
struct Queries {
    uint32_t token[2], head[2], first[2], last[2];  // the keys that each sees
    bool is_there[2];

    __device__ __forceinline__ Queries(const AttentionArgs& args, const Work& work) {
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const uint32_t row = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4 + 8 * h, index = row / args.group;
            is_there[h] = index < work.tile.n_tokens;
            token[h] = work.tile.token + index;
            head[h] = work.kv_head * args.group + row % args.group;
            last[h] = work.tile.position + min(index, work.tile.n_tokens - 1);
            first[h] = first_key(last[h], args.window);
        }
    }
};

template <int kHeadDim, class Products>
__device__ __forceinline__ void consume(const AttentionArgs& args, const Work& work, Shared<kHeadDim>& shared) {
    const Queries rows(args, work);
    uint32_t queries[kHeadDim / 16][4];
    const __nv_bfloat16* q[2];
#pragma unroll
    for (int h = 0; h < 2; h++) {
        q[h] = rows.is_there[h] ? args.q + (size_t(rows.token[h]) * args.kv_heads * args.group + rows.head[h]) * kHeadDim : nullptr;
    }
    load_queries<kHeadDim>(q, queries);

    const uint32_t begin = work.begin_tile(), end = work.end_tile();
    // Outside these, every query sees every key.
    const uint32_t first_whole = first_key(work.last, args.window), end_whole = work.tile.position + 1;
    const auto is_edge = [&](uint32_t tile) { return tile * kTileKeys < first_whole || (tile + 1) * kTileKeys > end_whole; };
    const auto release = [&](uint64_t* empty) {
        if (empty) barrier_arrive(shared_address(empty));
    };
    Sums<kHeadDim> sums, span;
    Totals<kHeadDim> totals{shared.totals};
    uint32_t weights[4][4];
    Ring keys, values;
    const auto await_values = [&](uint32_t tile) {
        barrier_wait(shared_address(&shared.values_full[values.stage]), values.parity);
        if (tile * kTileKeys >= work.first && tile * kTileKeys + kTileKeys - 1 <= work.last) return;
        hide_values<kHeadDim>(shared.values[values.stage], tile, work.first, work.last, threadIdx.x, kConsumers);
        named_barrier(1, kConsumers);
    };
    {
        float scores[8][4], old_weights[2];
        barrier_wait(shared_address(&shared.keys_full[0]), 0);
        Products::begin();
        Products::scores(scores, queries, shared_address(shared.keys[0]));
        Products::template wait<0>();
        release(&shared.keys_empty[0]);
        keys.next(kStages);
        if (is_edge(begin)) hide_scores(scores, begin, rows.first, rows.last);
        weigh(scores, args.scale, sums.rows, old_weights);
        pack_weights(scores, weights);
    }
    for (uint32_t tile = begin + 1; tile < end; tile++) {
        float scores[8][4], old_weights[2];
        barrier_wait(shared_address(&shared.keys_full[keys.stage]), keys.parity);
        await_values(tile - 1);
        Products::begin();
        Products::scores(scores, queries, shared_address(shared.keys[keys.stage]));
        Products::outs(sums.outs, weights, shared_address(shared.values[values.stage]));
        Products::template wait<1>();
        if (is_edge(tile)) hide_scores(scores, tile, rows.first, rows.last);
        const bool is_new_split = tile % kSplitTiles == 0;
        RowSum new_rows[2];
#pragma unroll
        for (int h = 0; h < 2; h++) new_rows[h] = is_new_split ? RowSum{} : sums.rows[h];
        weigh(scores, args.scale, new_rows, old_weights);
        // Never null: it hangs on all weights, lest the compiler put the next wait, which does not, before them.
        const bool is_weighed = !(new_rows[0].sum < 0.0f || new_rows[1].sum < 0.0f);
        release(is_weighed ? &shared.keys_empty[keys.stage] : nullptr);
        keys.next(kStages);
        Products::template wait<0>();
        release(&shared.values_empty[values.stage]);
        values.next(kStages);
        if (is_new_split) {
            sums.close();
            span.merge(sums);
            if (tile % (kSplitTiles * kSpanSplits) == 0) {
                totals.load(sums);
                sums.merge(span);
                totals.store(sums);
                span.clear();
            }
            sums.clear();
        } else {
            sums.scale(old_weights);
        }
#pragma unroll
        for (int h = 0; h < 2; h++) sums.rows[h] = new_rows[h];
        pack_weights(scores, weights);
    }
    await_values(end - 1);
    Products::begin();
    Products::outs(sums.outs, weights, shared_address(shared.values[values.stage]));
    Products::template wait<0>();
    sums.close();
    span.merge(sums);
    totals.load(sums);
    sums.merge(span);
#pragma unroll
    for (int h = 0; h < 2; h++) {
        if (rows.is_there[h]) store_row<kHeadDim>(args, rows.token[h], rows.head[h], sums.rows[h], sums.outs, h);
    }
}

template <int kHeadDim, class Products>
__device__ __forceinline__ void prefill(const AttentionArgs& args) {
    extern __shared__ __align__(1024) uint8_t memory[];
    Shared<kHeadDim>& shared = *reinterpret_cast<Shared<kHeadDim>*>(memory);
    if (threadIdx.x == 0) {
        for (uint32_t i = 0; i < kStages; i++) {
            barrier_init(shared_address(&shared.keys_full[i]), 1);
            barrier_init(shared_address(&shared.values_full[i]), 1);
            barrier_init(shared_address(&shared.keys_empty[i]), kConsumers);
            barrier_init(shared_address(&shared.values_empty[i]), kConsumers);
        }
        barrier_init_fence();
    }
    const Work work(args);
    __syncthreads();
    grid_launch_next();
    grid_wait_for_previous();
    if (threadIdx.x < kConsumers) {
        registers_grow<kConsumerRegisters>();
        consume<kHeadDim, Products>(args, work, shared);
    } else {
        registers_shrink<kProducerRegisters>();
        if (threadIdx.x < kConsumers + 32) produce<kHeadDim>(args, work, shared);
    }
}

}  // namespace

extern "C" __global__ void __launch_bounds__(kThreads, 1) attention_prefill_32(const __grid_constant__ AttentionArgs args) { prefill<32, WarpProducts<32>>(args); }

extern "C" __global__ void __launch_bounds__(kThreads, 1) attention_prefill_64(const __grid_constant__ AttentionArgs args) { prefill<64, GroupProducts>(args); }

// To compare with, and to fall back on.
extern "C" __global__ void __launch_bounds__(kThreads, 1) attention_prefill_64_warp(const __grid_constant__ AttentionArgs args) { prefill<64, WarpProducts<64>>(args); }
