use half::bf16;
use tessera_model::weights::Experts;

use super::{MoeError, MoeShape};
use crate::device::{Buffer, Device};
use crate::error::DeviceError;
use crate::launch::Stream;
use crate::moe::shape::Tiles;
use crate::pack::{Matrix, Packer, ScaleShift, Shape};

/// A layer's experts in the GPU's memory.
pub struct MoeWeights {
    pub(crate) shape: MoeShape,
    pub(crate) gate_up: Projection,
    pub(crate) down: Projection,
}

/// One matrix of every expert.
pub(crate) struct Projection {
    pub records: Buffer<u8>, // [experts, strips, k_records, 2176]
    pub bias: Buffer<f32>,   // [experts, strips * 64], in the order of the packed rows; padding is 0
    pub weight_scale: f32,
}

impl MoeWeights {
    /// Packs and uploads, expert by expert, `gate_up` `[experts, 2 * intermediate, hidden]`, its even rows gates, and `down`
    /// `[experts, hidden, intermediate]`; waits.
    pub fn upload(
        device: &Device,
        stream: &Stream,
        shape: MoeShape,
        gate_up: &Experts,
        down: &Experts,
    ) -> Result<Self, MoeError> {
        Self::of(device, stream, shape, shape.experts, gate_up, down)
    }

    /// As [`MoeWeights::upload`], but every expert has the matrices of the one that is given: what a benchmark needs, whose
    /// time goes by the bytes and not by what they say.
    pub fn repeat(
        device: &Device,
        stream: &Stream,
        shape: MoeShape,
        gate_up: &Experts,
        down: &Experts,
    ) -> Result<Self, MoeError> {
        Self::of(device, stream, shape, 1, gate_up, down)
    }

    /// Of so many experts' matrices; those after them have the last one's.
    fn of(
        device: &Device,
        stream: &Stream,
        shape: MoeShape,
        given: usize,
        gate_up: &Experts,
        down: &Experts,
    ) -> Result<Self, MoeError> {
        let shape = shape.checked()?;
        check(&GATE_UP, gate_up, given, shape.gate_up())?;
        check(&DOWN, down, given, shape.down())?;
        let upload =
            |names: &Names, from, tiles| Projection::upload(device, stream, names.name, from, tiles, shape.experts);
        Ok(Self {
            shape,
            gate_up: upload(&GATE_UP, gate_up, shape.gate_up())?,
            down: upload(&DOWN, down, shape.down())?,
        })
    }

    /// Room for the experts of a checked shape, all zero; `weight_scales` are those of gate_up and down.
    pub(crate) fn alloc(device: &Device, shape: MoeShape, weight_scales: [f32; 2]) -> Result<Self, DeviceError> {
        let alloc = |tiles, weight_scale| Projection::alloc(device, tiles, shape.experts, weight_scale);
        let [gate_up, down] = weight_scales;
        Ok(Self { shape, gate_up: alloc(shape.gate_up(), gate_up)?, down: alloc(shape.down(), down)? })
    }

    /// Bytes that the experts of a checked shape take.
    pub(crate) fn bytes(shape: MoeShape) -> u64 {
        [shape.gate_up(), shape.down()].map(|tiles| Projection::bytes(tiles, shape.experts)).iter().sum()
    }

    pub fn shape(&self) -> MoeShape {
        self.shape
    }

    /// What the sums of gate_up and down are multiplied by: the power of two that was taken out of their scales.
    pub fn weight_scales(&self) -> [f32; 2] {
        [self.gate_up.weight_scale, self.down.weight_scale]
    }

    /// Bytes that one expert's matrices and biases take.
    pub fn expert_bytes(&self) -> usize {
        let bytes = |p: &Projection| p.records.len() + p.bias.len() * size_of::<f32>();
        (bytes(&self.gate_up) + bytes(&self.down)) / self.shape.experts
    }
}

impl Projection {
    /// For so many experts; those after `from`'s have its last one's matrix.
    fn upload(
        device: &Device,
        stream: &Stream,
        what: &'static str,
        from: &Experts,
        tiles: Tiles,
        experts: usize,
    ) -> Result<Self, MoeError> {
        let mut packing = Packing::new(what, from, tiles)?;
        let mut to = Self::alloc(device, tiles, experts, packing.shift.factor())?;
        for e in 0..experts {
            if e < from.experts {
                packing.pack(e)?;
            }
            to.put(stream, e, &packing)?;
        }
        Ok(to)
    }

    fn alloc(device: &Device, tiles: Tiles, experts: usize, weight_scale: f32) -> Result<Self, DeviceError> {
        Ok(Self {
            records: device.alloc(experts * tiles.record_bytes())?,
            bias: device.alloc(experts * tiles.packed_rows())?,
            weight_scale,
        })
    }

    fn bytes(tiles: Tiles, experts: usize) -> u64 {
        (experts * (tiles.record_bytes() + tiles.packed_rows() * size_of::<f32>())) as u64
    }

    /// What was packed last, as expert `e`.
    fn put(&mut self, stream: &Stream, e: usize, packing: &Packing) -> Result<(), MoeError> {
        stream.upload(&packing.records, &mut self.records, e * packing.records.len())?;
        Ok(stream.upload(&packing.bias, &mut self.bias, e * packing.bias.len())?)
    }
}

/// Packs expert after expert of a projection into the same memory.
struct Packing<'a> {
    what: &'static str,
    from: &'a Experts<'a>,
    tiles: Tiles,
    shape: Shape,
    shift: ScaleShift,
    records: Vec<u8>,
    bias: Vec<f32>,
}

impl<'a> Packing<'a> {
    fn new(what: &'static str, from: &'a Experts<'a>, tiles: Tiles) -> Result<Self, MoeError> {
        let pack = |source| MoeError::Pack { what, source };
        let shape = Shape::new(tiles.rows, tiles.cols).map_err(pack)?;
        let shift = ScaleShift::of(from.scales, shape.blocks()).map_err(pack)?;
        let (records, bias) = (vec![0; tiles.record_bytes()], vec![0.0; tiles.packed_rows()]);
        Ok(Self { what, from, tiles, shape, shift, records, bias })
    }

    fn pack(&mut self, e: usize) -> Result<(), MoeError> {
        let pack = |source| MoeError::Pack { what: self.what, source };
        let (from, tiles, n_rows) = (self.from, self.tiles, self.tiles.rows);
        let (n_codes, n_scales) = (n_rows * tiles.cols / 2, n_rows * self.shape.blocks());
        let blocks = &from.blocks[e * n_codes..][..n_codes];
        let scales = &from.scales[e * n_scales..][..n_scales];
        let matrix = Matrix::new(blocks, scales, self.shape).map_err(pack)?;
        Packer::new(matrix, tiles.order, self.shift).map_err(pack)?.pack(&mut self.records);
        self.bias = packed_bias(&from.bias[e * n_rows..][..n_rows], tiles);
        Ok(())
    }
}

/// What errors call the parts of a projection.
struct Names {
    name: &'static str,
    experts: &'static str,
    rows: &'static str,
    cols: &'static str,
    blocks: &'static str,
    scales: &'static str,
    bias: &'static str,
}

const GATE_UP: Names = Names {
    name: "gate_up",
    experts: "experts of gate_up",
    rows: "rows of gate_up",
    cols: "columns of gate_up",
    blocks: "blocks of gate_up",
    scales: "scales of gate_up",
    bias: "bias of gate_up",
};
const DOWN: Names = Names {
    name: "down",
    experts: "experts of down",
    rows: "rows of down",
    cols: "columns of down",
    blocks: "blocks of down",
    scales: "scales of down",
    bias: "bias of down",
};

/// Sizes and lengths of a projection.
fn check(names: &Names, found: &Experts, experts: usize, tiles: Tiles) -> Result<(), MoeError> {
    let n_rows = experts * tiles.rows;
    for (what, found, expected) in [
        (names.experts, found.experts, experts),
        (names.rows, found.rows, tiles.rows),
        (names.cols, found.cols, tiles.cols),
        (names.blocks, found.blocks.len(), n_rows * tiles.cols / 2),
        (names.scales, found.scales.len(), n_rows * tiles.cols / tessera_model::mxfp4::BLOCK),
        (names.bias, found.bias.len(), n_rows),
    ] {
        if found != expected {
            return Err(MoeError::Length { what, expected, found });
        }
    }
    Ok(())
}

/// One expert's biases `[rows]` in the order of the packed rows, `[strips * 64]`.
fn packed_bias(bias: &[bf16], tiles: Tiles) -> Vec<f32> {
    let of_row = |packed| bias.get(tiles.order.source(packed)).map_or(0.0, |bias| bias.to_f32());
    (0..tiles.packed_rows()).map(of_row).collect()
}
