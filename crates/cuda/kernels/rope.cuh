// How a pair turns: for the kernels that turn queries and keys, whose results have the same bits.
#pragma once

// Element i of a head's first half and of its second; `turn` is the cosine and the sine of their angle.
struct Pair {
    float first, second;

    __device__ __forceinline__ Pair turned(float2 turn) const {
        return Pair{__fsub_rn(__fmul_rn(first, turn.x), __fmul_rn(second, turn.y)),
                    __fadd_rn(__fmul_rn(second, turn.x), __fmul_rn(first, turn.y))};
    }
};
