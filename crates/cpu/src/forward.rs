//! The fast path's layer loop. Stages have the names and the order of [`Stage`].

use tessera_model::rope::YarnTable;
use tessera_model::{BLOCK_SIZE, Batch, Config, LayerWeights, Limits, Linear, Site, Stage, Trace, Weights};

use crate::attention::{AttentionLayer, attend};
use crate::executor::CpuOptions;
use crate::kv::KvCache;
use crate::matmul::{ExpertGroup, Write, expert_linear, linear};
use crate::operand::{F32Operand, I16Operand};
use crate::pool::{Pool, pieces};
use crate::simd::Kernels;

/// The model, its cache and the buffers of a step.
pub struct Forward<'a> {
    config: Config,
    weights: Weights<'a>,
    yarn: YarnTable,
    kernels: &'static Kernels,
    pool: Pool,
    cache: KvCache,
    rows: Buffers,
}

/// Values of the step in flight, `[tokens, ..]` or `[pairs, ..]`; pairs are sorted by expert.
#[derive(Default)]
struct Buffers {
    residual: Vec<f32>, // [tokens, hidden]
    normed: Vec<f32>,   // [tokens, hidden]
    qkv: Vec<f32>,      // [tokens, qkv_dim]
    attended: Vec<f32>, // [tokens, q_dim]
    router: Vec<f32>,   // [tokens, experts]
    gate_up: Vec<f32>,  // [pairs, 2 * intermediate]
    swiglu: Vec<f32>,   // [pairs, intermediate]
    down: Vec<f32>,     // [pairs, hidden]
    cos: Vec<f32>,      // [tokens, head_dim / 2]
    sin: Vec<f32>,      // [tokens, head_dim / 2]
    dense: F32Operand,
    blocks: I16Operand,
}

/// Where a token stands.
#[derive(Clone, Copy)]
struct Place {
    row: usize,
    position: usize,
}

/// Which experts serve which tokens in one layer.
struct Routing {
    groups: Vec<ExpertGroup>,
    /// Token of each pair; pairs sorted by expert, then token.
    tokens: Vec<usize>,
    /// Pairs of each token by ascending expert with their gate weights, `[tokens, top_k]`.
    pairs: Vec<(usize, f32)>,
}

type MaybeTrace<'t> = Option<&'t mut dyn Trace>;

fn show(trace: &mut MaybeTrace, layer: Option<usize>, stage: Stage, width: usize, values: &mut [f32]) {
    if let Some(trace) = trace {
        trace.visit(Site { layer, stage }, width, values);
    }
}

impl<'a> Forward<'a> {
    pub fn new(config: &Config, weights: Weights<'a>, limits: &Limits, options: CpuOptions) -> Self {
        Self {
            config: config.clone(),
            yarn: YarnTable::new(&config.rope, config.head_dim),
            weights,
            kernels: options.isa.kernels(),
            pool: Pool::new(options.threads),
            cache: KvCache::new(config, limits),
            rows: Buffers::default(),
        }
    }

    /// Runs a checked batch; leaves the logits that its rows want in `logits`, `[n_logits, vocab]`.
    pub fn step(&mut self, batch: &Batch, mut trace: MaybeTrace, logits: &mut Vec<f32>) {
        let hidden = self.config.hidden_size;
        let places = places(batch);
        self.embed(batch);
        self.turn(&places);
        show(&mut trace, None, Stage::Embed, hidden, &mut self.rows.residual);
        for layer in 0..self.config.num_hidden_layers {
            let weights = self.weights.layers[layer];
            self.attention(layer, &weights, batch, &places, &mut trace);
            self.moe(layer, &weights, &mut trace);
        }
        self.unembed(batch, &mut trace, logits);
    }

    fn embed(&mut self, batch: &Batch) {
        self.rows.residual.clear();
        for &token in &batch.tokens {
            self.rows.residual.extend(self.weights.embed.row(token as usize).iter().map(|v| v.to_f32()));
        }
    }

    /// Cosines and sines of every token's position, for all layers.
    fn turn(&mut self, places: &[Place]) {
        let half = self.config.head_dim / 2;
        self.rows.cos.resize(places.len() * half, 0.0);
        self.rows.sin.resize(places.len() * half, 0.0);
        let out = self.rows.cos.chunks_exact_mut(half).zip(self.rows.sin.chunks_exact_mut(half));
        for (place, (cos, sin)) in places.iter().zip(out) {
            self.yarn.cos_sin(place.position, cos, sin);
        }
    }

    fn attention(&mut self, layer: usize, w: &LayerWeights, batch: &Batch, places: &[Place], trace: &mut MaybeTrace) {
        let (qkv_dim, q_dim) = (self.config.qkv_dim(), self.config.q_dim());
        let at = Some(layer);
        self.norm(w.attn_norm);
        show(trace, at, Stage::AttnNorm, self.config.hidden_size, &mut self.rows.normed);
        self.split(Source::Normed);
        self.rows.qkv.resize(places.len() * qkv_dim, 0.0);
        linear(&mut self.pool, self.kernels, &self.rows.dense, &[w.q, w.k, w.v], Write::Set, &mut self.rows.qkv);
        show(trace, at, Stage::Qkv, qkv_dim, &mut self.rows.qkv);
        self.rope();
        show(trace, at, Stage::RopeStore, qkv_dim, &mut self.rows.qkv);
        self.store(layer, batch, places);
        self.attend(layer, w, batch, places);
        show(trace, at, Stage::Attend, q_dim, &mut self.rows.attended);
        self.split(Source::Attended);
        linear(&mut self.pool, self.kernels, &self.rows.dense, &[w.o], Write::Add, &mut self.rows.residual);
        show(trace, at, Stage::AttnOut, self.config.hidden_size, &mut self.rows.residual);
    }

    fn norm(&mut self, weight: &[half::bf16]) {
        let (hidden, eps, kernels) = (self.config.hidden_size, self.config.rms_norm_eps, self.kernels);
        let Buffers { residual, normed, .. } = &mut self.rows;
        normed.resize(residual.len(), 0.0);
        self.pool
            .for_rows(normed, hidden, |t, out| (kernels.rms_norm)(&residual[t * hidden..][..hidden], weight, eps, out));
    }

    /// Makes the dense operand of a buffer.
    fn split(&mut self, source: Source) {
        let (x, width) = match source {
            Source::Normed => (&self.rows.normed, self.config.hidden_size),
            Source::Attended => (&self.rows.attended, self.config.q_dim()),
        };
        self.rows.dense.resize(x.len() / width, width);
        let (stride, kernels) = (self.rows.dense.stride(), self.kernels);
        self.pool
            .for_rows(self.rows.dense.data_mut(), stride, |t, out| (kernels.split_row)(&x[t * width..][..width], out));
    }

    /// Turns queries and keys: halves of a head are the two coordinates of its planes.
    fn rope(&mut self) {
        let (qkv_dim, head_dim) = (self.config.qkv_dim(), self.config.head_dim);
        let turned = self.config.q_dim() + self.config.kv_dim();
        let half = head_dim / 2;
        let Buffers { qkv, cos, sin, .. } = &mut self.rows;
        self.pool.for_rows(qkv, qkv_dim, |t, row| {
            let (cos, sin) = (&cos[t * half..][..half], &sin[t * half..][..half]);
            for head in row[..turned].chunks_exact_mut(head_dim) {
                let (a, b) = head.split_at_mut(half);
                for i in 0..half {
                    (a[i], b[i]) = (a[i] * cos[i] - b[i] * sin[i], b[i] * cos[i] + a[i] * sin[i]);
                }
            }
        });
    }

    fn store(&mut self, layer: usize, batch: &Batch, places: &[Place]) {
        let (q_dim, kv_dim) = (self.config.q_dim(), self.config.kv_dim());
        let kind = self.config.layer_types[layer];
        for (place, qkv) in places.iter().zip(self.rows.qkv.chunks_exact(self.config.qkv_dim())) {
            let block = batch.rows[place.row].block_tables.of(kind)[place.position / BLOCK_SIZE];
            let (k, v) = qkv[q_dim..].split_at(kv_dim);
            self.cache.store(layer, block, place.position % BLOCK_SIZE, k, v);
        }
    }

    fn attend(&mut self, layer: usize, w: &LayerWeights, batch: &Batch, places: &[Place]) {
        let config = &self.config;
        let (qkv_dim, q_dim) = (config.qkv_dim(), config.q_dim());
        let group = config.num_attention_heads / config.num_key_value_heads * config.head_dim;
        let attention = AttentionLayer { index: layer, kind: config.layer_types[layer], sinks: w.sinks };
        let (kernels, cache, qkv) = (self.kernels, &self.cache, &self.rows.qkv);
        self.rows.attended.resize(places.len() * q_dim, 0.0);
        let (tokens, heads) = (pieces(places.len(), 1), pieces(q_dim, group));
        self.pool.for_tiles(&mut self.rows.attended, q_dim, &tokens, &heads, |t, kv_head, mut out| {
            let table = batch.rows[places[t].row].block_tables.of(attention.kind);
            let q = &qkv[t * qkv_dim + kv_head * group..][..group];
            attend(kernels, config, cache, &attention, table, places[t].position, kv_head, q, out.row(t));
        });
    }

    fn moe(&mut self, layer: usize, w: &LayerWeights, trace: &mut MaybeTrace) {
        let (hidden, experts) = (self.config.hidden_size, self.config.num_local_experts);
        let at = Some(layer);
        self.norm(w.mlp_norm);
        show(trace, at, Stage::MlpNorm, hidden, &mut self.rows.normed);
        self.split(Source::Normed);
        let tokens = self.rows.normed.len() / hidden;
        self.rows.router.resize(tokens * experts, 0.0);
        linear(&mut self.pool, self.kernels, &self.rows.dense, &[w.router], Write::Set, &mut self.rows.router);
        show(trace, at, Stage::Router, experts, &mut self.rows.router);
        let mut routing = route(&self.rows.router, experts, self.config.num_experts_per_tok);
        if trace.is_some() {
            let mut dense = routing.gate_weights(experts);
            show(trace, at, Stage::Route, experts, &mut dense);
            routing.set_gate_weights(&dense, experts);
        }
        self.experts(layer, w, &routing, trace);
        self.combine(&routing);
        show(trace, at, Stage::Combine, hidden, &mut self.rows.residual);
    }

    fn experts(&mut self, layer: usize, w: &LayerWeights, routing: &Routing, trace: &mut MaybeTrace) {
        let (hidden, inter, kernels) = (self.config.hidden_size, self.config.intermediate_size, self.kernels);
        let pairs = routing.tokens.len();
        let (alpha, limit) = (self.config.swiglu_alpha, self.config.swiglu_limit);
        let rows = &mut self.rows;
        quantize(&mut self.pool, kernels, &rows.normed, hidden, &mut rows.blocks);
        rows.gate_up.resize(pairs * 2 * inter, 0.0);
        let (x, groups) = (&rows.blocks, &routing.groups);
        expert_linear(&mut self.pool, kernels, x, &routing.tokens, &w.gate_up, groups, &mut rows.gate_up);
        routing.show(trace, layer, Stage::GateUp, 2 * inter, &mut rows.gate_up);

        rows.swiglu.resize(pairs * inter, 0.0);
        let gate_up = &rows.gate_up;
        self.pool.for_rows(&mut rows.swiglu, inter, |p, out| {
            (kernels.swiglu)(&gate_up[p * 2 * inter..][..2 * inter], alpha, limit, out);
        });
        routing.show(trace, layer, Stage::Swiglu, inter, &mut rows.swiglu);

        quantize(&mut self.pool, kernels, &rows.swiglu, inter, &mut rows.blocks);
        rows.down.resize(pairs * hidden, 0.0);
        let own_row: Vec<usize> = (0..pairs).collect();
        expert_linear(&mut self.pool, kernels, &rows.blocks, &own_row, &w.down, groups, &mut rows.down);
        routing.show(trace, layer, Stage::Down, hidden, &mut rows.down);
    }

    /// Adds the experts' weighted outputs to the residual stream, by ascending expert.
    fn combine(&mut self, routing: &Routing) {
        let (hidden, top_k) = (self.config.hidden_size, self.config.num_experts_per_tok);
        let Buffers { residual, down, .. } = &mut self.rows;
        self.pool.for_rows(residual, hidden, |t, out| {
            for &(pair, weight) in &routing.pairs[t * top_k..][..top_k] {
                for (out, down) in out.iter_mut().zip(&down[pair * hidden..][..hidden]) {
                    *out += weight * down;
                }
            }
        });
    }

    /// Final norm and lm_head of the tokens that want logits.
    fn unembed(&mut self, batch: &Batch, trace: &mut MaybeTrace, logits: &mut Vec<f32>) {
        let hidden = self.config.hidden_size;
        let wanted = batch.rows_with_ranges().flat_map(|(range, row)| range.end - row.n_logits..range.end);
        let last: Vec<f32> = wanted.flat_map(|t| self.rows.residual[t * hidden..][..hidden].to_vec()).collect();
        self.rows.residual = last;
        logits.resize(batch.n_logits() * self.config.vocab_size, 0.0);
        if logits.is_empty() {
            return;
        }
        self.norm(self.weights.final_norm);
        show(trace, None, Stage::FinalNorm, hidden, &mut self.rows.normed);
        self.split(Source::Normed);
        let lm_head = Linear { weight: self.weights.lm_head, bias: &[] };
        linear(&mut self.pool, self.kernels, &self.rows.dense, &[lm_head], Write::Set, logits);
        show(trace, None, Stage::Logits, self.config.vocab_size, logits);
    }
}

/// A buffer that is the input of dense weights.
#[derive(Clone, Copy)]
enum Source {
    Normed,
    Attended,
}

fn quantize(pool: &mut Pool, kernels: &Kernels, x: &[f32], width: usize, out: &mut I16Operand) {
    out.resize(x.len() / width, width);
    let stride = out.stride();
    let (q, scales) = out.parts_mut();
    let n_scales = stride / tessera_model::mxfp4::BLOCK;
    let scales: Vec<std::sync::Mutex<&mut [f32]>> = scales.chunks_mut(n_scales).map(std::sync::Mutex::new).collect();
    pool.for_rows(q, stride, |t, q| {
        let mut scales = scales[t].lock().expect("each row is locked once");
        (kernels.quantize_row)(&x[t * width..][..width], q, &mut scales);
    });
}

fn places(batch: &Batch) -> Vec<Place> {
    let of = |(row, r): (usize, &tessera_model::Row)| (r.start..r.end()).map(move |position| Place { row, position });
    batch.rows.iter().enumerate().flat_map(of).collect()
}

/// Top-k of the raw logits (the lower id among equals), softmax over those.
fn route(logits: &[f32], experts: usize, top_k: usize) -> Routing {
    let mut choices = Vec::with_capacity(logits.len() / experts * top_k); // (token, expert, weight)
    for (t, logits) in logits.chunks_exact(experts).enumerate() {
        let mut order: Vec<usize> = (0..experts).collect();
        // Adding 0 makes -0 and 0 the equals that they are.
        order.sort_by(|&a, &b| (logits[b] + 0.0).total_cmp(&(logits[a] + 0.0)).then(a.cmp(&b)));
        order.truncate(top_k);
        let max = logits[order[0]];
        let total: f32 = order.iter().map(|&e| (logits[e] - max).exp()).sum();
        order.sort_unstable();
        choices.extend(order.into_iter().map(|e| (t, e, (logits[e] - max).exp() / total)));
    }
    Routing::new(&choices, experts)
}

impl Routing {
    /// From (token, expert, weight), by token, then by expert.
    fn new(choices: &[(usize, usize, f32)], experts: usize) -> Self {
        let mut next = vec![0; experts];
        choices.iter().for_each(|&(_, e, _)| next[e] += 1);
        let mut groups = Vec::new();
        let mut start = 0;
        for (expert, n) in next.iter_mut().enumerate() {
            let end = start + *n;
            if *n > 0 {
                groups.push(ExpertGroup { expert, pairs: start..end });
            }
            *n = start;
            start = end;
        }
        let mut tokens = vec![0; choices.len()];
        let pairs = choices
            .iter()
            .map(|&(token, expert, weight)| {
                let pair = next[expert];
                next[expert] += 1;
                tokens[pair] = token;
                (pair, weight)
            })
            .collect();
        Self { groups, tokens, pairs }
    }

    fn expert_of(&self, pair: usize) -> usize {
        self.groups.iter().find(|g| g.pairs.contains(&pair)).expect("every pair has a group").expert
    }

    /// `[tokens, experts]`, 0 where an expert was not chosen.
    fn gate_weights(&self, experts: usize) -> Vec<f32> {
        let tokens = self.tokens.iter().max().map_or(0, |t| t + 1);
        let mut dense = vec![0.0; tokens * experts];
        for &(pair, weight) in &self.pairs {
            dense[self.tokens[pair] * experts + self.expert_of(pair)] = weight;
        }
        dense
    }

    fn set_gate_weights(&mut self, dense: &[f32], experts: usize) {
        for i in 0..self.pairs.len() {
            let pair = self.pairs[i].0;
            self.pairs[i].1 = dense[self.tokens[pair] * experts + self.expert_of(pair)];
        }
    }

    /// Shows a buffer of pairs in the trace's order, by token.
    fn show(&self, trace: &mut MaybeTrace, layer: usize, stage: Stage, width: usize, values: &mut [f32]) {
        if trace.is_none() {
            return;
        }
        let mut by_token: Vec<f32> =
            self.pairs.iter().flat_map(|&(pair, _)| values[pair * width..][..width].to_vec()).collect();
        show(trace, Some(layer), stage, width, &mut by_token);
        for (&(pair, _), row) in self.pairs.iter().zip(by_token.chunks_exact(width)) {
            values[pair * width..][..width].copy_from_slice(row);
        }
    }
}
