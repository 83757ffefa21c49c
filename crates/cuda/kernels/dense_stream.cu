// Dense matrix products for few tokens: weights stream through once, as fast as memory gives them.
//
// A block is some warps that own strips of 16 weight rows, each over the whole of k, and have a ring of stages each: no warp
// waits for another, and a warp refills its ring by itself. All share the tokens, which stay in shared memory. Weights do not
// depend on the kernel before: a ring full of them is on its way before the wait for it.
#include <cstdint>

#include "dense.cuh"
#include "ptx/async.cuh"
#include "ptx/mma.cuh"

namespace {

constexpr uint32_t kMaxWarps = 8;
// Records of a stage.
constexpr uint32_t kChunk = 2, kStageBytes = kChunk * kDenseRecordBytes;
// Of all warps' rings together.
constexpr uint32_t kMaxStages = 40;
// Parts of k whose tokens come one after the other.
constexpr uint32_t kSegments = 4;
// Of the barriers, before the tokens.
constexpr uint32_t kHeaderBytes = 1024;
static_assert((kMaxStages + kSegments) * 8 <= kHeaderBytes);

struct Shared {
    uint32_t full;         // barriers of this warp's ring
    uint32_t tokens_full;  // barriers of the segments
    uint32_t tokens;       // [k_records, n_tokens, 128]: of each panel, the rows that exist
    uint32_t weights;      // this warp's ring

    __device__ __forceinline__ Shared(const DenseArgs& args, uint32_t warp) {
        extern __shared__ __align__(1024) uint8_t memory[];
        const uint32_t begin = shared_address(memory);
        tokens_full = begin;
        full = begin + (kSegments + warp * args.stages) * 8;
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

// Place in a ring of stages, and the parity of its phase.
struct Ring {
    uint32_t stage = 0, parity = 0;
    __device__ __forceinline__ void next(const DenseArgs& args) {
        if (++stage == args.stages) { stage = 0; parity ^= 1; }
    }
};

// The strips of this warp: the same number for every warp of the grid, or one less. Where there are few, all blocks get one
// before any gets two.
struct Strips {
    uint32_t first, step;
    __device__ __forceinline__ explicit Strips(uint32_t warp)
        : first(warp * gridDim.x + blockIdx.x), step(gridDim.x * (blockDim.x / 32)) {}
};

// The chunks of weights that this warp asks for, in order.
struct Cursor {
    uint32_t strip, record = 0;

    __device__ __forceinline__ explicit Cursor(const Strips& strips) : strip(strips.first) {}

    // By one lane; the others only move on.
    __device__ __forceinline__ void request(const DenseArgs& args, const Shared& shared, uint32_t stage) const {
        if (strip >= args.strips) return;
        const uint32_t n_bytes = min(kChunk, args.k_records - record) * kDenseRecordBytes, full = shared.full + stage * 8;
        barrier_expect(full, n_bytes);
        copy_bulk(shared.weights + stage * kStageBytes,
                  args.records + (size_t(strip) * args.k_records + record) * kDenseRecordBytes, n_bytes, full);
    }

    __device__ __forceinline__ void next(const DenseArgs& args, const Strips& strips) {
        record += kChunk;
        if (record >= args.k_records) { record = 0; strip += strips.step; }
    }
};

// The operands of one record.
template <int Groups>
struct Operands {
    uint32_t a[4][4], b[Groups][8];

    // This lane's rows of a record, and of the first group of a panel.
    __device__ __forceinline__ void load(uint32_t record, uint32_t panel) {
#pragma unroll
        for (uint32_t step = 0; step < 4; step++) load_matrices(record ^ (step * 32), a[step]);
#pragma unroll
        for (uint32_t g = 0; g < Groups; g++) {
            load_matrices(panel + g * kGroupBytes, b[g]);
            load_matrices((panel + g * kGroupBytes) ^ 64, b[g] + 4);
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

// Copies all tokens, each panel's rows that exist; every thread some panels.
__device__ __forceinline__ void copy_tokens(const DenseArgs& args, const Shared& shared, const Segments& segments) {
    const uint32_t n_bytes = args.n_tokens * 128, panel_bytes = (args.n_tokens + 7) / 8 * kGroupBytes;
    for (uint32_t p = threadIdx.x; p < args.k_records; p += blockDim.x) {
        copy_bulk(shared.tokens + p * n_bytes, args.tokens + size_t(p) * panel_bytes, n_bytes,
                  shared.tokens_full + p / kChunk / segments.each * 8);
    }
}

// The operands of a record are loaded while the one before is multiplied.
template <int Groups>
__device__ __forceinline__ void sum_strip(const DenseArgs& args, const Shared& shared, const Segments& segments,
                                          const Strips& strips, Cursor& cursor, Ring& ring, float (&acc)[4 * Groups]) {
    const uint32_t lane = threadIdx.x % 32, row = lane % 8, matrix = lane / 8;
    // Matrices of A: both groups of piece 2 step, then those of the next; of B: pieces 0 to 3.
    const uint32_t weights = shared.weights + matrix % 2 * kGroupBytes + row * 128 + ((matrix / 2) ^ row) * 16;
    const uint32_t n_bytes = args.n_tokens * 128;
    uint32_t panel = shared.tokens + row * 128 + (matrix ^ row) * 16;
    Operands<Groups> first, second;
    barrier_wait(shared.tokens_full, 0);
    barrier_wait(shared.full + ring.stage * 8, ring.parity);
    first.load(weights + ring.stage * kStageBytes, panel);
    uint32_t segment = 1;
#pragma unroll 1
    for (uint32_t chunk = 0; chunk < segments.n_chunks;) {
        const bool has_second = chunk * kChunk + 1 < args.k_records;
        if (has_second) second.load(weights + ring.stage * kStageBytes + kDenseRecordBytes, panel + n_bytes);
        first.multiply(acc);
        __syncwarp();
        if (lane == 0) cursor.request(args, shared, ring.stage);
        cursor.next(args, strips);
        ring.next(args);
        panel += kChunk * n_bytes;
        if (++chunk < segments.n_chunks) {
            if (chunk == segment * segments.each) barrier_wait(shared.tokens_full + segment++ * 8, 0);
            barrier_wait(shared.full + ring.stage * 8, ring.parity);
            first.load(weights + ring.stage * kStageBytes, panel);
        }
        if (has_second) second.multiply(acc);
    }
}

template <int Groups>
__device__ __forceinline__ void consume_strip(const DenseArgs& args, const Shared& shared, const Segments& segments,
                                              const Strips& strips, uint32_t strip, Cursor& cursor, Ring& ring) {
    const StripOut out(args, strip, 0, args.n_tokens);
    float acc[4 * Groups], before[4 * Groups];
#pragma unroll
    for (uint32_t i = 0; i < 4 * Groups; i++) {
        acc[i] = 0.0f;
        // Asked for now, it is there when the sums are.
        before[i] = args.adds && out.has(i) ? *out.element(args, i) : 0.0f;
    }
    sum_strip<Groups>(args, shared, segments, strips, cursor, ring, acc);
#pragma unroll
    for (uint32_t i = 0; i < 4 * Groups; i++) {
        const float sum = acc[i] + out.bias_of(i);
        if (out.has(i)) *out.element(args, i) = args.adds ? before[i] + sum : sum;
    }
}

template <int Groups>
__device__ __forceinline__ void dense_stream(const DenseArgs& args) {
    const uint32_t lane = threadIdx.x % 32, warp = __shfl_sync(~0u, threadIdx.x / 32, 0);
    const Shared shared(args, warp);
    const Segments segments(args);
    const Strips strips(warp);
    Cursor cursor(strips);
    if (threadIdx.x == 0) {
        for (uint32_t i = 0; i < kSegments; i++) barrier_init(shared.tokens_full + i * 8, 1);
    }
    if (lane == 0) {
        for (uint32_t i = 0; i < args.stages; i++) barrier_init(shared.full + i * 8, 1);
        barrier_init_fence();
    }
    __syncwarp();
    for (uint32_t i = 0; i < args.stages; i++) {
        if (lane == 0) cursor.request(args, shared, i);
        cursor.next(args, strips);
    }
    if (threadIdx.x == 0) {
        for (uint32_t i = 0, begin = 0; i < kSegments; i++) {
            const uint32_t end = segments.end(args, i);
            barrier_expect(shared.tokens_full + i * 8, (end - begin) * args.n_tokens * 128);
            begin = end;
        }
    }
    __syncthreads();
    grid_launch_next();
    grid_wait_for_previous();
    // The first warp of a block has the most strips. Where it has none, nobody would wait for the tokens.
    if (blockIdx.x >= args.strips) return;
    copy_tokens(args, shared, segments);
    Ring ring;
    for (uint32_t strip = strips.first; strip < args.strips; strip += strips.step) {
        consume_strip<Groups>(args, shared, segments, strips, strip, cursor, ring);
    }
}

}  // namespace

extern "C" __global__ void __launch_bounds__(kMaxWarps * 32, 1) dense_stream_8(const __grid_constant__ DenseArgs args) {
    dense_stream<1>(args);
}
extern "C" __global__ void __launch_bounds__(kMaxWarps * 32, 1) dense_stream_16(const __grid_constant__ DenseArgs args) {
    dense_stream<2>(args);
}
