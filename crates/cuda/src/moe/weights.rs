use half::bf16;
use tessera_model::weights::Experts;

use super::{MoeError, MoeShape};
use crate::device::{Buffer, Device};
use crate::launch::Stream;
use crate::moe::shape::Tiles;
use crate::pack::{Matrix, Packer, ScaleShift, Shape, TILE_ROWS};

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
        let shape = shape.checked()?;
        check(&GATE_UP, gate_up, shape.experts, shape.gate_up())?;
        check(&DOWN, down, shape.experts, shape.down())?;
        Ok(Self {
            shape,
            gate_up: Projection::upload(device, stream, GATE_UP.name, gate_up, shape.gate_up())?,
            down: Projection::upload(device, stream, DOWN.name, down, shape.down())?,
        })
    }

    pub fn shape(&self) -> MoeShape {
        self.shape
    }
}

impl Projection {
    fn upload(
        device: &Device,
        stream: &Stream,
        what: &'static str,
        from: &Experts,
        tiles: Tiles,
    ) -> Result<Self, MoeError> {
        let pack = |source| MoeError::Pack { what, source };
        let shape = Shape::new(tiles.rows, tiles.cols).map_err(pack)?;
        let shift = ScaleShift::of(from.scales, shape.blocks()).map_err(pack)?;
        let (n_codes, n_scales) = (tiles.rows * tiles.cols / 2, tiles.rows * shape.blocks());
        let mut records = device.alloc(from.experts * shape.packed_bytes())?;
        let mut bias = device.alloc(from.experts * tiles.strips * TILE_ROWS)?;
        let mut packed = vec![0; shape.packed_bytes()];
        for e in 0..from.experts {
            let blocks = &from.blocks[e * n_codes..][..n_codes];
            let scales = &from.scales[e * n_scales..][..n_scales];
            let matrix = Matrix::new(blocks, scales, shape).map_err(pack)?;
            Packer::new(matrix, tiles.order, shift).map_err(pack)?.pack(&mut packed);
            stream.upload(&packed, &mut records, e * shape.packed_bytes())?;
            let row_bias = packed_bias(&from.bias[e * tiles.rows..][..tiles.rows], tiles);
            stream.upload(&row_bias, &mut bias, e * tiles.strips * TILE_ROWS)?;
        }
        Ok(Self { records, bias, weight_scale: shift.factor() })
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
    (0..tiles.strips * TILE_ROWS).map(of_row).collect()
}
