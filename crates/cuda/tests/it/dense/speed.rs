//! How long products of the published models' sizes take: `dense::speed --ignored --nocapture`.

use half::bf16;
use tessera_cuda::{
    Buffer, Dense, DenseChoice, DenseError, DenseKernel, DenseOut, DenseShape, DenseWeights, Device, Stream,
};
use tessera_model::{Linear, Matrix};

use super::rig::Rows;
use crate::gpu::gpu;

/// Bytes of weights that a graph goes through, at least: far beyond the L2 cache.
const ROTATED_BYTES: usize = 1 << 29;
const REPLAYS: usize = 9;
/// Rows of random weights; larger matrices have them again and again.
const RANDOM_ROWS: usize = 640;

struct Bench {
    device: Device,
    stream: Stream,
    dense: Dense,
}

#[test]
#[ignore = "measures"]
fn speed() {
    let Some(device) = gpu() else { return };
    let (stream, dense) = (device.stream().unwrap(), Dense::load(&device).unwrap());
    println!("{}: tokens, chosen kernel, TB/s of weights | us of the others", device.properties().name);
    let bench = Bench { device, stream, dense };
    const SOME: [usize; 11] = [1, 2, 4, 8, 16, 17, 32, 48, 64, 128, 256];
    for (name, rows, cols, what, most) in [
        ("qkv", 5120, 2880, DenseOut::Store, 8192),
        ("o", 2880, 4096, DenseOut::Add, 8192),
        ("lm_head", 201_088, 2880, DenseOut::Store, 256),
    ] {
        let shape = DenseShape { rows, cols };
        let copies = ROTATED_BYTES.div_ceil(shape.bytes());
        let weights: Vec<DenseWeights> = (0..copies).map(|i| bench.weights(i as u64, shape)).collect();
        let x = bench.x(most, cols);
        let mut out = bench.device.alloc(most * rows).unwrap();
        for n_tokens in SOME.into_iter().chain([512, 1024, 2048, 8192]).filter(|&n| n <= most) {
            let mut us = |kernel| bench.us(&weights, &x, n_tokens, kernel, &mut out, what);
            let chosen = bench.dense.kernel(shape, n_tokens);
            let chosen_us = us(chosen);
            let others: String = DenseKernel::ALL
                .into_iter()
                .filter(|&kernel| kernel != chosen && n_tokens <= kernel.max_tokens(shape))
                .map(|kernel| format!(" {kernel:?} {:.1}", us(kernel)))
                .collect();
            println!(
                "{name:<7} {n_tokens:>4} {:<6} {chosen_us:>7.2} us {:>4.2} TB/s {:>5.1} TFLOP/s |{others}",
                format!("{chosen:?}"),
                shape.bytes() as f64 / chosen_us / 1e6,
                2.0 * (rows * cols * n_tokens) as f64 / chosen_us / 1e6,
            );
        }
    }
}

impl Bench {
    fn weights(&self, seed: u64, shape: DenseShape) -> DenseWeights {
        let random = Rows::random(seed, RANDOM_ROWS.min(shape.rows), shape.cols);
        let linear = |first: usize| {
            let n = random.n.min(shape.rows - first);
            Linear { weight: Matrix::new(&random.data[..n * shape.cols], n, shape.cols), bias: &[] }
        };
        let linears: Vec<Linear> = (0..shape.rows).step_by(random.n).map(linear).collect();
        DenseWeights::upload(&self.device, &self.stream, &linears).unwrap()
    }

    /// Any numbers: their places do not matter.
    fn x(&self, n_tokens: usize, cols: usize) -> Buffer<bf16> {
        let values = Rows::random(99, n_tokens, cols.next_multiple_of(64)).data;
        let mut x = self.device.alloc(values.len()).unwrap();
        self.stream.upload(&values, &mut x, 0).unwrap();
        x
    }

    /// The median of one product in a graph that goes through all copies of the weights.
    fn us(
        &self,
        weights: &[DenseWeights],
        x: &Buffer<bf16>,
        n_tokens: usize,
        kernel: DenseKernel,
        out: &mut Buffer<f32>,
        what: DenseOut,
    ) -> f64 {
        // One product alone is too short to be timed.
        let n_products = weights.len().max(4);
        let queue = || {
            for weights in weights.iter().cycle().take(n_products) {
                let choice = DenseChoice::Fixed(kernel);
                self.dense.forward_by(choice, &self.stream, weights, x, n_tokens, out, what)?;
            }
            Ok::<_, DenseError>(())
        };
        let graph = self.stream.capture(queue).unwrap();
        let (start, end) = (self.device.event().unwrap(), self.device.event().unwrap());
        let replay = |_| {
            self.stream.record(&start).unwrap();
            self.stream.replay(&graph).unwrap();
            self.stream.record(&end).unwrap();
            f64::from(end.ms_since(&start).unwrap()) * 1e3 / n_products as f64
        };
        let mut us: Vec<f64> = (0..REPLAYS).map(replay).skip(1).collect();
        us.sort_by(f64::total_cmp);
        us[us.len() / 2]
    }
}
