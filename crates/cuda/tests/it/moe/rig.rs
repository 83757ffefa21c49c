//! A layer on the GPU, run on poisoned memory, and what is checked whatever the test.

use half::bf16;
use tessera_cuda::{Buffer, Device, Moe, MoeChoice, MoeKernel, MoeLaunched, MoeWeights, MoeWorkspace, Stream, Swiglu};

use super::layer::{Inputs, Layer, Routing, rows};
use super::reference::{ALPHA, LIMIT, Reference, down};

pub const CHOICES: [MoeChoice; 4] = [
    MoeChoice::Fixed(MoeKernel::Stream),
    MoeChoice::Fixed(MoeKernel::Mid),
    MoeChoice::Fixed(MoeKernel::Prefill),
    MoeChoice::Auto,
];
/// Of the Frobenius norm. Rounding to BF16 costs 1.7e-3 of it, and happens once between h or out and its reference.
const MAX_ERROR: f64 = 3e-3;
/// Of y, which is float32 sums; 1.8e-6 was measured for 2,880 summands.
const MAX_SUM_ERROR: f64 = 1e-5;
const MAX_WEIGHT_ERROR: f64 = 1e-6;
/// Rows behind the last token, which nobody may read or write.
const BEHIND: usize = 3;
/// What `out` has before: a number that no test expects.
const UNTOUCHED: bf16 = bf16::from_bits(0x5A5A);

pub struct Rig {
    pub device: Device,
    pub stream: Stream,
    pub moe: Moe,
    pub weights: MoeWeights,
    pub layer: Layer,
}

/// What came out, in the order of [`Reference`].
pub struct Outcome {
    pub launched: Option<MoeLaunched>,
    pub ids: Vec<i32>,
    pub weights: Vec<f32>,
    pub counts: Vec<i32>,
    pub h: Vec<f32>,
    pub y: Vec<f32>,
    pub out: Vec<bf16>,
}

impl Rig {
    pub fn new(device: Device, layer: Layer) -> Self {
        let stream = device.stream().unwrap();
        let swiglu = Swiglu { limit: LIMIT as f32, alpha: ALPHA as f32 };
        let moe = Moe::load(&device, layer.shape, swiglu).unwrap();
        let (gate_up, down) = (layer.gate_up.view(), layer.down.view());
        let weights = MoeWeights::upload(&device, &stream, layer.shape, &gate_up, &down).unwrap();
        Self { device, stream, moe, weights, layer }
    }

    pub fn workspace(&self, max_tokens: usize) -> MoeWorkspace {
        let mut workspace = MoeWorkspace::new(&self.device, self.layer.shape, max_tokens).unwrap();
        workspace.poison(&self.stream).unwrap();
        workspace
    }

    /// A buffer of `values`, and behind them `behind` rows of `row` times `filling`.
    pub fn buffer<T: bytemuck::Pod>(&self, values: &[T], row: usize, filling: T) -> Buffer<T> {
        let mut buffer = self.device.alloc(values.len() + BEHIND * row).unwrap();
        self.stream.upload(values, &mut buffer, 0).unwrap();
        self.stream.upload(&vec![filling; BEHIND * row], &mut buffer, values.len()).unwrap();
        buffer
    }

    /// All stages on fresh memory.
    pub fn run(&self, inputs: &Inputs, choice: MoeChoice) -> Outcome {
        let mut workspace = self.workspace(inputs.n_tokens);
        let (launched, out) = self.run_in(&mut workspace, inputs, choice);
        Outcome {
            launched,
            ids: workspace.ids(&self.stream).unwrap(),
            weights: workspace.weights(&self.stream).unwrap(),
            counts: workspace.counts(&self.stream).unwrap(),
            h: workspace.h(&self.stream).unwrap(),
            y: workspace.y(&self.stream).unwrap(),
            out,
        }
    }

    /// All stages; `out` `[tokens, hidden]`, and nothing behind it was written.
    pub fn run_in(
        &self,
        workspace: &mut MoeWorkspace,
        inputs: &Inputs,
        choice: MoeChoice,
    ) -> (Option<MoeLaunched>, Vec<bf16>) {
        let (hidden, experts) = (self.layer.shape.hidden, self.layer.shape.experts);
        let x = self.buffer(&inputs.x, hidden, bf16::NAN);
        let mut out = self.buffer(&vec![UNTOUCHED; inputs.x.len()], hidden, UNTOUCHED);
        let launched = match &inputs.routing {
            Routing::Logits(logits) => {
                let logits = self.buffer(logits, experts, f32::NAN);
                let n_tokens = inputs.n_tokens;
                self.moe
                    .forward(&self.stream, &self.weights, &logits, &x, n_tokens, choice, workspace, &mut out)
                    .unwrap()
            }
            Routing::Given { ids, weights } => {
                self.moe.route_to(&self.stream, ids, weights, &x, inputs.n_tokens, workspace).unwrap();
                self.stages(workspace, choice, &mut out)
            }
        };
        let mut found = vec![bf16::ZERO; out.len()];
        self.stream.download(&out, 0, &mut found).unwrap();
        assert!(
            found[inputs.x.len()..].iter().all(|value| value.to_bits() == UNTOUCHED.to_bits()),
            "written behind out"
        );
        found.truncate(inputs.x.len());
        (launched, found)
    }

    /// What follows routing, one by one.
    fn stages(&self, workspace: &mut MoeWorkspace, choice: MoeChoice, out: &mut Buffer<bf16>) -> Option<MoeLaunched> {
        let kernel = match choice {
            MoeChoice::Auto => MoeKernel::auto(workspace.ids(&self.stream).unwrap().len(), self.layer.shape.experts),
            MoeChoice::Fixed(kernel) => kernel,
        };
        let gate_up = self.moe.gate_up(&self.stream, &self.weights, kernel, workspace).unwrap();
        let down = self.moe.down(&self.stream, &self.weights, kernel, workspace).unwrap();
        self.moe.combine(&self.stream, workspace, out).unwrap();
        gate_up.zip(down).map(|(gate_up, down)| MoeLaunched { gate_up, down })
    }

    /// Every stage against float64, with every kernel.
    #[track_caller]
    pub fn check(&self, inputs: &Inputs) {
        let reference = Reference::new(&self.layer, inputs);
        for choice in CHOICES {
            let found = self.run(inputs, choice);
            let what = format!("{:?}, {} tokens, {choice:?}", self.layer.shape, inputs.n_tokens);
            assert_eq!(found.counts, reference.counts, "{what}");
            self.check_against(&reference, &found, &what);
        }
    }

    /// Some of many tokens.
    #[track_caller]
    pub fn check_some(&self, inputs: &Inputs, tokens: &[usize], choice: MoeChoice) {
        let reference = Reference::new(&self.layer, &inputs.pick(tokens));
        let all = self.run(inputs, choice);
        let n_slots = inputs.n_tokens * self.layer.shape.top_k;
        assert_eq!(all.counts.iter().sum::<i32>() as usize, n_slots);
        let some = Outcome {
            ids: rows(&all.ids, inputs.n_tokens, tokens),
            weights: rows(&all.weights, inputs.n_tokens, tokens),
            h: rows(&all.h, inputs.n_tokens, tokens),
            y: rows(&all.y, inputs.n_tokens, tokens),
            out: rows(&all.out, inputs.n_tokens, tokens),
            ..all
        };
        let what = format!("{:?}, {} tokens, {choice:?}", self.layer.shape, inputs.n_tokens);
        self.check_against(&reference, &some, &what);
    }

    #[track_caller]
    fn check_against(&self, reference: &Reference, found: &Outcome, what: &str) {
        assert_eq!(found.ids, reference.ids, "{what}");
        for (found, expect) in found.weights.iter().zip(&reference.weights) {
            assert!(
                (f64::from(*found) - expect).abs() <= MAX_WEIGHT_ERROR,
                "{what}: weight {found}, expected {expect}"
            );
        }
        let h: Vec<f64> = found.h.iter().map(|&h| f64::from(h)).collect();
        let y: Vec<f64> = found.y.iter().map(|&y| f64::from(y)).collect();
        let out: Vec<f64> = found.out.iter().map(|out| out.to_f64()).collect();
        let expect_y = down(&self.layer, &h, &reference.ids);
        for (stage, found, expect, limit) in [
            ("h", &h, &reference.h, MAX_ERROR),
            ("y", &y, &expect_y, MAX_SUM_ERROR),
            ("out", &out, &reference.out, MAX_ERROR),
        ] {
            let error = error(found, expect);
            assert!(error <= limit, "{what}: {stage} is off by {error:.2e}");
        }
    }
}

/// Relative, of the Frobenius norm; infinite if something is not a number on one side alone.
pub fn error(found: &[f64], expect: &[f64]) -> f64 {
    assert_eq!(found.len(), expect.len());
    let (mut difference, mut norm) = (0.0, 0.0);
    for (found, expect) in found.iter().zip(expect) {
        if found.is_finite() != expect.is_finite() {
            return f64::INFINITY;
        }
        if expect.is_finite() {
            difference += (found - expect).powi(2);
            norm += expect.powi(2);
        }
    }
    if difference == 0.0 { 0.0 } else { (difference / norm).sqrt() }
}
