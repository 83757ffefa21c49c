// Rotary position embedding: angles once per step, then in each layer queries and keys turned, keys and values stored.
//
//     first' = first cos - second sin,  second' = second cos + first sin
//
// where element i of a head's first half turns with element i of its second. In steps of rows of one token, attention itself does
// what rope_store does (attention_decode.cu).
#include <cuda_bf16.h>

#include <cstdint>

#include "ptx/async.cuh"
#include "ptx/bits.cuh"
#include "rope.cuh"

constexpr uint32_t kMaxHalf = 32;
// Of a token that is padding: its key and value are stored nowhere.
constexpr uint32_t kNoSlot = ~0u;

struct TurnArgs {
    const uint32_t* positions;  // [tokens]
    float2* turns;              // [tokens, head_dim / 2]: cosine and sine
    uint32_t tokens, half;      // head_dim / 2
    float concentration;        // multiplies both
    uint32_t padding;
    float inv_freq[kMaxHalf];
};
static_assert(sizeof(TurnArgs) == 160);

struct RopeStoreArgs {
    const float* qkv;        // [tokens, (heads + 2 kv_heads) * head_dim]: queries, keys, values
    const float2* turns;     // [tokens, head_dim / 2]
    const uint32_t* slots;   // [tokens]: block * 16 + position % 16, or kNoSlot
    __nv_bfloat16* q;        // [tokens, heads * head_dim]
    uint8_t* keys;           // [blocks, kv_heads, 16, head_dim] bf16, in the order of attention.cuh
    uint8_t* values;         // the same
    uint32_t tokens, heads, kv_heads, head_dim;
};
static_assert(sizeof(RopeStoreArgs) == 64);

namespace {

constexpr uint32_t kThreads = 256;

// Cosine and sine to less than a unit in the last place of a float32, for angles up to 2^31: reduced to a quarter turn in
// float64, which leaves an error of 2^-52 times the angle, then the polynomials of fdlibm (k_cos.c, k_sin.c).
__device__ __forceinline__ float2 cos_sin(float angle) {
    constexpr double kTwoOverPi = 0.63661977236758138, kHalfPi = 1.5707963267948966, kHalfPiRest = 6.1232339957367660e-17;
    const double x = double(angle), quarters = rint(x * kTwoOverPi);
    const double r = fma(-quarters, kHalfPiRest, fma(-quarters, kHalfPi, x)), z = r * r;
    double c = fma(z, -1.13596475577881948265e-11, 2.08757232129817482790e-09);
    c = fma(z, c, -2.75573143513906633035e-07);
    c = fma(z, c, 2.48015872894767294178e-05);
    c = fma(z, c, -1.38888888888741095749e-03);
    c = fma(z, c, 4.16666666666666019037e-02);
    c = fma(z * z, c, fma(z, -0.5, 1.0));
    double s = fma(z, 1.58969099521155010221e-10, -2.50507602534068634195e-08);
    s = fma(z, s, 2.75573137070700676789e-06);
    s = fma(z, s, -1.98412698298579493134e-04);
    s = fma(z, s, 8.33333333332248946124e-03);
    s = fma(z, s, -1.66666666666666324348e-01);
    s = fma(z * r, s, r);
    const int quadrant = int(quarters) & 3;
    const double cosine = quadrant % 2 ? s : c, sine = quadrant % 2 ? c : s;
    return float2{float(quadrant == 1 || quadrant == 2 ? -cosine : cosine), float(quadrant >= 2 ? -sine : sine)};
}

// Eight float32 in a row.
struct Eight {
    float at[8];

    static __device__ __forceinline__ Eight load(const float* from) {
        const float4 low = *reinterpret_cast<const float4*>(from), high = *reinterpret_cast<const float4*>(from + 4);
        return Eight{{low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w}};
    }

    __device__ __forceinline__ void store(void* to) const {
        *reinterpret_cast<uint4*>(to) = uint4{pack_bf16x2(at[0], at[1]), pack_bf16x2(at[2], at[3]), pack_bf16x2(at[4], at[5]), pack_bf16x2(at[6], at[7])};
    }
};

}  // namespace

extern "C" __global__ void __launch_bounds__(kThreads) turn(const __grid_constant__ TurnArgs args) {
    grid_launch_next();
    grid_wait_for_previous();
    const uint32_t index = blockIdx.x * kThreads + threadIdx.x, token = index / args.half;
    if (token >= args.tokens) return;
    const float2 turn = cos_sin(__fmul_rn(float(args.positions[token]), args.inv_freq[index % args.half]));
    args.turns[index] = float2{__fmul_rn(turn.x, args.concentration), __fmul_rn(turn.y, args.concentration)};
}

// A thread has eight elements of each half of a head.
extern "C" __global__ void __launch_bounds__(kThreads) rope_store(const __grid_constant__ RopeStoreArgs args) {
    grid_launch_next();
    grid_wait_for_previous();
    const uint32_t half = args.head_dim / 2, parts = half / 8, heads = args.heads + 2 * args.kv_heads;
    const uint32_t index = blockIdx.x * kThreads + threadIdx.x, part = index % parts, head = index / parts % heads;
    const uint32_t token = index / parts / heads;
    if (token >= args.tokens) return;
    const float* from = args.qkv + (size_t(token) * heads + head) * args.head_dim + part * 8;
    Eight first = Eight::load(from), second = Eight::load(from + half);
    if (head < args.heads + args.kv_heads) {
        const float4* turns = reinterpret_cast<const float4*>(args.turns + size_t(token) * half + part * 8);
#pragma unroll
        for (int i = 0; i < 8; i++) {
            const float4 two = turns[i / 2];
            const Pair turned = Pair{first.at[i], second.at[i]}.turned(i % 2 ? float2{two.z, two.w} : float2{two.x, two.y});
            first.at[i] = turned.first;
            second.at[i] = turned.second;
        }
    }
    if (head < args.heads) {
        __nv_bfloat16* to = args.q + (size_t(token) * args.heads + head) * args.head_dim + part * 8;
        first.store(to);
        second.store(to + half);
        return;
    }
    const bool is_value = head >= args.heads + args.kv_heads;
    const uint32_t kv_head = head - args.heads - (is_value ? args.kv_heads : 0), slot = args.slots[token], row = slot % 16;
    if (slot == kNoSlot) return;
    uint8_t* to = (is_value ? args.values : args.keys) + ((size_t(slot / 16) * args.kv_heads + kv_head) * 16 + row) * args.head_dim * 2;
    const uint32_t swizzle = args.head_dim == 64 ? row % 8 : row / 2 % 4;
    first.store(to + (part ^ swizzle) * 16);
    second.store(to + (part + parts ^ swizzle) * 16);
}
