//! The oracle: gpt-oss in float32, one readable loop per stage, in the order of [`Stage`].
//!
//! Every activation is float32 and every weight is widened exactly. A token's values come from the same operations in
//! the same order whatever the batch around it, so that one-shot prefill, chunked prefill and decode agree bit for bit,
//! for any number of threads.
//!
//! Formulas: openai/gpt-oss, `gpt_oss/torch/model.py`.

use half::bf16;
use tessera_model::rope::YarnTable;
use tessera_model::sampling::sample;
use tessera_model::{
    BLOCK_SIZE, Batch, Config, Executor, Experts, LayerType, LayerWeights, Limits, Matrix, Row, Site, Stage, StepError,
    Token, Trace, Weights, mxfp4,
};

/// The whole model in float32.
pub struct OracleExecutor<'a> {
    config: Config,
    weights: Weights<'a>,
    limits: Limits,
    threads: usize,
    rope: YarnTable,
    cache: Vec<LayerCache>,
    logits: Option<Vec<f32>>, // [sum of n_logits, vocab]
}

/// Keys and values of one layer: position `p` of a sequence is row `table[p / BLOCK_SIZE] * BLOCK_SIZE + p % BLOCK_SIZE`.
struct LayerCache {
    k: Vec<f32>, // [blocks * BLOCK_SIZE, kv_dim], after RoPE
    v: Vec<f32>, // [blocks * BLOCK_SIZE, kv_dim]
}

/// The experts that each token goes to, `[tokens, top_k]`, ascending for each token. Entry `p` is pair `p` of the trace.
struct Routing {
    experts: Vec<usize>,
    weights: Vec<f32>,
}

/// Sees nothing and changes nothing.
struct Untraced;

impl Trace for Untraced {
    fn visit(&mut self, _site: Site, _width: usize, _values: &mut [f32]) {}
}

impl<'a> OracleExecutor<'a> {
    /// Results do not depend on `threads`.
    pub fn new(config: &Config, weights: Weights<'a>, limits: Limits, threads: usize) -> Self {
        let cache = config.layer_types.iter().map(|&kind| {
            let len = limits.blocks(kind) * BLOCK_SIZE * config.kv_dim();
            LayerCache { k: vec![0.0; len], v: vec![0.0; len] }
        });
        Self {
            cache: cache.collect(),
            rope: YarnTable::new(&config.rope, config.head_dim),
            config: config.clone(),
            weights,
            limits,
            threads: threads.max(1),
            logits: None,
        }
    }
}

impl Executor for OracleExecutor<'_> {
    fn kv_blocks(&self, kind: LayerType) -> usize {
        self.limits.blocks(kind)
    }

    fn max_step_tokens(&self) -> usize {
        self.limits.max_step_tokens
    }

    fn step(&mut self, batch: &Batch) -> Result<Vec<Token>, StepError> {
        self.step_traced(batch, &mut Untraced)
    }

    fn step_traced(&mut self, batch: &Batch, trace: &mut dyn Trace) -> Result<Vec<Token>, StepError> {
        batch.check(&self.config, |kind| self.limits.blocks(kind), self.limits.max_step_tokens)?;
        let logits = self.forward(batch, trace);
        let tokens = choose(batch, &logits, self.config.vocab_size);
        self.logits = Some(logits);
        tokens
    }

    fn logits(&self) -> Result<Vec<f32>, StepError> {
        self.logits.clone().ok_or(StepError::NoStep)
    }
}

/// The forward pass, stage by stage.
impl OracleExecutor<'_> {
    /// Logits `[sum of n_logits, vocab]`.
    fn forward(&mut self, batch: &Batch, trace: &mut dyn Trace) -> Vec<f32> {
        let hidden = self.config.hidden_size;
        let mut x: Vec<f32> =
            batch.tokens.iter().flat_map(|&t| self.weights.embed.row(t as usize)).map(|v| v.to_f32()).collect();
        trace.visit(Site { layer: None, stage: Stage::Embed }, hidden, &mut x);

        for layer in 0..self.config.num_hidden_layers {
            let mut visit = |stage, width, values: &mut [f32]| {
                trace.visit(Site { layer: Some(layer), stage }, width, values);
            };
            self.attention(layer, batch, &mut x, &mut visit);
            self.moe(layer, &mut x, &mut visit);
        }

        let wanted: Vec<f32> = batch
            .rows_with_ranges()
            .flat_map(|(range, row)| &x[(range.end - row.n_logits) * hidden..range.end * hidden])
            .copied()
            .collect();
        let mut normed = self.rms_norm(&wanted, self.weights.final_norm);
        trace.visit(Site { layer: None, stage: Stage::FinalNorm }, hidden, &mut normed);
        let mut logits = self.matmul(&normed, self.weights.lm_head, &[]);
        trace.visit(Site { layer: None, stage: Stage::Logits }, self.config.vocab_size, &mut logits);
        logits
    }

    /// Adds attention to the residual stream `x`, `[tokens, hidden]`.
    fn attention(
        &mut self,
        layer: usize,
        batch: &Batch,
        x: &mut Vec<f32>,
        visit: &mut impl FnMut(Stage, usize, &mut [f32]),
    ) {
        let w = self.weights.layers[layer];
        let (hidden, qkv_dim) = (self.config.hidden_size, self.config.qkv_dim());

        let mut normed = self.rms_norm(x, w.attn_norm);
        visit(Stage::AttnNorm, hidden, &mut normed);
        let mut qkv = self.project_qkv(&normed, &w);
        visit(Stage::Qkv, qkv_dim, &mut qkv);
        self.rotate(batch, &mut qkv);
        visit(Stage::RopeStore, qkv_dim, &mut qkv);
        self.store(layer, batch, &qkv);
        let mut attended = self.attend(layer, batch, &qkv, w.sinks);
        visit(Stage::Attend, self.config.q_dim(), &mut attended);
        let mut out = self.matmul(&attended, w.o.weight, w.o.bias);
        add(&mut out, x);
        visit(Stage::AttnOut, hidden, &mut out);
        *x = out;
    }

    /// Adds the mixture of experts to the residual stream `x`, `[tokens, hidden]`.
    fn moe(&self, layer: usize, x: &mut Vec<f32>, visit: &mut impl FnMut(Stage, usize, &mut [f32])) {
        let w = self.weights.layers[layer];
        let (hidden, intermediate) = (self.config.hidden_size, self.config.intermediate_size);
        let (n_experts, top_k) = (self.config.num_local_experts, self.config.num_experts_per_tok);

        let mut normed = self.rms_norm(x, w.mlp_norm);
        visit(Stage::MlpNorm, hidden, &mut normed);
        let mut router = self.matmul(&normed, w.router.weight, w.router.bias);
        visit(Stage::Router, n_experts, &mut router);
        let mut routing = Routing::choose(&router, n_experts, top_k);
        let mut dense = routing.dense(n_experts, top_k);
        visit(Stage::Route, n_experts, &mut dense);
        routing.take_weights(&dense, n_experts, top_k);

        let gathered: Vec<f32> =
            (0..routing.experts.len()).flat_map(|p| &normed[p / top_k * hidden..][..hidden]).copied().collect();
        let mut gate_up = self.expert_matmul(&gathered, &w.gate_up, &routing);
        visit(Stage::GateUp, 2 * intermediate, &mut gate_up);
        let mut activated = swiglu(&gate_up, self.config.swiglu_limit, self.config.swiglu_alpha);
        visit(Stage::Swiglu, intermediate, &mut activated);
        let mut down = self.expert_matmul(&activated, &w.down, &routing);
        visit(Stage::Down, hidden, &mut down);
        let mut out = routing.combine(&down, hidden, top_k);
        add(&mut out, x);
        visit(Stage::Combine, hidden, &mut out);
        *x = out;
    }

    /// `x / sqrt(mean(x^2) + eps) * weight` for each row of `x`, `[tokens, hidden]`.
    fn rms_norm(&self, x: &[f32], weight: &[bf16]) -> Vec<f32> {
        let mut out = Vec::with_capacity(x.len());
        for x in x.chunks_exact(weight.len()) {
            let mean = dot(x, x) / x.len() as f32;
            let scale = 1.0 / (mean + self.config.rms_norm_eps).sqrt();
            out.extend(x.iter().zip(weight).map(|(x, w)| x * scale * w.to_f32()));
        }
        out
    }

    /// Queries, keys and values side by side, `[tokens, qkv_dim]`.
    fn project_qkv(&self, normed: &[f32], w: &LayerWeights) -> Vec<f32> {
        let (q_dim, kv_dim) = (self.config.q_dim(), self.config.kv_dim());
        let [q, k, v] = [w.q, w.k, w.v].map(|linear| self.matmul(normed, linear.weight, linear.bias));
        let kv = k.chunks_exact(kv_dim).zip(v.chunks_exact(kv_dim));
        q.chunks_exact(q_dim).zip(kv).flat_map(|(q, (k, v))| [q, k, v].concat()).collect()
    }

    /// RoPE on every query and key head: element `i` of the first half turns with element `i` of the second.
    fn rotate(&self, batch: &Batch, qkv: &mut [f32]) {
        let (head_dim, qk_dim) = (self.config.head_dim, self.config.q_dim() + self.config.kv_dim());
        let (mut cos, mut sin) = (vec![0.0; head_dim / 2], vec![0.0; head_dim / 2]);
        for ((_, position), qkv) in positions(batch).zip(qkv.chunks_exact_mut(self.config.qkv_dim())) {
            self.rope.cos_sin(position, &mut cos, &mut sin);
            for head in qkv[..qk_dim].chunks_exact_mut(head_dim) {
                let (first, second) = head.split_at_mut(head_dim / 2);
                for i in 0..head_dim / 2 {
                    let (a, b) = (first[i], second[i]);
                    first[i] = a * cos[i] - b * sin[i];
                    second[i] = b * cos[i] + a * sin[i];
                }
            }
        }
    }

    /// Writes the keys and values of every token into the cache.
    fn store(&mut self, layer: usize, batch: &Batch, qkv: &[f32]) {
        let (q_dim, kv_dim, kind) = (self.config.q_dim(), self.config.kv_dim(), self.config.layer_types[layer]);
        let cache = &mut self.cache[layer];
        for ((row, position), qkv) in positions(batch).zip(qkv.chunks_exact(self.config.qkv_dim())) {
            let at = cache_row(row.block_tables.of(kind), position) * kv_dim;
            cache.k[at..at + kv_dim].copy_from_slice(&qkv[q_dim..q_dim + kv_dim]);
            cache.v[at..at + kv_dim].copy_from_slice(&qkv[q_dim + kv_dim..]);
        }
    }

    /// Attention of every token over its sequence's cache, `[tokens, q_dim]`.
    fn attend(&self, layer: usize, batch: &Batch, qkv: &[f32], sinks: &[bf16]) -> Vec<f32> {
        let (c, kind) = (&self.config, self.config.layer_types[layer]);
        let group = c.num_attention_heads / c.num_key_value_heads;
        let tokens: Vec<(&Row, usize)> = positions(batch).collect();
        let mut out = vec![0.0; tokens.len() * c.q_dim()];
        let keys = tokens.iter().map(|t| t.1 + 1).sum::<usize>();
        self.split(&mut out, c.q_dim(), 2 * keys * c.q_dim(), |token, out| {
            let (row, position) = tokens[token];
            let first = match kind {
                LayerType::Full => 0,
                LayerType::Sliding => (position + 1).saturating_sub(c.sliding_window),
            };
            let table = row.block_tables.of(kind);
            let visible: Vec<usize> = (first..=position).map(|p| cache_row(table, p)).collect();
            let queries = qkv[token * c.qkv_dim()..].chunks_exact(c.head_dim);
            for (head, (q, out)) in queries.zip(out.chunks_exact_mut(c.head_dim)).enumerate() {
                let at = |row: usize| row * c.kv_dim() + head / group * c.head_dim;
                self.cache[layer].attend_head(q, &visible, at, sinks[head].to_f32(), c.sm_scale(), out);
            }
        });
        out
    }
}

impl LayerCache {
    /// One query head over the `visible` rows, whose slices begin where `at` says. The sink is one more logit of the
    /// softmax, whose value is zero: it appears in the denominator alone.
    fn attend_head(
        &self,
        q: &[f32],
        visible: &[usize],
        at: impl Fn(usize) -> usize,
        sink: f32,
        sm_scale: f32,
        out: &mut [f32],
    ) {
        let scores: Vec<f32> = visible.iter().map(|&row| dot(q, &self.k[at(row)..][..q.len()]) * sm_scale).collect();
        let max = scores.iter().copied().fold(sink, f32::max);
        let mut denominator = (sink - max).exp();
        for (&row, score) in visible.iter().zip(scores) {
            let p = (score - max).exp();
            denominator += p;
            for (out, v) in out.iter_mut().zip(&self.v[at(row)..]) {
                *out += p * v;
            }
        }
        out.iter_mut().for_each(|v| *v /= denominator);
    }
}

impl Routing {
    /// The `top_k` largest of each token's router logits `[tokens, experts]` (the lower id among equals), weighted by the
    /// softmax over those alone.
    fn choose(router: &[f32], n_experts: usize, top_k: usize) -> Self {
        let (mut experts, mut weights) = (Vec::new(), Vec::new());
        for logits in router.chunks_exact(n_experts) {
            let mut chosen = vec![];
            for _ in 0..top_k {
                let left = (0..n_experts).filter(|e| !chosen.contains(e));
                chosen.extend(left.reduce(|best, e| if logits[e] > logits[best] { e } else { best }));
            }
            let max = logits[chosen[0]];
            chosen.sort_unstable();
            let sum: f32 = chosen.iter().map(|&e| (logits[e] - max).exp()).sum();
            weights.extend(chosen.iter().map(|&e| (logits[e] - max).exp() / sum));
            experts.extend(chosen);
        }
        Self { experts, weights }
    }

    /// Weights `[tokens, experts]`, 0 where an expert was not chosen.
    fn dense(&self, n_experts: usize, top_k: usize) -> Vec<f32> {
        let mut dense = vec![0.0; self.experts.len() / top_k * n_experts];
        for (pair, (&expert, &weight)) in self.experts.iter().zip(&self.weights).enumerate() {
            dense[pair / top_k * n_experts + expert] = weight;
        }
        dense
    }

    fn take_weights(&mut self, dense: &[f32], n_experts: usize, top_k: usize) {
        for (pair, (&expert, weight)) in self.experts.iter().zip(&mut self.weights).enumerate() {
            *weight = dense[pair / top_k * n_experts + expert];
        }
    }

    /// Weighted sum of each token's experts in ascending order of their ids, `[tokens, hidden]`.
    fn combine(&self, down: &[f32], hidden: usize, top_k: usize) -> Vec<f32> {
        let mut out = vec![0.0; down.len() / top_k];
        for (pair, (down, weight)) in down.chunks_exact(hidden).zip(&self.weights).enumerate() {
            let out = &mut out[pair / top_k * hidden..][..hidden];
            out.iter_mut().zip(down).for_each(|(out, d)| *out += weight * d);
        }
        out
    }
}

/// `gate * sigmoid(alpha * gate) * (up + 1)` with gates at even and ups at odd columns of `gate_up`. Comparisons are
/// written so that NaN stays NaN.
fn swiglu(gate_up: &[f32], limit: f32, alpha: f32) -> Vec<f32> {
    let activate = |pair: &[f32]| {
        let gate = if pair[0] > limit { limit } else { pair[0] };
        let up = pair[1].clamp(-limit, limit);
        gate / (1.0 + (-alpha * gate).exp()) * (up + 1.0)
    };
    gate_up.chunks_exact(2).map(activate).collect()
}

/// The next token of every row that samples.
fn choose(batch: &Batch, logits: &[f32], vocab_size: usize) -> Result<Vec<Token>, StepError> {
    let mut tokens = Vec::new();
    let mut end = 0;
    for (row, r) in batch.rows.iter().enumerate() {
        end += r.n_logits;
        let Some(sampling) = &r.sampling else { continue };
        let last = &logits[(end - 1) * vocab_size..end * vocab_size];
        if let Some(index) = last.iter().position(|l| !l.is_finite()) {
            return Err(StepError::NotFinite { row, index, value: last[index] });
        }
        tokens.push(sample(last, sampling, r.end()));
    }
    Ok(tokens)
}

/// Matrix products, and how they are shared among threads.
impl OracleExecutor<'_> {
    /// `x W^T + b`: `x` `[tokens, cols]`, result `[tokens, rows]`. An empty bias is none.
    fn matmul(&self, x: &[f32], w: Matrix, bias: &[bf16]) -> Vec<f32> {
        self.product(x, w.rows, w.cols, bias, |row, out| widen(w.row(row), out))
    }

    /// The same with each pair's own expert: `x` `[pairs, cols]`, result `[pairs, rows]`.
    fn expert_matmul(&self, x: &[f32], w: &Experts, routing: &Routing) -> Vec<f32> {
        let mut out = vec![0.0; routing.experts.len() * w.rows];
        for expert in 0..w.experts {
            let pairs: Vec<usize> = (0..routing.experts.len()).filter(|&p| routing.experts[p] == expert).collect();
            let x: Vec<f32> = pairs.iter().flat_map(|&p| &x[p * w.cols..][..w.cols]).copied().collect();
            let y = self.product(&x, w.rows, w.cols, w.expert_bias(expert), |row, out| {
                mxfp4::decode_row(w.row_blocks(expert, row), w.row_scales(expert, row), out);
            });
            for (&pair, y) in pairs.iter().zip(y.chunks_exact(w.rows)) {
                out[pair * w.rows..][..w.rows].copy_from_slice(y);
            }
        }
        out
    }

    /// `x W^T + b` where `weight_row` writes a row of `W`, `[cols]`, as float32. Each row is written once for all tokens.
    fn product(
        &self,
        x: &[f32],
        rows: usize,
        cols: usize,
        bias: &[bf16],
        weight_row: impl Fn(usize, &mut [f32]) + Sync,
    ) -> Vec<f32> {
        let n = x.len() / cols;
        if n == 0 {
            return Vec::new();
        }
        let mut transposed = vec![0.0; rows * n];
        self.split(&mut transposed, n, rows * cols * n, |row, out| {
            let mut weight = vec![0.0; cols];
            weight_row(row, &mut weight);
            let bias = bias.get(row).map_or(0.0, |b| b.to_f32());
            for (out, x) in out.iter_mut().zip(x.chunks_exact(cols)) {
                *out = dot(x, &weight) + bias;
            }
        });
        let mut out = vec![0.0; rows * n];
        for (row, values) in transposed.chunks_exact(n).enumerate() {
            values.iter().enumerate().for_each(|(t, v)| out[t * rows + row] = *v);
        }
        out
    }

    /// Calls `fill(i, chunk i of out)` for every chunk of `width`, on all threads if the work (in multiplications) is
    /// worth starting them.
    fn split(&self, out: &mut [f32], width: usize, work: usize, fill: impl Fn(usize, &mut [f32]) + Sync) {
        const WORTH_A_THREAD: usize = 1 << 17;
        let n = out.len() / width;
        let share = n.div_ceil(self.threads.min(work / WORTH_A_THREAD).max(1));
        let fill_share = |at: usize, out: &mut [f32]| {
            out.chunks_exact_mut(width).enumerate().for_each(|(i, out)| fill(at + i, out));
        };
        if share == n {
            return fill_share(0, out);
        }
        std::thread::scope(|scope| {
            for (i, out) in out.chunks_mut(share * width).enumerate() {
                let fill_share = &fill_share;
                scope.spawn(move || fill_share(i * share, out));
            }
        });
    }
}

/// Dot product in `LANES` independent sums, a fixed order that the compiler can vectorise.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    const LANES: usize = 16;
    let (a_chunks, a_tail) = a.as_chunks::<LANES>();
    let (b_chunks, b_tail) = b.as_chunks::<LANES>();
    let mut sums = [0f32; LANES];
    for (a, b) in a_chunks.iter().zip(b_chunks) {
        for i in 0..LANES {
            sums[i] += a[i] * b[i];
        }
    }
    let tail: f32 = a_tail.iter().zip(b_tail).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f32>() + tail
}

fn widen(row: &[bf16], out: &mut [f32]) {
    out.iter_mut().zip(row).for_each(|(out, v)| *out = v.to_f32());
}

fn add(out: &mut [f32], x: &[f32]) {
    out.iter_mut().zip(x).for_each(|(out, x)| *out += x);
}

/// The batch's tokens: their rows and their positions in the sequence.
fn positions(batch: &Batch) -> impl Iterator<Item = (&Row, usize)> {
    batch.rows.iter().flat_map(|row| (row.start..row.end()).map(move |position| (row, position)))
}

fn cache_row(table: &[u32], position: usize) -> usize {
    table[position / BLOCK_SIZE] as usize * BLOCK_SIZE + position % BLOCK_SIZE
}
