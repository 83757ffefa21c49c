//! The layer loop on the GPU, one method per stage. Stages have the names and the order of [`tessera_model::Stage`].

use half::bf16;
use tessera_model::{Config, LayerType, Limits};

use crate::attention::{Attention, AttentionShape, AttentionWorkspace, KvPool};
use crate::dense::{Dense, DenseOut};
use crate::device::{Buffer, Device};
use crate::error::DeviceError;
use crate::executor::CudaError;
use crate::launch::Stream;
use crate::model_weights::ModelWeights;
use crate::moe::grouped::{GROUP_ROWS, panels_len};
use crate::moe::{Moe, MoeChoice, MoeShape, MoeWorkspace, StageDone, Swiglu};
use crate::sampling::{Sampled, Sampler};
use crate::step::StepMeta;
use crate::steps::{NormOut, Steps};

/// The model, its cache, and what a step's stages hand on to each other.
pub(crate) struct Forward {
    pub weights: ModelWeights,
    pub step: StepMeta,
    pub pools: Vec<KvPool>, // of each layer
    pub buffers: Buffers,
    pub moe: Moe,
    kinds: Vec<LayerType>,
    attention: Attention,
    dense: Dense,
    steps: Steps,
    sampler: Sampler,
}

/// Values of the step in flight, for `max_tokens` tokens and `max_logits` vectors of logits.
pub(crate) struct Buffers {
    pub residual: Buffer<f32>,  // [tokens, hidden]
    pub normed: Buffer<bf16>,   // panels of [tokens, hidden]
    pub qkv: Buffer<f32>,       // [tokens, qkv_dim]
    pub turns: Buffer<f32>,     // [tokens, head_dim / 2, 2]
    pub q: Buffer<bf16>,        // [tokens, q_dim]
    pub attended: Buffer<bf16>, // panels of [tokens, q_dim]
    pub attention: AttentionWorkspace,
    pub x: Buffer<bf16>,     // [tokens, hidden]: the experts' input
    pub router: Buffer<f32>, // [tokens, experts]
    pub experts: MoeWorkspace,
    pub wanted: Buffer<bf16>, // panels of [logits, hidden]: normed, of the tokens that want logits
    pub logits: Buffer<f32>,  // [logits, vocab]
    pub sampled: Buffer<Sampled>, // [rows]
}

/// Hears the layer and the name of what has been queued.
pub(crate) type Done<'a> = &'a mut dyn FnMut(Option<usize>, &'static str) -> Result<(), DeviceError>;

/// The most of each that a step has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Room {
    pub tokens: usize,
    pub rows: usize,
    pub logits: usize,
}

impl Buffers {
    fn new(device: &Device, config: &Config, room: Room, attention: &Attention) -> Result<Self, CudaError> {
        let Room { tokens, rows, logits } = room;
        let (hidden, vocab) = (config.hidden_size, config.vocab_size);
        Ok(Self {
            residual: device.alloc(tokens * hidden)?,
            normed: device.alloc(panels_len(tokens, hidden))?,
            qkv: device.alloc(tokens * config.qkv_dim())?,
            turns: device.alloc(tokens * config.head_dim)?,
            q: device.alloc(tokens * config.q_dim())?,
            attended: device.alloc(attention.shape().out_len(tokens))?,
            attention: attention.workspace(device, rows)?,
            x: device.alloc(tokens * hidden)?,
            router: device.alloc(tokens * config.num_local_experts)?,
            experts: MoeWorkspace::new(device, MoeShape::of(config), tokens)?,
            wanted: device.alloc(panels_len(logits, hidden))?,
            logits: device.alloc(logits * vocab)?,
            sampled: device.alloc(rows)?,
        })
    }

    /// What they take, all but some bytes of each token and row.
    fn bytes(config: &Config, room: Room, shape: AttentionShape) -> u64 {
        let Room { tokens, rows, logits } = room;
        let (hidden, inter) = (config.hidden_size, config.intermediate_size);
        let slots = tokens * config.num_experts_per_tok + GROUP_ROWS * config.num_local_experts;
        let of_token =
            4 * hidden + 2 * 2 * hidden + 4 * config.qkv_dim() + 2 * 2 * config.q_dim() + 4 * config.head_dim;
        let of_slot = 2 * hidden + 2 * inter + 4 * hidden + 4 * config.num_local_experts;
        let values = tokens * of_token + slots * of_slot + logits * (2 * hidden + 4 * config.vocab_size);
        values as u64 + AttentionWorkspace::bytes(shape, rows)
    }
}

impl Forward {
    pub fn new(
        device: &Device,
        config: &Config,
        weights: ModelWeights,
        limits: &Limits,
        room: Room,
    ) -> Result<Self, CudaError> {
        let attention = Attention::load(device, config)?;
        let swiglu = Swiglu { limit: config.swiglu_limit, alpha: config.swiglu_alpha };
        let pool = |kind: &_| KvPool::new(device, attention.shape(), limits.blocks(*kind));
        Ok(Self {
            weights,
            step: StepMeta::new(device, config, limits, room.rows)?,
            pools: config.layer_types.iter().map(pool).collect::<Result<_, _>>()?,
            buffers: Buffers::new(device, config, room, &attention)?,
            moe: Moe::load(device, MoeShape::of(config), swiglu)?,
            kinds: config.layer_types.clone(),
            attention,
            dense: Dense::load(device)?,
            steps: Steps::load(device, config.hidden_size, config.rms_norm_eps)?,
            sampler: Sampler::load(device, config.vocab_size)?,
        })
    }

    /// What the cache and the buffers take beside the weights.
    pub fn bytes(config: &Config, limits: &Limits, room: Room) -> Result<u64, CudaError> {
        let shape = AttentionShape::of(config)?;
        let pools = config.layer_types.iter().map(|&kind| KvPool::bytes(shape, limits.blocks(kind)));
        let step = StepMeta::bytes(config, limits, room.rows)?;
        Ok(pools.sum::<u64>() + step + Buffers::bytes(config, room, shape))
    }

    pub fn n_layers(&self) -> usize {
        self.kinds.len()
    }

    /// Queues the whole step that `step` describes: logits, and tokens for the rows that sample.
    pub fn run(&mut self, stream: &Stream) -> Result<(), CudaError> {
        self.run_with(stream, &mut |_, _| Ok(()))
    }

    /// The same. When the launches of a stage are queued, or of those that are fused, `done` gets its layer and its name.
    pub fn run_with(&mut self, stream: &Stream, done: Done) -> Result<(), CudaError> {
        self.embed(stream)?;
        done(None, "embed")?;
        self.turn(stream)?;
        done(None, "turn")?;
        self.attn_norm(stream, 0)?;
        done(Some(0), "attn_norm")?;
        for layer in 0..self.n_layers() {
            self.run_layer(stream, layer, done)?;
        }
        self.final_norm(stream)?;
        done(None, "final_norm")?;
        self.logits(stream)?;
        done(None, "logits")?;
        self.sample(stream)?;
        Ok(done(None, "sample")?)
    }

    /// A layer after its first norm, and the first norm of the next one.
    fn run_layer(&mut self, stream: &Stream, layer: usize, done: Done) -> Result<(), CudaError> {
        let mut done = |name| done(Some(layer), name);
        self.qkv(stream, layer)?;
        done("qkv")?;
        let (alone, fused) = match self.kinds[layer] {
            LayerType::Full => ("attend full", "rope_store, attend full"),
            LayerType::Sliding => ("attend sliding", "rope_store, attend sliding"),
        };
        if self.step.has_prefill() {
            self.rope_store(stream, layer)?;
            done("rope_store")?;
            self.attend(stream, layer)?;
            done(alone)?;
        } else {
            self.rope_attend(stream, layer)?;
            done(fused)?;
        }
        self.attn_out(stream, layer)?;
        done("attn_out")?;
        self.mlp_norm_router(stream, layer)?;
        done("mlp_norm, router")?;
        self.experts(stream, layer, &mut done)?;
        if layer + 1 < self.n_layers() {
            self.combine_attn_norm(stream, layer + 1)?;
            return Ok(done("combine, attn_norm")?);
        }
        self.combine(stream)?;
        Ok(done("combine")?)
    }

    pub fn embed(&mut self, stream: &Stream) -> Result<(), CudaError> {
        let (tokens, n_tokens) = (self.step.tokens(), self.step.n_tokens());
        Ok(self.steps.embed(stream, tokens, n_tokens, &self.weights.embed, &mut self.buffers.residual)?)
    }

    /// Cosines and sines of every token's position, for all layers.
    pub fn turn(&mut self, stream: &Stream) -> Result<(), CudaError> {
        Ok(self.attention.turn(stream, &self.step, &mut self.buffers.turns)?)
    }

    pub fn attn_norm(&mut self, stream: &Stream, layer: usize) -> Result<(), CudaError> {
        let Buffers { residual, normed, .. } = &mut self.buffers;
        let weight = &self.weights.layers[layer].attn_norm;
        let n_tokens = self.step.n_tokens();
        Ok(self.steps.rms_norm(stream, residual, weight, n_tokens, NormOut::Panels(normed))?)
    }

    pub fn qkv(&mut self, stream: &Stream, layer: usize) -> Result<(), CudaError> {
        let Buffers { normed, qkv, .. } = &mut self.buffers;
        let weights = &self.weights.layers[layer].qkv;
        self.dense.forward(stream, weights, normed, self.step.n_tokens(), qkv, DenseOut::Store)?;
        Ok(())
    }

    pub fn rope_store(&mut self, stream: &Stream, layer: usize) -> Result<(), CudaError> {
        let Buffers { qkv, turns, q, .. } = &mut self.buffers;
        let (kind, pool) = (self.kinds[layer], &mut self.pools[layer]);
        Ok(self.attention.rope_store(stream, kind, &self.step, qkv, turns, q, pool)?)
    }

    pub fn attend(&mut self, stream: &Stream, layer: usize) -> Result<(), CudaError> {
        let Buffers { q, attended, attention: workspace, .. } = &mut self.buffers;
        let (kind, pool, sinks) = (self.kinds[layer], &self.pools[layer], &self.weights.layers[layer].sinks);
        Ok(self.attention.forward(stream, kind, &self.step, pool, sinks, q, workspace, attended)?)
    }

    /// [`Forward::rope_store`] and [`Forward::attend`], where every row has one token; `q` stays as it is.
    fn rope_attend(&mut self, stream: &Stream, layer: usize) -> Result<(), CudaError> {
        let Buffers { qkv, turns, attended, attention: workspace, .. } = &mut self.buffers;
        let (kind, pool, sinks) = (self.kinds[layer], &mut self.pools[layer], &self.weights.layers[layer].sinks);
        let (attention, step) = (&self.attention, &self.step);
        Ok(attention.rope_forward(stream, kind, step, qkv, turns, pool, sinks, workspace, attended)?)
    }

    pub fn attn_out(&mut self, stream: &Stream, layer: usize) -> Result<(), CudaError> {
        let Buffers { attended, residual, .. } = &mut self.buffers;
        let weights = &self.weights.layers[layer].o;
        self.dense.forward(stream, weights, attended, self.step.n_tokens(), residual, DenseOut::Add)?;
        Ok(())
    }

    fn mlp_norm_router(&mut self, stream: &Stream, layer: usize) -> Result<(), CudaError> {
        let Buffers { residual, x, router, .. } = &mut self.buffers;
        let weights = &self.weights.layers[layer];
        let n_tokens = self.step.n_tokens();
        Ok(self.steps.norm_router(stream, residual, &weights.mlp_norm, &weights.router, n_tokens, x, router)?)
    }

    pub fn mlp_norm(&mut self, stream: &Stream, layer: usize) -> Result<(), CudaError> {
        let Buffers { residual, x, .. } = &mut self.buffers;
        let weight = &self.weights.layers[layer].mlp_norm;
        Ok(self.steps.rms_norm(stream, residual, weight, self.step.n_tokens(), NormOut::Rows(x))?)
    }

    pub fn router(&mut self, stream: &Stream, layer: usize) -> Result<(), CudaError> {
        let Buffers { x, router, .. } = &mut self.buffers;
        Ok(self.steps.router(stream, &self.weights.layers[layer].router, x, self.step.n_tokens(), router)?)
    }

    /// Route, gate_up with SwiGLU, and down.
    fn experts(&mut self, stream: &Stream, layer: usize, done: StageDone) -> Result<(), CudaError> {
        let Buffers { x, router, experts, .. } = &mut self.buffers;
        let (weights, n_tokens) = (&self.weights.layers[layer].moe, self.step.n_tokens());
        self.moe.experts_with(stream, weights, router, x, n_tokens, MoeChoice::Auto, experts, done)?;
        Ok(())
    }

    pub fn combine(&mut self, stream: &Stream) -> Result<(), CudaError> {
        let Buffers { residual, experts, .. } = &mut self.buffers;
        Ok(self.steps.combine_add(stream, experts, residual)?)
    }

    /// [`Forward::combine`], and the norm of the layer that follows.
    fn combine_attn_norm(&mut self, stream: &Stream, layer: usize) -> Result<(), CudaError> {
        let Buffers { residual, experts, normed, .. } = &mut self.buffers;
        let weight = &self.weights.layers[layer].attn_norm;
        Ok(self.steps.combine_norm(stream, experts, residual, weight, NormOut::Panels(normed))?)
    }

    pub fn final_norm(&mut self, stream: &Stream) -> Result<(), CudaError> {
        let Buffers { residual, wanted, .. } = &mut self.buffers;
        let (tokens, n_logits) = (self.step.logit_tokens(), self.step.n_logits());
        let out = NormOut::Panels(wanted);
        Ok(self.steps.rms_norm_of(stream, residual, &self.weights.final_norm, tokens, n_logits, out)?)
    }

    pub fn logits(&mut self, stream: &Stream) -> Result<(), CudaError> {
        let Buffers { wanted, logits, .. } = &mut self.buffers;
        let n_logits = self.step.n_logits();
        if n_logits > 0 {
            self.dense.forward(stream, &self.weights.lm_head, wanted, n_logits, logits, DenseOut::Store)?;
        }
        Ok(())
    }

    pub fn sample(&mut self, stream: &Stream) -> Result<(), CudaError> {
        let Buffers { logits, sampled, .. } = &mut self.buffers;
        let (n_logits, samplings, n_rows) = (self.step.n_logits(), self.step.samplings(), self.step.n_samplings());
        Ok(self.sampler.sample(stream, logits, n_logits, samplings, n_rows, sampled)?)
    }
}
