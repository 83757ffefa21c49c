// The experts' matrix products for at most 8 tokens, where what counts is how soon the next bytes of weights are asked for.
//
// Every token is a column of every expert's product, whether it goes there or not: tensor cores multiply by 8 columns at
// least, so the others cost nothing, and no product waits for rows to be sorted. What is stored are the columns that count: an
// expert with tokens has one group of rows, row t of which is token t's.
//
// A block is some consumer warpgroups, a producer warp for each, and a warp that fetches tokens. Each consumer takes strips of
// 64 weight rows over the whole of k, from a ring of its own. Blocks leave room on their multiprocessor for one of the kernel
// after: the down products' blocks have their first weights when those of gate and up are done.
#include <cuda_bf16.h>

#include <cstdint>

#include "moe_choose.cuh"
#include "moe_gemm.cuh"
#include "moe_tokens.cuh"
#include "mxfp4.cuh"
#include "ptx/async.cuh"
#include "ptx/mma.cuh"

namespace {

// Stages are those of all consumers together.
constexpr uint32_t kConsumers = 3, kChunk = 3, kStages = 9;
constexpr uint32_t kMaxTokens = 8, kMaxSlots = kMaxTokens * kMaxTopK;
// Columns of the tokens, in panels, and parts of k in which they come.
constexpr uint32_t kMaxPanels = 46, kSegments = 3;
constexpr uint32_t kThreads = kConsumers * 128 + (kConsumers + 1) * 32;
constexpr uint32_t kBlocks = 2;

struct Shared {
    alignas(1024) uint8_t tokens[kMaxPanels * kGroupBytes];
    alignas(128) uint8_t weights[kStages][kChunk * mxfp4::kRecordBytes];
    uint64_t full[kStages];
    uint64_t empty[kStages];
    uint64_t tokens_full[kSegments];
    uint64_t tokens_empty[kSegments];
    int32_t ids[kMaxSlots];
    uint32_t tokens_of[kMaxExperts];  // of each expert, a bit for each token
    uint32_t tile_of[kMaxExperts];    // of each expert that has tokens
    uint32_t experts[kMaxSlots];      // of each tile, ascending
    uint32_t n_tiles;
};
// A block has 1 KB of a multiprocessor's 228 KB for itself.
static_assert(kBlocks * (sizeof(Shared) + 1024) <= 228 * 1024);

// The strips of this block, counted over all experts that have tokens.
struct Work {
    uint32_t begin, end;
};

template <Epilogue E>
__device__ __forceinline__ Work share(uint32_t n_tiles, uint32_t strips) {
    const uint32_t block = blockIdx.x, n_blocks = gridDim.x, n_strips = n_tiles * strips;
    if (E == Epilogue::SwiGlu || n_blocks < n_tiles || n_tiles == 0) {
        return {n_strips * block / n_blocks, n_strips * (block + 1) / n_blocks};
    }
    // Each expert has other tokens here: a block has strips of one.
    const uint32_t tile = block * n_tiles / n_blocks;
    const uint32_t first = (tile * n_blocks + n_tiles - 1) / n_tiles;
    const uint32_t n_sharing = ((tile + 1) * n_blocks + n_tiles - 1) / n_tiles - first, rank = block - first;
    return {tile * strips + strips * rank / n_sharing, tile * strips + strips * (rank + 1) / n_sharing};
}

// A consumer's place in its stages, and the parity of their phase. Of fewer strips than consumers each has more stages.
struct Ring {
    uint32_t first, end, stage, parity = 0;

    __device__ __forceinline__ Ring(const Work& work, uint32_t consumer) {
        const uint32_t each = kStages / max(1u, min(kConsumers, work.end - work.begin));
        first = stage = consumer * each;
        end = first + each;
    }

    __device__ __forceinline__ void next() {
        if (++stage == end) { stage = first; parity ^= 1; }
    }
};

// All threads: the tokens' rows, which lie where they were.
__device__ __forceinline__ void gather_tokens(const MoeRoutedArgs& args, Shared& shared) {
    const uint32_t tokens = shared_address(shared.tokens);
    uint32_t first = 0;
    for (uint32_t segment = 0; segment < kSegments; segment++) {
        const uint32_t last = segment_end<kSegments, kChunk>(args.gemm.k_records, segment), width = (last - first) * 8;
        for (uint32_t i = threadIdx.x; i < width * args.tokens; i += kThreads) {
            const uint32_t row = i / width, piece = first * 8 + i % width;
            const bool is_there = piece * 8 < args.hidden;
            copy_16_or_zero(tokens + piece / 8 * kGroupBytes + row * 128 + (piece % 8 ^ row) * 16,
                            args.x + size_t(row) * args.hidden + (is_there ? piece * 8 : 0), is_there ? 16 : 0);
        }
        copy_arrive(shared_address(&shared.tokens_full[segment]));
        first = last;
    }
}

// All threads: chooses the experts of all tokens. Without the work of the kernel before that of SwiGLU no logits are there.
template <Epilogue E>
__device__ __forceinline__ void route(const MoeRoutedArgs& args, Shared& shared) {
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, n_slots = args.tokens * args.top_k;
    if (threadIdx.x < kMaxExperts) shared.tokens_of[threadIdx.x] = 0;
    const bool tells = E == Epilogue::SwiGlu && blockIdx.x == 0;
    if (warp < args.tokens) {
        choose(args.logits, args.gemm.experts, args.top_k, warp, shared.ids + warp * args.top_k,
               tells ? args.weights + warp * args.top_k : nullptr);
    }
    __syncthreads();
    const int32_t expert = threadIdx.x < n_slots ? shared.ids[threadIdx.x] : -1;
    if (expert >= 0) atomicOr(&shared.tokens_of[expert], 1u << threadIdx.x / args.top_k);
    __syncthreads();
    if (warp == 0) {
        uint32_t before = 0;
        for (uint32_t base = 0; base < args.gemm.experts; base += 32) {
            const bool has_tokens = base + lane < args.gemm.experts && shared.tokens_of[base + lane] != 0;
            const uint32_t votes = __ballot_sync(~0u, has_tokens), at = before + __popc(votes & ((1u << lane) - 1));
            if (has_tokens) {
                shared.experts[at] = base + lane;
                shared.tile_of[base + lane] = at;
            }
            before += __popc(votes);
        }
        if (lane == 0) shared.n_tiles = before;
    }
    __syncthreads();
    if (tells) {
        if (threadIdx.x < n_slots) {
            args.ids[threadIdx.x] = expert;
            args.positions[threadIdx.x] = expert >= 0 ? int32_t(shared.tile_of[expert] * 8 + threadIdx.x / args.top_k) : -1;
        }
        if (threadIdx.x < args.gemm.experts) args.counts[threadIdx.x] = __popc(shared.tokens_of[threadIdx.x]);
    }
}

// One thread: the weights of one consumer's strips.
__device__ __forceinline__ void produce_weights(const MoeGemmArgs& args, Shared& shared, const Work& work, uint32_t consumer) {
    Ring ring(work, consumer);
    for (uint32_t unit = work.begin + consumer; unit < work.end; unit += kConsumers) {
        const size_t strip = size_t(shared.experts[unit / args.strips]) * args.strips + unit % args.strips;
        const uint8_t* from = args.records + strip * args.k_records * mxfp4::kRecordBytes;
        for (uint32_t record = 0; record < args.k_records; record += kChunk, ring.next()) {
            const uint32_t n_bytes = min(kChunk, args.k_records - record) * mxfp4::kRecordBytes;
            const uint32_t full = shared_address(&shared.full[ring.stage]);
            barrier_wait(shared_address(&shared.empty[ring.stage]), ring.parity ^ 1);
            barrier_expect(full, n_bytes);
            copy_bulk(shared_address(shared.weights[ring.stage]), from, n_bytes, full);
            from += n_bytes;
        }
    }
}

// One thread: each tile's tokens, which the kernel before made, a part of k at a time.
__device__ __forceinline__ void produce_tokens(const MoeGemmArgs& args, Shared& shared, const Work& work) {
    grid_wait_for_previous();
    if (work.begin == work.end) return;
    const uint32_t first_tile = work.begin / args.strips, last_tile = (work.end - 1) / args.strips;
    for (uint32_t tile = first_tile; tile <= last_tile; tile++) {
        const uint8_t* from = args.tokens + size_t(tile) * args.k_records * kGroupBytes;
        uint32_t first = 0;
        for (uint32_t segment = 0; segment < kSegments; segment++) {
            const uint32_t last = segment_end<kSegments, kChunk>(args.k_records, segment), n_bytes = (last - first) * kGroupBytes;
            const uint32_t full = shared_address(&shared.tokens_full[segment]);
            barrier_wait(shared_address(&shared.tokens_empty[segment]), ((tile - first_tile) & 1) ^ 1);
            barrier_expect(full, n_bytes);
            if (n_bytes > 0) copy_bulk(shared_address(shared.tokens) + first * kGroupBytes, from + first * kGroupBytes, n_bytes, full);
            first = last;
        }
    }
}

// `N` records, 64 rows by 64 columns each, with the tokens. All is loaded first: of what one warp does, the next product's
// operands would come too late.
template <int N>
__device__ __forceinline__ void multiply(const uint8_t* records, uint32_t tokens, float (&acc)[4]) {
    mxfp4::Codes codes[N];
    uint32_t b[N][8];
#pragma unroll
    for (int r = 0; r < N; r++) {
        codes[r] = mxfp4::load_codes(records + r * mxfp4::kRecordBytes, threadIdx.x % 128);
        load_matrices(tokens + r * kGroupBytes, b[r]);
        load_matrices((tokens + r * kGroupBytes) ^ 64, b[r] + 4);
    }
#pragma unroll
    for (int r = 0; r < N; r++) {
        uint32_t a[mxfp4::kRegisters];
        mxfp4::decode_k64(codes[r], a);
#pragma unroll
        for (int step = 0; step < 4; step++) mma(acc, a + 4 * step, b[r] + 2 * step);
    }
}

// One strip.
__device__ __forceinline__ void multiply_strip(const MoeGemmArgs& args, Shared& shared, uint32_t tokens_parity, Ring& ring,
                                               float (&acc)[4]) {
    const uint32_t lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < 4; i++) acc[i] = 0.0f;
    // Row lane % 8 of the tokens, piece lane / 8 of a panel.
    uint32_t tokens = shared_address(shared.tokens) + lane % 8 * 128 + ((lane / 8) ^ (lane % 8)) * 16, record = 0;
#pragma unroll 1
    for (uint32_t segment = 0; segment < kSegments; segment++) {
        const uint32_t end = segment_end<kSegments, kChunk>(args.k_records, segment);
        barrier_wait(shared_address(&shared.tokens_full[segment]), tokens_parity);
#pragma unroll 1
        for (; record < end; record += kChunk, ring.next()) {
            const uint8_t* weights = shared.weights[ring.stage];
            barrier_wait(shared_address(&shared.full[ring.stage]), ring.parity);
            if (record + kChunk <= end) {
                multiply<kChunk>(weights, tokens, acc);
                tokens += kChunk * kGroupBytes;
            } else {
#pragma unroll 1
                for (uint32_t r = 0; r < end - record; r++, tokens += kGroupBytes) {
                    multiply<1>(weights + r * mxfp4::kRecordBytes, tokens, acc);
                }
            }
            barrier_arrive(shared_address(&shared.empty[ring.stage]));
        }
    }
}

template <Epilogue E>
__device__ __forceinline__ void consume(const MoeGemmArgs& args, Shared& shared, const Work& work, uint32_t consumer) {
    Ring ring(work, consumer);
    const uint32_t first_tile = work.begin / args.strips;
    uint32_t released = first_tile;  // tiles before this one
    const auto release = [&](uint32_t tile) {
        for (; E == Epilogue::Plain && released < tile; released++) {
            for (uint32_t i = 0; i < kSegments; i++) barrier_arrive(shared_address(&shared.tokens_empty[i]));
        }
    };
    for (uint32_t unit = work.begin + consumer; unit < work.end; unit += kConsumers) {
        const uint32_t tile = unit / args.strips, strip = unit % args.strips, expert = shared.experts[tile];
        release(tile);
        const TokenTile rows{expert, 8, tile, 1, 1, tile};
        const float2 bias = load_bias(args, rows, strip);
        float acc[4];
        multiply_strip(args, shared, E == Epilogue::Plain ? (tile - first_tile) & 1 : 0, ring, acc);
        const uint32_t tokens = shared.tokens_of[expert];
        const auto is_the_experts = [&](uint32_t row) { return tokens >> row & 1; };
        if constexpr (E == Epilogue::SwiGlu) store_swiglu<8>(args, rows, strip, bias, acc, is_the_experts);
        else store_plain<8>(args, rows, strip, bias, acc, is_the_experts);
    }
    if (work.begin < work.end) release((work.end - 1) / args.strips);
    // Copies must not outlive their block, even those that it has no use for.
    if (E == Epilogue::SwiGlu && work.begin == work.end) {
        for (uint32_t i = 0; i < kSegments; i++) barrier_wait(shared_address(&shared.tokens_full[i]), 0);
    }
}

template <Epilogue E>
__device__ __forceinline__ void moe_few(const MoeRoutedArgs& args) {
    extern __shared__ __align__(1024) uint8_t memory[];
    Shared& shared = *reinterpret_cast<Shared*>(memory);
    if (threadIdx.x == 0) {
        for (uint32_t i = 0; i < kStages; i++) {
            barrier_init(shared_address(&shared.full[i]), 1);
            barrier_init(shared_address(&shared.empty[i]), 128);
        }
        for (uint32_t i = 0; i < kSegments; i++) {
            barrier_init(shared_address(&shared.tokens_full[i]), E == Epilogue::SwiGlu ? kThreads : 1);
            barrier_init(shared_address(&shared.tokens_empty[i]), kConsumers * 128);
        }
        barrier_init_fence();
    }
    if constexpr (E == Epilogue::SwiGlu) {
        __syncthreads();
        grid_wait_for_previous();
        grid_launch_next();
        gather_tokens(args, shared);
    } else {
        grid_launch_next();
    }
    route<E>(args, shared);
    const Work work = share<E>(shared.n_tiles, args.gemm.strips);
    const uint32_t warp = __shfl_sync(~0u, threadIdx.x / 32, 0);
    if (warp < kConsumers * 4) {
        consume<E>(args.gemm, shared, work, warp / 4);
    } else if (warp < kConsumers * 5) {
        if (threadIdx.x % 32 == 0) produce_weights(args.gemm, shared, work, warp - kConsumers * 4);
    } else if constexpr (E == Epilogue::Plain) {
        if (threadIdx.x % 32 == 0) produce_tokens(args.gemm, shared, work);
    }
}

}  // namespace

extern "C" __global__ void __launch_bounds__(kThreads, kBlocks) moe_gate_up_few(const __grid_constant__ MoeRoutedArgs args) {
    moe_few<Epilogue::SwiGlu>(args);
}

extern "C" __global__ void __launch_bounds__(kThreads, kBlocks) moe_down_few(const __grid_constant__ MoeRoutedArgs args) {
    moe_few<Epilogue::Plain>(args);
}
