// Stages of shared memory that are filled and emptied in turn.
#pragma once
#include <cstdint>

// Place in a ring of stages, and the parity of its phase.
struct Ring {
    uint32_t stage = 0, parity = 0;
    __device__ __forceinline__ void next(uint32_t n_stages) {
        if (++stage == n_stages) { stage = 0; parity ^= 1; }
    }
};
