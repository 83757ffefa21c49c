//! What each buffer must hold: experts by the host's packer, everything else element by element.

use half::bf16;
use tessera_cuda::pack::{Matrix as ExpertMatrix, Packer, Rows, ScaleShift, Shape};
use tessera_model::{Config, Experts, Linear, Weights};

pub struct Expected<'a> {
    config: &'a Config,
    weights: &'a Weights<'a>,
}

impl<'a> Expected<'a> {
    pub fn new(config: &'a Config, weights: &'a Weights<'a>) -> Self {
        Self { config, weights }
    }

    /// The bytes of the buffer of that name.
    pub fn buffer(&self, name: &str) -> Vec<u8> {
        let (w, c) = (self.weights, self.config);
        let head = Linear { weight: w.lm_head, bias: &[] };
        if let Some(name) = name.strip_prefix("layers.") {
            let (layer, name) = name.split_once('.').unwrap();
            return self.layer_buffer(layer.parse().unwrap(), name);
        }
        match name {
            "embed" => bytemuck::cast_slice(w.embed.data).to_vec(),
            "final_norm" => widened(w.final_norm, c.hidden_size),
            "lm_head.records" => records(&[head]),
            "lm_head.bias" => widened(&[], c.vocab_size.next_multiple_of(16)),
            _ => panic!("an unknown buffer: {name}"),
        }
    }

    /// Of every layer's gate_up and down.
    pub fn weight_scales(&self) -> Vec<[f32; 2]> {
        let scale = |experts: &Experts| {
            let above = experts.scales.iter().max().map_or(0, |&largest| i32::from(largest) - 128);
            2_f32.powi(above.max(0))
        };
        self.weights.layers.iter().map(|layer| [scale(&layer.gate_up), scale(&layer.down)]).collect()
    }

    fn layer_buffer(&self, layer: usize, name: &str) -> Vec<u8> {
        let (w, c) = (&self.weights.layers[layer], self.config);
        let qkv_bias = [w.q.bias, w.k.bias, w.v.bias].concat();
        match name {
            "attn_norm" => widened(w.attn_norm, c.hidden_size),
            "qkv.records" => records(&[w.q, w.k, w.v]),
            "qkv.bias" => widened(&qkv_bias, c.qkv_dim()),
            "o.records" => records(&[w.o]),
            "o.bias" => widened(w.o.bias, c.hidden_size),
            "sinks" => widened(w.sinks, c.num_attention_heads),
            "mlp_norm" => widened(w.mlp_norm, c.hidden_size),
            "router.records" => records(&[w.router]),
            "router.bias" => widened(w.router.bias, c.num_local_experts.next_multiple_of(16)),
            "gate_up.records" => packed(&w.gate_up, Rows::GateUp),
            "gate_up.bias" => biases(&w.gate_up, |row| 16 * (row / 16) + row % 16 / 2 + 8 * (row % 2)),
            "down.records" => packed(&w.down, Rows::Natural),
            "down.bias" => biases(&w.down, |row| row),
            _ => panic!("an unknown buffer of a layer: {name}"),
        }
    }
}

/// Zeros up to `n`.
fn widened(values: &[bf16], n: usize) -> Vec<u8> {
    let mut out = vec![0_u32; n];
    for (out, value) in out.iter_mut().zip(values) {
        *out = u32::from(value.to_bits()) << 16;
    }
    assert!(values.len() <= n);
    bytemuck::cast_slice(&out).to_vec()
}

/// One under the other, in records of 16 rows by 64 columns: row r of a group of 8 at 128 r, its 16-byte piece c at
/// 16 (c ^ r).
fn records(matrices: &[Linear]) -> Vec<u8> {
    let cols = matrices[0].weight.cols;
    let rows: usize = matrices.iter().map(|linear| linear.weight.rows).sum();
    let k_records = cols.div_ceil(64);
    let mut out = vec![0_u16; rows.div_ceil(16) * k_records * 1024];
    let all_rows = matrices.iter().flat_map(|linear| linear.weight.data.chunks(cols));
    for (row, values) in all_rows.enumerate() {
        for (column, value) in values.iter().enumerate() {
            let record = (row / 16) * k_records + column / 64;
            let (group, r, piece) = (row % 16 / 8, row % 8, column % 64 / 8);
            let byte = record * 2048 + group * 1024 + r * 128 + (piece ^ r) * 16;
            out[byte / 2 + column % 8] = value.to_bits();
        }
    }
    bytemuck::cast_slice(&out).to_vec()
}

fn packed(experts: &Experts, order: Rows) -> Vec<u8> {
    let shape = Shape::new(experts.rows, experts.cols).unwrap();
    let shift = ScaleShift::of(experts.scales, shape.blocks()).unwrap();
    let mut out = vec![0; experts.experts * shape.packed_bytes()];
    let blocks = experts.blocks.chunks(experts.rows * experts.cols / 2);
    let scales = experts.scales.chunks(experts.rows * shape.blocks());
    for ((blocks, scales), out) in blocks.zip(scales).zip(out.chunks_mut(shape.packed_bytes())) {
        Packer::new(ExpertMatrix::new(blocks, scales, shape).unwrap(), order, shift).unwrap().pack(out);
    }
    out
}

/// Of each expert, `place` says the packed row of a row; the others are 0.
fn biases(experts: &Experts, place: impl Fn(usize) -> usize) -> Vec<u8> {
    let packed_rows = experts.rows.next_multiple_of(64);
    let mut out = vec![0_u32; experts.experts * packed_rows];
    for (out, biases) in out.chunks_mut(packed_rows).zip(experts.bias.chunks(experts.rows)) {
        for (row, bias) in biases.iter().enumerate() {
            out[place(row)] = u32::from(bias.to_bits()) << 16;
        }
    }
    bytemuck::cast_slice(&out).to_vec()
}
