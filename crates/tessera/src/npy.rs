//! NumPy's `.npy` format, version 1.0, for float32 matrices.

use std::io::{self, Write};

const MAGIC: &[u8; 8] = b"\x93NUMPY\x01\x00";
/// The header ends at a multiple of this.
const ALIGN: usize = 64;

/// Begins a file of `[rows, cols]` values, which follow through [`write_values`], row-major.
pub fn write_header(out: &mut impl Write, rows: usize, cols: usize) -> io::Result<()> {
    let mut header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {cols}), }}");
    let unpadded = MAGIC.len() + size_of::<u16>() + header.len() + 1;
    header.push_str(&" ".repeat(unpadded.next_multiple_of(ALIGN) - unpadded));
    header.push('\n');
    let header_len = u16::try_from(header.len()).map_err(io::Error::other)?;
    out.write_all(MAGIC)?;
    out.write_all(&header_len.to_le_bytes())?;
    out.write_all(header.as_bytes())
}

pub fn write_values(out: &mut impl Write, values: &[f32]) -> io::Result<()> {
    if cfg!(target_endian = "little") {
        return out.write_all(bytemuck::cast_slice(values));
    }
    values.iter().try_for_each(|value| out.write_all(&value.to_le_bytes()))
}
