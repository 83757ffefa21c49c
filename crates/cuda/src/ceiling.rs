//! What the GPU allows: its memory, and its tensor cores.

use half::bf16;

use crate::cublas::Cublas;
use crate::device::Device;
use crate::error::DeviceError;
use crate::kernels::copy::Copier;
use crate::launch::Stream;

/// Bytes that each copy reads, and writes: far beyond the L2 cache.
const BUFFER_BYTES: usize = 1 << 30;
/// Copies in the graph: together some milliseconds, which hides the launch and the clock's resolution.
const COPIES: usize = 8;
/// Runs of what is measured, after one that warms up; the fastest counts.
const RUNS: usize = 5;
/// Rows and columns of the matrices: large enough that nothing but the tensor cores counts.
const MATRIX: usize = 8192;
const PRODUCTS: usize = 5;
/// Elements after which the matrices' random numbers repeat.
const PERIOD: usize = 1 << 20;

/// Bytes a second that the GPU moves when it only copies, reads and writes counted both: the ceiling of decoding.
///
/// Takes 2 GiB of the GPU's memory while it measures.
pub fn copy_bandwidth(device: &Device) -> Result<f64, DeviceError> {
    let copier = Copier::load(device)?;
    let stream = device.stream()?;
    let from = device.alloc(BUFFER_BYTES / size_of::<[u32; 4]>())?;
    let mut to = device.alloc(from.len())?;
    let graph = stream.capture(|| (0..COPIES).try_for_each(|_| copier.launch(&stream, &from, &mut to)))?;
    let ms = fastest_ms(device, &stream, || stream.replay(&graph))?;
    Ok((2 * COPIES * BUFFER_BYTES) as f64 / (ms / 1e3))
}

/// Floating-point operations a second of cuBLAS's product of two BF16 matrices of 8192 x 8192 random numbers: the ceiling of
/// prefill. None where the library is not on the loader's path.
pub fn matmul_rate(device: &Device) -> Result<Option<f64>, DeviceError> {
    let stream = device.stream()?;
    let (mut a, mut b) = (device.alloc(MATRIX * MATRIX)?, device.alloc(MATRIX * MATRIX)?);
    let mut c = device.alloc(MATRIX * MATRIX)?;
    let Some(cublas) = Cublas::open(device, &stream)? else { return Ok(None) };
    for (seed, matrix) in [(1, &mut a), (2, &mut b)] {
        let values = random(seed);
        for at in (0..MATRIX * MATRIX).step_by(PERIOD) {
            stream.upload(&values, matrix, at)?;
        }
    }
    let ms = fastest_ms(device, &stream, || (0..PRODUCTS).try_for_each(|_| cublas.multiply(MATRIX, &a, &b, &mut c)))?;
    Ok(Some((PRODUCTS * 2 * MATRIX.pow(3)) as f64 / (ms / 1e3)))
}

fn fastest_ms(
    device: &Device,
    stream: &Stream,
    mut queue: impl FnMut() -> Result<(), DeviceError>,
) -> Result<f64, DeviceError> {
    let (start, end) = (device.event()?, device.event()?);
    queue()?;
    let mut fastest_ms = f32::INFINITY;
    for _ in 0..RUNS {
        stream.record(&start)?;
        queue()?;
        stream.record(&end)?;
        fastest_ms = fastest_ms.min(end.ms_since(&start)?);
    }
    Ok(f64::from(fastest_ms))
}

/// `[PERIOD]` numbers from -1 to 1: a linear congruential generator (Knuth's MMIX).
fn random(seed: u64) -> Vec<bf16> {
    let mut state = seed;
    let next = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        bf16::from_f32((state >> 40) as f32 / (1 << 23) as f32 - 1.0)
    };
    (0..PERIOD).map(next).collect()
}
