//! Buffers on the GPU, and numbers.

use half::bf16;
use tessera_cuda::{Buffer, Device, Steps, Stream};

use crate::gpu::gpu;
use crate::random::Random;

pub const EPS: f32 = 1e-5;
pub const HIDDEN: [usize; 7] = [32, 64, 96, 160, 256, 2880, 2944];
pub const TOKENS: [usize; 7] = [1, 2, 8, 9, 33, 256, 1000];
/// What a bf16 buffer has before: NaN, which no test expects.
pub const UNTOUCHED: bf16 = bf16::from_bits(0x7FE5);
/// Elements behind what is to be written, which nobody may write.
const BEHIND: usize = 96;

pub struct Rig {
    pub device: Device,
    pub stream: Stream,
}

impl Rig {
    pub fn new() -> Option<Self> {
        let device = gpu()?;
        let stream = device.stream().unwrap();
        Some(Self { device, stream })
    }

    pub fn steps(&self, hidden: usize) -> Steps {
        Steps::load(&self.device, hidden, EPS).unwrap()
    }

    pub fn upload<T: bytemuck::Pod>(&self, values: &[T]) -> Buffer<T> {
        let mut buffer = self.device.alloc(values.len()).unwrap();
        self.stream.upload(values, &mut buffer, 0).unwrap();
        buffer
    }

    pub fn download<T: bytemuck::Pod>(&self, buffer: &Buffer<T>) -> Vec<T> {
        let mut values = vec![T::zeroed(); buffer.len()];
        self.stream.download(buffer, 0, &mut values).unwrap();
        values
    }

    /// A target of `len` elements, and some behind them, that all are `filling`.
    pub fn target<T: bytemuck::Pod>(&self, len: usize, filling: T) -> Buffer<T> {
        self.upload(&vec![filling; len + BEHIND])
    }

    /// What is in a target now; nothing behind it was written.
    #[track_caller]
    pub fn written<T: bytemuck::Pod>(&self, target: &Buffer<T>, filling: T) -> Vec<T> {
        let mut values = self.download(target);
        let behind = values.split_off(values.len() - BEHIND);
        let expect = vec![filling; BEHIND];
        assert_eq!(bytemuck::cast_slice::<T, u8>(&behind), bytemuck::cast_slice::<T, u8>(&expect), "written behind");
        values
    }
}

pub fn normal(random: &mut Random, n: usize, scale: f64) -> Vec<f32> {
    (0..n).map(|_| (random.normal() * scale) as f32).collect()
}

pub fn rounded(values: &[f32]) -> Vec<bf16> {
    values.iter().map(|&value| bf16::from_f32(value)).collect()
}

pub fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

pub fn bf16_bits(values: &[bf16]) -> Vec<u16> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// The rows at `places`.
pub fn pick<T: Copy>(values: &[T], width: usize, places: &[usize]) -> Vec<T> {
    places.iter().flat_map(|&place| values[place * width..][..width].iter().copied()).collect()
}

/// Elements of the panels of so many rows.
pub fn panels_len(n_rows: usize, width: usize) -> usize {
    n_rows.div_ceil(8) * width.div_ceil(64) * 512
}

/// `[n_rows, 64 * panels]` of bf16 panels: of group g of G, panel p is at byte 1024 (p G + g), row r at 128 r of it, 16-byte
/// piece c at 16 (c ^ r) of that.
pub fn from_panels(panels: &[bf16], n_rows: usize, width: usize) -> Vec<bf16> {
    let n_groups = n_rows.div_ceil(8);
    let columns = width.div_ceil(64) * 64;
    let at = |row: usize, column: usize| {
        let (panel, r, piece) = (column / 64, row % 8, column % 64 / 8);
        let byte = 1024 * (panel * n_groups + row / 8) + 128 * r + 16 * (piece ^ r) + 2 * (column % 8);
        panels[byte / 2]
    };
    (0..n_rows * columns).map(|i| at(i / columns, i % columns)).collect()
}
