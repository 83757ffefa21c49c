// Root mean square norms of rows of the residual stream; a block per row.
#include "norm.cuh"
#include "ptx/async.cuh"

struct NormArgs {
    const float* residual;  // [tokens, hidden]
    const float* weight;    // [hidden]
    const uint32_t* tokens; // [n_rows]: the row of the residual of each row that is normed; null: its own
    NormOut out;
    uint32_t n_rows, hidden;
    float eps;
    uint32_t padding;
};
static_assert(sizeof(NormArgs) == 56);

extern "C" __global__ void __launch_bounds__(kNormThreads, 4) rms_norm(const __grid_constant__ NormArgs args) {
    __shared__ alignas(16) float warp_sums[kNormWarps];
    const Columns weight = load_columns(args.weight, args.hidden);
    const float inverse = reciprocal_approx(float(args.hidden));
    grid_launch_next();
    grid_wait_for_previous();
    const uint32_t row = blockIdx.x, token = args.tokens == nullptr ? row : args.tokens[row];
    const Columns x = load_columns(args.residual + size_t(token) * args.hidden, args.hidden);
    const float squares = warp_squares(x);
    if (threadIdx.x % 32 == 0) warp_sums[threadIdx.x / 32] = squares;
    __syncthreads();
    const uint4 piece = norm_piece(x, norm_scale(warp_sums, inverse, args.eps), weight, args.hidden);
    store_piece(args.out, row, args.n_rows, args.hidden, piece);
}
