use tessera_model::Config;

use super::MoeError;
use super::grouped::panels;
use crate::pack::{RECORD_BYTES, Rows, TILE_ROWS};

/// As in `moe_tokens.cuh`.
pub const MAX_EXPERTS: usize = 256;
/// As in `moe_route.cu`.
pub const MAX_TOP_K: usize = 8;
/// Of hidden and intermediate sizes: 16 rows of so many columns stay in a multiprocessor's shared memory (`moe_stream.cu`).
pub const MAX_WIDTH: usize = 2944;
/// Of one call.
pub const MAX_TOKENS: usize = 1 << 16;

/// Elements of a block that shares a scale.
const BLOCK: usize = tessera_model::mxfp4::BLOCK;

/// The sizes of a layer's experts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MoeShape {
    pub hidden: usize,
    pub intermediate: usize,
    pub experts: usize,
    /// Experts of a token.
    pub top_k: usize,
}

impl MoeShape {
    /// Of a model's layers.
    pub fn of(config: &Config) -> Self {
        Self {
            hidden: config.hidden_size,
            intermediate: config.intermediate_size,
            experts: config.num_local_experts,
            top_k: config.num_experts_per_tok,
        }
    }

    /// The shape, if the kernels can work on it.
    pub fn checked(self) -> Result<Self, MoeError> {
        width("hidden size", self.hidden)?;
        width("intermediate size", self.intermediate)?;
        within("number", self.experts, MAX_EXPERTS)?;
        within("top_k", self.top_k, MAX_TOP_K.min(self.experts))?;
        Ok(self)
    }

    /// Strips and records of a strip of the gate and up matrix.
    pub(crate) fn gate_up(self) -> Tiles {
        Tiles::new(2 * self.intermediate, self.hidden, Rows::GateUp)
    }

    /// Strips and records of a strip of the down matrix.
    pub(crate) fn down(self) -> Tiles {
        Tiles::new(self.hidden, self.intermediate, Rows::Natural)
    }
}

/// An expert's matrix as the kernels count it.
#[derive(Clone, Copy)]
pub(crate) struct Tiles {
    pub rows: usize,
    pub cols: usize,
    pub order: Rows,
    pub strips: usize,
    pub k_records: usize,
}

impl Tiles {
    fn new(rows: usize, cols: usize, order: Rows) -> Self {
        Self { rows, cols, order, strips: rows.div_ceil(TILE_ROWS), k_records: panels(cols) }
    }

    /// Of a packed matrix.
    pub fn record_bytes(self) -> usize {
        self.strips * self.strip_bytes()
    }

    /// Of a packed strip.
    pub fn strip_bytes(self) -> usize {
        self.k_records * RECORD_BYTES
    }

    /// Rows of a packed matrix, padding included.
    pub fn packed_rows(self) -> usize {
        self.strips * TILE_ROWS
    }
}

fn width(what: &'static str, found: usize) -> Result<(), MoeError> {
    match found.is_multiple_of(BLOCK) && (1..=MAX_WIDTH).contains(&found) {
        true => Ok(()),
        false => Err(MoeError::Size { what, expected: format!("a multiple of {BLOCK}, at most {MAX_WIDTH}"), found }),
    }
}

fn within(what: &'static str, found: usize, most: usize) -> Result<(), MoeError> {
    match (1..=most).contains(&found) {
        true => Ok(()),
        false => Err(MoeError::Size { what, expected: format!("1 to {most}"), found }),
    }
}

#[cfg(test)]
mod tests {
    use super::MoeShape;

    const SHAPE: MoeShape = MoeShape { hidden: 96, intermediate: 160, experts: 6, top_k: 4 };

    #[track_caller]
    fn check(shape: MoeShape, expect: &str) {
        assert_eq!(shape.checked().unwrap_err().to_string(), expect);
    }

    #[test]
    fn shapes_that_the_kernels_cannot_work_on_are_refused() {
        assert_eq!(SHAPE.checked(), Ok(SHAPE));
        assert!(MoeShape { hidden: 2880, intermediate: 2880, experts: 256, top_k: 8 }.checked().is_ok());
        assert!(MoeShape { experts: 1, top_k: 1, ..SHAPE }.checked().is_ok());
        let expected = "expected a multiple of 32, at most 2944";
        for width in [0, 8, 100, 1 << 16] {
            check(MoeShape { hidden: width, ..SHAPE }, &format!("experts' hidden size is {width}: {expected}"));
            check(
                MoeShape { intermediate: width, ..SHAPE },
                &format!("experts' intermediate size is {width}: {expected}"),
            );
        }
        check(MoeShape { experts: 257, ..SHAPE }, "experts' number is 257: expected 1 to 256");
        check(MoeShape { experts: 0, ..SHAPE }, "experts' number is 0: expected 1 to 256");
        check(MoeShape { top_k: 0, ..SHAPE }, "experts' top_k is 0: expected 1 to 6");
        check(MoeShape { top_k: 7, ..SHAPE }, "experts' top_k is 7: expected 1 to 6");
        check(MoeShape { experts: 32, top_k: 9, ..SHAPE }, "experts' top_k is 9: expected 1 to 8");
    }
}
