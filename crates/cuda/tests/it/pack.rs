//! Records: where every bit of a matrix is, written down here from the formulas and not taken from the packer.

use tessera_cuda::pack::fragment::{Element, Place, element, place, places};
use tessera_cuda::pack::{
    Matrix, PackError, Packer, Rows, ScaleShift, Shape, locate_code, locate_field, pack, unpack, unpack_as_device,
};

use crate::random::Random;

const RECORD: usize = 2176;
const CODES: usize = 2048;

struct Case {
    rows: usize,
    k: usize,
    order: Rows,
    blocks: Vec<u8>,
    scales: Vec<u8>,
}

impl Case {
    fn random(rows: usize, k: usize, order: Rows, scales: (u8, u8)) -> Self {
        let mut random = Random((rows * 10_000 + k) as u64);
        let blocks = random.bytes(rows * k / 2);
        let scales = random.bytes_between(scales.0, scales.1, rows * k / 32);
        Self { rows, k, order, blocks, scales }
    }

    fn shape(&self) -> Shape {
        Shape::new(self.rows, self.k).unwrap()
    }

    fn matrix(&self) -> Matrix<'_> {
        Matrix::new(&self.blocks, &self.scales, self.shape()).unwrap()
    }

    /// The packed bytes, over garbage, and the shift.
    fn packed(&self) -> (Vec<u8>, ScaleShift) {
        let mut out = vec![0xA5; self.rows.div_ceil(64) * self.k.div_ceil(64) * RECORD];
        let shift = pack(self.matrix(), self.order, &mut out).unwrap();
        (out, shift)
    }

    /// The code of an element; beyond the matrix, 0.
    fn code(&self, row: usize, k: usize) -> u8 {
        if row >= self.rows || k >= self.k {
            return 0;
        }
        let byte = self.blocks[(row * self.k + k) / 2];
        if k.is_multiple_of(2) { byte & 15 } else { byte >> 4 }
    }

    /// The field of a block: its scale byte and 126 less the shift; beyond the matrix, of the smallest scale byte.
    fn field(&self, row: usize, block: usize, shift: i32) -> u8 {
        let inside = row < self.rows && block < self.k / 32;
        let scale = if inside { i32::from(self.scales[row * (self.k / 32) + block]) } else { (shift - 5).max(0) };
        (scale + 126 - shift) as u8
    }

    /// The row of the packed form: channels go by eights, gates before ups.
    fn packed_row(&self, row: usize) -> usize {
        match self.order {
            Rows::Natural => row,
            Rows::GateUp => {
                let channel = row >> 1;
                (channel >> 3 << 4) | (row & 1) << 3 | (channel & 7)
            }
        }
    }

    /// Compares every bit, padding included.
    fn check_bits(&self, packed: &[u8]) {
        let (strips, k_tiles) = (self.rows.div_ceil(64), self.k.div_ceil(64));
        assert_eq!(packed.len(), strips * k_tiles * RECORD);
        let shift = (i32::from(*self.scales.iter().max().unwrap()) - 128).max(0);
        let code_bits: Vec<[usize; 4]> = (0..64 * 64).map(|i| bits_of_code(i / 64, i % 64)).collect();
        let field_bits: Vec<[usize; 8]> = (0..64 * 2).map(|i| bits_of_field(i / 2, i % 2)).collect();
        for row in 0..strips * 64 {
            let (strip, r) = (self.packed_row(row) / 64, self.packed_row(row) % 64);
            for k_tile in 0..k_tiles {
                let record = &packed[(strip * k_tiles + k_tile) * RECORD..][..RECORD];
                for k in 0..64 {
                    let code = gather(record, &code_bits[r * 64 + k]);
                    assert_eq!(code, self.code(row, k_tile * 64 + k), "row {row}, k {}", k_tile * 64 + k);
                }
                for block in 0..2 {
                    let field = gather(record, &field_bits[r * 2 + block]);
                    assert_eq!(
                        field,
                        self.field(row, k_tile * 2 + block, shift),
                        "row {row}, k tile {k_tile}, block {block}"
                    );
                }
            }
        }
    }

    fn check(&self) {
        let (packed, shift) = self.packed();
        self.check_bits(&packed);
        for unpacked in [unpack, unpack_as_device].map(|f| f(&packed, self.shape(), self.order, shift)) {
            assert!(unpacked.blocks == self.blocks && unpacked.scales == self.scales, "{}x{}", self.rows, self.k);
        }
    }
}

/// The bits of a record that hold the code at (row, k), lowest bit of the code first.
fn bits_of_code(row: usize, k: usize) -> [usize; 4] {
    let (warp, g, below) = (row / 16, row % 8, row % 16 / 8);
    let (step, q, right, half) = (k / 16, k % 8 / 2, k % 16 / 8, k % 2);
    let thread = warp * 32 + g * 4 + q;
    let register = below + 2 * right;
    let first_word = thread * 128 + step / 2 * 64;
    std::array::from_fn(|bit| {
        let home = 16 * half + if bit == 3 { 15 } else { 6 + bit };
        let own_word = first_word + step % 2 * 32;
        match (register, step % 2) {
            (0, _) => own_word + home,
            (1, _) => own_word + (home + 6) % 32,
            (2, _) => own_word + home - 4,
            (_, 0) => first_word + bit_of_fourth((home + 4) % 32),
            (_, _) => first_word + bit_of_fourth(home - 6),
        }
    })
}

/// Both fourth pairs together: bits 2, 3, 11 and 12 of each half are in the first word, two places lower.
fn bit_of_fourth(bit: usize) -> usize {
    if [2, 3, 11, 12].contains(&(bit % 16)) { bit - 2 } else { 32 + bit }
}

/// The bits of a record that hold the exponent field of (row, block), lowest first.
fn bits_of_field(row: usize, block: usize) -> [usize; 8] {
    let (warp, g, below) = (row / 16, row % 8, row % 16 / 8);
    let word = CODES * 8 + (warp * 8 + g) * 32;
    std::array::from_fn(|bit| word + (7 + bit + 16 * below + 8 * block) % 32)
}

fn gather(record: &[u8], bits: &[usize]) -> u8 {
    bits.iter().enumerate().fold(0, |value, (i, bit)| value | (record[bit / 8] >> (bit % 8) & 1) << i)
}

#[test]
fn the_fragment_map_is_that_of_the_ptx_manual() {
    let mut seen = [[false; 16]; 64];
    for thread in 0..128 {
        let (warp, group_id, in_group) = (thread / 32, thread % 32 / 4, thread % 4);
        for i in 0..8 {
            // "row = groupID for ai where 0 <= i < 2 || 4 <= i < 6, groupID + 8 otherwise; col = threadID_in_group * 2 +
            // (i & 1) for ai where i < 4, + 8 where i >= 4"
            let row = 16 * warp + if (0..2).contains(&i) || (4..6).contains(&i) { group_id } else { group_id + 8 };
            let k = in_group * 2 + (i & 1) + if i < 4 { 0 } else { 8 };
            let at = Place { thread, register: i / 2, half: i % 2 };
            assert_eq!(element(at), Element { row, k });
            assert_eq!(place(Element { row, k }), at);
            assert!(!std::mem::replace(&mut seen[row][k], true), "({row}, {k}) twice");
        }
    }
    assert_eq!(places().count(), 64 * 16);
}

/// CUTLASS states the same map as a layout: `ALayout_64x16 = ((4,8,4),(2,2,2)):((128,1,16),(64,8,512))`, row + 64 k.
#[test]
fn the_fragment_map_is_that_of_cutlass() {
    for at in places() {
        let (t, v) = (at.thread, 2 * at.register + at.half);
        let offset = 128 * (t % 4) + t / 4 % 8 + 16 * (t / 32) + 64 * (v % 2) + 8 * (v / 2 % 2) + 512 * (v / 4);
        assert_eq!(element(at), Element { row: offset % 64, k: offset / 64 });
    }
}

#[test]
fn a_record_has_every_bit_once() {
    let mut seen = vec![false; RECORD * 8];
    let codes = (0..64 * 64).flat_map(|i| bits_of_code(i / 64, i % 64));
    let fields = (0..64 * 2).flat_map(|i| bits_of_field(i / 2, i % 2));
    for bit in codes.chain(fields) {
        assert!(!std::mem::replace(&mut seen[bit], true), "bit {bit} twice");
    }
    assert!(seen.iter().all(|s| *s));
    for (i, bit) in (0..64 * 64 * 4).map(|i| (i / 4, i % 4)) {
        let mut case = Case { rows: 64, k: 64, order: Rows::Natural, blocks: vec![0; 2048], scales: vec![0; 128] };
        case.blocks[i / 2] = 1 << (4 * (i % 2) + bit);
        let (packed, _) = case.packed();
        let set: u32 = packed[..CODES].iter().map(|b| b.count_ones()).sum();
        let at = bits_of_code(i / 64, i % 64)[bit];
        assert!(set == 1 && packed[at / 8] == 1 << (at % 8), "element {i}, bit {bit}");
    }
}

#[test]
fn locations_are_where_the_bits_are() {
    for (row, k) in (0..64 * 64).map(|i| (i / 64, i % 64)) {
        let at = locate_code(row, k);
        assert_eq!(at.bits.map(|bit| at.group * 8 + bit), bits_of_code(row, k), "({row}, {k})");
        assert_eq!((at.step, element(at.place)), (k / 16, Element { row, k: k % 16 }));
        assert_eq!((at.pair, at.group), (k / 16 % 2 * 4 + at.place.register, at.place.thread * 16 + k / 32 * 8));
        let field = locate_field(row, k / 32);
        assert_eq!(field.bits.map(|bit| field.word * 8 + bit), bits_of_field(row, k / 32), "({row}, {k})");
        assert_eq!(field.thread, at.place.thread / 4 * 4);
    }
}

/// `codes[r, k] = (7 r + 3 k + r k / 5) mod 16`, `scales[r, b] = 110 + (2 r + b) mod 17`: packed by another program, which
/// was written before this one.
#[test]
fn the_golden_record() {
    let golden = include_bytes!("../../../../fixtures/layout/golden_record.bin");
    let code = |r: usize, k: usize| ((7 * r + 3 * k + r * k / 5) % 16) as u8;
    let blocks = (0..64 * 32).map(|i| (i / 32, i % 32 * 2)).map(|(r, k)| code(r, k) | code(r, k + 1) << 4).collect();
    let scales = (0..64 * 2).map(|i| (110 + (2 * (i / 2) + i % 2) % 17) as u8).collect();
    let case = Case { rows: 64, k: 64, order: Rows::Natural, blocks, scales };
    let (packed, shift) = case.packed();
    assert_eq!(packed, golden);
    assert_eq!((shift.exponent(), shift.factor()), (0, 1.0));
    let word = |at: usize| u32::from_le_bytes(golden[at..at + 4].try_into().unwrap());
    assert_eq!(word(CODES) & 0x7F80_7F80, (110 + 126) << 7 | (110 + 16 + 126) << 23); // rows 0 and 8 of block 0
}

#[test]
fn the_published_gate_up_matrix() {
    Case::random(5760, 2880, Rows::GateUp, (100, 128)).check();
}

#[test]
fn the_published_down_matrix() {
    Case::random(2880, 2880, Rows::Natural, (0, 128)).check();
}

#[test]
fn scales_that_need_a_shift() {
    Case::random(2880, 2880, Rows::Natural, (20, 150)).check();
    Case::random(128, 256, Rows::GateUp, (121, 254)).check();
    let (_, shift) = Case::random(128, 256, Rows::GateUp, (121, 254)).packed();
    assert_eq!((shift.exponent(), shift.factor()), (126, 2f32.powi(126)));
}

#[test]
fn shapes_that_need_padding() {
    for (rows, k) in [(96, 96), (32, 32), (64, 160), (1, 32), (3, 96), (65, 64), (130, 2880), (2880, 32)] {
        Case::random(rows, k, Rows::Natural, (90, 128)).check();
        Case::random(rows, k, Rows::Natural, (90, 140)).check();
    }
    for (rows, k) in [(96, 96), (32, 32), (64, 160), (2, 32), (66, 64), (8, 32), (126, 128), (192, 2880)] {
        Case::random(rows, k, Rows::GateUp, (90, 128)).check();
    }
}

/// A thread's accumulators `d_i` and `d_{i+2}` have rows `g` and `g + 8`: gate and up of one channel, padding included.
#[test]
fn gate_and_up_are_partners_in_one_thread() {
    for packed in (0..5824).filter(|r| r % 16 < 8) {
        let (gate, up) = (Rows::GateUp.source(packed), Rows::GateUp.source(packed + 8));
        assert_eq!((gate % 2, up), (0, gate + 1));
        let (strip, warp, g) = (packed / 64, packed % 64 / 16, packed % 8);
        assert_eq!(gate / 2, (strip * 4 + warp) * 8 + g);
        assert_eq!((Rows::GateUp.packed(gate), Rows::GateUp.packed(up)), (packed, packed + 8));
    }
}

#[test]
fn strips_by_themselves_make_the_whole() {
    let case = Case::random(192, 160, Rows::GateUp, (100, 120));
    let (whole, shift) = case.packed();
    let packer = Packer::new(case.matrix(), case.order, shift).unwrap();
    let mut out = vec![0; case.shape().packed_bytes()];
    for (strip, out) in out.chunks_exact_mut(case.shape().strip_bytes()).enumerate().rev() {
        packer.pack_strip(strip, out);
    }
    assert_eq!(out, whole);
}

#[track_caller]
fn refuses(case: &Case, expect: PackError) {
    let mut out = vec![0; case.shape().packed_bytes()];
    assert_eq!(pack(case.matrix(), case.order, &mut out), Err(expect));
    assert!(out.iter().all(|b| *b == 0), "written in spite of the error");
}

#[test]
fn scales_that_have_no_field_are_refused() {
    let mut case = Case::random(96, 96, Rows::GateUp, (100, 120));
    case.scales[3 * 41 + 2] = 255;
    refuses(&case, PackError::ScaleNan { row: 41, block: 2 });
    case.scales[3 * 41 + 2] = 234; // shift 106: from 101 on
    case.scales[3 * 7 + 1] = 100;
    let first = case.scales.iter().position(|s| *s == 100).unwrap();
    let expect = PackError::ScaleSpan { row: first / 3, block: first % 3, scale: 100, lowest: 101, highest: 234 };
    refuses(&case, expect);
}

#[test]
fn a_shift_of_another_tensor_is_checked() {
    let case = Case::random(64, 64, Rows::Natural, (100, 120));
    let none = ScaleShift::of(&[128], 1).unwrap();
    let some = ScaleShift::of(&[200], 1).unwrap();
    assert!(Packer::new(case.matrix(), case.order, some).is_ok()); // 67 to 200
    let above = Case::random(64, 64, Rows::Natural, (129, 129));
    let expect = PackError::ScaleSpan { row: 0, block: 0, scale: 129, lowest: 0, highest: 128 };
    assert_eq!(Packer::new(above.matrix(), above.order, none).err(), Some(expect));
    let nan = Case::random(64, 64, Rows::Natural, (255, 255));
    assert_eq!(Packer::new(nan.matrix(), nan.order, some).err(), Some(PackError::ScaleNan { row: 0, block: 0 }));
}

#[test]
fn shapes_and_lengths_that_do_not_agree_are_refused() {
    for (rows, k) in [(0, 64), (64, 0), (64, 16), (64, 100)] {
        assert_eq!(Shape::new(rows, k), Err(PackError::Shape { rows, k }));
    }
    let shape = Shape::new(2, 64).unwrap();
    let error = Matrix::new(&[0; 63], &[0; 4], shape).err().unwrap();
    assert_eq!(error.to_string(), "blocks of a 2x64 matrix should have 64 bytes, found 63");
    let error = Matrix::new(&[0; 64], &[0; 5], shape).err().unwrap();
    assert_eq!(error.to_string(), "scales of a 2x64 matrix should have 4 bytes, found 5");
    refuses(&Case::random(3, 32, Rows::GateUp, (1, 2)), PackError::UnpairedRow { rows: 3 });
}
