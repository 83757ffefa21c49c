// Choosing tokens: temperature, top-k, top-p and one seeded draw, as `sampling.rs` of tessera-model defines them.
//
// A cluster has a row, whose logits stay in its blocks' shared memory. A largest logit is at hand when the row is loaded. A
// draw from the whole row goes in the order of ids: each block sums its weights, and the one that the draw falls into looks
// closer. Top-k and top-p go in sorted order without sorting the row: the interval of entries in which the wanted one lies is
// cut into eight parts, the part goes on that has it, until few enough entries are left to be sorted.
#include "ptx/async.cuh"
#include "sample_row.cuh"

struct RowSampling {
    float temperature, top_p;
    uint32_t top_k;
    uint32_t logit;  // row of the logits; one that does not exist is nobody's, whose result is not written
    uint64_t seed, position;
};
static_assert(sizeof(RowSampling) == 32);

struct Sampled {
    uint32_t token;
    uint32_t not_finite;  // first id whose logit is not finite, or kNobody
    float value;          // that logit
    uint32_t padding;
};
static_assert(sizeof(Sampled) == 16);

struct SampleArgs {
    const float* logits;            // [n_logits, vocab]
    const RowSampling* samplings;   // [rows]
    Sampled* out;                   // [rows]
    uint32_t vocab, n_logits;
};
static_assert(sizeof(SampleArgs) == 32);

namespace {

// What is sought in the sorted row: the entry at which a running sum reaches (or, strictly, passes) an amount.
enum class Goal {
    TopK,  // of entries
    TopP,  // of weights, a share of their total
    Draw,  // the same, strictly
};

// Whether all keys of an interval are equal: it is cut by the entries' low halves then, else by the high ones.
__device__ __forceinline__ bool is_by_id(uint64_t low, uint64_t high) { return key_in(low) == key_in(high); }

// The cut after part `i` of an interval. Parts have equal widths; or, as suits weights, widths that begin with `step` and
// double, if that is not 0.
__device__ __forceinline__ uint32_t cut(const Interval& interval, double step, uint32_t vocab, uint32_t i) {
    const uint64_t from = interval.low, to = interval.high;
    const bool by_id = is_by_id(from, to);
    const uint32_t low = by_id ? max(uint32_t(from), uint32_t(~(vocab - 1))) : key_in(from);
    const uint32_t high = by_id ? uint32_t(to) : key_in(to);
    const double largest = value_of(key_in(to)), width = largest - value_of(key_in(from));
    const double below = step > 0.0 ? step * double(1u << i) : width * (double(i + 1) / kWays);
    const uint32_t by_value = key_of(__double2float_rn(largest - below));
    const uint32_t at = by_id ? high - uint32_t(uint64_t(high - low) * (i + 1) / kWays) : by_value;
    // Between the ends, the first part and the last have something to have: the interval gets smaller each time.
    return min(max(at, low + 1), high);
}

// The smallest entry of the part that a cut ends.
__device__ __forceinline__ uint64_t cut_entry(uint64_t low, uint64_t high, uint32_t at) {
    return is_by_id(low, high) ? uint64_t(key_in(high)) << 32 | at : uint64_t(at) << 32;
}

// The sums of a warp's lanes for each part; lane 4 i has that of part i.
__device__ __forceinline__ double sum_parts(const double (&sums)[kWays]) {
    double four[4], two[2];
    const bool fourth = lane_id() & 16, second = lane_id() & 8, first = lane_id() & 4;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        four[i] = (fourth ? sums[i + 4] : sums[i]) + __shfl_xor_sync(~0u, fourth ? sums[i] : sums[i + 4], 16);
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
        two[i] = (second ? four[i + 2] : four[i]) + __shfl_xor_sync(~0u, second ? four[i] : four[i + 2], 8);
    }
    double sum = (first ? two[1] : two[0]) + __shfl_xor_sync(~0u, first ? two[0] : two[1], 4);
    sum += __shfl_xor_sync(~0u, sum, 2);
    return sum + __shfl_xor_sync(~0u, sum, 1);
}

// Sums and counts of the interval's parts, of the whole row, to all blocks.
__device__ __forceinline__ void measure(Shared& shared, const Part& part, Goal goal, uint32_t turn) {
    double sums[kWays] = {};
    const uint64_t low = shared.interval.low, high = shared.interval.high;
    const bool by_id = is_by_id(low, high);
    const uint32_t* cuts = shared.cuts;
    uint64_t counts = 0;  // a byte each: a thread has 32 entries at most
    for (uint32_t i = threadIdx.x; i < part.n; i += kThreads) {
        const uint32_t key = part.keys[i];
        const uint64_t entry = entry_of(key, part.first_id + i);
        if (entry < low || entry > high) continue;
        const uint32_t x = by_id ? uint32_t(entry) : key;
        const double weight = goal == Goal::TopK ? 1.0 : shared.weigh(key);
        uint32_t at = x < cuts[3] ? 4 : 0;
        at += x < cuts[at + 1] ? 2 : 0;
        at += x < cuts[at] ? 1 : 0;
#pragma unroll
        for (uint32_t j = 0; j < kWays; j++) {
            if (at == j) sums[j] += weight;
        }
        counts += uint64_t(1) << 8 * at;
    }
    const double sum = sum_parts(sums);
    if (lane_id() % 4 == 0) shared.warp_sums[warp_id()][lane_id() / 4] = sum;
#pragma unroll
    for (uint32_t j = 0; j < kWays / 2; j++) {
        // Two parts at a time, of 16 bits.
        const uint32_t bytes = uint32_t(counts >> 32 * (j / 2)) >> 8 * (j % 2) & 0x00FF00FFu;
        const uint32_t both = __reduce_add_sync(~0u, bytes), first = j / 2 * 4 + j % 2;
        if (lane_id() == 0) {
            shared.warp_counts[warp_id()][first] = both & 0xFFFF;
            shared.warp_counts[warp_id()][first + 2] = both >> 16;
        }
    }
    __syncthreads();
    if (warp_id() == 0) {
        const uint32_t way = lane_id() % kWays, quarter = lane_id() / kWays;
        double block_sum = 0.0;
        uint32_t block_count = 0;
#pragma unroll
        for (uint32_t w = 0; w < kWarps / 4; w++) {
            block_sum += shared.warp_sums[quarter * (kWarps / 4) + w][way];
            block_count += shared.warp_counts[quarter * (kWarps / 4) + w][way];
        }
#pragma unroll
        for (uint32_t d = kWays; d < 32; d *= 2) {
            block_sum += __shfl_xor_sync(~0u, block_sum, d);
            block_count += __shfl_xor_sync(~0u, block_count, d);
        }
        for (uint32_t rank = quarter; rank < kBlocks; rank += 4) {
            cluster_store(cluster_address(&shared.sums[turn][part.rank][way], rank), block_sum);
            cluster_store(cluster_address(&shared.counts[turn][part.rank][way], rank), block_count);
        }
    }
    cluster_sync();
}

// The part of the interval in which the running sum gets to the target; one warp of each block, and all find the same.
__device__ __forceinline__ void choose_part(Shared& shared, Goal goal, double amount, bool is_first, uint32_t turn) {
    const uint32_t way = lane_id() % kWays, quarter = lane_id() / kWays;
    double sum = shared.sums[turn][2 * quarter][way] + shared.sums[turn][2 * quarter + 1][way];
    uint32_t count = shared.counts[turn][2 * quarter][way] + shared.counts[turn][2 * quarter + 1][way];
#pragma unroll
    for (uint32_t d = kWays; d < 32; d *= 2) {
        sum += __shfl_xor_sync(~0u, sum, d);
        count += __shfl_xor_sync(~0u, count, d);
    }
    const double up_to = warp_scan(sum, kWays);
    const uint32_t n_up_to = warp_scan(count, kWays);
    Interval interval = shared.interval;
    if (is_first) interval.target = goal == Goal::TopK ? amount : amount * __shfl_sync(~0u, up_to, kWays - 1);
    const double all_up_to = interval.above + up_to;
    const bool is_strict = goal == Goal::Draw, is_possible = is_strict ? sum > 0.0 : count > 0;
    const bool is_hit = is_possible && (is_strict ? all_up_to > interval.target : all_up_to >= interval.target);
    constexpr uint32_t kFirstWays = (1u << kWays) - 1;
    const uint32_t hits = __ballot_sync(~0u, is_hit) & kFirstWays, possible = __ballot_sync(~0u, is_possible) & kFirstWays;
    const uint32_t chosen = hits != 0 ? __ffs(int(hits)) - 1 : 31 - __clz(int(possible | 1));
    interval.n = __shfl_sync(~0u, count, chosen);
    interval.n_above += __shfl_sync(~0u, n_up_to, chosen) - interval.n;
    const double before = __shfl_sync(~0u, up_to, (chosen + kWays - 1) % kWays);
    if (chosen > 0) interval.above += before;
    const uint64_t low = interval.low, high = interval.high;
    if (chosen > 0) interval.high = cut_entry(low, high, shared.cuts[chosen - 1]) - 1;
    if (chosen < kWays - 1) interval.low = cut_entry(low, high, shared.cuts[chosen]);
    __syncwarp();
    if (lane_id() == 0) shared.interval = interval;
    __syncwarp();
}

// Cuts the interval of kept entries, `shared.interval`, until few enough are left, or few enough with all those above.
__device__ __forceinline__ void narrow(Shared& shared, const Part& part, Goal goal, double amount, uint32_t vocab,
                                       uint32_t& turn) {
    bool is_first = true, is_done = false;
    while (!is_done) {
        if (threadIdx.x < kWays - 1) {
            const double step = is_first ? shared.weigh.temperature / 2 : 0.0;
            shared.cuts[threadIdx.x] = cut(shared.interval, step, vocab, threadIdx.x);
        }
        __syncthreads();
        measure(shared, part, goal, turn);
        if (warp_id() == 0) choose_part(shared, goal, amount, is_first, turn);
        __syncthreads();
        is_first = false;
        turn ^= 1;
        // With the few that top-k keeps, all is settled in one go.
        const bool wants_all = goal == Goal::TopK && amount <= kCandidates;
        is_done = (wants_all ? shared.interval.n_above : 0) + shared.interval.n <= kCandidates;
    }
}

// All blocks' entries of an interval to block 0; its barrier is the caller's.
__device__ __forceinline__ void gather(Shared& shared, const Part& part, uint64_t low, uint64_t high) {
    const uint32_t count = cluster_address(&shared.n_candidates, 0), to = cluster_address(shared.candidates, 0);
    for (uint32_t i = threadIdx.x; i < part.n; i += kThreads) {
        const uint64_t entry = entry_of(part.keys[i], part.first_id + i);
        if (entry < low || entry > high) continue;
        const uint32_t at = cluster_add(count, 1);
        if (at < kCandidates) cluster_store(to + at * uint32_t(sizeof(uint64_t)), entry);
    }
}

__device__ __forceinline__ uint64_t split_mix(uint64_t x) {
    uint64_t z = x + 0x9e3779b97f4a7c15ull;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ z >> 27) * 0x94d049bb133111ebull;
    return z ^ z >> 31;
}

// The row's number in [0, 1).
__device__ __forceinline__ double draw_of(const RowSampling& sampling) {
    const uint64_t mixed = split_mix(split_mix(sampling.seed) ^ sampling.position * 0x9e3779b97f4a7c15ull);
    return double(mixed >> 11) * 0x1p-53;
}

// The token, in the one block that has it.
__device__ __forceinline__ void store(const SampleArgs& args, uint32_t row, uint32_t token) {
    args.out[row] = Sampled{token, kNobody, 0.0f, 0};
}

// From all entries, in the order of their ids.
__device__ __forceinline__ void draw_by_id(const SampleArgs& args, uint32_t row, Shared& shared, const Part& part) {
    // A warp has consecutive ids, no more than the block has threads.
    const uint32_t each = (part.n + kThreads - 1) / kThreads * 32;
    const uint32_t end = min(part.n, (warp_id() + 1) * each);
    double sum = 0.0;
    for (uint32_t i = warp_id() * each + lane_id(); i < end; i += 32) sum += shared.weigh(part.keys[i]);
    sum = warp_sum(sum);
    if (lane_id() == 0) shared.scan[warp_id()] = sum;
    __syncthreads();
    const double in_warp = shared.scan[lane_id()], up_to_warp = warp_scan(in_warp);
    const double in_block = __shfl_sync(~0u, up_to_warp, 31);
    if (threadIdx.x < kBlocks) cluster_store(cluster_address(&shared.sums[0][part.rank][0], threadIdx.x), in_block);
    cluster_sync();
    double total = 0.0;
    for (uint32_t rank = 0; rank < kBlocks; rank++) total += shared.sums[0][rank][0];
    const double target = draw_of(args.samplings[row]) * total;
    double up_to = 0.0, before = 0.0;
    uint32_t chosen = 0;
    bool is_found = false;
    for (uint32_t rank = 0; rank < kBlocks; rank++) {
        const double more = shared.sums[0][rank][0];
        if (!is_found && more > 0.0) {
            chosen = rank;
            before = up_to;
        }
        up_to += more;
        is_found |= up_to > target;
    }
    if (chosen != part.rank) return;
    const uint32_t hits = __ballot_sync(~0u, in_warp > 0.0 && before + up_to_warp > target);
    const uint32_t possible = __ballot_sync(~0u, in_warp > 0.0);
    const uint32_t warp = hits != 0 ? __ffs(int(hits)) - 1 : 31 - __clz(int(possible | 1));
    const double before_warp = before + (warp == 0 ? 0.0 : __shfl_sync(~0u, up_to_warp, (warp - 1) % 32));
    const uint32_t i = warp * each + threadIdx.x;
    const double weight = threadIdx.x < each && i < part.n ? shared.weigh(part.keys[i]) : 0.0;
    const double all_up_to = before_warp + block_scan(shared, weight).up_to;
    const uint32_t at = block_first(shared, weight > 0.0 && all_up_to > target, weight > 0.0);
    if (threadIdx.x == at) store(args, row, part.first_id + i);
}

// Block 0, with the candidates: the token if they are all that can be chosen, else the last entry that is kept, to all.
__device__ __forceinline__ void settle(const SampleArgs& args, uint32_t row, Shared& shared, Goal goal, bool is_all) {
    const RowSampling& sampling = args.samplings[row];
    const Interval& interval = shared.interval;
    const uint32_t n = min(shared.n_candidates, kCandidates);
    const uint64_t entry = sort_candidates(shared, n);
    const double above = is_all ? 0.0 : interval.above;
    uint32_t n_kept = n, at = 0;
    if (goal == Goal::TopK) {
        at = min(sampling.top_k - (is_all ? 0 : interval.n_above), n) - 1;
        n_kept = at + 1;
    }
    const double weight = threadIdx.x < n_kept ? shared.weigh(key_in(entry)) : 0.0;
    const Scan scan = block_scan(shared, weight);
    const double up_to = above + scan.up_to;
    double target = interval.target, total = scan.total;
    if (goal == Goal::TopP || (goal == Goal::TopK && is_all && sampling.top_p < 1.0f)) {
        if (goal == Goal::TopK) target = double(sampling.top_p) * total;
        at = block_first(shared, threadIdx.x < n_kept && up_to >= target, threadIdx.x < n_kept);
        n_kept = at + 1;
        total = block_pick(shared, up_to, at);
    }
    if (goal != Goal::Draw) {
        if (!is_all) {
            if (threadIdx.x == at) {
                for (uint32_t rank = 0; rank < kBlocks; rank++) cluster_store(cluster_address(&shared.bound, rank), entry);
                shared.n_candidates = 0;
            }
            return;
        }
        target = draw_of(sampling) * total;
    }
    const bool is_possible = threadIdx.x < n_kept && weight > 0.0;
    at = block_first(shared, is_possible && up_to > target, is_possible);
    if (threadIdx.x == at) store(args, row, id_in(entry));
}

// From the entries that top-k and top-p keep, in sorted order.
__device__ __forceinline__ void draw_sorted(const SampleArgs& args, uint32_t row, Shared& shared, const Part& part,
                                            uint64_t last, uint64_t top) {
    const RowSampling& sampling = args.samplings[row];
    Goal goal = sampling.top_k > 0 && sampling.top_k < args.vocab ? Goal::TopK : sampling.top_p < 1.0f ? Goal::TopP : Goal::Draw;
    uint32_t turn = 0;
    while (true) {
        const double amount = goal == Goal::TopK ? double(sampling.top_k)
            : goal == Goal::TopP                 ? double(sampling.top_p)
                                                 : draw_of(sampling);
        if (threadIdx.x == 0) shared.interval = {last, top, 0.0, 0.0, 0, 0};
        __syncthreads();
        narrow(shared, part, goal, amount, args.vocab, turn);
        const bool is_all = shared.interval.n_above + shared.interval.n <= kCandidates;
        gather(shared, part, shared.interval.low, is_all ? top : shared.interval.high);
        cluster_sync();
        const bool is_end = is_all || goal == Goal::Draw;
        if (part.rank == 0) settle(args, row, shared, goal, is_all);
        if (is_end) return;
        cluster_sync();
        last = shared.bound;
        goal = goal == Goal::TopK && sampling.top_p < 1.0f ? Goal::TopP : Goal::Draw;
    }
}

}  // namespace

// A cluster per row; dynamic shared memory: `Shared`, and a block's keys.
extern "C" __global__ void __launch_bounds__(kThreads, 1) sample(const __grid_constant__ SampleArgs args) {
    extern __shared__ __align__(16) uint8_t dynamic[];
    Shared& shared = *reinterpret_cast<Shared*>(dynamic);
    uint32_t* keys = reinterpret_cast<uint32_t*>(dynamic + sizeof(Shared));
    const uint32_t rank = cluster_rank(), row = blockIdx.x / kBlocks;
    if (threadIdx.x == 0) shared.n_candidates = 0;
    // All blocks must be there before the first writes to another's memory.
    cluster_sync();
    grid_launch_next();
    grid_wait_for_previous();
    const RowSampling& sampling = args.samplings[row];
    if (sampling.logit >= args.n_logits) return;
    // A multiple of 32: 128 bytes.
    const uint32_t each = ((args.vocab + kBlocks - 1) / kBlocks + 31) / 32 * 32, first_id = rank * each;
    const Part part{keys, first_id, first_id < args.vocab ? min(each, args.vocab - first_id) : 0, rank};
    const float* logits = args.logits + size_t(sampling.logit) * args.vocab;
    load_row(shared, logits, keys, part);
    uint64_t top = 0;
    uint32_t lowest = kNobody, not_finite = kNobody;
#pragma unroll
    for (uint32_t i = 0; i < kBlocks; i++) {
        top = max(top, shared.tops[i]);
        lowest = min(lowest, shared.lowest[i]);
        not_finite = min(not_finite, shared.not_finite[i]);
    }
    const bool is_greedy = sampling.temperature <= 0.0f || sampling.top_k == 1;
    if (not_finite != kNobody || is_greedy) {
        if (rank != 0 || threadIdx.x != 0) return;
        if (not_finite == kNobody) return store(args, row, id_in(top));
        args.out[row] = Sampled{0, not_finite, logits[not_finite], 0};
        return;
    }
    const double temperature = sampling.temperature;
    if (threadIdx.x == 0) shared.weigh = {value_of(key_in(top)), temperature, 1.0 / temperature};
    __syncthreads();
    if (sampling.top_k == 0 && sampling.top_p >= 1.0f) return draw_by_id(args, row, shared, part);
    draw_sorted(args, row, shared, part, uint64_t(lowest) << 32, top);
}
