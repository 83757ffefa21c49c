//! Random layers and inputs.

use half::bf16;
use tessera_cuda::MoeShape;
use tessera_model::weights::Experts;

use crate::random::Random;

/// A matrix of every expert, as checkpoints have it.
pub struct Tensor {
    pub blocks: Vec<u8>,
    pub scales: Vec<u8>,
    pub bias: Vec<bf16>,
    pub experts: usize,
    pub rows: usize,
    pub cols: usize,
}

pub struct Layer {
    pub shape: MoeShape,
    pub gate_up: Tensor,
    pub down: Tensor,
}

/// Tokens, and who chooses their experts.
#[derive(Clone)]
pub struct Inputs {
    pub n_tokens: usize,
    pub x: Vec<bf16>, // [tokens, hidden]
    pub routing: Routing,
}

#[derive(Clone)]
pub enum Routing {
    /// `[tokens, experts]`
    Logits(Vec<f32>),
    /// Both `[tokens, top_k]`.
    Given { ids: Vec<i32>, weights: Vec<f32> },
}

/// Of what sign all numbers are.
#[derive(Clone, Copy, PartialEq)]
pub enum Signs {
    Both,
    /// No sum cancels.
    Positive,
}

pub fn shape(hidden: usize, intermediate: usize, experts: usize, top_k: usize) -> MoeShape {
    MoeShape { hidden, intermediate, experts, top_k }
}

impl Tensor {
    /// Scale bytes from `scales.0` to `scales.1`, biases of about `2^bias_exponent`.
    pub fn random(
        random: &mut Random,
        [experts, rows, cols]: [usize; 3],
        signs: Signs,
        scales: (u8, u8),
        bias_exponent: i32,
    ) -> Self {
        let mut blocks = random.bytes(experts * rows * cols / 2);
        if signs == Signs::Positive {
            blocks.iter_mut().for_each(|byte| *byte &= 0x77);
        }
        let bias = (0..experts * rows).map(|_| number(random, signs, bias_exponent)).collect();
        let scales = random.bytes_between(scales.0, scales.1, experts * rows * cols / 32);
        Self { blocks, scales, bias, experts, rows, cols }
    }

    pub fn view(&self) -> Experts<'_> {
        let Self { blocks, scales, bias, experts, rows, cols } = self;
        Experts { blocks, scales, bias, experts: *experts, rows: *rows, cols: *cols }
    }
}

impl Layer {
    /// With weights that give sums of a few units for inputs of one: some beyond the limit, most within.
    pub fn random(shape: MoeShape, signs: Signs) -> Self {
        let scales = |cols: usize| {
            // A sum of `cols` terms of about 2 grows with the root of their number, or with their number.
            let highest = match signs {
                Signs::Both => 128 - cols.ilog2().div_ceil(2) as u8,
                Signs::Positive => 127 - cols.ilog2() as u8,
            };
            (highest - 3, highest)
        };
        Self::with(shape, signs, [scales(shape.hidden), scales(shape.intermediate)], [-1, -1])
    }

    /// With scale bytes and exponents of biases of gate_up and down.
    pub fn with(shape: MoeShape, signs: Signs, scales: [(u8, u8); 2], bias_exponents: [i32; 2]) -> Self {
        let MoeShape { hidden, intermediate, experts, .. } = shape;
        let mut random = Random((hidden * 1_000_000 + intermediate * 1000 + experts) as u64);
        let sizes = [[experts, 2 * intermediate, hidden], [experts, hidden, intermediate]];
        let mut tensor = |i: usize| Tensor::random(&mut random, sizes[i], signs, scales[i], bias_exponents[i]);
        Self { shape, gate_up: tensor(0), down: tensor(1) }
    }

    /// Random tokens of about one with random logits.
    pub fn inputs(&self, n_tokens: usize, signs: Signs) -> Inputs {
        self.inputs_of(n_tokens, signs, 0)
    }

    /// Of about `2^exponent`.
    pub fn inputs_of(&self, n_tokens: usize, signs: Signs, exponent: i32) -> Inputs {
        let mut random = Random(n_tokens as u64 + 77);
        let x = (0..n_tokens * self.shape.hidden).map(|_| number(&mut random, signs, exponent)).collect();
        let logits = (0..n_tokens * self.shape.experts).map(|_| random.normal() as f32).collect();
        Inputs { n_tokens, x, routing: Routing::Logits(logits) }
    }
}

impl Inputs {
    /// With what `change` makes of the logit of a token and an expert.
    pub fn with_logits(mut self, experts: usize, change: impl Fn(usize, usize, f32) -> f32) -> Self {
        if let Routing::Logits(logits) = &mut self.routing {
            for (i, logit) in logits.iter_mut().enumerate() {
                *logit = change(i / experts, i % experts, *logit);
            }
        }
        self
    }

    /// With the expert that `id` gives for a token and a rank, all of the same weight.
    pub fn with_ids(mut self, top_k: usize, id: impl FnMut(usize) -> i32) -> Self {
        let n_slots = self.n_tokens * top_k;
        self.routing = Routing::Given { ids: (0..n_slots).map(id).collect(), weights: vec![0.25; n_slots] };
        self
    }

    /// Some of the tokens, in that order.
    pub fn pick(&self, tokens: &[usize]) -> Self {
        let routing = match &self.routing {
            Routing::Logits(logits) => Routing::Logits(rows(logits, self.n_tokens, tokens)),
            Routing::Given { ids, weights } => {
                Routing::Given { ids: rows(ids, self.n_tokens, tokens), weights: rows(weights, self.n_tokens, tokens) }
            }
        };
        Self { n_tokens: tokens.len(), x: rows(&self.x, self.n_tokens, tokens), routing }
    }
}

/// Some rows of `values`, `[n_rows, len / n_rows]`.
pub fn rows<T: Clone>(values: &[T], n_rows: usize, picked: &[usize]) -> Vec<T> {
    let width = values.len() / n_rows.max(1);
    picked.iter().flat_map(|row| values[row * width..][..width].iter().cloned()).collect()
}

fn number(random: &mut Random, signs: Signs, exponent: i32) -> bf16 {
    let magnitude = match signs {
        Signs::Both => random.normal(),
        Signs::Positive => 0.5 + random.unit() / 2.0,
    };
    bf16::from_f64(magnitude * 2_f64.powi(exponent))
}
