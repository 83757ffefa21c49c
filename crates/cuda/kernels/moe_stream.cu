// The experts' matrix products for few tokens per expert: weights stream through once, as fast as memory gives them.
//
// A block is some consumer warpgroups, a producer warp for each, and a warp that fetches tokens. Consumers take strips of 64
// weight rows in turn; each has a ring of its own for its weights, so that none waits for another. All share the tokens:
// up to 16 rows of one expert over the whole of k. Blocks are persistent and have equal shares of the work, each a run of
// strips, so that most meet one expert only.
//
// With 8 or 16 tokens the tensor cores idle whatever feeds them, and what counts is instructions per weight and waiting:
// mma.sync needs no agreement among the four warps of a group, no fences and no descriptors. Its sums have the same bits.
#include <cuda_bf16.h>

#include <cstdint>
#include <type_traits>

#include "moe_choose.cuh"
#include "moe_gemm.cuh"
#include "moe_tokens.cuh"
#include "mxfp4.cuh"
#include "ptx/async.cuh"
#include "ptx/mma.cuh"
#include "ring.cuh"

namespace {

constexpr uint32_t kConsumers = 4, kChunk = 3, kStages = 5;
// Columns of a group of tokens that stay, in panels, and groups.
constexpr uint32_t kMaxPanels = 46, kBuffers = 2;
// Parts of k in which tokens come and go.
constexpr uint32_t kSegments = 3;
constexpr uint32_t kThreads = kConsumers * 128 + (kConsumers + 1) * 32;
constexpr uint32_t kMaxRoutedTokens = 16, kMaxRoutedSlots = kMaxRoutedTokens * kMaxTopK;

__device__ __forceinline__ const MoeGemmArgs& gemm_args(const MoeGemmArgs& args) { return args; }
__device__ __forceinline__ const MoeGemmArgs& gemm_args(const MoeRoutedArgs& args) { return args.gemm; }

// Whether experts are chosen here.
template <class Args>
constexpr bool kRoutes = std::is_same_v<Args, MoeRoutedArgs>;

struct Shared {
    alignas(1024) uint8_t tokens[kBuffers][kMaxPanels * kGroupBytes];
    alignas(128) uint8_t weights[kConsumers][kStages][kChunk * mxfp4::kRecordBytes];
    uint64_t full[kConsumers][kStages];
    uint64_t empty[kConsumers][kStages];
    uint64_t tokens_full[kBuffers][kSegments];
    uint64_t tokens_empty[kBuffers][kSegments];
    TokenTiles<kBuffers> tiles;
    int32_t ids[kMaxRoutedSlots];
    float choice_weights[kMaxRoutedSlots];
    int32_t counts[kMaxExperts];
    uint8_t token_of[kMaxRoutedSlots * 8];  // of each grouped row; kNobody where the row only fills its group
};
static_assert(sizeof(Shared) <= 227 * 1024);
constexpr uint8_t kNobody = 255;

// What a strip costs without any tokens, in what a group of tokens costs; measured.
constexpr uint32_t kStripCost = 3;

// The strips of this block, in order: those of one tile of tokens at a time.
struct Work {
    const MoeGemmArgs& args;
    const Shared& shared;
    uint32_t begin, end;   // of the block
    uint32_t first, last;  // of the tile
    TokenTile tile;
    uint32_t buffer;                   // of the tile's first group
    uint32_t uses_0 = 0, uses_1 = 0;  // of each buffer by the tiles before

    __device__ __forceinline__ Work(const MoeGemmArgs& args, const Shared& shared)
        : args(args), shared(shared), begin(run_begin(blockIdx.x)),
          end(run_begin(blockIdx.x + 1)), first(begin) {
        if (!is_done()) open();
    }

    __device__ __forceinline__ bool is_done() const { return first >= end; }

    __device__ __forceinline__ void next() {
        if (buffer == 0) uses_0++;
        if (buffer == 1 || tile.n_groups == kBuffers) uses_1++;
        first = last;
        if (!is_done()) open();
    }

    // The buffer of the tile's group `g`, and the parity of its phase.
    __device__ __forceinline__ uint32_t buffer_of(uint32_t g) const { return buffer + g; }
    __device__ __forceinline__ uint32_t parity(uint32_t g) const { return (buffer_of(g) == 0 ? uses_0 : uses_1) & 1; }

    // The first of this tile's strips that a consumer takes: of the block's, every kConsumers-th.
    __device__ __forceinline__ uint32_t first_of(uint32_t consumer) const {
        return first + (consumer + kConsumers - (first - begin) % kConsumers) % kConsumers;
    }

  private:
    __device__ __forceinline__ uint32_t run_begin(uint32_t block) const {
        return shared.tiles.run_begin<kStripCost>(args.experts, args.strips, block);
    }

    __device__ __forceinline__ void open() {
        const uint32_t index = first / args.strips;
        tile = shared.tiles.at(args.experts, index);
        last = min(end, (index + 1) * args.strips);
        buffer = tile.n_groups == kBuffers || uses_0 <= uses_1 ? 0 : 1;
    }
};

// One thread: the weights of one consumer's strips.
__device__ __forceinline__ void produce_weights(const MoeGemmArgs& args, Shared& shared, uint32_t consumer) {
    Ring ring;
    for (Work work(args, shared); !work.is_done(); work.next()) {
        for (uint32_t unit = work.first_of(consumer); unit < work.last; unit += kConsumers) {
            const size_t strip = size_t(work.tile.expert) * args.strips + unit % args.strips;
            const uint8_t* from = args.records + strip * args.k_records * mxfp4::kRecordBytes;
            for (uint32_t record = 0; record < args.k_records; record += kChunk, ring.next(kStages)) {
                const uint32_t n_bytes = min(kChunk, args.k_records - record) * mxfp4::kRecordBytes;
                const uint32_t full = shared_address(&shared.full[consumer][ring.stage]);
                barrier_wait(shared_address(&shared.empty[consumer][ring.stage]), ring.parity ^ 1);
                barrier_expect(full, n_bytes);
                copy_bulk(shared_address(shared.weights[consumer][ring.stage]), from, n_bytes, full);
                from += n_bytes;
            }
        }
    }
}

// One lane of a warp: panels `first` to `last` of group `g`, which the kernel before has grouped. More lanes would take turns.
__device__ __forceinline__ void copy_group(const MoeGemmArgs& args, const TokenTile& tile, uint32_t g, uint32_t first,
                                           uint32_t last, uint32_t to, uint32_t full) {
    if (threadIdx.x % 32 > 0) return;
    barrier_expect(full, (last - first) * kGroupBytes);
    const uint8_t* from = args.tokens
        + (size_t(tile.expert_group) * args.k_records + (tile.first_group - tile.expert_group) + g) * kGroupBytes;
    for (uint32_t panel = first; panel < last; panel++) {
        copy_bulk(to + panel * kGroupBytes, from + size_t(panel) * tile.panel_stride * kGroupBytes, kGroupBytes, full);
    }
}

// The same of rows that lie where they were, each by itself. All lanes arrive.
__device__ __forceinline__ void gather_group(const MoeRoutedArgs& args, const Shared& shared, const TokenTile& tile, uint32_t g,
                                             uint32_t first, uint32_t last, uint32_t to, uint32_t full) {
#pragma unroll
    for (uint32_t r = 0; r < 8; r++) {
        const uint8_t token = shared.token_of[(tile.first_group + g) * 8 + r];
        const __nv_bfloat16* row = args.x + (token == kNobody ? 0 : size_t(token) * args.hidden);
        for (uint32_t piece = first * 8 + threadIdx.x % 32; piece < last * 8; piece += 32) {
            const bool is_there = token != kNobody && piece * 8 < args.hidden;
            copy_16_or_zero(to + piece / 8 * kGroupBytes + r * 128 + (piece % 8 ^ r) * 16,
                            row + (is_there ? piece * 8 : 0), is_there ? 16 : 0);
        }
    }
    copy_arrive(full);
}

// One warp: the tokens of every tile, a segment of k at a time. They are what the kernel before made.
template <Epilogue E, class Args>
__device__ __forceinline__ void produce_tokens(const Args& args, Shared& shared) {
    const MoeGemmArgs& gemm = gemm_args(args);
    grid_wait_for_previous();
    for (Work work(gemm, shared); !work.is_done(); work.next()) {
        uint32_t first = 0;
        for (uint32_t segment = 0; segment < kSegments; segment++) {
            const uint32_t last = segment_end<kSegments, kChunk>(gemm.k_records, segment);
            for (uint32_t g = 0; g < work.tile.n_groups; g++) {
                const uint32_t buffer = work.buffer_of(g), to = shared_address(shared.tokens[buffer]);
                const uint32_t full = shared_address(&shared.tokens_full[buffer][segment]);
                barrier_wait(shared_address(&shared.tokens_empty[buffer][segment]), work.parity(g) ^ 1);
                if constexpr (E == Epilogue::SwiGlu && kRoutes<Args>) {
                    gather_group(args, shared, work.tile, g, first, last, to, full);
                } else {
                    copy_group(gemm, work.tile, g, first, last, to, full);
                }
            }
            first = last;
        }
    }
}

// One record: 64 rows by 64 columns, with 8 tokens of each group, whose panels come next.
template <int Groups>
__device__ __forceinline__ void multiply(const uint8_t* record, uint32_t (&tokens)[Groups], float (&acc)[4 * Groups]) {
    const mxfp4::Codes codes = mxfp4::load_codes(record, threadIdx.x % 128);
    uint32_t b[Groups][8];
#pragma unroll
    for (int g = 0; g < Groups; g++) {
        load_matrices(tokens[g], b[g]);
        load_matrices(tokens[g] ^ 64, b[g] + 4);
        tokens[g] += kGroupBytes;
    }
    uint32_t a[mxfp4::kRegisters];
    mxfp4::decode_k64(codes, a);
#pragma unroll
    for (int step = 0; step < 4; step++) {
#pragma unroll
        for (int g = 0; g < Groups; g++) mma(acc + 4 * g, a + 4 * step, b[g] + 2 * step);
    }
}

__device__ __forceinline__ void wait_for_tokens(Shared& shared, const Work& work, uint32_t segment) {
    for (uint32_t g = 0; g < work.tile.n_groups; g++) {
        barrier_wait(shared_address(&shared.tokens_full[work.buffer_of(g)][segment]), work.parity(g));
    }
}

__device__ __forceinline__ void release_tokens(Shared& shared, const Work& work, uint32_t segment) {
    for (uint32_t g = 0; g < work.tile.n_groups; g++) {
        barrier_arrive(shared_address(&shared.tokens_empty[work.buffer_of(g)][segment]));
    }
}

// One strip; with the last one of a tile, its tokens may go.
template <int Groups, Epilogue E>
__device__ __forceinline__ void consume_strip(const MoeGemmArgs& args, Shared& shared, const Work& work, uint32_t unit,
                                              uint32_t consumer, Ring& ring) {
    const uint32_t lane = threadIdx.x % 32, strip = unit % args.strips;
    const float2 bias = load_bias(args, work.tile, strip);
    float acc[4 * Groups];
#pragma unroll
    for (int i = 0; i < 4 * Groups; i++) acc[i] = 0.0f;
    // Row lane % 8 of a group, piece lane / 8 of a panel.
    const uint32_t offset = lane % 8 * 128 + ((lane / 8) ^ (lane % 8)) * 16;
    uint32_t tokens[Groups];
#pragma unroll
    for (int g = 0; g < Groups; g++) tokens[g] = shared_address(shared.tokens[work.buffer_of(g)]) + offset;
    uint32_t record = 0;
#pragma unroll 1
    for (uint32_t segment = 0; segment < kSegments; segment++) {
        const uint32_t end = segment_end<kSegments, kChunk>(args.k_records, segment);
        wait_for_tokens(shared, work, segment);
#pragma unroll 1
        for (; record < end; record += kChunk, ring.next(kStages)) {
            const uint8_t* weights = shared.weights[consumer][ring.stage];
            barrier_wait(shared_address(&shared.full[consumer][ring.stage]), ring.parity);
            if (record + kChunk <= end) {
#pragma unroll
                for (uint32_t r = 0; r < kChunk; r++) multiply<Groups>(weights + r * mxfp4::kRecordBytes, tokens, acc);
            } else {
#pragma unroll 1
                for (uint32_t r = 0; r < end - record; r++) multiply<Groups>(weights + r * mxfp4::kRecordBytes, tokens, acc);
            }
            barrier_arrive(shared_address(&shared.empty[consumer][ring.stage]));
        }
        if (unit + kConsumers >= work.last) release_tokens(shared, work, segment);
    }
    store<8 * Groups, E>(args, work.tile, strip, bias, acc);
}

template <Epilogue E>
__device__ __forceinline__ void consume(const MoeGemmArgs& args, Shared& shared, uint32_t consumer) {
    Ring ring;
    for (Work work(args, shared); !work.is_done(); work.next()) {
        uint32_t unit = work.first_of(consumer);
        if (unit >= work.last) {
            for (uint32_t segment = 0; segment < kSegments; segment++) {
                wait_for_tokens(shared, work, segment);
                release_tokens(shared, work, segment);
            }
        }
        for (; unit < work.last; unit += kConsumers) {
            if (work.tile.n_groups == 1) consume_strip<1, E>(args, shared, work, unit, consumer, ring);
            else consume_strip<2, E>(args, shared, work, unit, consumer, ring);
        }
    }
}

// All threads: chooses the experts of all tokens, and fills `tiles` and `token_of`.
template <Epilogue E>
__device__ __forceinline__ void route(const MoeRoutedArgs& args, Shared& shared) {
    const uint32_t warp = threadIdx.x / 32, n_slots = args.tokens * args.top_k;
    for (uint32_t e = threadIdx.x; e < args.gemm.experts; e += kThreads) shared.counts[e] = 0;
    for (uint32_t i = threadIdx.x; i < kMaxRoutedSlots * 8; i += kThreads) shared.token_of[i] = kNobody;
    // The logits are the work of the kernel before that of SwiGLU: for the other, they are long there.
    if constexpr (E == Epilogue::SwiGlu) grid_wait_for_previous();
    grid_launch_next();
    if (warp < args.tokens) {
        choose(args.logits, args.gemm.experts, args.top_k, warp, shared.ids + warp * args.top_k,
               shared.choice_weights + warp * args.top_k);
    }
    __syncthreads();
    const uint32_t slot = threadIdx.x;
    const int32_t expert = slot < n_slots ? shared.ids[slot] : -1;
    uint32_t rank = 0;
    if (expert >= 0) {
        for (uint32_t s = 0; s < slot; s++) rank += shared.ids[s] == expert;
        atomicAdd(&shared.counts[expert], 1);
    }
    __syncthreads();
    if (warp == 0) shared.tiles.fill(args.gemm.experts, [&](uint32_t e) { return uint32_t(shared.counts[e]); });
    __syncthreads();
    const uint32_t position = expert >= 0 ? shared.tiles.first_group[expert] * 8 + rank : 0;
    if (expert >= 0) shared.token_of[position] = uint8_t(slot / args.top_k);
    if constexpr (E == Epilogue::SwiGlu) {
        if (blockIdx.x == 0 && slot < n_slots) {
            args.ids[slot] = expert;
            args.weights[slot] = shared.choice_weights[slot];
            args.positions[slot] = expert >= 0 ? int32_t(position) : -1;
        }
        if (blockIdx.x == 0 && threadIdx.x < args.gemm.experts) args.counts[threadIdx.x] = shared.counts[threadIdx.x];
    }
}

template <Epilogue E, class Args>
__device__ __forceinline__ void moe_stream(const Args& args) {
    const MoeGemmArgs& gemm = gemm_args(args);
    extern __shared__ __align__(1024) uint8_t memory[];
    Shared& shared = *reinterpret_cast<Shared*>(memory);
    const uint32_t warp = __shfl_sync(~0u, threadIdx.x / 32, 0);
    if (threadIdx.x == 0) {
        for (uint32_t c = 0; c < kConsumers; c++) {
            for (uint32_t i = 0; i < kStages; i++) {
                barrier_init(shared_address(&shared.full[c][i]), 1);
                barrier_init(shared_address(&shared.empty[c][i]), 128);
            }
        }
        for (uint32_t i = 0; i < kBuffers * kSegments; i++) {
            barrier_init(shared_address(&shared.tokens_full[0][i]), E == Epilogue::SwiGlu && kRoutes<Args> ? 32 : 1);
            barrier_init(shared_address(&shared.tokens_empty[0][i]), kConsumers * 128);
        }
        barrier_init_fence();
    }
    if constexpr (kRoutes<Args>) {
        route<E>(args, shared);
    } else {
        // The products before SwiGLU come right after the routing, whose counts they need; the others know that it is done.
        if constexpr (E == Epilogue::SwiGlu) grid_wait_for_previous();
        grid_launch_next();
        if (warp == 0) shared.tiles.fill_routed(gemm);
    }
    __syncthreads();
    if (warp < kConsumers * 4) {
        consume<E>(gemm, shared, warp / 4);
    } else if (warp < kConsumers * 5) {
        if (threadIdx.x % 32 == 0) produce_weights(gemm, shared, warp - kConsumers * 4);
    } else {
        produce_tokens<E>(args, shared);
    }
}

}  // namespace

#define MOE_STREAM(name, E, Args)                                                                              \
    extern "C" __global__ void __launch_bounds__(kThreads, 1) name(const __grid_constant__ Args args) {       \
        moe_stream<Epilogue::E>(args);                                                                         \
    }
MOE_STREAM(moe_gate_up_stream, SwiGlu, MoeGemmArgs)
MOE_STREAM(moe_down_stream, Plain, MoeGemmArgs)
MOE_STREAM(moe_gate_up_routed, SwiGlu, MoeRoutedArgs)
MOE_STREAM(moe_down_routed, Plain, MoeRoutedArgs)
