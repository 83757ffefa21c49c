// Attention of rows of one token: keys and values stream through once, as fast as memory gives them.
//
// A warp has a key-value head of an item: the heads of its group are the rows of its products, 16 whether or not there are so
// many. It copies by itself, to a ring of its own, so that no warp waits for another. Blocks are persistent, and read from the
// step how much work there is: a recorded launch fits every step.
//
// Where a row has several items, their results go through memory, and are merged in this kernel, by whatever warps are done:
// they wait for the items' arrivals. All blocks run at once, and items come before merges, so each wait ends.
//
// In steps of rows of one token alone, the kernels that turn do what rope_store does: each warp turns its queries, and the warp
// whose item has the row's new token turns its key, stores key and value, and puts them in the tiles that it has copied.
#include "attention.cuh"
#include "ring.cuh"
#include "rope.cuh"

using namespace attention;

namespace {

constexpr uint32_t kWarps = 4, kStages = 3;
constexpr uint32_t kThreads = kWarps * 32;
constexpr uint32_t kBlocksPerSm = 2;

template <int kHeadDim>
struct Shared {
    alignas(1024) uint8_t ring[kWarps][kStages][Tile<kHeadDim>::kBytes];
    uint64_t full[kWarps][kStages];
};

// One key-value head of an item, and the keys that its query sees; the last of these is the row's new token.
struct Unit {
    DecodeItem item;
    uint32_t kv_head, first;

    __device__ __forceinline__ Unit(const AttentionArgs& args, const DecodeItem* items, uint32_t index)
        : item(items[index / args.kv_heads]), kv_head(index % args.kv_heads), first(first_key(item.position, args.window)) {}

    __device__ __forceinline__ uint32_t end_split() const { return item.first_split + item.n_splits; }
    __device__ __forceinline__ uint32_t begin_tile(uint32_t split) const { return max(split * kSplitTiles, first / kTileKeys); }
    __device__ __forceinline__ uint32_t end_tile(uint32_t split) const {
        return min((split + 1) * kSplitTiles, new_tile() + 1);
    }
    __device__ __forceinline__ uint32_t new_tile() const { return item.position / kTileKeys; }
    __device__ __forceinline__ bool has_new() const { return new_tile() / kSplitTiles < end_split(); }
    // Whether not all of a tile's keys are seen.
    __device__ __forceinline__ bool is_edge(uint32_t tile) const {
        return tile * kTileKeys < first || tile * kTileKeys + kTileKeys - 1 > item.position;
    }
};

// A warp's units: every `step`-th.
struct Range {
    uint32_t begin, end, step;
};

// A warp's copies: of each tile in the order of the work, the keys, then the values.
template <int kHeadDim>
class Copier {
  public:
    __device__ __forceinline__ Copier(const AttentionArgs& args, const DecodeItem* items, Range units, uint8_t (*ring)[Tile<kHeadDim>::kBytes], uint64_t* full)
        : args(args), items(items), units(units), ring(shared_address(ring)), full(shared_address(full)), unit(args, items, 0) {
        if (units.begin < units.end) open_unit();
    }

    __device__ __forceinline__ bool is_done() const { return units.begin >= units.end; }
    // Whether the next copy has the row's new token.
    __device__ __forceinline__ bool is_new() const { return tile == unit.new_tile(); }

    // Starts the next copy, to the stage after the last one's, which nobody reads any more.
    __device__ __forceinline__ void copy() {
        if (is_done()) return;
        using Keys = Tile<kHeadDim>;
        const uint32_t lane = threadIdx.x % 32, barrier = full + stage * 8, in_tile = lane - tile % kSplitTiles * kTileBlocks;
        const TileBlocks blocks(tile, unit.first, unit.item.position);
        if (lane == 0) barrier_expect(barrier, (blocks.end - blocks.begin) * Keys::kBlockBytes);
        __syncwarp();
        if (in_tile >= blocks.begin && in_tile < blocks.end) {
            const size_t source = (size_t(entry) * args.kv_heads + unit.kv_head) * Keys::kBlockBytes;
            const uint32_t target = ring + stage * Keys::kBytes + in_tile * Keys::kBlockBytes;
            copy_bulk(target, (is_values ? args.values : args.keys) + source, Keys::kBlockBytes, barrier);
        }
        stage = stage + 1 == kStages ? 0 : stage + 1;
        next();
    }

  private:
    __device__ __forceinline__ void next() {
        is_values = !is_values;
        if (is_values || ++tile < unit.end_tile(split)) return;
        if (++split < unit.end_split()) {
            open_split(next_entry);
        } else if (units.begin += units.step; !is_done()) {
            open_unit();
        }
    }

    __device__ __forceinline__ void open_unit() {
        unit = Unit(args, items, units.begin);
        split = unit.item.first_split;
        open_split(load_entry(split));
    }

    __device__ __forceinline__ void open_split(uint32_t split_entry) {
        entry = split_entry;
        tile = unit.begin_tile(split);
        if (split + 1 < unit.end_split()) next_entry = load_entry(split + 1);
    }

    // Lane i's block of a split.
    __device__ __forceinline__ uint32_t load_entry(uint32_t of_split) const {
        constexpr uint32_t kBlocks = kSplitTiles * kTileBlocks;
        const uint32_t lane = threadIdx.x % 32, block = of_split * kBlocks + lane;
        const bool is_there = lane < kBlocks && block >= unit.first / kBlockKeys && block <= unit.item.position / kBlockKeys;
        return is_there ? args.step[unit.item.table + block] : 0;
    }

    const AttentionArgs& args;
    const DecodeItem* items;
    Range units;
    uint32_t ring, full;
    Unit unit;
    uint32_t split = 0, tile = 0, entry = 0, next_entry = 0, stage = 0;
    bool is_values = false;
};

// The qkv of a token, from head `head` on: queries' heads, then keys', then values'.
template <int kHeadDim>
__device__ __forceinline__ const float* qkv_at(const AttentionArgs& args, uint32_t token, uint32_t head) {
    return args.qkv + (size_t(token) * args.kv_heads * (args.group + 2) + head) * kHeadDim;
}

// Queries of rows g and g + 8, turned, as `load_queries` loads them; null for a row that is nobody's.
template <int kHeadDim>
__device__ __forceinline__ void turn_queries(const float* const (&rows)[2], const float2* turns, uint32_t (&a)[kHeadDim / 16][4]) {
    constexpr uint32_t kHalf = kHeadDim / 2, kHalfSteps = kHeadDim / 32;
    const uint32_t q = threadIdx.x % 4;
#pragma unroll
    for (int s = 0; s < kHalfSteps; s++) {
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const uint32_t column = 16 * s + 8 * (j / 2) + 2 * q;
            a[s][j] = a[s + kHalfSteps][j] = 0;
            if (rows[j % 2] == nullptr) continue;
            const float2 first = *reinterpret_cast<const float2*>(rows[j % 2] + column);
            const float2 second = *reinterpret_cast<const float2*>(rows[j % 2] + kHalf + column);
            const float4 both = *reinterpret_cast<const float4*>(turns + column);
            const Pair x = Pair{first.x, second.x}.turned({both.x, both.y}), y = Pair{first.y, second.y}.turned({both.z, both.w});
            a[s][j] = pack_bf16x2(x.first, y.first);
            a[s + kHalfSteps][j] = pack_bf16x2(x.second, y.second);
        }
    }
}

// A new token's key, turned, and value of a key-value head. A lane has two elements of each half of the key, if there are so
// many, and two of the value.
template <int kHeadDim>
struct NewToken {
    static constexpr uint32_t kHalf = kHeadDim / 2;
    uint32_t first, second, value;

    // What has been loaded, before anything waits for it.
    struct Loaded {
        float2 first, second, value;
        float4 turns;
    };

    // Lanes without elements load the last ones'.
    static __device__ __forceinline__ Loaded load(const AttentionArgs& args, const Unit& unit) {
        const uint32_t in_half = min(2 * (threadIdx.x % 32), kHalf - 2), in_head = min(2 * (threadIdx.x % 32), kHeadDim - 2);
        const float* key = qkv_at<kHeadDim>(args, unit.item.token, args.kv_heads * args.group + unit.kv_head);
        return {*reinterpret_cast<const float2*>(key + in_half), *reinterpret_cast<const float2*>(key + kHalf + in_half),
                *reinterpret_cast<const float2*>(key + args.kv_heads * kHeadDim + in_head),
                *reinterpret_cast<const float4*>(args.turns + unit.item.token * kHalf + in_half)};
    }

    __device__ __forceinline__ void take(const Loaded& loaded) {
        const Pair x = Pair{loaded.first.x, loaded.second.x}.turned({loaded.turns.x, loaded.turns.y});
        const Pair y = Pair{loaded.first.y, loaded.second.y}.turned({loaded.turns.z, loaded.turns.w});
        first = pack_bf16x2(x.first, y.first);
        second = pack_bf16x2(x.second, y.second);
        value = pack_bf16x2(loaded.value.x, loaded.value.y);
    }

    // To row `row` of a tile, or of a pool's block.
    __device__ __forceinline__ void put_key(uint8_t* rows, uint32_t row) const {
        const uint32_t lane = threadIdx.x % 32;
        if (2 * lane >= kHalf) return;
        put(rows, row, 2 * lane, first);
        put(rows, row, kHalf + 2 * lane, second);
    }
    __device__ __forceinline__ void put_value(uint8_t* rows, uint32_t row) const {
        const uint32_t lane = threadIdx.x % 32;
        if (2 * lane < kHeadDim) put(rows, row, 2 * lane, value);
    }

    __device__ __forceinline__ void store(const AttentionArgs& args, const Unit& unit) const {
        const uint32_t position = unit.item.position, block = args.step[unit.item.table + position / kBlockKeys];
        const size_t at = (size_t(block) * args.kv_heads + unit.kv_head) * Tile<kHeadDim>::kBlockBytes;
        put_key(args.keys + at, position % kBlockKeys);
        put_value(args.values + at, position % kBlockKeys);
    }

  private:
    // Two elements from `element` on.
    static __device__ __forceinline__ void put(uint8_t* rows, uint32_t row, uint32_t element, uint32_t pair) {
        *reinterpret_cast<uint32_t*>(rows + Tile<kHeadDim>::at(row, element / 8) + element % 8 * 2) = pair;
    }
};

// The sums of one split. `new_token` is put in its tile by kernels that turn: what is copied there is older.
template <int kHeadDim, bool kTurns>
__device__ __forceinline__ void sum_split(const AttentionArgs& args, const Unit& unit, uint32_t split, const uint32_t (&queries)[kHeadDim / 16][4],
                                          const NewToken<kHeadDim>& new_token, uint8_t (*ring)[Tile<kHeadDim>::kBytes], uint64_t* full, Ring& stages,
                                          Copier<kHeadDim>& copier, Sums<kHeadDim>& sums) {
    const uint32_t position = unit.item.position;
    for (uint32_t tile = unit.begin_tile(split); tile < unit.end_tile(split); tile++) {
        float scores[8][4], old_weights[2];
        uint32_t weights[4][4];
        const bool is_edge = unit.is_edge(tile), is_new = kTurns && tile == unit.new_tile();
        barrier_wait(shared_address(full + stages.stage), stages.parity);
        if (is_new) {
            new_token.put_key(ring[stages.stage], position % kTileKeys);
            proxy_fence();
            __syncwarp();
        }
        mma_scores<kHeadDim>(scores, queries, shared_address(ring[stages.stage]));
        __syncwarp();
        copier.copy();
        stages.next(kStages);
        if (is_edge) hide_scores(scores, tile, {unit.first, unit.first}, {position, position});
        weigh(scores, args.scale, sums.rows, old_weights);
        pack_weights(scores, weights);
        sums.scale(old_weights);
        barrier_wait(shared_address(full + stages.stage), stages.parity);
        if (is_edge) hide_values<kHeadDim>(ring[stages.stage], tile, unit.first, position, threadIdx.x % 32, 32);
        if (is_new) {
            new_token.put_value(ring[stages.stage], position % kTileKeys);
            proxy_fence();
        }
        if (is_edge || is_new) __syncwarp();
        mma_outs<kHeadDim>(sums.outs, weights, shared_address(ring[stages.stage]));
        __syncwarp();
        copier.copy();
        stages.next(kStages);
    }
    sums.close();
}

// A part of a row's result, for whoever merges it.
template <int kHeadDim>
__device__ __forceinline__ void store_partial(const AttentionArgs& args, const Unit& unit, const Sums<kHeadDim>& sums) {
    const uint32_t lane = threadIdx.x % 32;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const uint32_t row = lane / 4 + 8 * h;
        if (row >= args.group) continue;
        const size_t at = (size_t(unit.item.partial) * args.kv_heads + unit.kv_head) * args.group + row;
        if (lane % 4 == 0) args.partial_sums[at] = float2{sums.rows[h].maximum, sums.rows[h].sum};
#pragma unroll
        for (int d = 0; d < kHeadDim / 8; d++) {
            const float2 pair{sums.outs[d][2 * h], sums.outs[d][2 * h + 1]};
            *reinterpret_cast<float2*>(args.partial_outs + at * kHeadDim + 8 * d + lane % 4 * 2) = pair;
        }
    }
    __threadfence();
    __syncwarp();
    if (lane == 0) add_release(args.arrivals + (size_t(unit.item.merge) * args.kv_heads + unit.kv_head) * 2);
}

// The warp's items.
template <int kHeadDim, bool kTurns>
__device__ __forceinline__ void attend(const AttentionArgs& args, const DecodeItem* items, Range units, uint8_t (*ring)[Tile<kHeadDim>::kBytes],
                                       uint64_t* full, Copier<kHeadDim>& copier, Unit unit) {
    const uint32_t g = threadIdx.x % 32 / 4;
    Ring stages;
    for (uint32_t index = units.begin; index < units.end; index += units.step) {
        if (index > units.begin) unit = Unit(args, items, index);
        const uint32_t head = unit.kv_head * args.group;
        const bool has_row = g < args.group, has_row_8 = g + 8 < args.group;
        uint32_t queries[kHeadDim / 16][4];
        NewToken<kHeadDim> new_token;
        if constexpr (kTurns) {
            // Before the queries' loads are waited for; a unit that has no use for it would have to wait to tell.
            const auto loaded = NewToken<kHeadDim>::load(args, unit);
            const float* q = qkv_at<kHeadDim>(args, unit.item.token, head + g);
            turn_queries<kHeadDim>({has_row ? q : nullptr, has_row_8 ? q + 8 * kHeadDim : nullptr},
                                   args.turns + unit.item.token * (kHeadDim / 2), queries);
            new_token.take(loaded);
        } else {
            const __nv_bfloat16* q = args.q + (size_t(unit.item.token) * args.kv_heads * args.group + head + g) * kHeadDim;
            load_queries<kHeadDim>({has_row ? q : nullptr, has_row_8 ? q + 8 * kHeadDim : nullptr}, queries);
        }
        Sums<kHeadDim> total, span;
        for (uint32_t split = unit.item.first_split; split < unit.end_split(); split++) {
            Sums<kHeadDim> sums;
            sum_split<kHeadDim, kTurns>(args, unit, split, queries, new_token, ring, full, stages, copier, sums);
            span.merge(sums);
            if ((split + 1) % kSpanSplits == 0 || split + 1 == unit.end_split()) {
                total.merge(span);
                span.clear();
            }
        }
        if (kTurns && unit.has_new()) new_token.store(args, unit);
        if (unit.item.partial != kNoPartial) {
            store_partial<kHeadDim>(args, unit, total);
            continue;
        }
#pragma unroll
        for (int h = 0; h < 2; h++) {
            if (g + 8 * h < args.group) store_row<kHeadDim>(args, unit.item.token, head + g + 8 * h, total.rows[h], total.outs, h);
        }
    }
}

// Four columns of a row.
struct Four {
    RowSum row;
    float outs[4] = {0.0f, 0.0f, 0.0f, 0.0f};

    __device__ __forceinline__ void merge(const Four& part) {
        float old_weight, part_weight;
        merge_rows(row, part.row, old_weight, part_weight);
#pragma unroll
        for (int i = 0; i < 4; i++) outs[i] = merge_outs(outs[i], part.outs[i], old_weight, part_weight);
    }

    // As another lane has them.
    __device__ __forceinline__ Four of_lane(uint32_t lane) const {
        Four other;
        other.row = RowSum{__shfl_sync(~0u, row.maximum, lane), __shfl_sync(~0u, row.sum, lane)};
#pragma unroll
        for (int i = 0; i < 4; i++) other.outs[i] = __shfl_sync(~0u, outs[i], lane);
        return other;
    }
};

// Partial results of several spans that a lane loads before it merges the first.
constexpr uint32_t kAtOnce = 16;

// A head's partial result; the lane's four columns of it from `column` on. Nothing, if it does not exist.
template <int kHeadDim>
__device__ __forceinline__ Four load_partial(const AttentionArgs& args, const DecodeMerge& merge, uint32_t index, uint32_t head,
                                             uint32_t column) {
    Four part;
    if (index >= merge.n_partials) return part;
    const size_t at = size_t(merge.first_partial + index) * args.kv_heads * args.group + head;
    const float2 sums = __ldcg(args.partial_sums + at);
    const float4 outs = __ldcg(reinterpret_cast<const float4*>(args.partial_outs + at * kHeadDim + column));
    part.row = RowSum{sums.x, sums.y};
    part.outs[0] = outs.x, part.outs[1] = outs.y, part.outs[2] = outs.z, part.outs[3] = outs.w;
    return part;
}

// All partial results, of a span at most.
template <int kHeadDim>
__device__ __forceinline__ Four merge_span(const AttentionArgs& args, const DecodeMerge& merge, uint32_t head, uint32_t column) {
    Four parts[kSpanSplits], span, total;
#pragma unroll
    for (uint32_t i = 0; i < kSpanSplits; i++) parts[i] = load_partial<kHeadDim>(args, merge, i, head, column);
#pragma unroll
    for (uint32_t i = 0; i < kSpanSplits; i++) {
        if (i < merge.n_partials) span.merge(parts[i]);
    }
    // As where there are several: it makes -0 to 0.
    total.merge(span);
    return total;
}

// All partial results, `kPerSpan` of each span. The eight fours of the warp have a span each, in turn.
template <int kHeadDim, uint32_t kPerSpan>
__device__ __forceinline__ Four merge_spans(const AttentionArgs& args, const DecodeMerge& merge, uint32_t head, uint32_t column) {
    static_assert(kAtOnce % kPerSpan == 0);
    constexpr uint32_t kFours = 8, kSpans = kAtOnce / kPerSpan;
    const uint32_t lane = threadIdx.x % 32, four = lane / 4;
    Four total;
    for (uint32_t base = 0; base < merge.n_partials; base += kFours * kAtOnce) {
        Four parts[kSpans][kPerSpan];
#pragma unroll
        for (uint32_t s = 0; s < kSpans; s++) {
#pragma unroll
            for (uint32_t i = 0; i < kPerSpan; i++) {
                parts[s][i] = load_partial<kHeadDim>(args, merge, base + (s * kFours + four) * kPerSpan + i, head, column);
            }
        }
#pragma unroll
        for (uint32_t s = 0; s < kSpans; s++) {
            if (base + s * kFours * kPerSpan >= merge.n_partials) break;
            Four span;
#pragma unroll
            for (uint32_t i = 0; i < kPerSpan; i++) span.merge(parts[s][i]);
#pragma unroll 1
            for (uint32_t f = 0; f < kFours; f++) total.merge(span.of_lane(f * 4 + lane % 4));
        }
    }
    return total;
}

// Pieces of a key-value head's merge.
template <int kHeadDim>
__device__ __forceinline__ uint32_t merge_units(const AttentionArgs& args, const StepHeader& header) {
    const uint32_t n_slices = args.group * (kHeadDim / 16);
    return header.merges_spans ? n_slices : (n_slices + 7) / 8;
}

// Four lanes have 16 columns of a head. Where rows have several spans, the eight fours of a warp have a span each, in turn, of
// the same columns; else they have eight times 16 columns of the heads of a group.
template <int kHeadDim>
__device__ __forceinline__ void merge_partials(const AttentionArgs& args, const StepHeader& header, uint32_t warp, uint32_t n_warps) {
    constexpr uint32_t kSlices = kHeadDim / 16;
    const uint32_t lane = threadIdx.x % 32, four = lane / 4, n_slices = args.group * kSlices;
    const uint32_t n_units = merge_units<kHeadDim>(args, header);
    const DecodeMerge* merges = reinterpret_cast<const DecodeMerge*>(args.step + header.merges);
    for (uint32_t index = warp; index < header.n_merges * args.kv_heads * n_units; index += n_warps) {
        const uint32_t pair = index / n_units, unit = index % n_units;
        const DecodeMerge merge = merges[pair / args.kv_heads];
        uint32_t* arrivals = args.arrivals + size_t(pair) * 2;
        if (lane == 0) {
            while (load_acquire(arrivals) != merge.n_partials) __nanosleep(32);
        }
        __syncwarp();
        const uint32_t slice = header.merges_spans ? unit : unit * 8 + four;
        const uint32_t head = pair % args.kv_heads * args.group + min(slice, n_slices - 1) / kSlices;
        const uint32_t column = slice % kSlices * 16 + lane % 4 * 4;
        const Four total = !header.merges_spans ? merge_span<kHeadDim>(args, merge, head, column)
            : merge.per_span == 1               ? merge_spans<kHeadDim, 1>(args, merge, head, column)
                                                : merge_spans<kHeadDim, kSpanSplits>(args, merge, head, column);
        if (slice < n_slices && (!header.merges_spans || four == 0)) {
            const float factor = finish(total.row, args.sinks[head]);
#pragma unroll
            for (int i = 0; i < 4; i += 2) {
                *reinterpret_cast<uint32_t*>(panel_at(args, merge.token, head * kHeadDim + column + i)) =
                    pack_bf16x2(__fmul_rn(total.outs[i], factor), __fmul_rn(total.outs[i + 1], factor));
                fill_panel<kHeadDim>(args, merge.token, head, column + i);
            }
        }
        __syncwarp();
        // The last one makes the numbers 0 again.
        if (lane == 0 && atomicAdd(arrivals + 1, 1u) == n_units - 1) arrivals[0] = arrivals[1] = 0;
    }
}

template <int kHeadDim, bool kTurns>
__device__ __forceinline__ void decode(const AttentionArgs& args) {
    extern __shared__ __align__(1024) uint8_t memory[];
    Shared<kHeadDim>& shared = *reinterpret_cast<Shared<kHeadDim>*>(memory);
    const uint32_t warp = threadIdx.x / 32, n_warps = gridDim.x * kWarps;
    uint8_t(*ring)[Tile<kHeadDim>::kBytes] = shared.ring[warp];
    uint64_t* full = shared.full[warp];
    if (threadIdx.x % 32 == 0) {
        for (uint32_t i = 0; i < kStages; i++) barrier_init(shared_address(full + i), 1);
        barrier_init_fence();
    }
    __syncwarp();
    // The step, and what earlier steps stored, have been there since before the kernel that this one may overlap. Kernels that turn
    // copy the new token's place as well: its warp alone writes it, and puts the new key and value in the copy.
    const StepHeader header = *reinterpret_cast<const StepHeader*>(args.step);
    const uint32_t n_items = args.window ? header.n_sliding_items : header.n_full_items;
    const DecodeItem* items = reinterpret_cast<const DecodeItem*>(args.step + (args.window ? header.sliding_items : header.full_items));
    // A step's first units are on different multiprocessors.
    const Range units{warp * gridDim.x + blockIdx.x, n_items * args.kv_heads, n_warps};
    // Whoever has nothing to do makes room for the next kernel's blocks. One block waits for the kernel before in any case: who
    // waits for this one waits for that one, too.
    const uint32_t n_merges = args.window == 0 ? header.n_merges * args.kv_heads * merge_units<kHeadDim>(args, header) : 0;
    if (units.begin >= max(units.end, n_merges) && blockIdx.x > 0) return;
    Copier<kHeadDim> copier(args, items, units, ring, full);
    uint32_t n_early = 0;
    for (; n_early < kStages && !copier.is_done() && (kTurns || !copier.is_new()); n_early++) copier.copy();
    // Read while there is nothing else to do.
    const Unit first(args, items, units.begin < units.end ? units.begin : 0);
    grid_launch_next();
    grid_wait_for_previous();
    for (; n_early < kStages; n_early++) copier.copy();
    attend<kHeadDim, kTurns>(args, items, units, ring, full, copier, first);
    if (args.window == 0) merge_partials<kHeadDim>(args, header, units.begin, n_warps);
}

}  // namespace

#define ATTENTION_DECODE(name, head_dim, turns)                              \
    extern "C" __global__ void __launch_bounds__(kThreads, kBlocksPerSm)     \
        attention_decode_##name(const __grid_constant__ AttentionArgs args) { \
        decode<head_dim, turns>(args);                                       \
    }
ATTENTION_DECODE(32, 32, false)
ATTENTION_DECODE(64, 64, false)
ATTENTION_DECODE(rope_32, 32, true)
ATTENTION_DECODE(rope_64, 64, true)
