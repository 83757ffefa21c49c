//! A step's work: flat, ragged, paged. Prefill, chunked prefill, decode and their mixture differ only in row length.

use crate::config::{Config, LayerType};
use crate::sampling::Sampling;

pub type Token = u32;

/// Positions that one KV block holds.
pub const BLOCK_SIZE: usize = 16;

/// Where a sequence's keys and values are: position `p` lies in block `table[p / BLOCK_SIZE]` of the layer type's pool.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct BlockTables {
    /// Blocks of the full-attention layers, one per `BLOCK_SIZE` positions up to the row's end.
    pub full: Vec<u32>,
    /// Blocks of the sliding layers, indexed alike. An entry whose positions have all left the window of the row's first
    /// token is never touched, so its block may already serve a later entry: a sequence needs only
    /// [`sliding_blocks`] different ones.
    pub sliding: Vec<u32>,
}

/// One sequence's share of a step.
#[derive(Clone, Debug)]
pub struct Row {
    /// How many of the batch's tokens are this row's (they follow the previous row's).
    pub n_tokens: usize,
    /// Position of the row's first token in its sequence; the cache holds the positions before it.
    pub start: usize,
    pub block_tables: BlockTables,
    /// For how many of its last tokens the row wants logits. A row that samples has at least 1.
    pub n_logits: usize,
    /// How to choose the token that follows the row's last one; `None` while a prompt is still being read.
    pub sampling: Option<Sampling>,
}

/// All rows' tokens concatenated, in row order.
///
/// No row may read a block that another row of the step writes to: which of the two comes first is not said.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    pub tokens: Vec<Token>,
    pub rows: Vec<Row>,
}

/// What is wrong with a batch; a caller's fault.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum BatchError {
    #[error("rows hold {rows} tokens but the batch has {tokens}")]
    TokenCount { rows: usize, tokens: usize },
    #[error("row {row} is empty: a row needs at least one token")]
    EmptyRow { row: usize },
    #[error("row {row}: token {token} is outside the vocabulary of {vocab_size}")]
    Token { row: usize, token: Token, vocab_size: usize },
    #[error("row {row} ends at position {end}, beyond the context of {max} tokens")]
    Context { row: usize, end: usize, max: usize },
    #[error("row {row}: {kind:?} block table has {found} entries, expected at least {expected}")]
    BlockTable { row: usize, kind: LayerType, expected: usize, found: usize },
    #[error("row {row}: {kind:?} block id {id} is not below {limit}")]
    BlockId { row: usize, kind: LayerType, id: u32, limit: usize },
    #[error("row {row} wants {n_logits} logits of {n_tokens} tokens")]
    Logits { row: usize, n_logits: usize, n_tokens: usize },
    #[error("row {row} samples but wants no logits")]
    SamplesNothing { row: usize },
    #[error("the batch has {found} tokens, more than a step's limit of {max}")]
    TooManyTokens { found: usize, max: usize },
}

/// Different sliding-pool blocks that a sequence needs when its rows are at most `max_row` tokens long: the window
/// before the row's first token, the row, and one block for an unaligned start.
pub fn sliding_blocks(sliding_window: usize, max_row: usize) -> usize {
    (sliding_window - 1).saturating_add(max_row).div_ceil(BLOCK_SIZE) + 1
}

impl BlockTables {
    /// Tables of the one sequence that owns whole pools: block ids count up, and the sliding layers' go round in a ring
    /// of `sliding_blocks`.
    pub fn sole(end: usize, sliding_blocks: usize) -> Self {
        let n = end.div_ceil(BLOCK_SIZE) as u32;
        Self { full: (0..n).collect(), sliding: (0..n).map(|i| i % sliding_blocks as u32).collect() }
    }

    pub fn of(&self, kind: LayerType) -> &[u32] {
        match kind {
            LayerType::Full => &self.full,
            LayerType::Sliding => &self.sliding,
        }
    }
}

impl Row {
    /// One past the position of the row's last token.
    pub fn end(&self) -> usize {
        self.start + self.n_tokens
    }
}

impl Batch {
    /// Rows with the range of their tokens in [`Batch::tokens`].
    pub fn rows_with_ranges(&self) -> impl Iterator<Item = (std::ops::Range<usize>, &Row)> {
        self.rows.iter().scan(0, |at, row| {
            let range = *at..*at + row.n_tokens;
            *at = range.end;
            Some((range, row))
        })
    }

    /// How many vectors of logits the step computes.
    pub fn n_logits(&self) -> usize {
        self.rows.iter().map(|r| r.n_logits).sum()
    }

    /// Checks the batch against a model and the sizes of a backend's pools, so that a step may index without looking.
    pub fn check(
        &self,
        config: &Config,
        kv_blocks: impl Fn(LayerType) -> usize,
        max_tokens: usize,
    ) -> Result<(), BatchError> {
        let rows = self.rows.iter().fold(0usize, |n, r| n.saturating_add(r.n_tokens));
        if rows != self.tokens.len() {
            return Err(BatchError::TokenCount { rows, tokens: self.tokens.len() });
        }
        if rows > max_tokens {
            return Err(BatchError::TooManyTokens { found: rows, max: max_tokens });
        }
        for (row, (range, r)) in self.rows_with_ranges().enumerate() {
            r.check(row, config)?;
            for kind in [LayerType::Full, LayerType::Sliding] {
                r.check_blocks(row, kind, config, kv_blocks(kind))?;
            }
            if let Some(&token) = self.tokens[range].iter().find(|&&t| t as usize >= config.vocab_size) {
                return Err(BatchError::Token { row, token, vocab_size: config.vocab_size });
            }
        }
        Ok(())
    }
}

impl Row {
    fn check(&self, row: usize, config: &Config) -> Result<(), BatchError> {
        let (n_logits, n_tokens) = (self.n_logits, self.n_tokens);
        if n_tokens == 0 {
            return Err(BatchError::EmptyRow { row });
        }
        if self.start.saturating_add(n_tokens) > config.max_position_embeddings {
            return Err(BatchError::Context {
                row,
                end: self.start.saturating_add(n_tokens),
                max: config.max_position_embeddings,
            });
        }
        if n_logits > n_tokens {
            return Err(BatchError::Logits { row, n_logits, n_tokens });
        }
        if self.sampling.is_some() && n_logits == 0 {
            return Err(BatchError::SamplesNothing { row });
        }
        Ok(())
    }

    fn check_blocks(&self, row: usize, kind: LayerType, config: &Config, limit: usize) -> Result<(), BatchError> {
        let table = self.block_tables.of(kind);
        let expected = self.end().div_ceil(BLOCK_SIZE);
        if table.len() < expected {
            return Err(BatchError::BlockTable { row, kind, expected, found: table.len() });
        }
        let first = match kind {
            LayerType::Full => 0,
            LayerType::Sliding => (self.start + 1).saturating_sub(config.sliding_window) / BLOCK_SIZE,
        };
        match table[first..expected].iter().find(|&&id| id as usize >= limit) {
            Some(&id) => Err(BatchError::BlockId { row, kind, id, limit }),
            None => Ok(()),
        }
    }
}
