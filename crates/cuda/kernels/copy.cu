// target[i] = source[i], 16 bytes at a time: what the device's memory allows when nothing else is done.
//
// A grid of all resident threads strides over the array, four independent loads in flight per thread. Bound by HBM: every
// byte is read once and written once.
#include <cstdint>

struct CopyArgs {
    const uint4* source;  // [n]
    uint4* target;        // [n]
    uint64_t n;
};
static_assert(sizeof(CopyArgs) == 24);

constexpr int kInFlight = 4;

extern "C" __global__ void __launch_bounds__(512) copy16(const __grid_constant__ CopyArgs args) {
    const uint64_t stride = uint64_t(gridDim.x) * blockDim.x;
    uint64_t i = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    for (; i + (kInFlight - 1) * stride < args.n; i += kInFlight * stride) {
        uint4 values[kInFlight];
#pragma unroll
        for (int k = 0; k < kInFlight; k++) values[k] = args.source[i + k * stride];
#pragma unroll
        for (int k = 0; k < kInFlight; k++) args.target[i + k * stride] = values[k];
    }
    for (; i < args.n; i += stride) args.target[i] = args.source[i];
}
