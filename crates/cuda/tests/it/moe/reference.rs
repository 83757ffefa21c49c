//! The experts in float64, from the checkpoint's bytes. Shares nothing with the crate.

use half::bf16;

use super::layer::{Inputs, Layer, Routing, Tensor};

/// OCP Microscaling formats 1.0, table 5.
const E2M1: [f64; 16] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];
pub const LIMIT: f64 = 7.0;
pub const ALPHA: f64 = 1.702;

/// What should come out. A slot is `token * top_k + rank`; those of nobody are NaN.
pub struct Reference {
    pub ids: Vec<i32>,     // [tokens, top_k]
    pub weights: Vec<f64>, // [tokens, top_k]
    pub counts: Vec<i32>,  // [experts]
    pub h: Vec<f64>,       // [slots, intermediate]
    pub out: Vec<f64>,     // [tokens, hidden]
}

impl Reference {
    pub fn new(layer: &Layer, inputs: &Inputs) -> Self {
        let (ids, weights) = choose(layer, inputs);
        let counts =
            (0..layer.shape.experts as i32).map(|e| ids.iter().filter(|&&id| id == e).count() as i32).collect();
        let h = gate_up(layer, inputs, &ids);
        // Activations are BF16 between the products, as they are before the first.
        let rounded: Vec<f64> = h.iter().map(|&h| bf16::from_f64(h).to_f64()).collect();
        let out = combine(layer, &down(layer, &rounded, &ids), &ids, &weights);
        Self { ids, weights, counts, h, out }
    }
}

/// The `top_k` largest logits, of equal ones the first, and a softmax over them.
fn choose(layer: &Layer, inputs: &Inputs) -> (Vec<i32>, Vec<f64>) {
    let logits = match &inputs.routing {
        Routing::Given { ids, weights } => return (ids.clone(), weights.iter().map(|&w| f64::from(w)).collect()),
        Routing::Logits(logits) => logits,
    };
    let (mut ids, mut weights) = (Vec::new(), Vec::new());
    for logits in logits.chunks_exact(layer.shape.experts) {
        let mut order: Vec<usize> = (0..logits.len()).collect();
        order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
        order.truncate(layer.shape.top_k);
        let exps: Vec<f64> = order.iter().map(|&e| f64::from(logits[e] - logits[order[0]]).exp()).collect();
        let sum: f64 = exps.iter().sum();
        ids.extend(order.iter().map(|&e| e as i32));
        weights.extend(exps.iter().map(|exp| exp / sum));
    }
    (ids, weights)
}

/// `[slots, intermediate]`
fn gate_up(layer: &Layer, inputs: &Inputs, ids: &[i32]) -> Vec<f64> {
    let (hidden, top_k) = (layer.shape.hidden, layer.shape.top_k);
    let x_of = |slot: usize| inputs.x[slot / top_k * hidden..][..hidden].iter().map(|x| x.to_f64());
    let x: Vec<f64> = (0..ids.len()).flat_map(x_of).collect();
    let pairs = project(&layer.gate_up, &x, ids);
    pairs.chunks_exact(2).map(|pair| swiglu(pair[0], pair[1])).collect()
}

fn swiglu(gate: f64, up: f64) -> f64 {
    if gate.is_nan() {
        return f64::NAN; // of nobody, or of a bias that is none
    }
    let (gate, up) = (gate.min(LIMIT), up.clamp(-LIMIT, LIMIT));
    gate / (1.0 + (-ALPHA * gate).exp()) * (up + 1.0)
}

/// `h` `[slots, intermediate]` to `[slots, hidden]`.
pub fn down(layer: &Layer, h: &[f64], ids: &[i32]) -> Vec<f64> {
    project(&layer.down, h, ids)
}

/// `y` `[slots, hidden]` to `[tokens, hidden]`.
fn combine(layer: &Layer, y: &[f64], ids: &[i32], weights: &[f64]) -> Vec<f64> {
    let (hidden, top_k) = (layer.shape.hidden, layer.shape.top_k);
    let mut out = vec![0.0; ids.len() / top_k * hidden];
    for slot in (0..ids.len()).filter(|&slot| ids[slot] >= 0) {
        let row = &mut out[slot / top_k * hidden..][..hidden];
        row.iter_mut().zip(&y[slot * hidden..]).for_each(|(out, y)| *out += weights[slot] * y);
    }
    out
}

/// `inputs` `[slots, cols]` times the slots' matrices, and their biases: `[slots, rows]`.
fn project(tensor: &Tensor, inputs: &[f64], ids: &[i32]) -> Vec<f64> {
    let of_expert = |e: usize| {
        let slots: Vec<usize> = (0..ids.len()).filter(|&slot| ids[slot] == e as i32).collect();
        let mut columns = Vec::with_capacity(slots.len() * tensor.rows); // [rows, slots of e]
        for row in 0..tensor.rows {
            let (weights, bias) = (tensor.row(e, row), tensor.bias[e * tensor.rows + row].to_f64());
            columns.extend(slots.iter().map(|slot| bias + dot(&weights, &inputs[slot * tensor.cols..])));
        }
        (slots, columns)
    };
    let mut out = vec![f64::NAN; ids.len() * tensor.rows];
    std::thread::scope(|scope| {
        let of_expert = &of_expert;
        let busy = (0..tensor.experts).filter(|&e| ids.contains(&(e as i32)));
        let threads: Vec<_> = busy.map(|e| scope.spawn(move || of_expert(e))).collect();
        for (slots, columns) in threads.into_iter().map(|thread| thread.join().unwrap()) {
            for (i, value) in columns.iter().enumerate() {
                out[slots[i % slots.len()] * tensor.rows + i / slots.len()] = *value;
            }
        }
    });
    out
}

impl Tensor {
    /// Row `row` of expert `e`, `[cols]`.
    fn row(&self, e: usize, row: usize) -> Vec<f64> {
        let first = (e * self.rows + row) * self.cols;
        let value = |k: usize| {
            let byte = self.blocks[(first + k) / 2];
            let code = if k.is_multiple_of(2) { byte & 15 } else { byte >> 4 };
            E2M1[usize::from(code)] * 2_f64.powi(i32::from(self.scales[(first + k) / 32]) - 127)
        };
        (0..self.cols).map(value).collect()
    }
}

/// Of all of `a` with the start of `b`; eight sums, which the compiler keeps in vectors.
fn dot(a: &[f64], b: &[f64]) -> f64 {
    let mut sums = [0.0; 8];
    for (a, b) in a.chunks_exact(8).zip(b.chunks_exact(8)) {
        for i in 0..8 {
            sums[i] += a[i] * b[i];
        }
    }
    sums.iter().sum()
}
