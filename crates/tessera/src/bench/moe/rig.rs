//! Layers of experts on the GPU, and a stopwatch.

use half::bf16;
use serde::Serialize;
use tessera_cuda::{
    Buffer, Device, Moe, MoeChoice, MoeError, MoeKernel, MoeLaunched, MoeShape, MoeWeights, MoeWorkspace, Stream,
    Swiglu,
};

use crate::random::{RandomExperts, normal};

/// Replays before those that count.
const WARM_UPS: usize = 2;
/// Of the published checkpoints.
const SWIGLU: Swiglu = Swiglu { limit: 7.0, alpha: 1.702 };

pub struct Rig<'a> {
    device: &'a Device,
    stream: Stream,
    moe: Moe,
    shape: MoeShape,
    layers: Vec<MoeWeights>,
}

/// What was seen of one number of tokens.
pub struct Timing {
    pub kernel: MoeKernel,
    pub launched: MoeLaunched,
    /// Of one layer, ascending.
    pub us: Vec<f64>,
    /// On average of the layers.
    pub active_experts: f64,
    pub expert_bytes: usize,
}

/// Of one layer, in microseconds.
#[derive(Serialize)]
pub struct Stages {
    pub route: f64,
    pub gate_up: f64,
    pub down: f64,
    pub combine: f64,
}

impl<'a> Rig<'a> {
    pub fn new(device: &'a Device, shape: MoeShape, n_layers: usize, loaded: impl Fn()) -> Result<Self, MoeError> {
        let stream = device.stream()?;
        let moe = Moe::load(device, shape, SWIGLU)?;
        let gate_up = RandomExperts::new(1, 1, 2 * shape.intermediate, shape.hidden, 1.0);
        let down = RandomExperts::new(4, 1, shape.hidden, shape.intermediate, 1.0);
        let mut layers = Vec::new();
        for _ in 0..n_layers {
            layers.push(MoeWeights::repeat(device, &stream, shape, &gate_up.view(), &down.view())?);
            loaded();
        }
        Ok(Self { device, stream, moe, shape, layers })
    }

    /// The whole layer.
    pub fn measure(&self, n_tokens: usize, choice: MoeChoice, repetitions: usize) -> Result<Timing, MoeError> {
        let kernel = choice.kernel(n_tokens, self.shape);
        let mut memory = Memory::new(self, n_tokens)?;
        let (mut launched, mut n_active) = (None, 0);
        for layer in 0..self.layers.len() {
            launched = memory.forward(self, layer, choice)?;
            n_active += memory.workspace.counts(&self.stream)?.iter().filter(|&&count| count > 0).count();
        }
        let us = self.replays(repetitions, |layer| memory.forward(self, layer, choice).map(drop))?;
        Ok(Timing {
            kernel,
            launched: launched.expect("there are layers and tokens"),
            us,
            active_experts: n_active as f64 / self.layers.len() as f64,
            expert_bytes: self.layers[0].expert_bytes(),
        })
    }

    /// Each stage by itself; those after routing work on what the last layer's routing left.
    pub fn stages(&self, n_tokens: usize, kernel: MoeKernel, repetitions: usize) -> Result<Stages, MoeError> {
        let mut memory = Memory::new(self, n_tokens)?;
        memory.forward(self, self.layers.len() - 1, MoeChoice::Fixed(kernel))?;
        let Memory { logits, x, workspace, out, .. } = &mut memory;
        let (moe, stream) = (&self.moe, &self.stream);
        let median = |us: Vec<f64>| us[us.len() / 2];
        Ok(Stages {
            route: median(
                self.replays(repetitions, |layer| moe.route(stream, &logits[layer], x, n_tokens, workspace))?,
            ),
            gate_up: median(
                self.replays(repetitions, |layer| {
                    moe.gate_up(stream, &self.layers[layer], kernel, workspace).map(drop)
                })?,
            ),
            down: median(
                self.replays(repetitions, |layer| moe.down(stream, &self.layers[layer], kernel, workspace).map(drop))?,
            ),
            combine: median(self.replays(repetitions, |_| moe.combine(stream, workspace, out))?),
        })
    }

    /// Microseconds of a layer, ascending: replays of a graph of what `queue` queues for each layer.
    fn replays(
        &self,
        repetitions: usize,
        mut queue: impl FnMut(usize) -> Result<(), MoeError>,
    ) -> Result<Vec<f64>, MoeError> {
        let n_layers = self.layers.len();
        let graph = self.stream.capture(|| (0..n_layers).try_for_each(&mut queue))?;
        let (start, end) = (self.device.event()?, self.device.event()?);
        let mut us = Vec::new();
        for i in 0..WARM_UPS + repetitions {
            self.stream.record(&start)?;
            self.stream.replay(&graph)?;
            self.stream.record(&end)?;
            let ms = f64::from(end.ms_since(&start)?);
            if i >= WARM_UPS {
                us.push(ms * 1e3 / n_layers as f64);
            }
        }
        us.sort_by(f64::total_cmp);
        Ok(us)
    }
}

/// What one test runs on.
struct Memory {
    n_tokens: usize,
    logits: Vec<Buffer<f32>>, // of each layer, [tokens, experts]
    x: Buffer<bf16>,          // [tokens, hidden]
    workspace: MoeWorkspace,
    out: Buffer<bf16>, // [tokens, hidden]
}

impl Memory {
    fn new(rig: &Rig, n_tokens: usize) -> Result<Self, MoeError> {
        let Rig { device, stream, shape, layers, .. } = rig;
        let mut x = device.alloc(n_tokens * shape.hidden)?;
        let values: Vec<bf16> = (0..x.len()).map(|i| bf16::from_f32(normal(3, i as u64))).collect();
        stream.upload(&values, &mut x, 0)?;
        let logits = |layer: usize| {
            let values = (0..n_tokens * shape.experts).map(|i| normal(4 + layer as u64, i as u64));
            let mut logits = device.alloc(values.len())?;
            stream.upload(&values.collect::<Vec<f32>>(), &mut logits, 0)?;
            Ok::<_, MoeError>(logits)
        };
        Ok(Self {
            n_tokens,
            logits: (0..layers.len()).map(logits).collect::<Result<_, _>>()?,
            x,
            workspace: MoeWorkspace::new(device, *shape, n_tokens)?,
            out: device.alloc(n_tokens * shape.hidden)?,
        })
    }

    fn forward(&mut self, rig: &Rig, layer: usize, choice: MoeChoice) -> Result<Option<MoeLaunched>, MoeError> {
        let Self { n_tokens, logits, x, workspace, out } = self;
        rig.moe.forward(&rig.stream, &rig.layers[layer], &logits[layer], x, *n_tokens, choice, workspace, out)
    }
}
