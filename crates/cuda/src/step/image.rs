//! The array on the host.

use bytemuck::cast_slice;

use super::plan::{Chain, Plan, plan};
use super::*;
use crate::kernels::attention::QUERY_ROWS;

const HEADER: usize = size_of::<StepHeader>() / size_of::<u32>();
const SAMPLING: usize = size_of::<RowSampling>() / size_of::<u32>();
const ITEM: usize = size_of::<DecodeItem>() / size_of::<u32>();
const MERGE: usize = size_of::<DecodeMerge>() / size_of::<u32>();
const TILE: usize = size_of::<PrefillTile>() / size_of::<u32>();
/// Words that sections begin at multiples of: 16 bytes.
const ALIGN: usize = 4;

/// What sections' places depend on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Size {
    pub n_tokens: usize,
    pub n_logits: usize,
    pub n_samplings: usize,
}

/// Words at which the sections begin.
impl Size {
    pub fn tokens(self) -> usize {
        HEADER
    }

    pub fn positions(self) -> usize {
        self.tokens() + self.n_tokens.next_multiple_of(ALIGN)
    }

    pub fn slots(self, kind: LayerType) -> usize {
        let full = self.positions() + self.n_tokens.next_multiple_of(ALIGN);
        match kind {
            LayerType::Full => full,
            LayerType::Sliding => full + self.n_tokens.next_multiple_of(ALIGN),
        }
    }

    pub fn logit_tokens(self) -> usize {
        self.slots(LayerType::Sliding) + self.n_tokens.next_multiple_of(ALIGN)
    }

    pub fn samplings(self) -> usize {
        self.logit_tokens() + self.n_logits.next_multiple_of(ALIGN)
    }

    fn end(self) -> usize {
        self.samplings() + self.n_samplings * SAMPLING
    }
}

/// What there must be room for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Capacity {
    pub max_rows: usize,
    pub max_tokens: usize,
    /// Of a sequence.
    max_blocks: usize,
    sliding_window: usize,
    kv_heads: usize,
    /// Tokens of a tile.
    tile_tokens: usize,
    n_sms: usize,
}

impl Capacity {
    pub fn new(config: &Config, limits: &Limits, max_rows: usize, n_sms: usize) -> Result<Self, StepMetaError> {
        let group = config.num_attention_heads / config.num_key_value_heads;
        within("num_attention_heads / num_key_value_heads", group, QUERY_ROWS)?;
        within("number of rows", max_rows, u32::MAX as usize >> 8)?;
        within("number of tokens of a step", limits.max_step_tokens, MAX_CONTEXT)?;
        for kind in [LayerType::Full, LayerType::Sliding] {
            within("number of blocks of a pool", limits.blocks(kind), MAX_POOL_BLOCKS)?;
        }
        let capacity = Self {
            max_rows,
            max_tokens: limits.max_step_tokens,
            max_blocks: config.max_position_embeddings.div_ceil(BLOCK_SIZE),
            sliding_window: config.sliding_window,
            kv_heads: config.num_key_value_heads,
            tile_tokens: QUERY_ROWS / group,
            n_sms,
        };
        within("size of a step's tables", capacity.words(), u32::MAX as usize)?;
        Ok(capacity)
    }

    /// The most words that a step has.
    pub fn words(&self) -> usize {
        let (rows, tokens) = (self.max_rows, self.max_tokens);
        let fixed = Size { n_tokens: tokens, n_logits: tokens, n_samplings: rows }.end();
        let items = (2 * rows + max_partials(self.kv_heads)) * ITEM + rows * MERGE;
        let tiles = (tokens / self.tile_tokens + rows) * TILE;
        // A window, and a block more at each end of it.
        let sliding = rows * (self.sliding_window / BLOCK_SIZE + 3) + tokens.div_ceil(BLOCK_SIZE);
        fixed + items + tiles + rows * self.max_blocks + sliding.min(rows * self.max_blocks)
    }
}

fn within(what: &'static str, found: usize, most: usize) -> Result<(), StepMetaError> {
    match (1..=most).contains(&found) {
        true => Ok(()),
        false => Err(StepMetaError::Size { what, expected: format!("1 to {most}"), found }),
    }
}

pub(super) struct Image {
    capacity: Capacity,
    words: Vec<u32>,
    size: Size,
    n_rows: usize,
    sampling_rows: Vec<usize>,
}

/// A row's tables in the array: the word of the entry of block 0, even where that entry is not there.
#[derive(Debug, Clone, Copy)]
struct Tables {
    full: u32,
    sliding: u32,
}

impl Image {
    pub fn new(capacity: Capacity) -> Self {
        let words = vec![0; HEADER];
        Self { capacity, words, size: Size::default(), n_rows: 0, sampling_rows: Vec::new() }
    }

    pub fn capacity(&self) -> &Capacity {
        &self.capacity
    }

    pub fn words(&self) -> &[u32] {
        &self.words
    }

    pub fn size(&self) -> Size {
        self.size
    }

    pub fn n_rows(&self) -> usize {
        self.n_rows
    }

    pub fn sampling_rows(&self) -> &[usize] {
        &self.sampling_rows
    }

    pub fn header(&self) -> StepHeader {
        bytemuck::pod_read_unaligned(cast_slice(&self.words[..HEADER]))
    }

    pub fn fill(&mut self, batch: &Batch, bucket: Option<usize>) -> Result<(), StepMetaError> {
        self.size = self.capacity.size(batch, bucket)?;
        self.n_rows = batch.rows.len();
        self.words.clear();
        self.words.resize(self.size.end(), 0);
        self.fill_tokens(batch);
        self.fill_logits(batch);
        self.fill_work(batch);
        Ok(())
    }

    fn fill_tokens(&mut self, batch: &Batch) {
        let (size, n) = (self.size, batch.tokens.len());
        self.words[size.tokens()..][..size.n_tokens].fill(PAD_TOKEN);
        self.words[size.tokens()..][..n].copy_from_slice(&batch.tokens);
        for (range, row) in batch.rows_with_ranges() {
            for (token, position) in range.zip(row.start..) {
                self.words[size.positions() + token] = position as u32;
            }
        }
        for kind in [LayerType::Full, LayerType::Sliding] {
            let slots = &mut self.words[size.slots(kind)..][..size.n_tokens];
            for (range, row) in batch.rows_with_ranges() {
                for (slot, position) in slots[range].iter_mut().zip(row.start..) {
                    let block = row.block_tables.of(kind)[position / BLOCK_SIZE];
                    *slot = block * BLOCK_SIZE as u32 + (position % BLOCK_SIZE) as u32;
                }
            }
            slots[n..].fill(NO_SLOT);
        }
    }

    fn fill_logits(&mut self, batch: &Batch) {
        let size = self.size;
        self.sampling_rows.clear();
        let wanted = batch.rows_with_ranges().flat_map(|(range, row)| range.end - row.n_logits..range.end);
        // Logits that fill a bucket are anybody's: the last token's.
        let all = wanted.chain(std::iter::repeat(size.n_tokens.saturating_sub(1)));
        for (to, token) in self.words[size.logit_tokens()..][..size.n_logits].iter_mut().zip(all) {
            *to = token as u32;
        }
        let samplings = &mut self.words[size.samplings()..][..size.n_samplings * SAMPLING];
        let mut n_logits = 0;
        for (index, row) in batch.rows.iter().enumerate() {
            n_logits += row.n_logits;
            if let Some(sampling) = &row.sampling {
                let at = self.sampling_rows.len() * SAMPLING;
                put(&mut samplings[at..], &RowSampling::new(sampling, n_logits as u32 - 1, row.end()));
                self.sampling_rows.push(index);
            }
        }
        for padding in samplings[self.sampling_rows.len() * SAMPLING..].chunks_exact_mut(SAMPLING) {
            put(padding, &RowSampling::NOBODY);
        }
    }

    /// What follows the samplings, and the header.
    fn fill_work(&mut self, batch: &Batch) {
        let plan = plan(&self.capacity.chains(batch), self.capacity.kv_heads, self.capacity.n_sms);
        let tiles: Vec<(usize, usize)> = self.capacity.tiles(batch);
        let n_decode = batch.rows.iter().filter(|row| row.n_tokens == 1).count();
        let full_items = self.size.end();
        let sliding_items = full_items + plan.items.len() * ITEM;
        let merges = sliding_items + n_decode * ITEM;
        let first_tile = merges + plan.merges.len() * MERGE;
        let tables = self.fill_tables(batch, first_tile + tiles.len() * TILE);

        let firsts: Vec<u32> = batch.rows_with_ranges().map(|(range, _)| range.start as u32).collect();
        self.fill_items(batch, &plan, &firsts, &tables, full_items);
        for (i, merge) in plan.merges.iter().enumerate() {
            let token = firsts[merge.row];
            let (first_partial, n_partials) = (merge.first_partial as u32, merge.n_partials as u32);
            let merge = DecodeMerge { token, first_partial, n_partials, per_span: merge.per_span as u32 };
            put(&mut self.words[merges + i * MERGE..], &merge);
        }
        for (i, &(row, first)) in tiles.iter().enumerate() {
            let tile = PrefillTile {
                token: firsts[row] + first as u32,
                n_tokens: (batch.rows[row].n_tokens - first).min(self.capacity.tile_tokens) as u32,
                position: (batch.rows[row].start + first) as u32,
                full_table: tables[row].full,
                sliding_table: tables[row].sliding,
                padding: [0; 3],
            };
            put(&mut self.words[first_tile + i * TILE..], &tile);
        }
        let header = StepHeader {
            n_tokens: self.size.n_tokens as u32,
            n_logits: self.size.n_logits as u32,
            n_samplings: self.size.n_samplings as u32,
            merges_spans: u32::from(plan.merges_spans()),
            full_items: full_items as u32,
            n_full_items: plan.items.len() as u32,
            sliding_items: sliding_items as u32,
            n_sliding_items: n_decode as u32,
            merges: merges as u32,
            n_merges: plan.merges.len() as u32,
            tiles: first_tile as u32,
            n_tiles: tiles.len() as u32,
            padding: [0; 4],
        };
        put(&mut self.words, &header);
    }

    fn fill_items(&mut self, batch: &Batch, plan: &Plan, firsts: &[u32], tables: &[Tables], at: usize) {
        let item = |row: usize, table: u32| DecodeItem {
            token: firsts[row],
            position: batch.rows[row].start as u32,
            table,
            first_split: 0,
            n_splits: 0,
            partial: NO_PARTIAL,
            merge: 0,
            padding: 0,
        };
        for (i, run) in plan.items.iter().enumerate() {
            let (partial, merge) = run.part.map_or((NO_PARTIAL, 0), |part| (part.partial as u32, part.merge as u32));
            let (first_split, n_splits) = (run.first_split as u32, run.n_splits as u32);
            let item = DecodeItem { first_split, n_splits, partial, merge, ..item(run.row, tables[run.row].full) };
            put(&mut self.words[at + i * ITEM..], &item);
        }
        let at = at + plan.items.len() * ITEM;
        let decode = batch.rows.iter().enumerate().filter(|(_, row)| row.n_tokens == 1);
        for (i, (row, r)) in decode.enumerate() {
            let splits = self.capacity.window_splits(r.start);
            let (first_split, n_splits) = (splits.start as u32, splits.len() as u32);
            let item = DecodeItem { first_split, n_splits, ..item(row, tables[row].sliding) };
            put(&mut self.words[at + i * ITEM..], &item);
        }
    }

    /// The tables from word `at` on, which is the end so far.
    fn fill_tables(&mut self, batch: &Batch, at: usize) -> Vec<Tables> {
        self.words.resize(at, 0);
        let capacity = self.capacity;
        let fill = |row: &tessera_model::Row| {
            let n_blocks = row.end().div_ceil(BLOCK_SIZE);
            let first = capacity.first_visible(row.start) / BLOCK_SIZE;
            let full = self.words.len() as u32;
            self.words.extend_from_slice(&row.block_tables.full[..n_blocks]);
            let sliding = (self.words.len() as u32).wrapping_sub(first as u32);
            self.words.extend_from_slice(&row.block_tables.sliding[first..n_blocks]);
            Tables { full, sliding }
        };
        batch.rows.iter().map(fill).collect()
    }
}

impl Capacity {
    /// Checks that there is room.
    fn size(&self, batch: &Batch, bucket: Option<usize>) -> Result<Size, StepMetaError> {
        let (n_tokens, n_rows) = (batch.tokens.len(), batch.rows.len());
        if n_tokens > self.max_tokens {
            return Err(StepMetaError::TooManyTokens { found: n_tokens, limit: self.max_tokens });
        }
        if n_rows > self.max_rows {
            return Err(StepMetaError::TooManyRows { found: n_rows, limit: self.max_rows });
        }
        let Some(bucket) = bucket else {
            let n_samplings = batch.rows.iter().filter(|row| row.sampling.is_some()).count();
            return Ok(Size { n_tokens, n_logits: batch.n_logits(), n_samplings });
        };
        if let Some(row) = batch.rows.iter().position(|row| row.n_tokens != 1) {
            return Err(StepMetaError::LongRow { row, found: batch.rows[row].n_tokens });
        }
        let most = self.max_rows.min(self.max_tokens);
        if !(n_rows.max(1)..=most).contains(&bucket) {
            return Err(StepMetaError::Bucket { bucket, expected: format!("{} to {most}", n_rows.max(1)) });
        }
        Ok(Size { n_tokens: bucket, n_logits: bucket, n_samplings: bucket })
    }

    /// The first position that a sliding layer's query sees.
    fn first_visible(&self, position: usize) -> usize {
        (position + 1).saturating_sub(self.sliding_window)
    }

    /// The splits with keys that a sliding layer's query sees.
    fn window_splits(&self, position: usize) -> std::ops::Range<usize> {
        self.first_visible(position) / plan::SPLIT..position / plan::SPLIT + 1
    }

    /// The rows of one token, with the splits that full layers see.
    fn chains(&self, batch: &Batch) -> Vec<Chain> {
        let decode = batch.rows.iter().enumerate().filter(|(_, row)| row.n_tokens == 1);
        decode.map(|(row, r)| Chain { row, n_splits: r.start / plan::SPLIT + 1 }).collect()
    }

    /// Row and first token in it; those with the most keys first, so that the last ones to end are short.
    fn tiles(&self, batch: &Batch) -> Vec<(usize, usize)> {
        let rows = batch.rows.iter().enumerate().filter(|(_, row)| row.n_tokens > 1);
        let tiles = rows.flat_map(|(row, r)| (0..r.n_tokens).step_by(self.tile_tokens).map(move |first| (row, first)));
        let mut tiles: Vec<_> = tiles.collect();
        tiles.sort_by_key(|&(row, first)| std::cmp::Reverse(batch.rows[row].start + first));
        tiles
    }
}

fn put<T: Pod>(words: &mut [u32], value: &T) {
    words[..size_of::<T>() / size_of::<u32>()].copy_from_slice(cast_slice(bytemuck::bytes_of(value)));
}
