use bytemuck::{Pod, Zeroable};

use crate::device::{Address, Buffer, Device};
use crate::error::DeviceError;
use crate::launch::{Kernel, Launch, Stream};
use crate::pack::{RECORD_BYTES, REGISTERS, STEPS, THREADS};

/// As in `decode_probe.cu`.
const N_THREADS: u32 = 256;
/// Numbers in BF16.
const NUMBERS: usize = 1 << 16;
/// Registers of all threads for one record.
const RECORD_REGISTERS: usize = THREADS * STEPS * REGISTERS;

/// `MultiplyTableArgs` and `DecodeRecordsArgs` of `decode_probe.cu`.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Args {
    from: Address,
    to: Address,
}

/// The parts of the decode by themselves.
pub(crate) struct DecodeKernels {
    multiply_table: Kernel<Args>,
    decode_records: Kernel<Args>,
}

impl DecodeKernels {
    pub fn load(device: &Device) -> Result<Self, DeviceError> {
        let load = |name| device.kernel("decode_probe", name);
        Ok(Self { multiply_table: load("multiply_table")?, decode_records: load("decode_records")? })
    }

    /// `products` `[fields, 65536]`: in its low half the BF16 of that number times `2^(field - 127)`, in its high half the same
    /// of 65535 less the number.
    pub fn multiply_table(
        &self,
        stream: &Stream,
        fields: &Buffer<u8>,
        products: &mut Buffer<u32>,
    ) -> Result<(), DeviceError> {
        has_room(products, fields.len() * NUMBERS)?;
        let grid = [NUMBERS as u32 / N_THREADS, fields.len() as u32, 1];
        let args = Args { from: fields.address(), to: products.address() };
        stream.launch(&self.multiply_table, Launch { grid, ..Launch::new(1, N_THREADS) }, &args)
    }

    /// `registers` `[records, threads, 16]`: what each thread makes of `records` `[records, 2176]`.
    pub fn decode_records(
        &self,
        stream: &Stream,
        records: &Buffer<u8>,
        registers: &mut Buffer<u32>,
    ) -> Result<(), DeviceError> {
        let n_records = records.len() / RECORD_BYTES;
        has_room(registers, n_records * RECORD_REGISTERS)?;
        let args = Args { from: records.address(), to: registers.address() };
        stream.launch(&self.decode_records, Launch::new(n_records as u32, THREADS as u32), &args)
    }
}

fn has_room(buffer: &Buffer<u32>, n: usize) -> Result<(), DeviceError> {
    match n <= buffer.len() {
        true => Ok(()),
        false => Err(DeviceError::Bounds { at: 0, n, len: buffer.len() }),
    }
}
