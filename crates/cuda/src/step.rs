//! What a step's kernels need to know of its batch, in one array that goes to the GPU in one copy.
//!
//! The array is words of 32 bits. With `T` tokens, `L` vectors of logits and `S` samplings (of a padded step: with the padding),
//! its sections stand in this order, each at a multiple of 4 words:
//!
//! | section | words | holds |
//! |---|---|---|
//! | header | 16 | [`StepHeader`]: how many work items there are, and at which word of the array |
//! | tokens | `T` | token ids; [`PAD_TOKEN`] for padding |
//! | positions | `T` | of each token in its sequence; 0 for padding |
//! | full slots | `T` | `block * 16 + position % 16`: where the token's keys and values go in a full layer's pool; [`NO_SLOT`] for padding |
//! | sliding slots | `T` | the same in a sliding layer's pool |
//! | logit tokens | `L` | of each vector of logits, the index of its token in the step |
//! | samplings | `8 S` | [`RowSampling`], one for each row that samples, in row order |
//! | full items | | [`DecodeItem`]s of full layers |
//! | sliding items | | [`DecodeItem`]s of sliding layers |
//! | merges | | [`DecodeMerge`]s |
//! | tiles | | [`PrefillTile`]s |
//! | tables | | the rows' block tables; of sliding tables, the entries that a token of the row can see |
//!
//! The places of all sections up to the samplings depend on `T`, `L` and `S` alone; the others' are in the header. A step that
//! is padded to a bucket of `B` has `T = L = S = B`, whatever its rows, so a graph that was recorded for the bucket fits.

use bytemuck::{Pod, Zeroable};
use tessera_model::config::MAX_CONTEXT;
use tessera_model::{BLOCK_SIZE, Batch, Config, LayerType, Limits};

use crate::device::{Address, Buffer, Device, Pinned};
use crate::error::DeviceError;
use crate::launch::Stream;
use crate::sampling::RowSampling;

mod image;
mod plan;
#[cfg(test)]
mod tests;

use image::{Capacity, Image};
pub(crate) use plan::max_partials;

/// In the place of a token where a step is padded.
pub const PAD_TOKEN: u32 = u32::MAX;
/// In the place of a slot where a step is padded.
pub const NO_SLOT: u32 = u32::MAX;
/// The most blocks of a pool whose slots words can count.
const MAX_POOL_BLOCKS: usize = (NO_SLOT as usize) / BLOCK_SIZE;

/// As `StepHeader` of `step.cuh`. Offsets are in words from the array's start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct StepHeader {
    pub n_tokens: u32,
    pub n_logits: u32,
    pub n_samplings: u32,
    /// 1 if a merge has more than one span of keys, else 0.
    pub merges_spans: u32,
    pub full_items: u32,
    pub n_full_items: u32,
    pub sliding_items: u32,
    pub n_sliding_items: u32,
    pub merges: u32,
    pub n_merges: u32,
    pub tiles: u32,
    pub n_tiles: u32,
    pub padding: [u32; 4],
}

/// A run of splits of a row of one token; as `DecodeItem` of `step.cuh`. Every key-value head has its own share of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct DecodeItem {
    /// Index in the step.
    pub token: u32,
    pub position: u32,
    /// The entry of block `b` of the sequence is word `table + b` of the array, modulo 2^32.
    pub table: u32,
    pub first_split: u32,
    pub n_splits: u32,
    /// Where the result goes, to be merged; [`NO_PARTIAL`] if it is the row's whole.
    pub partial: u32,
    /// Whose result it is part of.
    pub merge: u32,
    pub padding: u32,
}

/// The item that has all of a row's splits.
pub const NO_PARTIAL: u32 = u32::MAX;

/// A row whose items are merged; as `DecodeMerge` of `step.cuh`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct DecodeMerge {
    pub token: u32,
    /// The partial results are this one and those that follow.
    pub first_partial: u32,
    pub n_partials: u32,
    /// Partial results that make a span of keys.
    pub per_span: u32,
}

/// Some tokens of a row of several; as `PrefillTile` of `step.cuh`. Every key-value head has its own share of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct PrefillTile {
    /// The first, by its index in the step.
    pub token: u32,
    pub n_tokens: u32,
    /// Of the first.
    pub position: u32,
    /// As [`DecodeItem::table`].
    pub full_table: u32,
    pub sliding_table: u32,
    pub padding: [u32; 3],
}

/// Why a batch cannot be sent to the GPU.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum StepMetaError {
    #[error("the batch has {found} rows, more than the limit of {limit}")]
    TooManyRows { found: usize, limit: usize },
    #[error("the batch has {found} tokens, more than the limit of {limit}")]
    TooManyTokens { found: usize, limit: usize },
    #[error("row {row} has {found} tokens: in a padded step, expected 1")]
    LongRow { row: usize, found: usize },
    #[error("the bucket is {bucket}: expected {expected}")]
    Bucket { bucket: usize, expected: String },
    #[error("{what} is {found}: expected {expected}")]
    Size { what: &'static str, expected: String, found: usize },
    #[error(transparent)]
    Device(#[from] DeviceError),
}

/// The batch of one step after the other, on the host and on the GPU.
pub struct StepMeta {
    image: Image,
    pinned: Pinned<u32>,
    arena: Buffer<u32>,
}

impl StepMeta {
    /// For batches that [`Batch::check`] finds good for these limits, of at most `max_rows` rows. Everything that a step takes
    /// is allocated here.
    pub fn new(device: &Device, config: &Config, limits: &Limits, max_rows: usize) -> Result<Self, StepMetaError> {
        let capacity = Capacity::new(config, limits, max_rows, device.properties().n_sms)?;
        let n_words = capacity.words();
        Ok(Self { image: Image::new(capacity), pinned: device.alloc_pinned(n_words)?, arena: device.alloc(n_words)? })
    }

    /// What it takes on the GPU.
    pub(crate) fn bytes(config: &Config, limits: &Limits, max_rows: usize) -> Result<u64, StepMetaError> {
        let any_gpu = 1;
        Ok(4 * Capacity::new(config, limits, max_rows, any_gpu)?.words() as u64)
    }

    /// Describes `batch`, which has been checked. With a bucket, as if it had so many tokens, logits and samplings; its rows
    /// must have one token each. What was sent before must have arrived.
    pub fn fill(&mut self, batch: &Batch, bucket: Option<usize>) -> Result<(), StepMetaError> {
        self.image.fill(batch, bucket)?;
        Ok(self.pinned.write(0, self.image.words())?)
    }

    /// Queues the copy to the GPU. Not part of a graph: its size differs from step to step.
    pub fn send(&mut self, stream: &Stream) -> Result<(), DeviceError> {
        stream.send_first(&self.pinned, self.image.words().len(), &mut self.arena)
    }

    /// With padding.
    pub fn n_tokens(&self) -> usize {
        self.image.size().n_tokens
    }

    /// With padding.
    pub fn n_logits(&self) -> usize {
        self.image.size().n_logits
    }

    /// With padding.
    pub fn n_samplings(&self) -> usize {
        self.image.size().n_samplings
    }

    /// Of the batch.
    pub fn n_rows(&self) -> usize {
        self.image.n_rows()
    }

    /// Which rows sample: without padding, in the order of the samplings.
    pub fn sampling_rows(&self) -> &[usize] {
        self.image.sampling_rows()
    }

    /// What the header on the GPU says once it is sent.
    pub fn header(&self) -> StepHeader {
        self.image.header()
    }

    /// Whether the step has rows of one token.
    pub fn has_decode(&self) -> bool {
        self.header().n_sliding_items > 0
    }

    /// Whether the step has rows of several tokens.
    pub fn has_prefill(&self) -> bool {
        self.header().n_tiles > 0
    }

    /// The largest number of rows.
    pub fn max_rows(&self) -> usize {
        self.image.capacity().max_rows
    }

    /// The largest number of tokens.
    pub fn max_tokens(&self) -> usize {
        self.image.capacity().max_tokens
    }
}

/// Where the sections lie on the GPU.
impl StepMeta {
    /// The array, which begins with the header.
    pub fn base(&self) -> Address {
        self.arena.address()
    }

    /// `[n_tokens]` u32
    pub fn tokens(&self) -> Address {
        self.at(self.image.size().tokens())
    }

    /// `[n_tokens]` u32
    pub fn positions(&self) -> Address {
        self.at(self.image.size().positions())
    }

    /// `[n_tokens]` u32, of that kind of layers
    pub fn slots(&self, kind: LayerType) -> Address {
        self.at(self.image.size().slots(kind))
    }

    /// `[n_logits]` u32
    pub fn logit_tokens(&self) -> Address {
        self.at(self.image.size().logit_tokens())
    }

    /// `[n_samplings]` [`RowSampling`]
    pub fn samplings(&self) -> Address {
        self.at(self.image.size().samplings())
    }

    fn at(&self, word: usize) -> Address {
        self.arena.address().plus(word * size_of::<u32>())
    }
}
