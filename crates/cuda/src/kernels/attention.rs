/// Positions whose keys are summed in one piece of work, as in `attention.cuh`; so are those that follow.
pub(crate) const SPLIT: usize = 256;
/// Splits of a span.
pub(crate) const SPAN_SPLITS: usize = 16;
/// Query rows, a token's head each, of a tile of prefill.
pub(crate) const QUERY_ROWS: usize = 128;
