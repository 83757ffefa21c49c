// Routing: which experts each token goes to, the tokens' rows grouped by expert, and the weighted sum of what comes back.
//
// A slot is one choice of a token: slot = token * top_k + rank. A slot whose id is no expert's is skipped.
#include <cuda_bf16.h>

#include <cstdint>

#include "moe_choose.cuh"
#include "moe_tokens.cuh"
#include "ptx/async.cuh"

struct MoeRouteArgs {
    const float* logits;      // [tokens, experts]
    const __nv_bfloat16* x;   // [tokens, hidden]
    int32_t* ids;             // [tokens, top_k]
    float* weights;           // [tokens, top_k]: a softmax over the chosen
    int32_t* counts;          // [experts]
    uint32_t* strips_done;    // [experts + 1]: zeros, for the products to count (moe_gemm.cuh)
    int32_t* slots;           // [experts, tokens * top_k]: each expert's slots, ascending
    int32_t* positions;       // [tokens, top_k]: the slot's row among the grouped rows; -1 for a skipped slot
    uint8_t* grouped;         // rows of x, grouped
    uint32_t tokens, experts, top_k, hidden;
};
static_assert(sizeof(MoeRouteArgs) == 88);

namespace {

constexpr uint32_t kMaxFusedSlots = 512;
constexpr int kThreads = 256;
constexpr int kFusedThreads = 1024;

// Copies group `group` of an expert with `n_groups` groups; `row_of` gives a row's token.
template <class RowOf>
__device__ __forceinline__ void copy_group(const MoeRouteArgs& args, uint32_t first_group, uint32_t n_groups, uint32_t group,
                                           uint32_t n_rows, RowOf row_of) {
    const uint32_t panels = (args.hidden + 63) / 64, r = threadIdx.x / 32 % 8;  // a warp per row
    const bool is_row = group * 8 + r < n_rows;
    const __nv_bfloat16* source = is_row ? args.x + size_t(row_of(group * 8 + r)) * args.hidden : nullptr;
    uint8_t* target = args.grouped + (size_t(first_group) * panels + group) * kGroupBytes + r * 128;
    // Several pieces at a time: a single one would wait for memory most of the time.
    constexpr uint32_t kAtOnce = 6;
    for (uint32_t base = threadIdx.x % 32; base < panels * 8; base += 32 * kAtOnce) {
        uint4 values[kAtOnce];
#pragma unroll
        for (uint32_t i = 0; i < kAtOnce; i++) {
            const uint32_t piece = base + 32 * i;
            const bool is_there = is_row && piece * 8 < args.hidden;
            values[i] = is_there ? *reinterpret_cast<const uint4*>(source + piece * 8) : uint4{0, 0, 0, 0};
        }
#pragma unroll
        for (uint32_t i = 0; i < kAtOnce; i++) {
            const uint32_t piece = base + 32 * i;
            const size_t panel = size_t(piece / 8) * n_groups * kGroupBytes;
            if (piece < panels * 8) *reinterpret_cast<uint4*>(target + panel + (piece % 8 ^ r) * 16) = values[i];
        }
    }
}

__device__ __forceinline__ uint32_t groups_of(uint32_t count) { return (count + 7) / 8; }

// An expert has so many rows, of whose products nothing is done yet.
template <class Expert>
__device__ __forceinline__ void tell_rows(const MoeRouteArgs& args, Expert expert, uint32_t n_rows) {
    args.counts[expert] = int32_t(n_rows);
    args.strips_done[expert] = 0;
    if (expert == 0) args.strips_done[args.experts] = 0;
}

// The sum over a warp's lanes.
__device__ __forceinline__ uint32_t warp_sum(uint32_t value) {
#pragma unroll
    for (int d = 16; d > 0; d /= 2) value += __shfl_xor_sync(~0u, value, d);
    return value;
}

}  // namespace

// Few slots: a block per expert chooses for all tokens by itself, and groups its own.
extern "C" __global__ void __launch_bounds__(kFusedThreads) moe_route_fused(const __grid_constant__ MoeRouteArgs args) {
    __shared__ int32_t ids[kMaxFusedSlots];
    __shared__ float weights[kMaxFusedSlots];
    __shared__ int32_t mine[kMaxFusedSlots];
    __shared__ uint32_t counts[kMaxExperts];
    __shared__ uint32_t first_group;
    const uint32_t expert = blockIdx.x, lane = threadIdx.x % 32, warp = threadIdx.x / 32, n_slots = args.tokens * args.top_k;
    for (uint32_t e = threadIdx.x; e < args.experts; e += kFusedThreads) counts[e] = 0;
    grid_wait_for_previous();
    grid_launch_next();
    for (uint32_t token = warp; token < args.tokens; token += kFusedThreads / 32) {
        choose(args.logits, args.experts, args.top_k, token, ids + token * args.top_k, weights + token * args.top_k);
    }
    __syncthreads();
    for (uint32_t slot = threadIdx.x; slot < n_slots; slot += kFusedThreads) {
        if (ids[slot] >= 0) atomicAdd(&counts[ids[slot]], 1u);
        if (expert == 0) {
            args.ids[slot] = ids[slot];
            args.weights[slot] = weights[slot];
            if (ids[slot] < 0) args.positions[slot] = -1;
        }
    }
    __syncthreads();
    if (warp == 0) {
        uint32_t groups = 0;
        for (uint32_t e = lane; e < expert; e += 32) groups += groups_of(counts[e]);
        groups = warp_sum(groups);
        if (lane == 0) first_group = groups;
        uint32_t before = 0;
        for (uint32_t base = 0; base < n_slots; base += 32) {
            const uint32_t slot = base + lane;
            const bool is_mine = slot < n_slots && ids[slot] == int32_t(expert);
            const uint32_t votes = __ballot_sync(~0u, is_mine), at = before + __popc(votes & ((1u << lane) - 1));
            if (is_mine) {
                mine[at] = int32_t(slot);
                args.slots[size_t(expert) * n_slots + at] = int32_t(slot);
                args.positions[slot] = int32_t(groups * 8 + at);
            }
            before += __popc(votes);
        }
        if (lane == 0) tell_rows(args, expert, before);
    }
    __syncthreads();
    const uint32_t n_rows = counts[expert], n_groups = groups_of(n_rows);
    for (uint32_t group = warp / 8; group < n_groups; group += kFusedThreads / 256) {
        copy_group(args, first_group, n_groups, group, n_rows, [&](uint32_t row) { return mine[row] / args.top_k; });
    }
}

// Many slots, step one: a warp per token chooses.
extern "C" __global__ void __launch_bounds__(kThreads) moe_top_k(const __grid_constant__ MoeRouteArgs args) {
    grid_wait_for_previous();
    grid_launch_next();
    const uint32_t token = blockIdx.x * (kThreads / 32) + threadIdx.x / 32;
    if (token < args.tokens) {
        choose(args.logits, args.experts, args.top_k, token, args.ids + size_t(token) * args.top_k, args.weights + size_t(token) * args.top_k);
    }
}

constexpr int kGroupThreads = 1024;

// Step two: a block per expert lists its slots, ascending; each thread looks at four at a time.
extern "C" __global__ void __launch_bounds__(kGroupThreads) moe_group(const __grid_constant__ MoeRouteArgs args) {
    __shared__ uint32_t in_warp[kGroupThreads / 32];
    grid_wait_for_previous();
    grid_launch_next();
    const int32_t expert = int32_t(blockIdx.x), n_slots = int32_t(args.tokens * args.top_k);
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int32_t* list = args.slots + size_t(expert) * n_slots;
    uint32_t before = 0;
    for (int32_t base = 0; base < n_slots; base += kGroupThreads * 4) {
        const int32_t first = base + int32_t(threadIdx.x) * 4;
        uint32_t is_mine = 0;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int32_t id = first + i < n_slots ? args.ids[first + i] : -1;
            if (id == expert) is_mine |= 1u << i;
        }
        const uint32_t n_mine = __popc(is_mine);
        uint32_t sum = n_mine;
#pragma unroll
        for (int d = 1; d < 32; d *= 2) {
            const uint32_t left = __shfl_up_sync(~0u, sum, d);
            if (lane >= d) sum += left;
        }
        if (lane == 31) in_warp[warp] = sum;
        __syncthreads();
        uint32_t others = in_warp[lane];
        const uint32_t total = warp_sum(others);
        others = warp_sum(lane < warp ? others : 0);
        uint32_t at = before + others + sum - n_mine;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            if (is_mine >> i & 1) list[at++] = first + i;
        }
        before += total;
        __syncthreads();
    }
    if (threadIdx.x == 0) tell_rows(args, expert, before);
}

// Step three: a block per group of eight rows copies them. The grid has as many blocks as there can be groups.
extern "C" __global__ void __launch_bounds__(kThreads) moe_gather(const __grid_constant__ MoeRouteArgs args) {
    __shared__ uint32_t found[4];  // expert, its first group, its rows, all groups
    grid_wait_for_previous();
    grid_launch_next();
    const uint32_t lane = threadIdx.x % 32, n_slots = args.tokens * args.top_k;
    if (threadIdx.x < 32) {
        uint32_t before = 0;
        if (lane == 0) found[0] = args.experts;
        __syncwarp();
        for (uint32_t base = 0; base < args.experts && before <= blockIdx.x; base += 32) {
            const uint32_t count = base + lane < args.experts ? uint32_t(args.counts[base + lane]) : 0;
            uint32_t sum = groups_of(count);
#pragma unroll
            for (int d = 1; d < 32; d *= 2) {
                const uint32_t left = __shfl_up_sync(~0u, sum, d);
                if (lane >= d) sum += left;
            }
            const uint32_t first = before + sum - groups_of(count);
            if (first <= blockIdx.x && blockIdx.x < before + sum) {
                found[0] = base + lane;
                found[1] = first;
                found[2] = count;
            }
            before += __shfl_sync(~0u, sum, 31);
        }
    }
    // Slots of nobody have no row.
    for (uint32_t slot = blockIdx.x * kThreads + threadIdx.x; slot < n_slots; slot += gridDim.x * kThreads) {
        if (uint32_t(args.ids[slot]) >= args.experts) args.positions[slot] = -1;
    }
    __syncthreads();
    if (found[0] == args.experts) return;
    const uint32_t first_group = found[1], n_rows = found[2], group = blockIdx.x - first_group;
    const int32_t* list = args.slots + size_t(found[0]) * n_slots;
    if (threadIdx.x < 8 && group * 8 + threadIdx.x < n_rows) {
        args.positions[list[group * 8 + threadIdx.x]] = int32_t(blockIdx.x * 8 + threadIdx.x);
    }
    copy_group(args, first_group, groups_of(n_rows), group, n_rows, [&](uint32_t row) { return list[row] / args.top_k; });
}

struct MoeCombineArgs {
    const float* y;            // [grouped rows, hidden]
    const int32_t* positions;  // [tokens, top_k]
    const float* weights;      // [tokens, top_k]
    __nv_bfloat16* out;        // [tokens, hidden]
    uint32_t hidden, top_k;
};
static_assert(sizeof(MoeCombineArgs) == 40);

// out = sum over ranks, in order, of weight * y; grid (tokens, ceil(hidden / 1024)). Four columns a thread.
extern "C" __global__ void __launch_bounds__(kThreads) moe_combine(const __grid_constant__ MoeCombineArgs args) {
    grid_wait_for_previous();
    grid_launch_next();
    const uint32_t column = (blockIdx.y * kThreads + threadIdx.x) * 4;
    if (column >= args.hidden) return;
    const size_t slot = size_t(blockIdx.x) * args.top_k;
    float4 sum{0.0f, 0.0f, 0.0f, 0.0f};
    for (uint32_t rank = 0; rank < args.top_k; rank++) {
        const int32_t position = args.positions[slot + rank];
        if (position < 0) continue;
        const float weight = args.weights[slot + rank];
        const float4 y = *reinterpret_cast<const float4*>(args.y + size_t(position) * args.hidden + column);
        sum.x += weight * y.x;
        sum.y += weight * y.y;
        sum.z += weight * y.z;
        sum.w += weight * y.w;
    }
    const __nv_bfloat162 low = __floats2bfloat162_rn(sum.x, sum.y), high = __floats2bfloat162_rn(sum.z, sum.w);
    uint2 packed;
    packed.x = *reinterpret_cast<const uint32_t*>(&low);
    packed.y = *reinterpret_cast<const uint32_t*>(&high);
    *reinterpret_cast<uint2*>(args.out + size_t(blockIdx.x) * args.hidden + column) = packed;
}
