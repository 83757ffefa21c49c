// Asynchronous copies to shared memory, and the barriers that tell when they are there.
#pragma once
#include <cstdint>

__device__ __forceinline__ uint32_t shared_address(const void* p) { return uint32_t(__cvta_generic_to_shared(p)); }

__device__ __forceinline__ void barrier_init(uint32_t barrier, int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals));
}

// Makes initialised barriers visible to the copy engine.
__device__ __forceinline__ void barrier_init_fence() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

__device__ __forceinline__ void barrier_arrive(uint32_t barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// Arrives, and makes the phase wait for `n_bytes` of bulk copies as well.
__device__ __forceinline__ void barrier_expect(uint32_t barrier, uint32_t n_bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(n_bytes) : "memory");
}

// Waits until the phase of this parity is over.
__device__ __forceinline__ void barrier_wait(uint32_t barrier, uint32_t parity) {
    asm volatile(
        "{\n"
        ".reg .pred done;\n"
        "wait%=: mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
        "@!done bra wait%=;\n"
        "}" ::"r"(barrier),
        "r"(parity)
        : "memory");
}

// Asks for the line of this address to come to the L2 cache.
__device__ __forceinline__ void prefetch_l2(const void* p) { asm volatile("prefetch.global.L2 [%0];" ::"l"(p)); }

// Whether the phase of this parity is over.
__device__ __forceinline__ bool barrier_test(uint32_t barrier, uint32_t parity) {
    uint32_t is_over;
    asm volatile(
        "{\n"
        ".reg .pred over;\n"
        "mbarrier.test_wait.parity.shared::cta.b64 over, [%1], %2;\n"
        "selp.u32 %0, 1, 0, over;\n"
        "}" : "=r"(is_over) : "r"(barrier),
        "r"(parity)
        : "memory");
    return is_over != 0;
}

// Contiguous bytes; addresses and size are multiples of 16.
__device__ __forceinline__ void copy_bulk(uint32_t target, const void* source, uint32_t n_bytes, uint32_t barrier) {
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(target),
        "l"(source), "r"(n_bytes), "r"(barrier)
        : "memory");
}

// 16 bytes, of which `n_bytes` (0 or 16) are read and the others are zero.
__device__ __forceinline__ void copy_16_or_zero(uint32_t target, const void* source, uint32_t n_bytes) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(target), "l"(source), "r"(n_bytes) : "memory");
}

__device__ __forceinline__ void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

template <int N>
__device__ __forceinline__ void copy_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

// Arrives when all of this thread's copies of 16 bytes are there; the barrier counts on it.
__device__ __forceinline__ void copy_arrive(uint32_t barrier) {
    asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(barrier) : "memory");
}

// Orders this thread's ordinary accesses to shared memory before the matrix and copy engines' later ones.
__device__ __forceinline__ void proxy_fence() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// Orders this thread's ordinary accesses to global memory before the copy engine's later ones.
__device__ __forceinline__ void global_proxy_fence() { asm volatile("fence.proxy.async.global;" ::: "memory"); }

// Adds to a number in global memory, after everything that this thread wrote before, or knows to be written.
__device__ __forceinline__ void add_release(uint32_t* number, uint32_t n = 1) {
    asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(number), "r"(n) : "memory");
}

// Reads a number in global memory, before everything that this thread reads afterwards.
__device__ __forceinline__ uint32_t load_acquire(const uint32_t* number) {
    uint32_t value;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(number) : "memory");
    return value;
}

// Waits for `n_threads` threads that have the same `id`, of 1 to 15.
__device__ __forceinline__ void named_barrier(int id, int n_threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(n_threads) : "memory");
}

template <int N>
__device__ __forceinline__ void registers_grow() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
}

template <int N>
__device__ __forceinline__ void registers_shrink() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
}

// Programmatic dependent launch: lets the next kernel of the stream start, as far as there is room.
__device__ __forceinline__ void grid_launch_next() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }

// Waits until the kernel before is done and its writes can be seen, by bulk copies as well.
__device__ __forceinline__ void grid_wait_for_previous() {
    asm volatile("griddepcontrol.wait;\nfence.proxy.async.global;" ::: "memory");
}
