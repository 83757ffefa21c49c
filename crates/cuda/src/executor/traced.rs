//! A step whose every stage is shown, and may be changed: what a trace leaves goes back to the GPU in the form that the next
//! stage reads, so BF16 where that is BF16.

use bytemuck::Pod;
use half::bf16;
use tessera_model::{BLOCK_SIZE, Batch, Config, LayerType, Site, Stage, Trace};

use super::{CudaError, CudaExecutor, queue_tokens};
use crate::attention::KvPool;
use crate::device::Buffer;
use crate::error::DeviceError;
use crate::launch::Stream;
use crate::moe::MoeChoice;
use crate::moe::grouped::{GROUP_ROWS, PANEL, PIECE, panels_len};
use crate::slots::{self, Slots};

/// The trace, and where in the model it is.
struct Show<'a> {
    trace: &'a mut dyn Trace,
    layer: Option<usize>,
}

impl Show<'_> {
    fn visit(&mut self, stage: Stage, width: usize, values: &mut [f32]) {
        self.trace.visit(Site { layer: self.layer, stage }, width, values);
    }

    /// The first `values.len()` elements of a buffer of float32.
    fn buffer(
        &mut self,
        stream: &Stream,
        stage: Stage,
        width: usize,
        rows: usize,
        buffer: &mut Buffer<f32>,
    ) -> Result<(), CudaError> {
        let mut values = download(stream, buffer, rows * width)?;
        self.visit(stage, width, &mut values);
        Ok(stream.upload(&values, buffer, 0)?)
    }

    /// Rows of bf16.
    fn rows(
        &mut self,
        stream: &Stream,
        stage: Stage,
        width: usize,
        rows: usize,
        buffer: &mut Buffer<bf16>,
    ) -> Result<(), CudaError> {
        let mut values: Vec<f32> = download(stream, buffer, rows * width)?.iter().map(|x| x.to_f32()).collect();
        self.visit(stage, width, &mut values);
        let rounded: Vec<bf16> = values.iter().map(|&x| bf16::from_f32(x)).collect();
        Ok(stream.upload(&rounded, buffer, 0)?)
    }

    /// Rows of bf16 in panels.
    fn panels(
        &mut self,
        stream: &Stream,
        stage: Stage,
        width: usize,
        rows: usize,
        buffer: &mut Buffer<bf16>,
    ) -> Result<(), CudaError> {
        let groups = rows.div_ceil(GROUP_ROWS);
        let mut panels = download(stream, buffer, panels_len(rows, width))?;
        let place = |row, column| place(groups, row, column);
        let mut values = vec![0.0; rows * width];
        for (row, values) in values.chunks_exact_mut(width).enumerate() {
            values.iter_mut().enumerate().for_each(|(column, value)| *value = panels[place(row, column)].to_f32());
        }
        self.visit(stage, width, &mut values);
        for (row, values) in values.chunks_exact(width).enumerate() {
            values.iter().enumerate().for_each(|(column, &value)| panels[place(row, column)] = bf16::from_f32(value));
        }
        Ok(stream.upload(&panels, buffer, 0)?)
    }
}

/// Where an element of rows in panels of `groups` groups lies.
fn place(groups: usize, row: usize, column: usize) -> usize {
    let (group, r, panel, piece) = (row / GROUP_ROWS, row % GROUP_ROWS, column / PANEL, column % PANEL / PIECE);
    ((panel * groups + group) * GROUP_ROWS + r) * PANEL + (piece ^ r) * PIECE + column % PIECE
}

fn download<T: Pod>(stream: &Stream, from: &Buffer<T>, n: usize) -> Result<Vec<T>, DeviceError> {
    let mut to = vec![T::zeroed(); n];
    stream.download(from, 0, &mut to)?;
    Ok(to)
}

impl CudaExecutor {
    /// The step, stage by stage; nothing is fused, and no graph is replayed.
    pub(super) fn run_traced(&mut self, batch: &Batch, trace: &mut dyn Trace) -> Result<(), CudaError> {
        self.send(batch, None)?;
        let Self { config, stream, forward, .. } = self;
        let (hidden, n_tokens, n_layers) = (config.hidden_size, batch.tokens.len(), forward.n_layers());
        let mut show = Show { trace, layer: None };
        forward.embed(stream)?;
        show.buffer(stream, Stage::Embed, hidden, n_tokens, &mut forward.buffers.residual)?;
        forward.turn(stream)?;
        for layer in 0..n_layers {
            show.layer = Some(layer);
            self.attention_traced(layer, batch, &mut show)?;
            self.experts_traced(layer, n_tokens, &mut show)?;
        }
        let Self { config, stream, forward, sampled, .. } = self;
        show.layer = None;
        let n_logits = batch.n_logits();
        forward.final_norm(stream)?;
        if n_logits > 0 {
            show.panels(stream, Stage::FinalNorm, hidden, n_logits, &mut forward.buffers.wanted)?;
            forward.logits(stream)?;
            show.buffer(stream, Stage::Logits, config.vocab_size, n_logits, &mut forward.buffers.logits)?;
        }
        forward.sample(stream)?;
        queue_tokens(stream, forward, sampled)
    }

    fn attention_traced(&mut self, layer: usize, batch: &Batch, show: &mut Show) -> Result<(), CudaError> {
        let Self { config, stream, forward, .. } = self;
        let n_tokens = batch.tokens.len();
        forward.attn_norm(stream, layer)?;
        show.panels(stream, Stage::AttnNorm, config.hidden_size, n_tokens, &mut forward.buffers.normed)?;
        forward.qkv(stream, layer)?;
        show.buffer(stream, Stage::Qkv, config.qkv_dim(), n_tokens, &mut forward.buffers.qkv)?;
        forward.rope_store(stream, layer)?;
        let (kind, pool) = (config.layer_types[layer], &mut forward.pools[layer]);
        show_stored(stream, config, batch, kind, show, &mut forward.buffers.q, pool)?;
        forward.attend(stream, layer)?;
        show.panels(stream, Stage::Attend, config.q_dim(), n_tokens, &mut forward.buffers.attended)?;
        forward.attn_out(stream, layer)?;
        show.buffer(stream, Stage::AttnOut, config.hidden_size, n_tokens, &mut forward.buffers.residual)
    }

    fn experts_traced(&mut self, layer: usize, n_tokens: usize, show: &mut Show) -> Result<(), CudaError> {
        let Self { config, stream, forward, .. } = self;
        let (hidden, inter) = (config.hidden_size, config.intermediate_size);
        let (experts, top_k) = (config.num_local_experts, config.num_experts_per_tok);
        forward.mlp_norm(stream, layer)?;
        show.rows(stream, Stage::MlpNorm, hidden, n_tokens, &mut forward.buffers.x)?;
        forward.router(stream, layer)?;
        show.buffer(stream, Stage::Router, experts, n_tokens, &mut forward.buffers.router)?;
        let slots = forward.route_traced(stream, n_tokens, experts, top_k, show)?;
        let weights = &forward.weights.layers[layer].moe;
        let (moe, workspace) = (&forward.moe, &mut forward.buffers.experts);
        let kernel = MoeChoice::Auto.kernel(n_tokens, weights.shape());
        moe.gate_up(stream, weights, kernel, workspace)?;
        let mut h = slots.to_pairs(&workspace.h(stream)?, inter);
        show.visit(Stage::Swiglu, inter, &mut h);
        workspace.set_h(stream, &slots.to_slots(&h, inter))?;
        moe.down(stream, weights, kernel, workspace)?;
        let mut y = slots.to_pairs(&workspace.y(stream)?, hidden);
        show.visit(Stage::Down, hidden, &mut y);
        workspace.set_y(stream, &slots.to_slots(&y, hidden))?;
        forward.combine(stream)?;
        show.buffer(stream, Stage::Combine, hidden, n_tokens, &mut forward.buffers.residual)
    }
}

impl crate::forward::Forward {
    /// The choice of experts by the logits that are there, with the weights that the trace leaves.
    fn route_traced(
        &mut self,
        stream: &Stream,
        n_tokens: usize,
        experts: usize,
        top_k: usize,
        show: &mut Show,
    ) -> Result<Slots, CudaError> {
        let (moe, buffers) = (&self.moe, &mut self.buffers);
        moe.route(stream, &buffers.router, &buffers.x, n_tokens, &mut buffers.experts)?;
        let (ids, weights) = (buffers.experts.ids(stream)?, buffers.experts.weights(stream)?);
        let mut dense = slots::dense(&ids, &weights, top_k, experts);
        let found = dense.clone();
        show.visit(Stage::Route, experts, &mut dense);
        let (ids, weights) = slots::replaced((&ids, &weights), &found, &dense, top_k, experts);
        moe.route_to(stream, &ids, &weights, &buffers.x, n_tokens, &mut buffers.experts)?;
        Ok(Slots::new(&ids, top_k))
    }
}

/// Queries of the step, and the keys and values that it stored, `[tokens, qkv_dim]`.
fn show_stored(
    stream: &Stream,
    config: &Config,
    batch: &Batch,
    kind: LayerType,
    show: &mut Show,
    q: &mut Buffer<bf16>,
    pool: &mut KvPool,
) -> Result<(), CudaError> {
    let (q_dim, kv_dim, head_dim) = (config.q_dim(), config.kv_dim(), config.head_dim);
    let slots: Vec<usize> = batch
        .rows
        .iter()
        .flat_map(|row| {
            let table = row.block_tables.of(kind);
            (row.start..row.end()).map(|p| table[p / BLOCK_SIZE] as usize * BLOCK_SIZE + p % BLOCK_SIZE)
        })
        .collect();
    let queries = download(stream, q, slots.len() * q_dim)?;
    let (mut keys, mut values) = pool.download(stream)?;
    let at = |slot, i: usize| pool.element(slot, i / head_dim, i % head_dim);
    let mut all = Vec::new();
    for (&slot, queries) in slots.iter().zip(queries.chunks_exact(q_dim)) {
        let stored = (0..kv_dim).map(|i| keys[at(slot, i)]).chain((0..kv_dim).map(|i| values[at(slot, i)]));
        all.extend(queries.iter().copied().chain(stored).map(|x| x.to_f32()));
    }
    show.visit(Stage::RopeStore, config.qkv_dim(), &mut all);
    let rounded: Vec<bf16> = all.iter().map(|&x| bf16::from_f32(x)).collect();
    let mut queries = Vec::new();
    for (&slot, row) in slots.iter().zip(rounded.chunks_exact(config.qkv_dim())) {
        queries.extend_from_slice(&row[..q_dim]);
        for i in 0..kv_dim {
            keys[at(slot, i)] = row[q_dim + i];
            values[at(slot, i)] = row[q_dim + kv_dim + i];
        }
    }
    stream.upload(&queries, q, 0)?;
    Ok(pool.upload(stream, &keys, &values)?)
}
