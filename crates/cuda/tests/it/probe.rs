//! The decode of MXFP4 weights on the GPU, by itself, against float64 and the layout's formulas.

use bytemuck::{Pod, Zeroable};
use tessera_cuda::{Address, Device, Launch};

use crate::gpu::gpu;

const RECORD_BYTES: usize = 2176;
const THREADS: usize = 128;
const REGISTERS: usize = 16;
/// OCP Microscaling formats 1.0, table 5.
const E2M1: [f64; 16] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];

/// `MultiplyTableArgs` and `DecodeRecordsArgs` of `decode_probe.cu`.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct ProbeArgs {
    from: Address,
    to: Address,
}

/// What the kernel writes, `n_words` words, when it reads `bytes`.
fn probe(device: &Device, kernel: &'static str, launch: Launch, bytes: &[u8], n_words: usize) -> Vec<u32> {
    let stream = device.stream().unwrap();
    let kernel = device.kernel::<ProbeArgs>("decode_probe", kernel).unwrap();
    let mut from = device.alloc(bytes.len()).unwrap();
    let to = device.alloc(n_words).unwrap();
    stream.upload(bytes, &mut from, 0).unwrap();
    stream.launch(&kernel, launch, &ProbeArgs { from: from.address(), to: to.address() }).unwrap();
    let mut words = vec![0; n_words];
    stream.download(&to, 0, &mut words).unwrap();
    words
}

fn from_bf16(bits: u16) -> f64 {
    f64::from(f32::from_bits(u32::from(bits) << 16))
}

/// Rounded to nearest, ties to even, with subnormals. All not-a-numbers become one.
fn to_bf16(value: f64) -> u16 {
    let sign = if value.is_sign_negative() { 0x8000 } else { 0 };
    if value.is_nan() {
        return 0x7FFF;
    }
    if value.is_infinite() {
        return sign | 0x7F80;
    }
    let exponent = ((value.abs().to_bits() >> 52) as i32 - 1023).max(-126);
    // In units of the last place. A carry runs into the exponent, and from the largest one to infinity.
    let significand = (value.abs() * 2f64.powi(7 - exponent)).round_ties_even() as i32;
    let bits = if significand < 128 { significand } else { ((exponent + 127) << 7) + significand - 128 };
    sign | bits.min(0x7F80) as u16
}

fn same_bf16(a: u16, b: u16) -> bool {
    a == b || (from_bf16(a).is_nan() && from_bf16(b).is_nan())
}

#[test]
fn the_rounding_here_gives_back_every_bf16_and_rounds_halves_to_even() {
    for bits in 0..=u16::MAX {
        assert!(same_bf16(to_bf16(from_bf16(bits)), bits), "{bits:#06x}");
        let (this, next) = (from_bf16(bits), from_bf16(bits.wrapping_add(1)));
        if bits & 0x7FFF < 0x7F7F {
            let even = bits + (bits & 1);
            assert_eq!(to_bf16((this + next) / 2.0), even, "{bits:#06x}");
        }
    }
    assert_eq!(to_bf16(2f64.powi(128)), 0x7F80);
}

/// Subnormals in, subnormals out, both halves of the register, and the first thing asked of the hardware: 2^-127 as a
/// subnormal times 2^126 is a half.
#[test]
fn the_multiplication_is_exact_for_every_bf16_under_every_field() {
    let Some(device) = gpu() else { return };
    let fields: Vec<u8> = (0..=254).collect();
    let launch = Launch { grid: [256, fields.len() as u32, 1], ..Launch::new(256, 256) };
    let products = probe(&device, "multiply_table", launch, &fields, fields.len() << 16);
    let product = |field: u8, x: u16| products[usize::from(field) << 16 | usize::from(x)] as u16;
    assert_eq!(product(253, 0x0040), 0x3F00);
    for &field in &fields {
        let multiplier = from_bf16(u16::from(field) << 7);
        let expect: Vec<u16> = (0..=u16::MAX).map(|x| to_bf16(from_bf16(x) * multiplier)).collect();
        for x in 0..=u16::MAX {
            let pair = products[usize::from(field) << 16 | usize::from(x)];
            let (low, high) = (pair as u16, (pair >> 16) as u16);
            let (expect_low, expect_high) = (expect[usize::from(x)], expect[usize::from(!x)]);
            assert!(same_bf16(low, expect_low), "field {field}, low {x:#06x}: {low:#06x}, not {expect_low:#06x}");
            assert!(
                same_bf16(high, expect_high),
                "field {field}, high {:#06x}: {high:#06x}, not {expect_high:#06x}",
                !x
            );
        }
    }
}

/// 64 rows x 64 columns, and the exponent field of each row's two blocks.
struct Weights {
    codes: [[u8; 64]; 64],
    fields: [[u8; 2]; 64],
}

impl Weights {
    fn from_fns(code: impl Fn(usize, usize) -> usize, field: impl Fn(usize, usize) -> usize) -> Self {
        let codes = std::array::from_fn(|row| std::array::from_fn(|k| (code(row, k) % 16) as u8));
        let fields = std::array::from_fn(|row| std::array::from_fn(|block| field(row, block) as u8));
        Self { codes, fields }
    }

    /// As a bf16: the code times 2^(scale byte - 127), where the field is the scale byte and 126.
    fn value(&self, row: usize, k: usize) -> u16 {
        let exponent = i32::from(self.fields[row][k / 32]) - 126 - 127;
        to_bf16(E2M1[usize::from(self.codes[row][k])] * 2f64.powi(exponent))
    }

    /// The record, bit by bit from the formulas of the layout.
    fn pack(&self) -> Vec<u8> {
        let mut words = vec![];
        for thread in 0..THREADS {
            for step in [0, 2] {
                let home: [u32; 8] = std::array::from_fn(|i| self.home(thread, step + i / 4, i % 4));
                let leftover = home[3].rotate_left(4) | home[7] >> 6;
                let mask = 0x180C_180C;
                words.push(home[0] | home[1].rotate_left(6) | home[2] >> 4 | (leftover & mask) >> 2);
                words.push(home[4] | home[5].rotate_left(6) | home[6] >> 4 | leftover & !mask);
            }
        }
        for (warp, g) in (0..32).map(|i| (i / 8, i % 8)) {
            let row = 16 * warp + g;
            let pair =
                |block: usize| u32::from(self.fields[row][block]) << 7 | u32::from(self.fields[row + 8][block]) << 23;
            words.push(pair(0) | pair(1).rotate_left(8));
        }
        words.into_iter().flat_map(u32::to_le_bytes).collect()
    }

    /// Two codes with the sign in bit 15 and the rest in bits 8 to 6 of their halves.
    fn home(&self, thread: usize, step: usize, register: usize) -> u32 {
        let half = |half: usize| {
            let (row, k) = element(thread, step, register, half);
            let code = u32::from(self.codes[row][k]);
            (code >> 3) << 15 | (code & 7) << 6
        };
        half(0) | half(1) << 16
    }
}

/// Row and column of an element of the A fragment of wgmma m64nNk16, from the PTX ISA's figure.
fn element(thread: usize, step: usize, register: usize, half: usize) -> (usize, usize) {
    let (warp, lane) = (thread / 32, thread % 32);
    let i = 2 * register + half;
    let row = lane / 4 + if i < 2 || (4..6).contains(&i) { 0 } else { 8 };
    let column = lane % 4 * 2 + i % 2 + if i < 4 { 0 } else { 8 };
    (16 * warp + row, 16 * step + column)
}

#[test]
fn the_records_here_are_a_bijection() {
    let mut seen = [[false; 64]; 64];
    for i in 0..64 * 64 {
        let (row, k) = element(i / 32, i % 32 / 8, i % 8 / 2, i % 2);
        assert!(!std::mem::replace(&mut seen[row][k], true), "{row}, {k} twice");
    }
    let zero = Weights::from_fns(|_, _| 0, |_, _| 0).pack();
    assert_eq!(zero, [0; RECORD_BYTES]);
    let ones = Weights::from_fns(|_, _| 15, |_, _| 255).pack();
    assert_eq!(ones, [255; RECORD_BYTES]);
}

#[test]
fn every_thread_decodes_its_fragments() {
    let Some(device) = gpu() else { return };
    let mut records = vec![
        Weights::from_fns(|row, k| 7 * row + 3 * k + row * k / 5, |row, block| 236 + (2 * row + block) % 17),
        Weights::from_fns(|row, k| row + k, |_, _| 253),
        Weights::from_fns(
            |row, k| (row * 64 + k).wrapping_mul(0x9E37_79B9) >> 20,
            |row, block| 1 + 97 * row % 200 + block,
        ),
    ];
    // Every code in every place of a thread's share, under every field.
    records.extend((1..=254).map(|field| {
        Weights::from_fns(move |row, k| row * 5 + k * 3 + field + k / 16, move |_, block| 1 + (field + block - 1) % 254)
    }));
    let bytes: Vec<u8> = records.iter().flat_map(Weights::pack).collect();
    assert_eq!(bytes.len(), records.len() * RECORD_BYTES);
    let launch = Launch::new(records.len() as u32, THREADS as u32);
    let registers = probe(&device, "decode_records", launch, &bytes, records.len() * THREADS * REGISTERS);
    for (i, &found) in registers.iter().enumerate() {
        let (record, thread, register) = (i / (THREADS * REGISTERS), i / REGISTERS % THREADS, i % REGISTERS);
        let expect = [0, 1].map(|half| {
            let (row, k) = element(thread, register / 4, register % 4, half);
            records[record].value(row, k)
        });
        let found = [found as u16, (found >> 16) as u16];
        assert_eq!(found, expect, "record {record}, thread {thread}, register {register}");
    }
}
