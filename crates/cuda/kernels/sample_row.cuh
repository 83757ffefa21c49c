// One row of logits, spread over the blocks of a cluster, and what sampling asks of it.
//
// A logit and its id make an entry, a 64-bit number: entries descend as sampling sorts them, the largest logits first and of
// equal ones the lower id. All sums are float64 and have one order, so that the same row gives the same token.
#pragma once
#include <cstdint>

#include "ptx/cluster.cuh"

constexpr uint32_t kThreads = 1024;
constexpr uint32_t kWarps = kThreads / 32;
// Of a cluster, which has one row.
constexpr uint32_t kBlocks = 8;
// Logits of a thread at most: all are loaded before the first is looked at.
constexpr uint32_t kPerThread = 32;
// Entries that are sorted: one a thread.
constexpr uint32_t kCandidates = kThreads;
// Parts into which an interval of entries is cut.
constexpr uint32_t kWays = 8;
constexpr uint32_t kNobody = 0xFFFFFFFF;

__device__ __forceinline__ uint32_t lane_id() { return threadIdx.x % 32; }
__device__ __forceinline__ uint32_t warp_id() { return threadIdx.x / 32; }

// A finite number's bits so that unsigned order is the numbers' order; it is never 0. Adding 0 makes -0 and 0 the equals that
// they are.
__device__ __forceinline__ uint32_t key_of(float value) {
    const uint32_t bits = __float_as_uint(__fadd_rn(value, 0.0f));
    return bits ^ (bits >> 31 ? 0xFFFFFFFFu : 0x80000000u);
}

__device__ __forceinline__ float value_of(uint32_t key) {
    return __uint_as_float(key ^ (key >> 31 ? 0x80000000u : 0xFFFFFFFFu));
}

__device__ __forceinline__ uint64_t entry_of(uint32_t key, uint32_t id) { return uint64_t(key) << 32 | uint32_t(~id); }
__device__ __forceinline__ uint32_t key_in(uint64_t entry) { return uint32_t(entry >> 32); }
__device__ __forceinline__ uint32_t id_in(uint64_t entry) { return ~uint32_t(entry); }

// exp((logit - max) / temperature); the quotient is rounded as a division's, but for the rarest cases.
struct Weigh {
    float max;
    double temperature, inverse;

    __device__ __forceinline__ double operator()(uint32_t key) const {
        // The difference of two finite numbers may be infinite, which the correction of the quotient cannot take.
        const double x = fmax(double(__fsub_rn(value_of(key), max)), -1e39);
        const double quotient = x * inverse;
        return exp(fma(fma(-quotient, temperature, x), inverse, quotient));
    }
};

// Entries in which the one that is sought lies.
struct Interval {
    uint64_t low, high;  // both are part of it
    double above;        // sum of what is before it
    double target;       // what the running sum is to get to
    uint32_t n_above, n;
};

// A block's. What other blocks write is marked.
struct Shared {
    uint64_t tops[kBlocks];                  // by all blocks: the first entry of each; 0 if it has none
    uint32_t lowest[kBlocks];                // by all blocks: its smallest key
    uint32_t not_finite[kBlocks];            // by all blocks: its first id whose logit is not finite, or kNobody
    double sums[2][kBlocks][kWays];          // by all blocks, in turns: weights of each part
    uint32_t counts[2][kBlocks][kWays];      // by all blocks, in turns: entries of each part
    Weigh weigh;
    Interval interval;
    uint32_t cuts[kWays];                    // where the interval's parts begin, descending, but for the last's
    uint64_t bound;                          // by block 0: the last entry that is kept
    uint64_t candidates[kCandidates];        // block 0's has entries of all blocks
    uint32_t n_candidates;
    uint32_t first, last;
    double picked;
    double warp_sums[kWarps][kWays];
    uint32_t warp_counts[kWarps][kWays];
    uint64_t warp_tops[kWarps];
    uint32_t warp_lowest[kWarps], warp_not_finite[kWarps];
    double scan[kWarps];
};
static_assert(sizeof(Shared) == 13824);

// The block's part of the row.
struct Part {
    const uint32_t* keys;   // [n], shared
    uint32_t first_id, n;   // ids first_id .. first_id + n - 1
    uint32_t rank;          // of the block
};

template <class T>
__device__ __forceinline__ T warp_sum(T value) {
#pragma unroll
    for (int d = 16; d > 0; d /= 2) value += __shfl_xor_sync(~0u, value, d);
    return value;
}

// The sums up to and with each lane, by groups of `width` lanes.
template <class T>
__device__ __forceinline__ T warp_scan(T value, uint32_t width = 32) {
    for (uint32_t d = 1; d < width; d *= 2) {
        const T before = __shfl_up_sync(~0u, value, d, width);
        if (threadIdx.x % width >= d) value += before;
    }
    return value;
}

// The sums up to and with each thread, and of all.
struct Scan {
    double up_to, total;
};

__device__ __forceinline__ Scan block_scan(Shared& shared, double value) {
    const double in_warp = warp_scan(value);
    __syncthreads();
    if (lane_id() == 31) shared.scan[warp_id()] = in_warp;
    __syncthreads();
    const double warps = warp_scan(shared.scan[lane_id()]);
    const double before = warp_id() == 0 ? 0.0 : __shfl_sync(~0u, warps, (warp_id() - 1) % 32);
    return {before + in_warp, __shfl_sync(~0u, warps, 31)};
}

// The first thread that is a hit; if none is, the last that is possible: rounding may leave a sum a hair below its target.
__device__ __forceinline__ uint32_t block_first(Shared& shared, bool is_hit, bool is_possible) {
    __syncthreads();
    if (threadIdx.x == 0) {
        shared.first = kNobody;
        shared.last = 0;
    }
    __syncthreads();
    const uint32_t hits = __ballot_sync(~0u, is_hit), possible = __ballot_sync(~0u, is_possible);
    if (lane_id() == 0 && hits != 0) atomicMin(&shared.first, warp_id() * 32 + __ffs(int(hits)) - 1);
    if (lane_id() == 0 && possible != 0) atomicMax(&shared.last, warp_id() * 32 + 31 - __clz(int(possible)));
    __syncthreads();
    return shared.first != kNobody ? shared.first : shared.last;
}

// The value that thread `at` has.
__device__ __forceinline__ double block_pick(Shared& shared, double value, uint32_t at) {
    if (threadIdx.x == at) shared.picked = value;
    __syncthreads();
    return shared.picked;
}

// Sorts the candidates, descending (Batcher's bitonic network); each thread gets the one at its index, 0 beyond the last.
__device__ __forceinline__ uint64_t sort_candidates(Shared& shared, uint32_t n) {
    uint64_t entry = threadIdx.x < n ? shared.candidates[threadIdx.x] : 0;
    for (uint32_t size = 2; size / 2 < n; size *= 2) {
        for (uint32_t distance = size / 2; distance > 0; distance /= 2) {
            uint64_t other;
            if (distance < 32) {
                other = __shfl_xor_sync(~0u, entry, int(distance));
            } else {
                __syncthreads();
                shared.candidates[threadIdx.x] = entry;
                __syncthreads();
                other = shared.candidates[threadIdx.x ^ distance];
            }
            const bool takes_larger = ((threadIdx.x & size) == 0) == ((threadIdx.x & distance) == 0);
            if (takes_larger == (other > entry)) entry = other;
        }
    }
    return entry;
}

// Loads the block's part of a row and finds what all need of the whole row: results are in `tops`, `lowest`, `not_finite`.
__device__ __forceinline__ void load_row(Shared& shared, const float* logits, uint32_t* keys, const Part& part) {
    // This thread's: every kThreads-th.
    const float* from = logits + part.first_id + threadIdx.x;
    uint32_t* to = keys + threadIdx.x;
    const uint32_t n = part.n - min(part.n, threadIdx.x), first_id = part.first_id + threadIdx.x;
    float values[kPerThread];
#pragma unroll
    for (uint32_t j = 0; j < kPerThread; j++) values[j] = j * kThreads < n ? from[j * kThreads] : 0.0f;
    uint32_t top = 0, top_id = kNobody, lowest = kNobody, not_finite = kNobody;
#pragma unroll
    for (uint32_t j = 0; j < kPerThread; j++) {
        if (j * kThreads >= n) break;
        const uint32_t key = key_of(values[j]), id = first_id + j * kThreads;
        to[j * kThreads] = key;
        lowest = min(lowest, key);
        if ((__float_as_uint(values[j]) & 0x7F800000u) == 0x7F800000u) not_finite = min(not_finite, id);
        if (key > top) {
            top = key;
            top_id = id;
        }
    }
    lowest = __reduce_min_sync(~0u, lowest);
    not_finite = __reduce_min_sync(~0u, not_finite);
    const uint32_t warp_top = __reduce_max_sync(~0u, top);
    top_id = __reduce_min_sync(~0u, top == warp_top ? top_id : kNobody);
    if (lane_id() == 0) {
        shared.warp_tops[warp_id()] = warp_top == 0 ? 0 : entry_of(warp_top, top_id);
        shared.warp_lowest[warp_id()] = lowest;
        shared.warp_not_finite[warp_id()] = not_finite;
    }
    __syncthreads();
    if (warp_id() == 0) {
        const uint64_t entry = shared.warp_tops[lane_id()];
        const uint32_t key = __reduce_max_sync(~0u, key_in(entry));
        const uint32_t low = __reduce_max_sync(~0u, key_in(entry) == key ? uint32_t(entry) : 0);
        lowest = __reduce_min_sync(~0u, shared.warp_lowest[lane_id()]);
        not_finite = __reduce_min_sync(~0u, shared.warp_not_finite[lane_id()]);
        if (lane_id() < kBlocks) {
            cluster_store(cluster_address(&shared.tops[part.rank], lane_id()), uint64_t(key) << 32 | low);
            cluster_store(cluster_address(&shared.lowest[part.rank], lane_id()), lowest);
            cluster_store(cluster_address(&shared.not_finite[part.rank], lane_id()), not_finite);
        }
    }
    cluster_sync();
}
