use bytemuck::{Pod, Zeroable};

use crate::device::{Address, Device};
use crate::error::DeviceError;
use crate::launch::{Kernel, Launch, Stream};
use crate::pack::{Rows, TILE_K, TILE_ROWS};

/// As in `pack.cuh`: rows of a record of BF16.
pub(crate) const DENSE_ROWS: usize = 16;
/// As in `pack.cuh`: columns of a record of BF16.
pub(crate) const DENSE_COLS: usize = 64;
/// As in `pack.cu`: threads that make a record, of either kind.
const RECORD_THREADS: u32 = 128;
/// As in `pack.cu`: threads of `widen`.
const WIDEN_THREADS: u32 = 256;

/// `PackExpertsArgs` of `pack.cu`: one matrix, or whole strips of it.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct PackExpertsArgs {
    pub blocks: Address,
    pub scales: Address,
    pub records: Address,
    pub rows: u32,
    pub cols: u32,
    /// [`order`]
    pub order: u32,
    /// Added to a scale byte, modulo 256.
    pub field_offset: u32,
    pub padding_field: u32,
    pub padding: u32,
}

/// `PackDenseArgs` of `pack.cu`: one matrix, or whole strips of it.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct PackDenseArgs {
    pub source: Address,
    pub records: Address,
    pub rows: u32,
    pub cols: u32,
}

/// `WidenArgs` of `pack.cu`.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct WidenArgs {
    pub source: Address,
    pub target: Address,
    pub rows: u32,
    pub packed_rows: u32,
    /// [`order`]
    pub order: u32,
    pub padding: u32,
}

/// From the checkpoint's forms to the kernels'. That there is room at the addresses is the caller's business.
pub(crate) struct PackKernels {
    experts: Kernel<PackExpertsArgs>,
    dense: Kernel<PackDenseArgs>,
    widen: Kernel<WidenArgs>,
}

impl PackKernels {
    pub fn load(device: &Device) -> Result<Self, DeviceError> {
        Ok(Self {
            experts: device.kernel("pack", "pack_experts")?,
            dense: device.kernel("pack", "pack_dense")?,
            widen: device.kernel("pack", "widen")?,
        })
    }

    pub fn experts(&self, stream: &Stream, args: &PackExpertsArgs) -> Result<(), DeviceError> {
        stream.launch(&self.experts, expert_records(args.rows, args.cols, 1), args)
    }

    pub fn dense(&self, stream: &Stream, args: &PackDenseArgs) -> Result<(), DeviceError> {
        stream.launch(&self.dense, dense_records(args.rows, args.cols), args)
    }

    /// Of so many matrices.
    pub fn widen(&self, stream: &Stream, matrices: usize, args: &WidenArgs) -> Result<(), DeviceError> {
        stream.launch(&self.widen, packed_rows(args.packed_rows, matrices), args)
    }
}

/// `pack::Order` of `pack.cuh`.
pub(crate) fn order(rows: Rows) -> u32 {
    match rows {
        Rows::Natural => 0,
        Rows::GateUp => 1,
    }
}

/// A block for each record of so many MXFP4 matrices.
pub(super) fn expert_records(rows: u32, cols: u32, matrices: usize) -> Launch {
    let grid = [cols.div_ceil(TILE_K as u32), rows.div_ceil(TILE_ROWS as u32), matrices as u32];
    Launch { grid, ..Launch::new(1, RECORD_THREADS) }
}

/// A block for each record of a BF16 matrix.
pub(super) fn dense_records(rows: u32, cols: u32) -> Launch {
    let grid = [cols.div_ceil(DENSE_COLS as u32), rows.div_ceil(DENSE_ROWS as u32), 1];
    Launch { grid, ..Launch::new(1, RECORD_THREADS) }
}

/// A thread for each of so many matrices' packed rows.
pub(super) fn packed_rows(rows: u32, matrices: usize) -> Launch {
    Launch { grid: [rows.div_ceil(WIDEN_THREADS), matrices as u32, 1], ..Launch::new(1, WIDEN_THREADS) }
}
