//! A model's weights in the GPU's memory, in the forms that the kernels read: loaded from a checkpoint, or made.
//!
//! Loading streams the checkpoint through a few buffers: nowhere is there a second copy of it. Threads copy pieces of it
//! into pinned memory, the GPU takes them from there and packs them, each while others do theirs.

use std::ops::ControlFlow;

use bytemuck::Pod;
use half::bf16;
use tessera_model::checkpoint::{Layout, TensorSpec};
use tessera_model::{Config, Weights};

use crate::dense::{DenseShape, DenseWeights, MAX_COLS};
use crate::device::{Buffer, Device};
use crate::error::DeviceError;
use crate::kernels::attention::{HEAD_DIMS, MAX_GROUP};
use crate::launch::Stream;
use crate::moe::{MoeShape, MoeWeights};
use crate::pack::ScaleShift;
use crate::sampling::MAX_VOCAB;

mod dummy;
mod error;
mod load;
mod placement;
mod shifts;

pub use error::ModelWeightsError;

/// All weights of a model.
pub struct ModelWeights {
    pub(crate) embed: Buffer<bf16>, // [vocab, hidden]
    pub(crate) layers: Vec<LayerBuffers>,
    pub(crate) final_norm: Buffer<f32>, // [hidden]
    pub(crate) lm_head: DenseWeights,   // [vocab, hidden]
}

/// The weights of one layer.
pub struct LayerBuffers {
    pub(crate) attn_norm: Buffer<f32>, // [hidden]
    pub(crate) qkv: DenseWeights,      // [qkv_dim, hidden]: queries, keys, values
    pub(crate) o: DenseWeights,        // [hidden, q_dim]
    pub(crate) sinks: Buffer<f32>,     // [heads]
    pub(crate) mlp_norm: Buffer<f32>,  // [hidden]
    pub(crate) router: DenseWeights,   // [experts, hidden]
    pub(crate) moe: MoeWeights,
}

/// What is taken out of the scales of a layer's experts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct LayerShifts {
    gate_up: ScaleShift,
    down: ScaleShift,
}

impl ModelWeights {
    /// Packs a checkpoint's weights; returns when they are there. `progress` is told the bytes of the checkpoint that are
    /// done, of [`ModelWeights::checkpoint_bytes`], and breaks off.
    ///
    /// Scales are looked through first: an error of theirs comes before anything is allocated.
    pub fn load(
        device: &Device,
        config: &Config,
        weights: &Weights,
        progress: &mut dyn FnMut(u64) -> ControlFlow<()>,
    ) -> Result<Self, ModelWeightsError> {
        let shape = checked(config)?;
        let (expected, found) = (config.num_hidden_layers, weights.layers.len());
        if found != expected {
            return Err(ModelWeightsError::Layers { expected, found });
        }
        let shifts = shifts::of(config, weights)?;
        let model = Self::alloc(device, config, shape, &shifts)?;
        load::run(device, config, weights, &model.placements(config, &shifts), progress)?;
        Ok(model)
    }

    /// Makes the weights that `tessera_model::synth` writes for this configuration and seed, value for value, without a
    /// checkpoint. `progress` is as that of [`ModelWeights::load`].
    pub fn dummy(
        device: &Device,
        config: &Config,
        seed: u64,
        progress: &mut dyn FnMut(u64) -> ControlFlow<()>,
    ) -> Result<Self, ModelWeightsError> {
        let shape = checked(config)?;
        let shifts = dummy::shifts(config, seed);
        let model = Self::alloc(device, config, shape, &shifts)?;
        dummy::run(device, config, seed, &model.placements(config, &shifts), progress)?;
        Ok(model)
    }

    /// Bytes of all buffers, before anything is allocated. While a checkpoint is loaded, some hundreds of MB more are in use.
    pub fn bytes(config: &Config) -> Result<u64, ModelWeightsError> {
        let shape = checked(config)?;
        let vector = |n: usize| (n * size_of::<f32>()) as u64;
        let dense = |rows, cols| DenseShape { rows, cols }.bytes() as u64;
        let (hidden, vocab) = (config.hidden_size, config.vocab_size);
        let layer = 2 * vector(hidden)
            + dense(config.qkv_dim(), hidden)
            + dense(hidden, config.q_dim())
            + vector(config.num_attention_heads)
            + dense(config.num_local_experts, hidden)
            + MoeWeights::bytes(shape);
        let embed = (vocab * hidden * size_of::<bf16>()) as u64;
        Ok(embed + layer * config.num_hidden_layers as u64 + vector(hidden) + dense(vocab, hidden))
    }

    /// Bytes of all tensors of a checkpoint, whatever its layout: what `progress` counts to.
    pub fn checkpoint_bytes(config: &Config) -> u64 {
        Layout::Hf.tensors(config).iter().map(TensorSpec::bytes).sum()
    }

    /// Shows every buffer, by name, one at a time: `layers.3.gate_up.records`.
    pub fn contents(&self, stream: &Stream, visit: &mut dyn FnMut(&str, &[u8])) -> Result<(), DeviceError> {
        show(stream, "embed", &self.embed, visit)?;
        for (i, layer) in self.layers.iter().enumerate() {
            layer.contents(stream, &mut |name, bytes| visit(&format!("layers.{i}.{name}"), bytes))?;
        }
        show(stream, "final_norm", &self.final_norm, visit)?;
        show_dense(stream, "lm_head", &self.lm_head, visit)
    }

    /// Of each layer, what the sums of gate_up and down are multiplied by.
    pub fn weight_scales(&self) -> Vec<[f32; 2]> {
        self.layers.iter().map(|layer| layer.moe.weight_scales()).collect()
    }

    /// All zero.
    fn alloc(
        device: &Device,
        config: &Config,
        shape: MoeShape,
        shifts: &[LayerShifts],
    ) -> Result<Self, ModelWeightsError> {
        let (hidden, vocab) = (config.hidden_size, config.vocab_size);
        Ok(Self {
            embed: device.alloc(vocab * hidden)?,
            layers: shifts
                .iter()
                .map(|shifts| LayerBuffers::alloc(device, config, shape, shifts))
                .collect::<Result<_, _>>()?,
            final_norm: device.alloc(hidden)?,
            lm_head: DenseWeights::alloc(device, DenseShape { rows: vocab, cols: hidden })?,
        })
    }
}

impl LayerBuffers {
    fn alloc(
        device: &Device,
        config: &Config,
        shape: MoeShape,
        shifts: &LayerShifts,
    ) -> Result<Self, ModelWeightsError> {
        let hidden = config.hidden_size;
        let dense = |rows, cols| DenseWeights::alloc(device, DenseShape { rows, cols });
        Ok(Self {
            attn_norm: device.alloc(hidden)?,
            qkv: dense(config.qkv_dim(), hidden)?,
            o: dense(hidden, config.q_dim())?,
            sinks: device.alloc(config.num_attention_heads)?,
            mlp_norm: device.alloc(hidden)?,
            router: dense(config.num_local_experts, hidden)?,
            moe: MoeWeights::alloc(device, shape, [shifts.gate_up.factor(), shifts.down.factor()])?,
        })
    }

    fn contents(&self, stream: &Stream, visit: &mut dyn FnMut(&str, &[u8])) -> Result<(), DeviceError> {
        show(stream, "attn_norm", &self.attn_norm, visit)?;
        show_dense(stream, "qkv", &self.qkv, visit)?;
        show_dense(stream, "o", &self.o, visit)?;
        show(stream, "sinks", &self.sinks, visit)?;
        show(stream, "mlp_norm", &self.mlp_norm, visit)?;
        show_dense(stream, "router", &self.router, visit)?;
        show(stream, "gate_up.records", &self.moe.gate_up.records, visit)?;
        show(stream, "gate_up.bias", &self.moe.gate_up.bias, visit)?;
        show(stream, "down.records", &self.moe.down.records, visit)?;
        show(stream, "down.bias", &self.moe.down.bias, visit)
    }
}

fn show<T: Pod>(
    stream: &Stream,
    name: &str,
    buffer: &Buffer<T>,
    visit: &mut dyn FnMut(&str, &[u8]),
) -> Result<(), DeviceError> {
    let mut values = vec![T::zeroed(); buffer.len()];
    stream.download(buffer, 0, &mut values)?;
    visit(name, bytemuck::cast_slice(&values));
    Ok(())
}

fn show_dense(
    stream: &Stream,
    name: &str,
    of: &DenseWeights,
    visit: &mut dyn FnMut(&str, &[u8]),
) -> Result<(), DeviceError> {
    show(stream, &format!("{name}.records"), &of.records, visit)?;
    show(stream, &format!("{name}.bias"), &of.bias, visit)
}

/// The experts' shape, if the kernels can work on all of the model's.
fn checked(config: &Config) -> Result<MoeShape, ModelWeightsError> {
    let refuse = |field, expected, found| Err(ModelWeightsError::Field { field, expected, found });
    let (heads, kv_heads) = (config.num_attention_heads, config.num_key_value_heads);
    if !HEAD_DIMS.contains(&config.head_dim) {
        return refuse("head_dim", "32 or 64".to_owned(), config.head_dim);
    }
    if heads > MAX_GROUP * kv_heads {
        let expected = format!("at most {MAX_GROUP} per head of keys, which are {kv_heads}");
        return refuse("num_attention_heads", expected, heads);
    }
    if config.vocab_size > MAX_VOCAB {
        return refuse("vocab_size", format!("at most {MAX_VOCAB}"), config.vocab_size);
    }
    if config.q_dim() > MAX_COLS {
        return refuse("num_attention_heads * head_dim", format!("at most {MAX_COLS}"), config.q_dim());
    }
    Ok(MoeShape::of(config).checked()?)
}
