//! The decode of weights by itself: the multiplication, then what each thread holds.

use super::Bench;
use super::matrix::Matrix;
use super::numbers::{from_bf16, power, same_bf16, to_bf16};
use crate::kernels::decode_probe::DecodeKernels;
use crate::moe::MoeError;
use crate::pack::{self, RECORD_BYTES, Rows, Shape};

pub const MULTIPLY: &str = "every bf16 under every exponent field";
pub const DECODE: &str = "every code and scale in every register";

/// Exponent fields of finite powers of two, 0 for zero.
const N_FIELDS: usize = 255;
const NUMBERS: usize = 1 << 16;
const TILE: usize = 64;
const THREADS: usize = 128;
/// Of one thread for a record: four of each k16 step.
const REGISTERS: usize = 16;
/// Scale bytes above this are taken back by a factor for the whole tensor, and so are all beside them.
const HIGHEST_SCALE: u8 = 128;
/// A factor under which all fields that weights can have occur side by side: bytes 5 to 138.
const SPAN: (u8, u8) = (5, 138);

pub fn multiply(bench: &Bench) -> Result<Option<String>, MoeError> {
    let stream = bench.device.stream()?;
    let kernels = DecodeKernels::load(bench.device)?;
    let fields: Vec<u8> = (0..N_FIELDS as u8).collect();
    let mut on_device = bench.device.alloc(N_FIELDS)?;
    stream.upload(&fields, &mut on_device, 0)?;
    let mut products = bench.device.alloc(N_FIELDS * NUMBERS)?;
    kernels.multiply_table(&stream, &on_device, &mut products)?;
    let mut found = vec![0; N_FIELDS * NUMBERS];
    stream.download(&products, 0, &mut found)?;
    Ok(found.chunks_exact(NUMBERS).enumerate().find_map(|(field, found)| wrong_product(field as u8, found)))
}

/// Of a bf16 `x`, in the low half of `found[x]`, and of its complement, in the high half, times `2^(field - 127)`.
fn wrong_product(field: u8, found: &[u32]) -> Option<String> {
    let multiplier = if field == 0 { 0.0 } else { power(i32::from(field) - 127) };
    let expect: Vec<u16> = (0..=u16::MAX).map(|x| to_bf16(from_bf16(x) * multiplier)).collect();
    (0..=u16::MAX).zip(found).find_map(|(x, &pair)| {
        let halves = [("low", x, pair as u16), ("high", !x, (pair >> 16) as u16)];
        halves.into_iter().find_map(|(half, x, found)| {
            let expect = expect[usize::from(x)];
            let text = format!("field {field}, {half} half: {x:#06x} gives {found:#06x}, expected {expect:#06x}");
            (!same_bf16(found, expect)).then_some(text)
        })
    })
}

pub fn decode(bench: &Bench) -> Result<Option<String>, MoeError> {
    let tiles = tiles();
    let mut records = vec![0; tiles.len() * RECORD_BYTES];
    for (tile, record) in tiles.iter().zip(records.chunks_exact_mut(RECORD_BYTES)) {
        let spoilt = bench.spoilt(tile.clone());
        pack_tile(&spoilt, record).map_err(|source| MoeError::Pack { what: "probe", source })?;
    }
    let stream = bench.device.stream()?;
    let kernels = DecodeKernels::load(bench.device)?;
    let mut on_device = bench.device.alloc(records.len())?;
    stream.upload(&records, &mut on_device, 0)?;
    let mut found = vec![0; tiles.len() * THREADS * REGISTERS];
    let mut registers = bench.device.alloc(found.len())?;
    kernels.decode_records(&stream, &on_device, &mut registers)?;
    stream.download(&registers, 0, &mut found)?;
    let found = found.chunks_exact(THREADS * REGISTERS);
    Ok(tiles.iter().zip(found).find_map(|(tile, found)| wrong_register(tile, found)))
}

/// Every code in every place under every scale byte by itself, then all fields of exponents side by side.
fn tiles() -> Vec<Matrix> {
    let alone = (0..=254_u8).map(|s| {
        let code = move |row, k| (row * 5 + k * 3 + k / 16 + usize::from(s)) as u8;
        Matrix::new(TILE, TILE, code, move |_, _| s)
    });
    let beside = (0..2).map(|i| {
        let n_scales = usize::from(SPAN.1 - SPAN.0);
        let scale = move |row: usize, block: usize| match (row, block) {
            (0, 0) => SPAN.1,
            _ => SPAN.0 + ((2 * row + block + 64 * i) % n_scales) as u8,
        };
        Matrix::new(TILE, TILE, |row, k| (7 * row + 3 * k + row * k / 5) as u8, scale)
    });
    alone.chain(beside).collect()
}

fn pack_tile(tile: &Matrix, record: &mut [u8]) -> Result<(), pack::PackError> {
    let matrix = pack::Matrix::new(&tile.blocks, &tile.scales, Shape::new(TILE, TILE)?)?;
    pack::pack(matrix, Rows::Natural, record).map(|_| ())
}

/// `found` `[threads, registers]`.
fn wrong_register(tile: &Matrix, found: &[u32]) -> Option<String> {
    let highest = tile.scales.iter().copied().max().unwrap_or(0);
    let taken_out = power(-i32::from(highest.saturating_sub(HIGHEST_SCALE)));
    let places = (0..2 * found.len()).map(|i| (i / 2 / REGISTERS, i / 2 % REGISTERS, i % 2));
    places.into_iter().find_map(|(thread, register, half)| {
        let (row, k) = fragment(thread, register, half);
        let found = (found[thread * REGISTERS + register] >> (16 * half)) as u16;
        let expect = to_bf16(tile.value(row, k) * taken_out);
        let (code, scale) = (tile.code(row, k), tile.scales[row * 2 + k / 32]);
        let (step, a, half) = (register / 4, register % 4, ["low", "high"][half]);
        (found != expect).then(|| {
            format!(
                "thread {thread}, a{a} of k16 step {step}, {half} half: {found:#06x}, expected {expect:#06x}, code {code} \
                 under scale {scale} of row {row}, k {k}"
            )
        })
    })
}

/// Row and column that a thread has in a half of a register, by the figure of wgmma's A fragment in the PTX ISA: of the
/// elements 0 to 7 of a k16 step, 0, 1, 4, 5 are in the row of the lane's group, the others 8 below, and the last four are 8
/// to the right.
fn fragment(thread: usize, register: usize, half: usize) -> (usize, usize) {
    let (warp, group, in_group) = (thread / 32, thread % 32 / 4, thread % 4);
    let (step, i) = (register / 4, register % 4 * 2 + half);
    let below = if i < 2 || (4..6).contains(&i) { 0 } else { 8 };
    let right = if i < 4 { 0 } else { 8 };
    (16 * warp + group + below, 16 * step + 2 * in_group + i % 2 + right)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pack::decode::{Share, multiply};

    #[test]
    fn fragments_are_a_bijection() {
        let mut seen = [[false; TILE]; TILE];
        for i in 0..2 * THREADS * REGISTERS {
            let (row, k) = fragment(i / 32, i % 32 / 2, i % 2);
            assert!(!std::mem::replace(&mut seen[row][k], true), "{row}, {k} twice");
        }
    }

    #[test]
    fn a_table_with_one_wrong_product_is_told() {
        for field in [0, 1, 121, 253, 254] {
            let pair = |x: u32| multiply(x | (0xFFFF - x) << 16, u32::from(field) * 0x0080_0080);
            let mut products: Vec<u32> = (0..=0xFFFF).map(pair).collect();
            assert_eq!(wrong_product(field, &products), None);
            products[0x8140] ^= 1;
            let fault = wrong_product(field, &products).unwrap();
            assert!(fault.starts_with(&format!("field {field}, low half: 0x8140 gives ")), "{fault}");
            products[0x8140] ^= 1 | 1 << 16;
            let fault = wrong_product(field, &products).unwrap();
            assert!(fault.starts_with(&format!("field {field}, high half: 0x7ebf gives ")), "{fault}");
        }
    }

    /// All that the device would hold.
    fn registers(tile: &Matrix) -> Vec<u32> {
        let mut record = [0; RECORD_BYTES];
        pack_tile(tile, &mut record).unwrap();
        let share = |thread| Share::load(&record, thread);
        let of_thread = |share: Share| (0..REGISTERS).map(move |i| share.operand(i / 4, i % 4));
        (0..THREADS).flat_map(|thread| of_thread(share(thread))).collect()
    }

    #[test]
    fn every_tile_is_decoded_and_one_wrong_half_is_told() {
        let tiles = tiles();
        assert_eq!(tiles.len(), 257);
        for tile in &tiles {
            let mut found = registers(tile);
            assert_eq!(wrong_register(tile, &found), None);
            found[37 * REGISTERS + 6] ^= 1 << 30;
            let fault = wrong_register(tile, &found).unwrap();
            assert!(fault.starts_with("thread 37, a2 of k16 step 1, high half: 0x"), "{fault}");
            assert!(fault.ends_with(" of row 17, k 27"), "{fault}");
        }
    }

    /// Beside every scale there is another that can be packed.
    #[test]
    fn spoilt_tiles_are_told() {
        for tile in tiles() {
            let mut swapped = tile.clone();
            swapped.blocks.iter_mut().for_each(|byte| *byte = byte.rotate_left(4));
            let mut scaled = tile.clone();
            scaled.scales[1] = scaled.scales[1].checked_sub(1).unwrap_or(1);
            for spoilt in [swapped, scaled] {
                assert!(wrong_register(&tile, &registers(&spoilt)).is_some(), "scale byte {}", tile.scales[1]);
            }
        }
    }

    #[test]
    fn tiles_have_every_code_in_every_place() {
        let mut seen = vec![0_u16; TILE * TILE];
        for tile in tiles() {
            (0..TILE * TILE).for_each(|i| seen[i] |= 1 << tile.code(i / TILE, i % TILE));
        }
        assert!(seen.iter().all(|&codes| codes == u16::MAX));
    }
}
