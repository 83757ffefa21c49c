// The experts' outputs back into the residual stream, by themselves or with the next norm; a block per token.
#include "norm.cuh"
#include "ptx/async.cuh"

struct CombineAddArgs {
    const float* y;            // [grouped rows, hidden]
    const int32_t* positions;  // [tokens, top_k]: grouped rows, -1 for a skipped slot
    const float* weights;      // [tokens, top_k]
    float* residual;           // [tokens, hidden]
    uint32_t hidden, top_k;
};
static_assert(sizeof(CombineAddArgs) == 40);

struct CombineNormArgs {
    CombineAddArgs add;
    const float* norm_weight;  // [hidden]
    NormOut out;
    uint32_t tokens;
    float eps;
};
static_assert(sizeof(CombineNormArgs) == 72);

namespace {

__device__ __forceinline__ void fma4(float4& sum, float weight, const float4& y) {
    sum = {fmaf(weight, y.x, sum.x), fmaf(weight, y.y, sum.y), fmaf(weight, y.z, sum.z), fmaf(weight, y.w, sum.w)};
}

__device__ __forceinline__ float4 add4(const float4& a, const float4& b) {
    return {__fadd_rn(a.x, b.x), __fadd_rn(a.y, b.y), __fadd_rn(a.z, b.z), __fadd_rn(a.w, b.w)};
}

// residual + sum over ranks, in order, of weight * y: this thread's columns of the block's token, also stored.
__device__ __forceinline__ Columns combine(const CombineAddArgs& args) {
    // Ranks whose rows are loaded at a time: all of a published model's.
    constexpr uint32_t kAtOnce = 4;
    const size_t token = blockIdx.x, slot = token * args.top_k;
    float* row = args.residual + token * args.hidden;
    const Columns residual = load_columns(row, args.hidden);
    Columns sum{};
    for (uint32_t base = 0; base < args.top_k; base += kAtOnce) {
        int32_t positions[kAtOnce];
        float weights[kAtOnce];
        Columns y[kAtOnce];
#pragma unroll
        for (uint32_t i = 0; i < kAtOnce; i++) {
            const bool is_there = base + i < args.top_k;
            positions[i] = is_there ? args.positions[slot + base + i] : -1;
            weights[i] = is_there ? args.weights[slot + base + i] : 0.0f;
        }
#pragma unroll
        for (uint32_t i = 0; i < kAtOnce; i++) {
            y[i] = Columns{};
            if (positions[i] >= 0) y[i] = load_columns(args.y + size_t(positions[i]) * args.hidden, args.hidden);
        }
#pragma unroll
        for (uint32_t i = 0; i < kAtOnce; i++) {
            if (positions[i] < 0) continue;
            fma4(sum.low, weights[i], y[i].low);
            fma4(sum.high, weights[i], y[i].high);
        }
    }
    const Columns total{add4(residual.low, sum.low), add4(residual.high, sum.high)};
    store_columns(row, args.hidden, total);
    return total;
}

}  // namespace

extern "C" __global__ void __launch_bounds__(kNormThreads, 2) combine_add(const __grid_constant__ CombineAddArgs args) {
    grid_launch_next();
    grid_wait_for_previous();
    combine(args);
}

extern "C" __global__ void __launch_bounds__(kNormThreads, 2) combine_norm(const __grid_constant__ CombineNormArgs args) {
    __shared__ alignas(16) float warp_sums[kNormWarps];
    const uint32_t hidden = args.add.hidden;
    const Columns weight = load_columns(args.norm_weight, hidden);
    const float inverse = reciprocal_approx(float(hidden));
    grid_launch_next();
    grid_wait_for_previous();
    const Columns x = combine(args.add);
    const float squares = warp_squares(x);
    if (threadIdx.x % 32 == 0) warp_sums[threadIdx.x / 32] = squares;
    __syncthreads();
    const uint4 piece = norm_piece(x, norm_scale(warp_sums, inverse, args.eps), weight, hidden);
    store_piece(args.out, blockIdx.x, args.tokens, hidden, piece);
}
