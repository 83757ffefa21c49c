// The router's logits, by themselves or with the norm before them.
//
// A block has a strip of 16 experts and groups of up to 8 tokens: mma.sync m16n8k16 with the experts as rows. A warp has the
// records (64 columns) `warp`, `warp + 12`, .. of the strip in its registers; the warps' sums are added in their order. So a
// logit's sum has one order, whatever the tokens around it.
//
// Which column meets which of the instruction's k is free as long as both operands agree: in step s, with q = lane % 4, k
// = 2 q and 2 q + 1 are columns 8 q + 2 s and the next of the record, k = 8 + 2 q and the next are 32 columns further.
// A thread then reads 16 bytes at a time of either operand.
#include "norm.cuh"
#include "ptx/async.cuh"
#include "ptx/mma.cuh"

struct RouterArgs {
    const uint8_t* records;  // [strips, k_records] records of 16 experts x 64 columns: two groups of 8 rows in panel form
    const float* bias;       // [strips * 16]
    __nv_bfloat16* x;        // [tokens, hidden]
    float* logits;           // [tokens, experts]
    uint32_t tokens, hidden, experts, padding;
};
static_assert(sizeof(RouterArgs) == 48);

struct NormRouterArgs {
    RouterArgs router;         // its x is written
    const float* residual;     // [tokens, hidden]
    const float* norm_weight;  // [hidden]
    float eps;
    uint32_t block_tokens;     // of a block, 8 at most
};
static_assert(sizeof(NormRouterArgs) == 72);

namespace {

constexpr uint32_t kGroupTokens = 8;
constexpr uint32_t kStripExperts = 16;
constexpr uint32_t kRecordBytes = 2048;
constexpr uint32_t kPanelBytes = 1024;
// Records of a warp: enough for 3,072 columns.
constexpr uint32_t kRecords = 4;
// Floats from a token's sums to the next token's: no two lanes of a warp store to one bank.
constexpr uint32_t kSumStride = 20;

using Sums = float[kNormWarps][kGroupTokens * kSumStride];

// A warp's part of its strip. pieces[i][2 h + half]: of its record i, row lane / 4 + 8 h, piece lane % 4 + 4 half.
struct StripWeights {
    uint4 pieces[kRecords][4];
};

// A warp's part of eight tokens. pieces[i][half]: of its record i, token lane / 4, piece lane % 4 + 4 half.
struct TokenPieces {
    uint4 pieces[kRecords][2];
};

__device__ __forceinline__ uint32_t record_of(uint32_t i) { return threadIdx.x / 32 + i * kNormWarps; }

// Where the piece of the lane's token or expert row lies in a panel.
__device__ __forceinline__ uint32_t piece_offset(uint32_t half) {
    const uint32_t g = threadIdx.x % 32 / 4, q = threadIdx.x % 4;
    return g * 128 + ((q + 4 * half) ^ g) * 16;
}

__device__ __forceinline__ StripWeights load_weights(const RouterArgs& args) {
    const uint32_t k_records = (args.hidden + 63) / 64;
    const uint8_t* strip = args.records + size_t(blockIdx.x) * k_records * kRecordBytes;
    StripWeights weights{};
#pragma unroll
    for (uint32_t i = 0; i < kRecords; i++) {
        if (record_of(i) >= k_records) continue;
#pragma unroll
        for (uint32_t j = 0; j < 4; j++) {
            const uint8_t* panel = strip + record_of(i) * kRecordBytes + j / 2 * kPanelBytes;
            weights.pieces[i][j] = *reinterpret_cast<const uint4*>(panel + piece_offset(j % 2));
        }
    }
    return weights;
}

// Of rows in global memory.
__device__ __forceinline__ TokenPieces load_tokens(const RouterArgs& args, uint32_t group) {
    const uint32_t token = group * kGroupTokens + threadIdx.x % 32 / 4;
    const __nv_bfloat16* row = args.x + size_t(token) * args.hidden;
    TokenPieces tokens{};
#pragma unroll
    for (uint32_t i = 0; i < kRecords; i++) {
#pragma unroll
        for (uint32_t half = 0; half < 2; half++) {
            const uint32_t column = record_of(i) * 64 + (threadIdx.x % 4 + 4 * half) * 8;
            if (token < args.tokens && column < args.hidden) {
                tokens.pieces[i][half] = *reinterpret_cast<const uint4*>(row + column);
            }
        }
    }
    return tokens;
}

__device__ __forceinline__ uint32_t word(const uint4& piece, uint32_t s) {
    return s == 0 ? piece.x : s == 1 ? piece.y : s == 2 ? piece.z : piece.w;
}

// The warp's part of the sums of its strip and eight tokens.
__device__ __forceinline__ void multiply(const StripWeights& weights, const TokenPieces& tokens, uint32_t k_records, Sums& sums) {
    float d[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
    for (uint32_t i = 0; i < kRecords; i++) {
        if (record_of(i) >= k_records) continue;
#pragma unroll
        for (uint32_t s = 0; s < 4; s++) {
            const uint32_t a[4] = {word(weights.pieces[i][0], s), word(weights.pieces[i][2], s),
                                   word(weights.pieces[i][1], s), word(weights.pieces[i][3], s)};
            const uint32_t b[2] = {word(tokens.pieces[i][0], s), word(tokens.pieces[i][1], s)};
            mma(d, a, b);
        }
    }
    const uint32_t g = threadIdx.x % 32 / 4, q = threadIdx.x % 4;
    float* to = sums[threadIdx.x / 32] + 2 * q * kSumStride + g;
    to[0] = d[0];
    to[kSumStride] = d[1];
    to[8] = d[2];
    to[kSumStride + 8] = d[3];
}

// Adds the warps' parts, a thread per logit, of `n_tokens` tokens from `first` on.
__device__ __forceinline__ void store_logits(const RouterArgs& args, uint32_t first, uint32_t n_tokens, float bias,
                                             const Sums& sums) {
    const uint32_t in_group = threadIdx.x / kStripExperts, in_strip = threadIdx.x % kStripExperts;
    const uint32_t token = first + in_group, expert = blockIdx.x * kStripExperts + in_strip;
    if (in_group >= n_tokens || expert >= args.experts) return;
    float sum = sums[0][in_group * kSumStride + in_strip];
#pragma unroll
    for (uint32_t warp = 1; warp < kNormWarps; warp++) {
        sum = __fadd_rn(sum, sums[warp][in_group * kSumStride + in_strip]);
    }
    args.logits[size_t(token) * args.experts + expert] = __fadd_rn(sum, bias);
}

__device__ __forceinline__ float load_bias(const RouterArgs& args) {
    return args.bias[blockIdx.x * kStripExperts + threadIdx.x % kStripExperts];
}

}  // namespace

// Grid (strips, blocks that share the groups of tokens).
extern "C" __global__ void __launch_bounds__(kNormThreads, 1) router(const __grid_constant__ RouterArgs args) {
    __shared__ Sums sums[2];
    const StripWeights weights = load_weights(args);
    const float bias = load_bias(args);
    grid_launch_next();
    grid_wait_for_previous();
    const uint32_t n_groups = (args.tokens + kGroupTokens - 1) / kGroupTokens, k_records = (args.hidden + 63) / 64;
    TokenPieces tokens = load_tokens(args, blockIdx.y);
    // Two sets of sums: who stores into one has passed the barrier behind which the other was read.
    for (uint32_t group = blockIdx.y, set = 0; group < n_groups; group += gridDim.y, set ^= 1) {
        multiply(weights, tokens, k_records, sums[set]);
        tokens = load_tokens(args, group + gridDim.y);
        __syncthreads();
        const uint32_t first = group * kGroupTokens;
        store_logits(args, first, min(kGroupTokens, args.tokens - first), bias, sums[set]);
    }
}

// Grid (strips, ceil(tokens / block_tokens)). Each block norms its tokens itself; those of the first strip store them.
extern "C" __global__ void __launch_bounds__(kNormThreads, 1) norm_router(const __grid_constant__ NormRouterArgs args) {
    extern __shared__ __align__(16) uint8_t normed[];  // the group's bf16 panels
    __shared__ Sums sums;
    __shared__ alignas(16) float warp_sums[kGroupTokens][kNormWarps];
    const RouterArgs& router = args.router;
    const uint32_t hidden = router.hidden, first = blockIdx.y * args.block_tokens;
    const uint32_t n_tokens = min(args.block_tokens, router.tokens - first), k_records = (hidden + 63) / 64;
    const StripWeights weights = load_weights(router);
    const Columns norm_weight = load_columns(args.norm_weight, hidden);
    const float inverse = reciprocal_approx(float(hidden));
    const float bias = load_bias(router);
    grid_launch_next();
    grid_wait_for_previous();
    Columns x[kGroupTokens];
#pragma unroll
    for (uint32_t r = 0; r < kGroupTokens; r++) {
        x[r] = Columns{};
        if (r < n_tokens) x[r] = load_columns(args.residual + size_t(first + r) * hidden, hidden);
    }
#pragma unroll
    for (uint32_t r = 0; r < kGroupTokens; r++) {
        if (r >= n_tokens) continue;
        const float squares = warp_squares(x[r]);
        if (threadIdx.x % 32 == 0) warp_sums[r][threadIdx.x / 32] = squares;
    }
    __syncthreads();
#pragma unroll
    for (uint32_t r = 0; r < kGroupTokens; r++) {
        if (r >= n_tokens) continue;
        const uint4 piece = norm_piece(x[r], norm_scale(warp_sums[r], inverse, args.eps), norm_weight, hidden);
        store_piece(NormOut{normed, nullptr}, r, kGroupTokens, hidden, piece);
        if (blockIdx.x == 0) store_piece(NormOut{nullptr, router.x}, first + r, router.tokens, hidden, piece);
    }
    __syncthreads();
    TokenPieces tokens{};
#pragma unroll
    for (uint32_t i = 0; i < kRecords; i++) {
        // Rows of nobody stay 0.
        if (threadIdx.x % 32 / 4 >= n_tokens || record_of(i) >= k_records) continue;
        const uint8_t* panel = normed + record_of(i) * kPanelBytes;
        tokens.pieces[i][0] = *reinterpret_cast<const uint4*>(panel + piece_offset(0));
        tokens.pieces[i][1] = *reinterpret_cast<const uint4*>(panel + piece_offset(1));
    }
    multiply(weights, tokens, k_records, sums);
    __syncthreads();
    store_logits(router, first, n_tokens, bias, sums);
}
