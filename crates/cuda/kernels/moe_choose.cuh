// Which experts a token goes to.
#pragma once
#include <cstdint>

#include "moe_tokens.cuh"

constexpr int kMaxTopK = 8;

// A float's bits so that unsigned order is the floats' order; 0, below all, for what is not a number.
__device__ __forceinline__ uint32_t ordered(float value) {
    const uint32_t bits = __float_as_uint(value);
    return isnan(value) ? 0 : bits ^ (bits >> 31 ? 0xFFFFFFFFu : 0x80000000u);
}

// By a warp, of at most 32 `Words` experts. See `choose`.
template <int Words>
__device__ __forceinline__ void choose_of(const float* logits, uint32_t experts, uint32_t top_k, int32_t* ids, float* weights) {
    const uint32_t lane = threadIdx.x % 32;
    uint32_t keys[Words];
#pragma unroll
    for (int i = 0; i < Words; i++) {
        const uint32_t e = i * 32 + lane;
        // As the counts in moe_gemm.cuh.
        keys[i] = e < experts ? ordered(__ldcg(logits + e)) : 0;
    }
    float chosen[kMaxTopK];
#pragma unroll
    for (int rank = 0; rank < kMaxTopK; rank++) {
        if (rank >= top_k) break;
        uint32_t best = 0;
#pragma unroll
        for (int i = 0; i < Words; i++) best = max(best, keys[i]);
        best = __reduce_max_sync(~0u, best);
        uint32_t at = 0xFFFF;
#pragma unroll
        for (int i = Words - 1; i >= 0; i--) {
            if (keys[i] == best) at = i * 32 + lane;
        }
        at = __reduce_min_sync(~0u, at);
#pragma unroll
        for (int i = 0; i < Words; i++) {
            if (at == i * 32 + lane) keys[i] = 0;
        }
        chosen[rank] = __uint_as_float(best ^ (best >> 31 ? 0x80000000u : 0xFFFFFFFFu));
        // Logits that are not numbers choose nothing.
        if (lane == 0) ids[rank] = best > 0 ? int32_t(at) : -1;
    }
    if (weights == nullptr || lane > 0) return;
    float sum = 0.0f;
#pragma unroll
    for (int rank = 0; rank < kMaxTopK; rank++) {
        if (rank >= top_k) break;
        sum += expf(chosen[rank] - chosen[0]);
    }
#pragma unroll
    for (int rank = 0; rank < kMaxTopK; rank++) {
        if (rank < top_k) weights[rank] = expf(chosen[rank] - chosen[0]) / sum;
    }
}

// A warp's choice for one token: the largest logit again and again, of equal ones the first. The results are in lane 0;
// without a place for them, there are no weights.
__device__ __forceinline__ void choose(const float* all_logits, uint32_t experts, uint32_t top_k, uint32_t token, int32_t* ids,
                                       float* weights) {
    const float* logits = all_logits + size_t(token) * experts;
    if (experts <= 32) choose_of<1>(logits, experts, top_k, ids, weights);
    else if (experts <= 128) choose_of<4>(logits, experts, top_k, ids, weights);
    else choose_of<kMaxExperts / 32>(logits, experts, top_k, ids, weights);
}
