// Rows of the embedding, a block per token.
#include <cuda_bf16.h>

#include <cstdint>

#include "ptx/async.cuh"

struct EmbedArgs {
    const uint32_t* tokens;      // [n_tokens]
    const __nv_bfloat16* table;  // [vocab, hidden]
    float* residual;             // [n_tokens, hidden]
    uint32_t vocab, hidden;
};
static_assert(sizeof(EmbedArgs) == 32);

// Eight columns a thread. A token beyond the vocabulary is nobody's, and gets NaN.
extern "C" __global__ void __launch_bounds__(384) embed(const __grid_constant__ EmbedArgs args) {
    grid_launch_next();
    grid_wait_for_previous();
    const uint32_t token = args.tokens[blockIdx.x], column = threadIdx.x * 8;
    if (column >= args.hidden) return;
    uint4 pairs{~0u, ~0u, ~0u, ~0u};
    if (token < args.vocab) pairs = *reinterpret_cast<const uint4*>(args.table + size_t(token) * args.hidden + column);
    // bf16 is the upper half of float32.
    uint4 low{pairs.x << 16, pairs.x & 0xFFFF0000u, pairs.y << 16, pairs.y & 0xFFFF0000u};
    uint4 high{pairs.z << 16, pairs.z & 0xFFFF0000u, pairs.w << 16, pairs.w & 0xFFFF0000u};
    uint4* to = reinterpret_cast<uint4*>(args.residual + size_t(blockIdx.x) * args.hidden + column);
    to[0] = low;
    to[1] = high;
}
