//! Borrowed views of a checkpoint's weights, in one layout whatever the files' own.

use half::bf16;

/// A row-major BF16 matrix.
#[derive(Clone, Copy)]
pub struct Matrix<'a> {
    pub data: &'a [bf16], // [rows, cols]
    pub rows: usize,
    pub cols: usize,
}

/// `y = W x + b`.
#[derive(Clone, Copy)]
pub struct Linear<'a> {
    pub weight: Matrix<'a>, // [out, in]
    pub bias: &'a [bf16],   // [out]
}

/// The MXFP4 matrices of all experts of one projection.
#[derive(Clone, Copy)]
pub struct Experts<'a> {
    pub blocks: &'a [u8], // [experts, rows, cols / 2], low nibble = even column
    pub scales: &'a [u8], // [experts, rows, cols / 32], E8M0
    pub bias: &'a [bf16], // [experts, rows]
    pub experts: usize,
    pub rows: usize,
    pub cols: usize,
}

/// One layer.
#[derive(Clone, Copy)]
pub struct LayerWeights<'a> {
    pub attn_norm: &'a [bf16], // [hidden]
    pub q: Linear<'a>,         // [heads * head_dim, hidden]
    pub k: Linear<'a>,         // [kv_heads * head_dim, hidden]
    pub v: Linear<'a>,         // [kv_heads * head_dim, hidden]
    pub o: Linear<'a>,         // [hidden, heads * head_dim]
    pub sinks: &'a [bf16],     // [heads]
    pub mlp_norm: &'a [bf16],  // [hidden]
    pub router: Linear<'a>,    // [experts, hidden]
    pub gate_up: Experts<'a>,  // [experts, 2 * intermediate, hidden]; even rows gate, odd rows up
    pub down: Experts<'a>,     // [experts, hidden, intermediate]
}

/// The whole model.
#[derive(Clone)]
pub struct Weights<'a> {
    pub embed: Matrix<'a>, // [vocab, hidden]
    pub layers: Vec<LayerWeights<'a>>,
    pub final_norm: &'a [bf16], // [hidden]
    pub lm_head: Matrix<'a>,    // [vocab, hidden]
}

impl<'a> Matrix<'a> {
    pub fn new(data: &'a [bf16], rows: usize, cols: usize) -> Self {
        assert_eq!(data.len(), rows * cols);
        Self { data, rows, cols }
    }

    pub fn row(&self, r: usize) -> &'a [bf16] {
        &self.data[r * self.cols..(r + 1) * self.cols]
    }
}

impl<'a> Experts<'a> {
    /// The codes of row `r` of expert `e`, `[cols / 2]`.
    pub fn row_blocks(&self, e: usize, r: usize) -> &'a [u8] {
        let n = self.cols / 2;
        &self.blocks[(e * self.rows + r) * n..][..n]
    }

    /// The scales of row `r` of expert `e`, `[cols / 32]`.
    pub fn row_scales(&self, e: usize, r: usize) -> &'a [u8] {
        let n = self.cols / crate::mxfp4::BLOCK;
        &self.scales[(e * self.rows + r) * n..][..n]
    }

    /// The biases of expert `e`, `[rows]`.
    pub fn expert_bias(&self, e: usize) -> &'a [bf16] {
        &self.bias[e * self.rows..(e + 1) * self.rows]
    }
}
