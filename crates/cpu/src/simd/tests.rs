//! Every instruction set against float64, and so against each other, at awkward shapes.

use half::bf16;
use tessera_model::mxfp4::{self, BLOCK, BLOCK_BYTES};

use super::*;
use crate::operand::{F32Operand, I16Operand};

/// Relative to the sum of the terms' magnitudes: float32 sums of up to 2,880 terms stay far below; measured at most 6e-7.
const SUM_BOUND: f64 = 2e-6;
const SHAPES: [(usize, usize); 7] = [(1, 32), (3, 96), (16, 64), (33, 160), (32, 2880), (31, 512), (7, 544)];

fn available() -> impl Iterator<Item = &'static Kernels> {
    [Isa::Scalar, Isa::Avx2, Isa::Avx512]
        .into_iter()
        .filter(|isa| {
            let here = isa.is_available();
            if !here {
                eprintln!("skipped: this machine has no {}", isa.name());
            }
            here
        })
        .map(Isa::kernels)
}

/// A small generator of its own: xorshift64*.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// In (-1, 1).
    fn float(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    fn floats(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.float()).collect()
    }

    fn bf16s(&mut self, n: usize) -> Vec<bf16> {
        (0..n).map(|_| bf16::from_f32(self.float())).collect()
    }
}

struct Mx {
    blocks: Vec<u8>,
    scales: Vec<u8>,
    cols: usize,
}

impl Mx {
    fn random(rng: &mut Random, rows: usize, cols: usize, scale: std::ops::Range<u64>) -> Self {
        let blocks = (0..rows * cols / 2).map(|_| rng.next() as u8).collect();
        let scales = (0..rows * cols / BLOCK)
            .map(|_| (scale.start + (rng.next() >> 8) % (scale.end - scale.start)) as u8)
            .collect();
        Self { blocks, scales, cols }
    }

    fn view(&self) -> MxRows<'_> {
        MxRows { blocks: &self.blocks, scales: &self.scales, cols: self.cols }
    }

    fn row(&self, r: usize) -> Vec<f64> {
        let n = self.cols / BLOCK;
        let block = |b: usize| {
            let codes = self.blocks[(r * n + b) * BLOCK_BYTES..][..BLOCK_BYTES].try_into().unwrap();
            mxfp4::decode_block(codes, self.scales[r * n + b])
        };
        (0..n).flat_map(block).map(f64::from).collect()
    }
}

fn check_dot(what: &str, got: f32, w: &[f64], x: &[f32], bound: f64) {
    let want: f64 = w.iter().zip(x).map(|(w, x)| w * f64::from(*x)).sum();
    let size: f64 = w.iter().zip(x).map(|(w, x)| (w * f64::from(*x)).abs()).sum();
    assert!(
        (f64::from(got) - want).abs() <= bound * size + 1e-35,
        "{what}: {got}, expected {want} (terms sum to {size})"
    );
}

/// Activations that 16-bit block fixed point holds exactly: whole numbers, each block with its largest magnitude 32767.
fn exact_activations(rng: &mut Random, n: usize) -> Vec<f32> {
    let mut x: Vec<f32> = (0..n).map(|_| ((rng.next() >> 48) as i16).max(-32767) as f32).collect();
    x.iter_mut().step_by(BLOCK).for_each(|v| *v = 32767.0);
    x
}

fn quantized(kernels: &Kernels, x: &[Vec<f32>]) -> I16Operand {
    let mut operand = I16Operand::default();
    operand.resize(x.len(), x[0].len());
    let stride = operand.stride();
    let (q, scales) = operand.parts_mut();
    for ((x, q), s) in x.iter().zip(q.chunks_mut(stride)).zip(scales.chunks_mut(stride / BLOCK)) {
        (kernels.quantize_row)(x, q, s);
    }
    operand
}

fn split(kernels: &Kernels, x: &[Vec<f32>]) -> F32Operand {
    let mut operand = F32Operand::default();
    operand.resize(x.len(), x[0].len());
    let stride = operand.stride();
    for (x, out) in x.iter().zip(operand.data_mut().chunks_mut(stride)) {
        (kernels.split_row)(x, out);
    }
    operand
}

#[test]
fn mxfp4_products_equal_float64() {
    for kernels in available() {
        let mut rng = Random(11);
        for (rows, cols) in SHAPES {
            let w = Mx::random(&mut rng, rows, cols, 100..140);
            for tokens in [1, 2, 3, 5, 6, 7, 13] {
                let x: Vec<Vec<f32>> = (0..tokens).map(|_| exact_activations(&mut rng, cols)).collect();
                let operand = quantized(kernels, &x);
                let xs: Vec<I16Row> = (0..tokens).map(|t| operand.row(t)).collect();
                let mut panel = MxPanel::default();
                let mut blocked = vec![0f32; tokens * PANEL_ROWS];
                let first = MxRows {
                    blocks: &w.blocks[..rows.min(PANEL_ROWS) * cols / 2],
                    scales: &w.scales[..rows.min(PANEL_ROWS) * cols / BLOCK],
                    cols,
                };
                for blocks in crate::pool::pieces(cols / BLOCK, 3) {
                    (kernels.pack_mxfp4)(first, blocks, &mut panel);
                    (kernels.gemm_mxfp4)(&xs, &panel, &mut blocked);
                }
                for t in 0..tokens {
                    let mut out = vec![f32::NAN; rows];
                    (kernels.gemv_mxfp4)(xs[t], w.view(), &mut out);
                    for r in 0..rows {
                        let what = format!("{} {rows} x {cols}, token {t} of {tokens}, row {r}", kernels.isa.name());
                        check_dot(&what, out[r], &w.row(r), &x[t], SUM_BOUND);
                        if r < PANEL_ROWS {
                            check_dot(
                                &format!("{what}, blocked"),
                                blocked[t * PANEL_ROWS + r],
                                &w.row(r),
                                &x[t],
                                SUM_BOUND,
                            );
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn every_scale_byte_multiplies_exactly() {
    for kernels in available() {
        for scale in 0..=254u8 {
            let w = Mx { blocks: (0..16).map(|i| i * 17).collect(), scales: vec![scale], cols: 32 };
            let mut x = vec![0f32; 32];
            x[8] = 2f32.powi(127 - i32::from(scale).clamp(1, 230)); // element 8 is code 4, the value 2
            let operand = quantized(kernels, &[x]);
            let mut out = [0f32];
            (kernels.gemv_mxfp4)(operand.row(0), w.view(), &mut out);
            let want = 2.0 * 2f64.powi(i32::from(scale) - 127) * 2f64.powi(127 - i32::from(scale).clamp(1, 230));
            assert!(
                (f64::from(out[0]) / want - 1.0).abs() < 1e-6,
                "{} scale {scale}: {}, expected {want}",
                kernels.isa.name(),
                out[0]
            );
            let mut panel = MxPanel::default();
            let mut blocked = [0f32; PANEL_ROWS];
            (kernels.pack_mxfp4)(w.view(), 0..1, &mut panel);
            (kernels.gemm_mxfp4)(&[operand.row(0)], &panel, &mut blocked);
            assert_eq!(blocked[0], out[0], "{} scale {scale}", kernels.isa.name());
        }
    }
}

#[test]
fn bf16_products_equal_float64() {
    for kernels in available() {
        let mut rng = Random(12);
        for (rows, cols) in SHAPES.into_iter().chain([(5, 40), (32, 20), (6, 72)]) {
            let w = rng.bf16s(rows * cols);
            let row = |r: usize| w[r * cols..][..cols].iter().map(|v| v.to_f64()).collect::<Vec<f64>>();
            for tokens in [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 25] {
                let x: Vec<Vec<f32>> = (0..tokens).map(|_| rng.floats(cols)).collect();
                let operand = split(kernels, &x);
                let xs: Vec<&[f32]> = (0..tokens).map(|t| operand.row(t)).collect();
                let mut panel = F32Panel::default();
                let mut blocked = vec![0f32; tokens * PANEL_ROWS];
                for part in crate::pool::pieces(cols, 64) {
                    (kernels.pack_bf16)(&w[..rows.min(PANEL_ROWS) * cols], cols, part, &mut panel);
                    (kernels.gemm_bf16)(&xs, &panel, &mut blocked);
                }
                for t in 0..tokens {
                    let mut out = vec![f32::NAN; rows];
                    (kernels.gemv_bf16)(xs[t], &w, cols, &mut out);
                    for r in 0..rows {
                        let what = format!("{} {rows} x {cols}, token {t} of {tokens}, row {r}", kernels.isa.name());
                        check_dot(&what, out[r], &row(r), &x[t], SUM_BOUND);
                        if r < PANEL_ROWS {
                            check_dot(
                                &format!("{what}, blocked"),
                                blocked[t * PANEL_ROWS + r],
                                &row(r),
                                &x[t],
                                SUM_BOUND,
                            );
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn attention_kernels_equal_float64() {
    use tessera_model::BLOCK_SIZE;
    for kernels in available() {
        let mut rng = Random(13);
        for (heads, head_dim) in [(8, 64), (1, 64), (4, 64), (12, 64), (3, 32), (8, 16), (5, 6)] {
            let (k, v) = (rng.bf16s(head_dim * BLOCK_SIZE), rng.bf16s(head_dim * BLOCK_SIZE));
            let block = KvBlock { k: &k, v: &v };
            let stride = 2 * BLOCK_SIZE;
            let q = rng.floats(heads * head_dim);
            let mut scores = vec![0f32; heads * stride];
            (kernels.scores)(&q, block, head_dim, &mut scores[BLOCK_SIZE..], stride);
            let p = rng.floats(heads * stride);
            let mut values = vec![1f32; heads * head_dim];
            (kernels.weigh_values)(&p[BLOCK_SIZE..], stride, block, head_dim, &mut values);
            for h in 0..heads {
                let what = format!("{} head {h} of {heads} x {head_dim}", kernels.isa.name());
                for j in 0..BLOCK_SIZE {
                    let key: Vec<f64> = (0..head_dim).map(|d| k[d * BLOCK_SIZE + j].to_f64()).collect();
                    check_dot(&what, scores[h * stride + BLOCK_SIZE + j], &key, &q[h * head_dim..], SUM_BOUND);
                }
                for d in 0..head_dim {
                    let column: Vec<f64> = (0..BLOCK_SIZE).map(|j| v[j * head_dim + d].to_f64()).chain([1.0]).collect();
                    let p: Vec<f32> = p[h * stride + BLOCK_SIZE..][..BLOCK_SIZE].iter().copied().chain([1.0]).collect();
                    check_dot(&what, values[h * head_dim + d], &column, &p, SUM_BOUND);
                }
            }
        }
    }
}

#[test]
fn exponentials_norms_and_swiglu_equal_float64() {
    /// Relative error of the polynomial exponential; measured 1.2e-7.
    const EXP_BOUND: f64 = 4e-7;
    for kernels in available() {
        let mut x: Vec<f32> = (0..3001).map(|i| -(i as f32) * 0.029).chain([-1e4, f32::NEG_INFINITY]).collect();
        let arguments = x.clone();
        let sum = (kernels.exp_sum)(&mut x, 0.0);
        for (x, a) in x.iter().zip(&arguments) {
            let want = f64::from(*a).exp();
            assert!((f64::from(*x) - want).abs() <= EXP_BOUND * want + 1e-37, "{}: exp({a}) = {x}", kernels.isa.name());
        }
        let want: f64 = arguments.iter().map(|a| f64::from(*a).exp()).sum();
        assert!((f64::from(sum) / want - 1.0).abs() < 1e-6);

        let mut rng = Random(14);
        for n in [32, 96, 2880] {
            let (x, w) = (rng.floats(n), rng.bf16s(n));
            let mut out = vec![0f32; n];
            (kernels.rms_norm)(&x, &w, 1e-5, &mut out);
            let mean = x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / n as f64;
            for i in 0..n {
                let want = f64::from(x[i]) / (mean + 1e-5).sqrt() * w[i].to_f64();
                assert!((f64::from(out[i]) - want).abs() <= 1e-6 * want.abs(), "{}", kernels.isa.name());
            }
            let gate_up: Vec<f32> = rng.floats(2 * n).iter().map(|v| v * 20.0).collect();
            let mut out = vec![0f32; n];
            (kernels.swiglu)(&gate_up, 1.702, 7.0, &mut out);
            for i in 0..n {
                let (gate, up) = (f64::from(gate_up[2 * i]).min(7.0), f64::from(gate_up[2 * i + 1]).clamp(-7.0, 7.0));
                let want = gate / (1.0 + (-1.702 * gate).exp()) * (up + 1.0);
                assert!(
                    (f64::from(out[i]) - want).abs() <= 3e-6 * want.abs() + 1e-12,
                    "{}: {} for {want}",
                    kernels.isa.name(),
                    out[i]
                );
            }
        }
    }
}

#[test]
fn quantisation_is_the_same_everywhere() {
    let mut rng = Random(15);
    let x: Vec<Vec<f32>> = (0..3).map(|_| rng.floats(2880)).collect();
    let reference = quantized(Isa::Scalar.kernels(), &x);
    for kernels in available() {
        let got = quantized(kernels, &x);
        for t in 0..3 {
            assert_eq!((got.row(t).q, got.row(t).scales), (reference.row(t).q, reference.row(t).scales));
        }
    }
}
