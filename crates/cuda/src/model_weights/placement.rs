//! Which part of a checkpoint goes where, and in which form.

use half::bf16;
use tessera_model::checkpoint::Part;
use tessera_model::{Config, LayerWeights, Weights};

use super::{LayerBuffers, LayerShifts, ModelWeights, ModelWeightsError};
use crate::dense::DenseWeights;
use crate::device::{Address, Buffer};
use crate::moe::{Projection, Tiles};
use crate::pack::{Rows, ScaleShift};

/// A part's place.
#[derive(Clone, Copy)]
pub(super) struct Placement {
    pub layer: Option<usize>,
    pub part: Part,
    pub form: Form,
}

#[derive(Clone, Copy)]
pub(super) enum Form {
    /// Values as the checkpoint has them.
    Plain { target: Address, n: usize },
    /// Records of BF16, from the beginning of a strip.
    Dense { records: Address, rows: usize, cols: usize },
    /// Values of rows in float32, as the matrices `[matrices, rows]` have them packed.
    Values { target: Address, matrices: usize, rows: usize, packed_rows: usize, order: Rows },
    /// Records of MXFP4 of all experts; the part is the blocks.
    Experts { records: Address, tiles: Tiles, experts: usize, scales: Part, shift: ScaleShift },
}

impl Placement {
    /// The part, and the one that comes with it.
    pub fn parts(&self) -> impl Iterator<Item = Part> {
        let scales = match self.form {
            Form::Experts { scales, .. } => Some(scales),
            _ => None,
        };
        std::iter::once(self.part).chain(scales)
    }
}

impl ModelWeights {
    /// Of all parts, in the order of the Hugging Face layout; scales go with their blocks.
    pub(super) fn placements(&self, config: &Config, shifts: &[LayerShifts]) -> Vec<Placement> {
        let outside = |part, form| Placement { layer: None, part, form };
        let mut placements =
            vec![outside(Part::Embed, Form::Plain { target: self.embed.address(), n: self.embed.len() })];
        for (i, (layer, shifts)) in self.layers.iter().zip(shifts).enumerate() {
            let forms = layer.forms(config, *shifts);
            placements.extend(forms.into_iter().map(|(part, form)| Placement { layer: Some(i), part, form }));
        }
        placements.push(outside(Part::FinalNorm, vector(&self.final_norm)));
        placements.push(outside(Part::LmHead, dense(&self.lm_head, 0, self.lm_head.shape.rows)));
        placements
    }
}

impl LayerBuffers {
    fn forms(&self, config: &Config, shifts: LayerShifts) -> [(Part, Form); 17] {
        let (q, kv) = (config.q_dim(), config.kv_dim());
        let (qkv, moe, n_experts) = (&self.qkv, &self.moe, self.moe.shape.experts);
        let matrices = |of: &Projection, tiles, scales, shift| Form::Experts {
            records: of.records.address(),
            tiles,
            experts: n_experts,
            scales,
            shift,
        };
        let bias = |of: &DenseWeights, first, rows| values(of.bias.address().plus(first * size_of::<f32>()), rows);
        [
            (Part::AttnNorm, vector(&self.attn_norm)),
            (Part::Q, dense(qkv, 0, q)),
            (Part::QBias, bias(qkv, 0, q)),
            (Part::K, dense(qkv, q, kv)),
            (Part::KBias, bias(qkv, q, kv)),
            (Part::V, dense(qkv, q + kv, kv)),
            (Part::VBias, bias(qkv, q + kv, kv)),
            (Part::O, dense(&self.o, 0, self.o.shape.rows)),
            (Part::OBias, bias(&self.o, 0, self.o.shape.rows)),
            (Part::Sinks, vector(&self.sinks)),
            (Part::MlpNorm, vector(&self.mlp_norm)),
            (Part::Router, dense(&self.router, 0, self.router.shape.rows)),
            (Part::RouterBias, bias(&self.router, 0, self.router.shape.rows)),
            (Part::GateUpBlocks, matrices(&moe.gate_up, moe.shape.gate_up(), Part::GateUpScales, shifts.gate_up)),
            (Part::GateUpBias, biases(&moe.gate_up, moe.shape.gate_up(), n_experts)),
            (Part::DownBlocks, matrices(&moe.down, moe.shape.down(), Part::DownScales, shifts.down)),
            (Part::DownBias, biases(&moe.down, moe.shape.down(), n_experts)),
        ]
    }
}

/// Rows from `first` on, a multiple of 16.
fn dense(of: &DenseWeights, first: usize, rows: usize) -> Form {
    Form::Dense { records: of.strip(first), rows, cols: of.shape.cols }
}

fn vector(of: &Buffer<f32>) -> Form {
    values(of.address(), of.len())
}

fn values(target: Address, n: usize) -> Form {
    Form::Values { target, matrices: 1, rows: n, packed_rows: n, order: Rows::Natural }
}

fn biases(of: &Projection, tiles: Tiles, experts: usize) -> Form {
    let (rows, packed_rows, order) = (tiles.rows, tiles.packed_rows(), tiles.order);
    Form::Values { target: of.bias.address(), matrices: experts, rows, packed_rows, order }
}

/// The bytes of a part, as many as the configuration asks for.
pub(super) fn part_bytes<'a>(
    config: &Config,
    weights: &Weights<'a>,
    layer: Option<usize>,
    part: Part,
) -> Result<&'a [u8], ModelWeightsError> {
    let bytes = match layer {
        None => outside(weights, part),
        Some(i) => weights.layers.get(i).map_or(&[][..], |layer| in_layer(layer, part)),
    };
    let expected = source_bytes(config, part);
    match bytes.len() == expected {
        true => Ok(bytes),
        false => Err(ModelWeightsError::Length { layer, part, expected, found: bytes.len() }),
    }
}

/// Bytes of a part in the checkpoint.
pub(super) fn source_bytes(config: &Config, part: Part) -> usize {
    part.shape(config).iter().product::<usize>() * part.element_bytes()
}

fn outside<'a>(weights: &Weights<'a>, part: Part) -> &'a [u8] {
    bytemuck::cast_slice(match part {
        Part::Embed => weights.embed.data,
        Part::FinalNorm => weights.final_norm,
        Part::LmHead => weights.lm_head.data,
        _ => &[],
    })
}

fn in_layer<'a>(layer: &LayerWeights<'a>, part: Part) -> &'a [u8] {
    let values: &[bf16] = match part {
        Part::AttnNorm => layer.attn_norm,
        Part::Q => layer.q.weight.data,
        Part::QBias => layer.q.bias,
        Part::K => layer.k.weight.data,
        Part::KBias => layer.k.bias,
        Part::V => layer.v.weight.data,
        Part::VBias => layer.v.bias,
        Part::O => layer.o.weight.data,
        Part::OBias => layer.o.bias,
        Part::Sinks => layer.sinks,
        Part::MlpNorm => layer.mlp_norm,
        Part::Router => layer.router.weight.data,
        Part::RouterBias => layer.router.bias,
        Part::GateUpBlocks => return layer.gate_up.blocks,
        Part::GateUpScales => return layer.gate_up.scales,
        Part::GateUpBias => layer.gate_up.bias,
        Part::DownBlocks => return layer.down.blocks,
        Part::DownScales => return layer.down.scales,
        Part::DownBias => layer.down.bias,
        _ => &[],
    };
    bytemuck::cast_slice(values)
}
