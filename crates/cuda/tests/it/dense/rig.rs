//! A matrix on the GPU and rows for it, run on poisoned memory.

use half::bf16;
use tessera_cuda::{Buffer, Dense, DenseChoice, DenseKernel, DenseOut, DenseShape, DenseWeights, Device, Stream};
use tessera_model::{Linear, Matrix};

use crate::random::Random;

/// Behind the last element of `out`, which nobody may write.
const BEHIND: usize = 64;
/// What lies there: a number that no test expects.
const UNTOUCHED: f32 = 1.234e33;
/// Of float32 sums, relative to the norm of their terms: each step of 16 columns cuts off less than a last bit of the sum, which
/// is about that norm; and some bits are lost in the products of a step, the bias and what is added to. 1.8e-6 of 2.2e-5
/// was measured for 2,880 columns, 1.02e-5 of 6.2e-5 for 8,192.
fn max_sum_error(cols: usize) -> f64 {
    (cols.div_ceil(16) + 8) as f64 * f64::from(f32::EPSILON)
}

pub struct Rig<'a> {
    pub device: &'a Device,
    pub stream: Stream,
    pub dense: Dense,
    pub weights: DenseWeights,
    pub w: Rows,
    pub bias: Vec<bf16>,
}

/// Row-major bf16 numbers.
#[derive(Clone)]
pub struct Rows {
    pub data: Vec<bf16>, // [n, cols]
    pub n: usize,
    pub cols: usize,
}

impl Rows {
    /// Of either sign, a bf16 below 2.
    pub fn random(seed: u64, n: usize, cols: usize) -> Self {
        let mut random = Random(seed);
        let number = |bits: u16| bf16::from_f32((f32::from(bits) - 32_767.5) / 16_384.0);
        let bytes = random.bytes(n * cols * 2);
        let data = bytes.chunks_exact(2).map(|pair| number(u16::from_le_bytes([pair[0], pair[1]]))).collect();
        Self { data, n, cols }
    }

    pub fn row(&self, i: usize) -> &[bf16] {
        &self.data[i * self.cols..][..self.cols]
    }

    pub fn pick(&self, rows: &[usize]) -> Self {
        let data = rows.iter().flat_map(|&i| self.row(i).iter().copied()).collect();
        Self { data, n: rows.len(), cols: self.cols }
    }

    /// As the kernels read them; rows that only fill a group are NaN, columns that only fill a panel are 0.
    pub fn panels(&self) -> Vec<bf16> {
        let (groups, n_panels) = (self.n.div_ceil(8), self.cols.div_ceil(64));
        let mut panels = vec![bf16::NAN; groups * n_panels * 512];
        for row in 0..self.n {
            for col in 0..n_panels * 64 {
                let (r, c) = (row % 8, col % 64 / 8);
                let byte = 1024 * (col / 64 * groups + row / 8) + 128 * r + 16 * (c ^ r) + col % 8 * 2;
                panels[byte / 2] = if col < self.cols { self.row(row)[col] } else { bf16::ZERO };
            }
        }
        panels
    }
}

impl<'a> Rig<'a> {
    pub fn new(device: &'a Device, rows: usize, cols: usize) -> Self {
        let mut bias = Rows::random(2, 1, rows).data;
        bias[0] = bf16::from_f32(-0.75);
        Self::of(device, Rows::random(1, rows, cols), bias)
    }

    /// With three matrices one under the other, where there are rows for them; the second has no bias.
    pub fn of(device: &'a Device, w: Rows, mut bias: Vec<bf16>) -> Self {
        let stream = device.stream().unwrap();
        let (first, second) = (w.n / 3, w.n / 3 + w.n / 5);
        bias[first..second].fill(bf16::ZERO);
        let linear = |from: usize, to: usize, has_bias: bool| Linear {
            weight: Matrix::new(&w.data[from * w.cols..to * w.cols], to - from, w.cols),
            bias: if has_bias { &bias[from..to] } else { &[] },
        };
        let linears = [linear(0, first, true), linear(first, second, false), linear(second, w.n, true)];
        let weights = DenseWeights::upload(device, &stream, &linears).unwrap();
        assert_eq!(weights.shape(), DenseShape { rows: w.n, cols: w.cols });
        Self { dense: Dense::load(device).unwrap(), device, stream, weights, w, bias }
    }

    pub fn buffer<T: bytemuck::Pod>(&self, values: &[T]) -> Buffer<T> {
        let mut buffer = self.device.alloc(values.len()).unwrap();
        self.stream.upload(values, &mut buffer, 0).unwrap();
        buffer
    }

    /// By each kernel that has room for so many tokens.
    pub fn kernels(&self, n_tokens: usize) -> impl Iterator<Item = DenseKernel> + use<> {
        let shape = self.weights.shape();
        DenseKernel::ALL.into_iter().filter(move |kernel| n_tokens <= kernel.max_tokens(shape))
    }

    /// `out` `[tokens, rows]`, and nothing behind it was written. To be stored into, it is NaN before; to be added to, `before`.
    pub fn run(&self, x: &Rows, choice: DenseChoice, before: Option<&[f32]>) -> Vec<f32> {
        let n_out = x.n * self.w.n;
        let mut filling = before.map_or_else(|| vec![f32::NAN; n_out], <[f32]>::to_vec);
        filling.resize(n_out + BEHIND, UNTOUCHED);
        let (x_panels, mut out) = (self.buffer(&x.panels()), self.buffer(&filling));
        let what = if before.is_some() { DenseOut::Add } else { DenseOut::Store };
        let name = self.dense.forward_by(choice, &self.stream, &self.weights, &x_panels, x.n, &mut out, what).unwrap();
        self.check_name(name, choice, x.n);
        self.stream.download(&out, 0, &mut filling).unwrap();
        assert!(filling[n_out..].iter().all(|value| value.to_bits() == UNTOUCHED.to_bits()), "written behind out");
        filling.truncate(n_out);
        filling
    }

    fn check_name(&self, name: &str, choice: DenseChoice, n_tokens: usize) {
        let kernel = match choice {
            DenseChoice::Auto => self.dense.kernel(self.weights.shape(), n_tokens),
            DenseChoice::Fixed(kernel) => kernel,
        };
        let expect = match kernel {
            DenseKernel::Stream if n_tokens <= 8 => "dense_stream_8",
            DenseKernel::Stream => "dense_stream_16",
            DenseKernel::Small => "dense_gemm_small",
            DenseKernel::Mid => "dense_gemm_mid",
            DenseKernel::Wide => "dense_gemm_wide",
        };
        assert_eq!(name, expect);
    }

    /// By float64, of some tokens and rows: the sum, and the sum of its terms' squares, which no cancellation makes small.
    fn expect(&self, x: &Rows, before: Option<&[f32]>, tokens: &[usize], rows: &[usize]) -> Vec<(f64, f64)> {
        let widen = |values: &[bf16]| -> Vec<f64> { values.iter().map(|value| value.to_f64()).collect() };
        let w: Vec<Vec<f64>> = rows.iter().map(|&row| widen(self.w.row(row))).collect();
        let mut expect = Vec::new();
        for &token in tokens {
            let x = widen(x.row(token));
            for (w, &row) in w.iter().zip(rows) {
                let before = before.map_or(0.0, |before| f64::from(before[token * self.w.n + row]));
                let bias = self.bias[row].to_f64();
                let (mut sum, mut squares) = (before + bias, before.powi(2) + bias.powi(2));
                for (w, x) in w.iter().zip(&x) {
                    sum += w * x;
                    squares += (w * x).powi(2);
                }
                expect.push((sum, squares));
            }
        }
        expect
    }

    /// Every kernel, stored and added, against float64 at every `stride`-th row; and every bit against the first.
    #[track_caller]
    pub fn check(&self, x: &Rows, stride: usize) {
        let before: Vec<f32> = Rows::random(3, x.n, self.w.n).data.iter().map(|value| value.to_f32() * 8.0).collect();
        let tokens: Vec<usize> = (0..x.n).collect();
        let rows: Vec<usize> = (0..self.w.n).step_by(stride).chain([self.w.n - 1]).collect();
        for before in [None, Some(before.as_slice())] {
            let expect = self.expect(x, before, &tokens, &rows);
            let mut first: Option<Vec<f32>> = None;
            for choice in self.kernels(x.n).map(DenseChoice::Fixed).chain([DenseChoice::Auto]) {
                let what =
                    format!("{:?}, {} tokens, {choice:?}, adds: {}", self.weights.shape(), x.n, before.is_some());
                let all = self.run(x, choice, before);
                let at = |token: &usize| rows.iter().map(|row| all[token * self.w.n + row]).collect::<Vec<_>>();
                let found: Vec<f32> = tokens.iter().flat_map(at).collect();
                let error = error(&found, &expect);
                let most = max_sum_error(x.cols);
                assert!(error <= most, "{what}: off by {error:.2e}, at most {most:.2e} expected");
                let first = first.get_or_insert_with(|| all.clone());
                if let Some(i) = differ(&all, first) {
                    let (token, row) = (i / self.w.n, i % self.w.n);
                    panic!("{what}: token {token}, row {row}: {:e}, not {:e}", all[i], first[i]);
                }
            }
        }
    }
}

/// The first element whose bits differ.
pub fn differ(found: &[f32], expect: &[f32]) -> Option<usize> {
    assert_eq!(found.len(), expect.len());
    found.iter().zip(expect).position(|(found, expect)| found.to_bits() != expect.to_bits())
}

/// Relative to the norm of the terms; infinite if something is not a number.
fn error(found: &[f32], expect: &[(f64, f64)]) -> f64 {
    let (mut difference, mut norm) = (0.0, 0.0);
    for (&found, (sum, squares)) in found.iter().zip(expect) {
        difference += (f64::from(found) - sum).powi(2);
        norm += squares;
    }
    let error = (difference / norm).sqrt();
    if error.is_nan() { f64::INFINITY } else { error }
}
