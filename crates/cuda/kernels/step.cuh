// What a step's kernels are told of its batch: words of 32 bits, in the sections that src/step.rs lists.
#pragma once
#include <cstdint>

// Offsets are in words from the header.
struct StepHeader {
    uint32_t n_tokens, n_logits, n_samplings;
    uint32_t merges_spans;  // whether a merge has more than one span of keys
    uint32_t full_items, n_full_items;
    uint32_t sliding_items, n_sliding_items;
    uint32_t merges, n_merges;
    uint32_t tiles, n_tiles;
    uint32_t padding[4];
};
static_assert(sizeof(StepHeader) == 64);

// A run of splits of a row of one token.
struct DecodeItem {
    uint32_t token, position;
    uint32_t table;  // the entry of block b is word table + b
    uint32_t first_split, n_splits;
    uint32_t partial;  // kNoPartial if the item is the row's whole
    uint32_t merge;
    uint32_t padding;
};
static_assert(sizeof(DecodeItem) == 32);
constexpr uint32_t kNoPartial = ~0u;

// A row whose items are merged.
struct DecodeMerge {
    uint32_t token;
    uint32_t first_partial, n_partials;
    uint32_t per_span;  // partial results that make a span of keys
};
static_assert(sizeof(DecodeMerge) == 16);

// Some tokens of a row of several.
struct PrefillTile {
    uint32_t token, n_tokens, position;  // token and position of the first
    uint32_t full_table, sliding_table;
    uint32_t padding[3];
};
static_assert(sizeof(PrefillTile) == 32);
