// Blocks of a cluster: their barriers, each other's shared memory, and copies to all of them.
#pragma once
#include <cstdint>

#include "async.cuh"

__device__ __forceinline__ uint32_t cluster_rank() {
    uint32_t rank;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}

// All threads of the cluster; what they wrote before, to any block's shared memory, can be seen after.
__device__ __forceinline__ void cluster_sync() {
    asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;" ::: "memory");
}

// Waits for all threads of the cluster. Barriers that were initialised before a fence are visible then, nothing else need be.
__device__ __forceinline__ void cluster_meet() {
    __syncwarp();
    asm volatile("barrier.cluster.arrive.relaxed.aligned;\nbarrier.cluster.wait.aligned;" ::: "memory");
}

// Arrives at the barrier that has this address in the block of that rank: of reads that are over, nothing is made visible
// there. (A release to the cluster would cost a fence of all the GPU's memory.)
__device__ __forceinline__ void barrier_arrive_at(uint32_t barrier, uint32_t rank) {
    asm volatile(
        "{\n"
        ".reg .b32 there;\n"
        "mapa.shared::cluster.u32 there, %0, %1;\n"
        "mbarrier.arrive.shared::cluster.b64 _, [there];\n"
        "}" ::"r"(barrier),
        "r"(rank)
        : "memory");
}

// As `copy_bulk`, to the same address in each block of `ranks` (a bit for each), whose barriers of the same address are told.
__device__ __forceinline__ void copy_bulk_to(uint32_t target, const void* source, uint32_t n_bytes, uint32_t barrier,
                                             uint16_t ranks) {
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1], %2, [%3], %4;" ::"r"(
            target),
        "l"(source), "r"(n_bytes), "r"(barrier), "h"(ranks)
        : "memory");
}

// Where block `rank` has what this block has at `p`.
__device__ __forceinline__ uint32_t cluster_address(const void* p, uint32_t rank) {
    uint32_t address;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(shared_address(p)), "r"(rank));
    return address;
}

__device__ __forceinline__ void cluster_store(uint32_t address, uint32_t value) {
    asm volatile("st.shared::cluster.u32 [%0], %1;" ::"r"(address), "r"(value) : "memory");
}

__device__ __forceinline__ void cluster_store(uint32_t address, uint64_t value) {
    asm volatile("st.shared::cluster.u64 [%0], %1;" ::"r"(address), "l"(value) : "memory");
}

__device__ __forceinline__ void cluster_store(uint32_t address, double value) {
    asm volatile("st.shared::cluster.f64 [%0], %1;" ::"r"(address), "d"(value) : "memory");
}

// What was there before.
__device__ __forceinline__ uint32_t cluster_add(uint32_t address, uint32_t value) {
    uint32_t before;
    asm volatile("atom.shared::cluster.add.u32 %0, [%1], %2;" : "=r"(before) : "r"(address), "r"(value) : "memory");
    return before;
}
