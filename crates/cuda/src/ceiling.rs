//! What the GPU's memory allows.

use crate::device::Device;
use crate::error::DeviceError;
use crate::kernels::copy::Copier;

/// Bytes that each copy reads, and writes: far beyond the L2 cache.
const BUFFER_BYTES: usize = 1 << 30;
/// Copies in the graph: together some milliseconds, which hides the launch and the clock's resolution.
const COPIES: usize = 8;
/// Replays of the graph, after one that warms up; the fastest counts.
const REPLAYS: usize = 5;

/// Bytes a second that the GPU moves when it only copies, reads and writes counted both: the ceiling of decoding.
///
/// Takes 2 GiB of the GPU's memory while it measures.
pub fn copy_bandwidth(device: &Device) -> Result<f64, DeviceError> {
    let copier = Copier::load(device)?;
    let stream = device.stream()?;
    let from = device.alloc(BUFFER_BYTES / size_of::<[u32; 4]>())?;
    let mut to = device.alloc(from.len())?;
    let graph = stream.capture(|| (0..COPIES).try_for_each(|_| copier.launch(&stream, &from, &mut to)))?;
    let (start, end) = (device.event()?, device.event()?);
    stream.replay(&graph)?;
    let mut fastest_ms = f32::INFINITY;
    for _ in 0..REPLAYS {
        stream.record(&start)?;
        stream.replay(&graph)?;
        stream.record(&end)?;
        fastest_ms = fastest_ms.min(end.ms_since(&start)?);
    }
    Ok((2 * COPIES * BUFFER_BYTES) as f64 / (f64::from(fastest_ms) / 1e3))
}
