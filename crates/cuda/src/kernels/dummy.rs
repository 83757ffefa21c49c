use bytemuck::{Pod, Zeroable};

use super::pack::{dense_records, expert_records, packed_rows};
use crate::device::{Address, Device};
use crate::error::DeviceError;
use crate::launch::{Kernel, Launch, Stream};

/// As in `dummy.cu`: threads of `dummy_rows`.
const ROWS_THREADS: u32 = 256;
/// As in `dummy.cu`: values that a thread of `dummy_rows` makes.
const ROWS_VALUES: u64 = 8;

/// `Distribution` of `dummy.cu`: the values of a part stored as BF16.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Distribution {
    pub key: u64,
    pub mean: f32,
    pub deviation: f32,
}

/// `DummyRowsArgs` of `dummy.cu`.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct DummyRowsArgs {
    pub from: Distribution,
    pub target: Address,
    /// Values, a multiple of 8.
    pub n: u64,
}

/// `DummyDenseArgs` of `dummy.cu`.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct DummyDenseArgs {
    pub from: Distribution,
    pub records: Address,
    pub rows: u32,
    pub cols: u32,
}

/// `DummyWidenArgs` of `dummy.cu`.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct DummyWidenArgs {
    pub from: Distribution,
    pub target: Address,
    pub rows: u32,
    pub packed_rows: u32,
    pub order: u32,
    pub padding: u32,
}

/// `DummyExpertsArgs` of `dummy.cu`.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct DummyExpertsArgs {
    pub block_key: u64,
    pub scale_key: u64,
    pub records: Address,
    pub rows: u32,
    pub cols: u32,
    pub order: u32,
    /// Exponent field of the commonest scale byte.
    pub base_field: u32,
    pub padding_field: u32,
    pub padding: u32,
}

/// Makes weights where they are used. That there is room at the addresses is the caller's business.
pub(crate) struct DummyKernels {
    rows: Kernel<DummyRowsArgs>,
    dense: Kernel<DummyDenseArgs>,
    widen: Kernel<DummyWidenArgs>,
    experts: Kernel<DummyExpertsArgs>,
}

impl DummyKernels {
    pub fn load(device: &Device) -> Result<Self, DeviceError> {
        Ok(Self {
            rows: device.kernel("dummy", "dummy_rows")?,
            dense: device.kernel("dummy", "dummy_dense")?,
            widen: device.kernel("dummy", "dummy_widen")?,
            experts: device.kernel("dummy", "dummy_experts")?,
        })
    }

    pub fn rows(&self, stream: &Stream, args: &DummyRowsArgs) -> Result<(), DeviceError> {
        let n_blocks = args.n.div_ceil(ROWS_VALUES * u64::from(ROWS_THREADS));
        stream.launch(&self.rows, Launch::new(n_blocks as u32, ROWS_THREADS), args)
    }

    pub fn dense(&self, stream: &Stream, args: &DummyDenseArgs) -> Result<(), DeviceError> {
        stream.launch(&self.dense, dense_records(args.rows, args.cols), args)
    }

    /// Of so many matrices.
    pub fn widen(&self, stream: &Stream, matrices: usize, args: &DummyWidenArgs) -> Result<(), DeviceError> {
        stream.launch(&self.widen, packed_rows(args.packed_rows, matrices), args)
    }

    /// Of so many matrices.
    pub fn experts(&self, stream: &Stream, matrices: usize, args: &DummyExpertsArgs) -> Result<(), DeviceError> {
        stream.launch(&self.experts, expert_records(args.rows, args.cols, matrices), args)
    }
}
