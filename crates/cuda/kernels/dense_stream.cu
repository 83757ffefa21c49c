// Dense matrix products for few tokens: weights stream through once, as fast as memory gives them.
//
// A block is some warps that own strips of 16 weight rows, each over the whole of k, and have a ring of stages each, so that no
// warp waits for another; and some that copy: each a ring's weights, and all of them the tokens, which stay in shared memory
// for everybody. A warp's lanes copy one after the other, some 50 clocks each: hence more than one.
// Weights do not depend on the kernel before: rings full of them are on their way before the wait for it.
//
// A strip is one chain of mma.sync, each of which waits for the one before: nothing else may stand in that chain.
#include <cstdint>

#include "dense.cuh"
#include "ptx/async.cuh"
#include "ptx/mma.cuh"
#include "ring.cuh"

namespace {

// That own strips, and that copy.
constexpr uint32_t kMaxWarps = 4, kCopiers = 4, kThreads = (kMaxWarps + kCopiers) * 32;
static_assert(kMaxWarps <= kCopiers);
// Records of a stage.
constexpr uint32_t kChunk = 4, kStageBytes = kChunk * kDenseRecordBytes;
// Of all rings together.
constexpr uint32_t kMaxStages = 20;
// Parts of k whose tokens come one after the other.
constexpr uint32_t kSegments = 4;
// Of the barriers, before the tokens.
constexpr uint32_t kHeaderBytes = 1024;
static_assert((2 * kMaxStages + kSegments) * 8 <= kHeaderBytes);

// Addresses in shared memory.
struct Shared {
    uint32_t full, empty;  // barriers of a warp's ring
    uint32_t tokens_full;  // barriers of the segments
    uint32_t tokens;       // [k_records, n_tokens, 128]: of each panel, the rows that exist
    uint32_t weights;      // a warp's ring

    __device__ __forceinline__ Shared(const DenseArgs& args, uint32_t warp) {
        extern __shared__ __align__(1024) uint8_t memory[];
        const uint32_t begin = shared_address(memory);
        tokens_full = begin;
        full = begin + (kSegments + warp * args.stages) * 8;
        empty = full + kMaxStages * 8;
        tokens = begin + kHeaderBytes;
        const uint32_t tokens_bytes = (args.k_records * args.n_tokens * 128 + 1023) / 1024 * 1024;
        weights = tokens + tokens_bytes + warp * args.stages * kStageBytes;
    }
};

// What the segments of k are, in chunks.
struct Segments {
    uint32_t n_chunks, each;

    __device__ __forceinline__ explicit Segments(const DenseArgs& args)
        : n_chunks((args.k_records + kChunk - 1) / kChunk), each((n_chunks + kSegments - 1) / kSegments) {}

    // Panels before the end of segment `i`.
    __device__ __forceinline__ uint32_t end(const DenseArgs& args, uint32_t i) const {
        return min((i + 1) * each * kChunk, args.k_records);
    }
};

// The strips of a warp: the same number for every warp of the grid, or one less. Where there are few, all blocks get one
// before any gets two.
struct Strips {
    uint32_t first, step;
    __device__ __forceinline__ explicit Strips(uint32_t warp)
        : first(warp * gridDim.x + blockIdx.x), step(gridDim.x * (blockDim.x / 32 - kCopiers)) {}
};

// One lane of a warp that copies fills a ring, chunk by chunk.
struct Producer {
    uint32_t strip, step, record = 0;
    Ring ring;

    __device__ __forceinline__ explicit Producer(const Strips& strips) : strip(strips.first), step(strips.step) {}

    __device__ __forceinline__ bool is_done(const DenseArgs& args) const { return strip >= args.strips; }

    __device__ __forceinline__ void copy(const DenseArgs& args, const Shared& shared) {
        const uint32_t n_bytes = min(kChunk, args.k_records - record) * kDenseRecordBytes, full = shared.full + ring.stage * 8;
        barrier_expect(full, n_bytes);
        copy_bulk(shared.weights + ring.stage * kStageBytes,
                  args.records + (size_t(strip) * args.k_records + record) * kDenseRecordBytes, n_bytes, full);
        ring.next(args.stages);
        record += kChunk;
        if (record >= args.k_records) { record = 0; strip += step; }
    }

    // As far as there is room at the start.
    __device__ __forceinline__ void begin(const DenseArgs& args, const Shared& shared) {
        for (uint32_t i = 0; i < args.stages && !is_done(args); i++) copy(args, shared);
    }

    // The rest.
    __device__ __forceinline__ void finish(const DenseArgs& args, const Shared& shared) {
        while (!is_done(args)) {
            barrier_wait(shared.empty + ring.stage * 8, ring.parity ^ 1);
            copy(args, shared);
        }
    }
};

// The operands of one record.
template <int Groups>
struct Operands {
    uint32_t a[4][4], b[Groups][8];

    // This lane's rows of a record, and of each group of a panel.
    __device__ __forceinline__ void load(uint32_t record, const uint32_t (&panels)[Groups]) {
#pragma unroll
        for (uint32_t step = 0; step < 4; step++) load_matrices(record ^ (step * 32), a[step]);
#pragma unroll
        for (uint32_t g = 0; g < Groups; g++) {
            load_matrices(panels[g], b[g]);
            load_matrices(panels[g] ^ 64, b[g] + 4);
        }
    }

    __device__ __forceinline__ void multiply(float (&acc)[4 * Groups]) const {
#pragma unroll
        for (uint32_t step = 0; step < 4; step++) {
#pragma unroll
            for (uint32_t g = 0; g < Groups; g++) mma(acc + 4 * g, a[step], b[g] + 2 * step);
        }
    }
};

// Copies tokens, each panel's rows that exist: of each segment, a lane of a warp that copies has a panel at most. All arrive.
__device__ __forceinline__ void copy_tokens(const DenseArgs& args, const Shared& shared, const Segments& segments,
                                            uint32_t copier) {
    const uint32_t n_bytes = args.n_tokens * 128, panel_bytes = (args.n_tokens + 7) / 8 * kGroupBytes;
    uint32_t begin = 0;
    for (uint32_t i = 0; i < kSegments; i++) {
        const uint32_t p = begin + threadIdx.x % 32 * kCopiers + copier, end = segments.end(args, i);
        const uint32_t full = shared.tokens_full + i * 8;
        barrier_expect(full, p < end ? n_bytes : 0);
        if (p < end) copy_bulk(shared.tokens + p * n_bytes, args.tokens + size_t(p) * panel_bytes, n_bytes, full);
        begin = end;
    }
}

// The records of a strip, in order.
template <int Groups>
struct Reader {
    const DenseArgs& args;
    const Shared& shared;
    const Segments& segments;
    uint32_t weights, panels[Groups];  // this lane's rows of a record, and of each group of the next panel
    uint32_t segment = 0;

    __device__ __forceinline__ Reader(const DenseArgs& args, const Shared& shared, const Segments& segments)
        : args(args), shared(shared), segments(segments) {
        // Matrices of A: both groups of piece 2 step, then those of the next; of B: pieces 0 to 3.
        const uint32_t lane = threadIdx.x % 32, row = lane % 8, matrix = lane / 8;
        weights = shared.weights + matrix % 2 * kGroupBytes + row * 128 + ((matrix / 2) ^ row) * 16;
#pragma unroll
        for (uint32_t g = 0; g < Groups; g++) {
            // Rows that are not there have the last one's values: what becomes of them is not stored.
            const uint32_t token = min(g * 8 + row, args.n_tokens - 1);
            panels[g] = shared.tokens + token * 128 + (matrix ^ token % 8) * 16;
        }
    }

    // Whether a chunk of weights is there. The answer takes a while: asked for early, it holds up nothing.
    __device__ __forceinline__ bool has(const Ring& ring) const {
        return barrier_test(shared.full + ring.stage * 8, ring.parity);
    }

    // Waits for a chunk of weights, if it was not there yet, and its tokens.
    __device__ __forceinline__ void wait(uint32_t chunk, const Ring& ring, bool is_there) {
        if (chunk == segment * segments.each) barrier_wait(shared.tokens_full + segment++ * 8, 0);
        if (!is_there) barrier_wait(shared.full + ring.stage * 8, ring.parity);
    }

    // Record `r` of a stage.
    __device__ __forceinline__ void load(const Ring& ring, uint32_t r, Operands<Groups>& to) {
        to.load(weights + ring.stage * kStageBytes + r * kDenseRecordBytes, panels);
#pragma unroll
        for (uint32_t g = 0; g < Groups; g++) panels[g] += args.n_tokens * 128;
    }

    // All lanes have loaded what they need of the stage.
    __device__ __forceinline__ void release(const Ring& ring) const {
        barrier_arrive(shared.empty + ring.stage * 8);
    }
};

// The operands of a record are loaded while the one before is multiplied.
template <int Groups>
__device__ __forceinline__ void sum_strip(const DenseArgs& args, const Shared& shared, const Segments& segments, Ring& ring,
                                          float (&acc)[4 * Groups]) {
    static_assert(kChunk == 4);
    const uint32_t n_whole = args.k_records / kChunk, n_rest = args.k_records % kChunk;
    Reader<Groups> reader(args, shared, segments);
    Operands<Groups> a, b;
    reader.wait(0, ring, false);
    reader.load(ring, 0, a);
#pragma unroll 1
    for (uint32_t chunk = 0; chunk < n_whole;) {
        Ring next = ring;
        next.next(args.stages);
        reader.load(ring, 1, b);
        a.multiply(acc);
        reader.load(ring, 2, a);
        b.multiply(acc);
        reader.load(ring, 3, b);
        // Of a ring of one stage, the phase before was over long ago, and this one cannot be.
        const bool is_there = reader.has(next);
        a.multiply(acc);
        reader.release(ring);
        ring = next;
        if (++chunk < segments.n_chunks) {
            reader.wait(chunk, ring, is_there);
            reader.load(ring, 0, a);
        }
        b.multiply(acc);
    }
    if (n_rest == 0) return;
#pragma unroll 1
    for (uint32_t r = 1; r < n_rest; r++) {
        a.multiply(acc);
        reader.load(ring, r, a);
    }
    a.multiply(acc);
    reader.release(ring);
    ring.next(args.stages);
}

template <int Groups>
__device__ __forceinline__ void consume_strip(const DenseArgs& args, const Shared& shared, const Segments& segments,
                                              uint32_t strip, Ring& ring) {
    const StripOut out(args, strip, 0, args.n_tokens);
    float acc[4 * Groups], before[4 * Groups];
#pragma unroll
    for (uint32_t i = 0; i < 4 * Groups; i++) {
        acc[i] = 0.0f;
        // Asked for now, it is there when the sums are.
        before[i] = args.adds && out.has(i) ? *out.element(args, i) : 0.0f;
    }
    sum_strip<Groups>(args, shared, segments, ring, acc);
#pragma unroll
    for (uint32_t i = 0; i < 4 * Groups; i++) {
        const float sum = acc[i] + out.bias_of(i);
        if (out.has(i)) *out.element(args, i) = args.adds ? before[i] + sum : sum;
    }
}

// A ring's barriers, and with the first ring's those of the tokens, by the warp that fills it.
__device__ __forceinline__ void begin_barriers(const DenseArgs& args, const Shared& shared, uint32_t ring) {
    const uint32_t lane = threadIdx.x % 32;
    static_assert(kMaxStages <= 32 && kSegments <= 32);
    if (ring == 0 && lane < kSegments) barrier_init(shared.tokens_full + lane * 8, kCopiers * 32);
    if (lane < args.stages) {
        barrier_init(shared.full + lane * 8, 1);
        barrier_init(shared.empty + lane * 8, 32);
    }
    barrier_init_fence();
    __syncwarp();
}

template <int Groups>
__device__ __forceinline__ void dense_stream(const DenseArgs& args) {
    const uint32_t lane = threadIdx.x % 32, warp = __shfl_sync(~0u, threadIdx.x / 32, 0);
    const uint32_t n_warps = blockDim.x / 32 - kCopiers;
    const bool copies = warp >= n_warps;
    // The warp whose ring this one reads or fills; with fewer of them, there are warps that fill none.
    const uint32_t owner = copies ? warp - n_warps : warp;
    const bool fills = copies && owner < n_warps;
    const Shared shared(args, owner);
    const Segments segments(args);
    const Strips strips(owner);
    Producer producer(strips);
    if (fills) {
        begin_barriers(args, shared, owner);
        if (lane == 0) producer.begin(args, shared);
    }
    __syncthreads();
    grid_launch_next();
    grid_wait_for_previous();
    // The first warp of a block has the most strips. Where it has none, nobody would wait for the tokens.
    if (blockIdx.x >= args.strips) return;
    if (copies) {
        copy_tokens(args, shared, segments, owner);
        if (fills && lane == 0) producer.finish(args, shared);
        return;
    }
    Ring ring;
    for (uint32_t strip = strips.first; strip < args.strips; strip += strips.step) {
        consume_strip<Groups>(args, shared, segments, strip, ring);
    }
}

}  // namespace

extern "C" __global__ void __launch_bounds__(kThreads, 1) dense_stream_8(const __grid_constant__ DenseArgs args) {
    dense_stream<1>(args);
}
extern "C" __global__ void __launch_bounds__(kThreads, 1) dense_stream_16(const __grid_constant__ DenseArgs args) {
    dense_stream<2>(args);
}
